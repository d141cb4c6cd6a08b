"""The page of a report in a real browser: its contents, its use, and hostile captions that do no harm.

It needs Chromium, such as Debian's package `chromium`; the tests are skipped where it is not found on PATH, nor at
the path that CAPRL_RAY_CHROMIUM gives.
"""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from caprl_ray.cli import main
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
    assert main(["report", str(folder / "out")]) == 0
    assert main(["compare", str(folder / "out"), str(folder / "longer")]) == 0
    return folder


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
    assert page.evaluate("document.activeElement.closest('.card').dataset.place") == "2"


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
