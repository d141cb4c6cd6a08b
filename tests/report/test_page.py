"""The page of a report in a real browser: its contents, its use, and hostile captions that do no harm.

It needs Chromium, such as Debian's package `chromium`; the tests are skipped where it is not found on PATH, nor at
the path that CAPRL_RAY_CHROMIUM gives.
"""

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from caprl_ray.cli import main
from caprl_ray.evaluate.answers import EMPTY
from caprl_ray.evaluate.figures import evaluated
from caprl_ray.evaluate.page import page as evaluation_page
from tests.evaluate.evaluations import evaluation
from tests.report.outputs import BIDI, SCRIPT, STYLE, write

if TYPE_CHECKING:
    from playwright.sync_api import Page

CHROMIUM = os.environ.get("CAPRL_RAY_CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser")
pytestmark = pytest.mark.skipif(not CHROMIUM, reason="there is no Chromium on PATH; install the package chromium")
ARGUMENTS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
)
PHONE = {"width": 390, "height": 844}
DESK = {"width": 1280, "height": 900}


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=list(ARGUMENTS))
        yield chromium
        chromium.close()


@pytest.fixture(scope="module")
def outputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("report")
    write(folder)
    write(folder, longer=True)
    evaluate(folder)
    assert main(["report", str(folder / "out")]) == 0
    assert main(["compare", str(folder / "out"), str(folder / "longer")]) == 0
    return folder


def evaluate(folder: Path) -> None:
    """The figures and the page of an evaluation of both outputs. Every text of the data is hostile; of all images the
    first has no picture that can be read, and the second none at all."""
    pictures = sorted((folder / "images").iterdir())[:40]
    bytes_of = {path.name: path.read_bytes() for path in pictures} | {pictures[0].name: b"GIF", pictures[1].name: b""}
    questions = [f"{STYLE}:{number}" for number in range(5)]
    values = {
        str(folder / out): {
            path.name: {question: float((number * 7 + place) % 5 < good) for place, question in enumerate(questions)}
            for number, path in enumerate(pictures)
        }
        for out, good in (("out", 2), ("longer", 4), (EMPTY, 1))
    }
    found = evaluation(
        {EMPTY if way.endswith(EMPTY) else way: of for way, of in values.items()},
        kinds=lambda image: f"{SCRIPT} {image[3]}" if image[3] < "5" else "chart",
        captions=lambda way, image: f"{BIDI} {SCRIPT} {way}",
        pictures=bytes_of.__getitem__,
        text=f"{STYLE} {SCRIPT}",
    )
    figures = evaluated(found)
    (folder / "out" / "evaluation.json").write_text(json.dumps(figures))
    (folder / "evaluation.html").write_text(evaluation_page(found, figures), encoding="utf-8")


@pytest.fixture
def page(browser: Any, outputs: Path) -> Iterator["Page"]:
    """The report, with everything that it asks for and says in `page.heard`."""
    opened = browser.new_page(viewport=DESK)
    yield shown(opened, outputs / "out" / "report" / "index.html")
    opened.close()


def shown(opened: Any, path: Path) -> Any:
    heard: list[str] = []
    opened.on("request", lambda request: heard.append(request.url[:40]))
    opened.on("console", lambda message: heard.append(message.text))
    opened.on("pageerror", lambda error: heard.append(str(error)))
    opened.on("dialog", lambda dialog: heard.append(dialog.message))
    opened.goto(f"file://{path}")
    opened.heard = heard
    return opened


def visible(page: "Page") -> list[dict[str, str]]:
    return page.eval_on_selector_all(".card:not([hidden])", "cards => cards.map(card => ({...card.dataset}))")


def faults(page: "Page") -> list[str]:
    """The findings of axe-core with serious or critical impact."""
    from axe_playwright_python.sync_playwright import Axe

    found = Axe().run(page).response["violations"]
    return [
        f"{fault['id']}: {node['html'][:200]}"
        for fault in found
        if fault["impact"] in ("serious", "critical")
        for node in fault["nodes"]
    ]


def test_hostile_captions_are_text_and_nothing_is_asked_of_the_network(page: "Page", outputs: Path) -> None:
    page.wait_for_timeout(200)
    assert {url.partition(":")[0] for url in page.heard} <= {"file", "data"}
    assert [url for url in page.heard if url.startswith("file")] == [f"file://{outputs}/out/report/index.html"[:40]]
    assert page.title() == "out - caprl_ray report"
    assert page.locator("script").count() == page.locator("style").count() == 1
    assert page.locator(".card img[src=x]").count() == 0
    assert page.locator(".card img").first.evaluate("image => image.complete && image.naturalWidth > 100")
    for payload in (SCRIPT, STYLE, BIDI):
        assert page.locator(".card .body > .text").filter(has_text=payload).first.is_visible()
    assert page.locator("#recipe .text").filter(has_text=SCRIPT).is_visible()  # and in the prompt
    # A mark that turns the direction of text ends with the text that it stands in.
    example = page.locator("#failures li li").filter(has_text="gnp.exe").first
    dash, detail = example.evaluate(ENDS)
    assert dash < detail


# Where the dash after an example's place is, and where its detail is.
ENDS = """example => {
  const place = document.createRange(), after = example.querySelector("span.soft");
  place.setStart(after.firstChild, 0);
  place.setEnd(after.firstChild, 1);
  return [place.getBoundingClientRect().left, after.querySelector("bdi").getBoundingClientRect().left];
}"""


def test_rows_are_filtered_searched_and_sorted(page: "Page") -> None:
    assert "60 of 60 shown" in page.locator("#count").inner_text()
    assert "failed" in visible(page)[0]["kinds"]  # failures first
    page.select_option("#show", "failed")
    assert len(visible(page)) == 10
    page.select_option("#show", "flag:loop")
    loops = visible(page)
    assert loops and all("flag:loop" in card["kinds"].split() for card in loops)
    page.select_option("#show", "all")
    page.fill("#search", "LEAF spoon")
    assert 0 < len(visible(page)) < 60
    assert all("leaf" in text and "spoon" in text for text in page.locator(".card:visible").all_inner_texts())
    page.fill("#search", "no such word")
    assert not visible(page) and page.locator("#empty").is_visible()
    page.fill("#search", "")
    page.select_option("#sort", "length down")
    lengths = [int(card["length"]) for card in visible(page)]
    assert lengths == sorted(lengths, reverse=True)
    page.locator("#failures a").first.click()
    assert {card["kinds"].split()[0] for card in visible(page)} == {"failed"}


def test_everything_is_reached_by_the_keyboard(page: "Page") -> None:
    page.keyboard.press("/")
    assert page.evaluate("document.activeElement.id") == "search"
    page.keyboard.type("/j")
    assert page.locator("#search").input_value() == "/j"
    page.keyboard.press("Escape")
    assert page.locator("#search").input_value() == ""
    page.keyboard.press("j")
    page.keyboard.press("j")
    assert page.evaluate("document.activeElement.closest('.card').dataset.place") == "1"
    page.keyboard.press("Enter")
    sheet = page.locator("#sheet")
    assert sheet.is_visible() and "2 of 60" in sheet.inner_text() and "SHA-256" in sheet.inner_text()
    page.keyboard.press("ArrowRight")
    assert "3 of 60" in sheet.inner_text()
    page.keyboard.press("Escape")
    assert not sheet.is_visible()
    # The browser first gives the focus back to the card that opened the sheet.
    page.wait_for_function("document.activeElement.closest('.card')?.dataset.place === '2'")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_phone_shows_it_whole_and_no_serious_fault_of_accessibility_is_found(page: "Page", scheme: str) -> None:
    page.emulate_media(color_scheme=scheme)
    assert page.evaluate("matchMedia('(prefers-color-scheme: dark)').matches") == (scheme == "dark")
    background = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (background == "rgb(19, 21, 24)") == (scheme == "dark")
    assert not faults(page)
    for viewport in (PHONE, DESK):
        page.set_viewport_size(viewport)
        page.locator(".card .open").first.click()
        assert page.locator("#sheet").is_visible()
        assert page.evaluate("document.scrollingElement.scrollWidth <= innerWidth")
        assert page.evaluate("document.getElementById('sheet').getBoundingClientRect().right <= innerWidth")
        assert not faults(page)
        page.keyboard.press("Escape")


def test_two_outputs_are_shown_side_by_side_and_the_words_that_differ_are_marked(browser: Any, outputs: Path) -> None:
    page = shown(browser.new_page(viewport=DESK), outputs / "longer" / "report" / "compare.html")
    first = page.locator(".card").first
    assert "parked bicycles" in " ".join(first.locator(".sides > div").nth(1).locator("mark").all_inner_texts())
    assert "parked bicycles" not in first.locator(".sides > div").nth(0).inner_text()
    hostile = page.locator(".sides .text").filter(has_text=STYLE)
    assert hostile.first.is_visible() and page.locator("script").count() == page.locator("style").count() == 1
    assert {url.partition(":")[0] for url in page.heard} <= {"file", "data"}
    page.select_option("#sort", "distance down")
    distances = [float(card["distance"]) for card in visible(page)]
    assert len(distances) > 5 and distances == sorted(distances, reverse=True)
    assert not faults(page)
    page.set_viewport_size(PHONE)
    page.emulate_media(color_scheme="dark")
    page.locator(".card .open").first.click()
    assert page.locator("#sheet").is_visible()
    assert page.evaluate("document.scrollingElement.scrollWidth <= innerWidth")
    assert not faults(page)
    page.close()


THREE_CARDS = """for (const card of document.querySelectorAll(".card[hidden]")) card.remove();
[...document.querySelectorAll(".card")].slice(3).forEach(card => card.remove())"""


def test_an_evaluation_says_which_output_is_better_and_shows_its_worst_captions(browser: Any, outputs: Path) -> None:
    page = shown(browser.new_page(viewport=DESK), outputs / "evaluation.html")
    assert (
        "longer is better than out by 40.0 points [40.0, 40.0], p = 0.0001."
        in page.locator("#differences").inner_text()
    )
    assert "80.0 % [80.0, 80.0]" in page.locator("#scores tr").filter(has_text="longer").inner_text()
    assert page.locator("figure svg").count() == 2
    # Captions, questions and kinds are text, and nothing is asked of the network.
    assert page.title() == "out, longer - caprl_ray evaluate"
    assert page.locator("script").count() == page.locator("style").count() == 1
    assert page.locator("#groups th").filter(has_text=SCRIPT[:30]).first.is_visible()
    page.wait_for_timeout(200)
    assert {url.partition(":")[0] for url in page.heard} <= {"file", "data"}
    first = page.locator(".card").first
    assert first.locator(".body > .text").filter(has_text=SCRIPT).is_visible()
    assert first.locator(".asked p").filter(has_text=STYLE).first.is_visible()
    assert "0 of 5 answered right" not in first.inner_text() and "2 of 5 answered right" in first.inner_text()
    assert first.locator(".asked dd.bad").first.inner_text() == "can not answer"
    assert page.locator(".card img").first.evaluate("image => image.complete && image.naturalWidth > 100")
    missing = page.locator(".card .none").all_inner_texts()
    assert any("could not be read" in text for text in missing) and any("format" in text for text in missing)
    # As in a report: filters, the opened card, a phone in the dark.
    page.select_option("#show", label="longer (24)")
    assert len(visible(page)) == 24
    first = page.locator(".card:visible").first
    first.locator(".open").click()
    assert page.locator("#sheet").is_visible() and "SHA-256" in page.locator("#sheet").inner_text()
    page.keyboard.press("Escape")
    page.set_viewport_size(PHONE)
    assert page.evaluate("document.scrollingElement.scrollWidth <= innerWidth")
    page.evaluate(THREE_CARDS)  # with all of them axe takes several times as long
    assert len(visible(page)) == 3
    for scheme in ("light", "dark"):
        page.emulate_media(color_scheme=scheme)
        assert not faults(page)
    page.goto(f"file://{outputs}/out/report/index.html")
    note = page.locator("#ledger li").filter(has_text="Evaluated: 40.0 %").inner_text()
    assert "of 200 questions about 40 images" in note and "out/report/evaluation.html" in note
    page.close()
