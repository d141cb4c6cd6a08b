"use strict";
// The gallery: filter, search, sort, keyboard. Texts of a dataset are only ever moved as nodes or as textContent.
const list = document.getElementById("cards");
const cards = [...list.children];
const texts = new Map(cards.map((card) => [card, card.textContent.toLowerCase()]));
const [search, show, sort, count, empty] = ["search", "show", "sort", "count", "empty"].map((id) => document.getElementById(id));
const dialog = document.getElementById("sheet");
let current = null; // the card that has the focus, or had it last
let opened = null; // the card in the dialog; closing it gives the focus back to another one at first

const visible = () => [...list.children].filter((card) => !card.hidden);

function matches(card, kind, words) {
  const kinds = card.dataset.kinds.split(" ");
  return (kind === "all" || kinds.includes(kind)) && words.every((word) => texts.get(card).includes(word));
}

function update() {
  const words = search.value.toLowerCase().split(/\s+/).filter(Boolean);
  let found = 0;
  for (const card of cards) {
    card.hidden = !matches(card, show.value, words);
    found += !card.hidden;
  }
  count.textContent = `${found.toLocaleString("en")} of ${cards.length.toLocaleString("en")} shown`;
  empty.hidden = found > 0;
}

function order() {
  const [name, direction] = sort.value.split(" ");
  const value = (card) => Number(card.dataset[name]);
  const sorted = [...cards].sort((a, b) => (direction === "down" ? value(b) - value(a) : value(a) - value(b)) || a.dataset.place - b.dataset.place);
  list.append(...sorted);
}

function copy(card, selector) {
  const node = card.querySelector(selector).cloneNode(true);
  node.querySelectorAll("[id]").forEach((part) => part.removeAttribute("id"));
  return node;
}

function open(card) {
  opened = card;
  const picture = document.createElement("div");
  picture.className = "open";
  picture.append(...copy(card, ".open").childNodes);
  dialog.querySelector(".picture").replaceChildren(picture);
  dialog.querySelector(".content").replaceChildren(copy(card, ".body"));
  const all = visible();
  dialog.querySelector("output").textContent = `${all.indexOf(card) + 1} of ${all.length}`;
  if (!dialog.open) dialog.showModal();
}

function step(by) {
  const all = visible();
  const next = all[all.indexOf(dialog.open ? opened : current) + by];
  if (!next) return;
  if (dialog.open) open(next);
  else {
    current = next;
    next.querySelector(".open").focus();
    next.scrollIntoView({ block: "nearest" });
  }
}

search.addEventListener("input", update);
show.addEventListener("change", update);
sort.addEventListener("change", order);
list.addEventListener("click", (event) => {
  const button = event.target.closest(".open");
  if (button) open(button.closest(".card"));
});
list.addEventListener("focusin", (event) => { current = event.target.closest(".card") || current; });
dialog.addEventListener("click", (event) => { if (event.target === dialog) dialog.close(); });
dialog.addEventListener("close", () => { if (opened && !opened.hidden) opened.querySelector(".open").focus(); });
for (const [id, by] of [["before", -1], ["after", 1]]) document.getElementById(id).addEventListener("click", () => step(by));
document.getElementById("close").addEventListener("click", () => dialog.close());
document.querySelectorAll("[data-show]").forEach((link) => link.addEventListener("click", () => { show.value = link.dataset.show; search.value = ""; update(); }));
document.getElementById("theme").addEventListener("click", () => {
  const dark = getComputedStyle(document.documentElement).colorScheme === "dark" || (!document.documentElement.dataset.theme && matchMedia("(prefers-color-scheme: dark)").matches);
  document.documentElement.dataset.theme = dark ? "light" : "dark";
});
document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  const typing = /^(INPUT|SELECT|TEXTAREA)$/.test(event.target.tagName);
  if (event.key === "Escape" && event.target === search) { search.value = ""; update(); search.blur(); }
  if (typing) return;
  const by = { j: 1, ArrowRight: 1, k: -1, ArrowLeft: -1 }[event.key];
  if (by) { event.preventDefault(); step(by); }
  if (event.key === "/" && !dialog.open) { event.preventDefault(); search.focus(); search.select(); }
});
update();
