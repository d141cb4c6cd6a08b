"""Two outputs of the same images, joined by where the images lie or by their bytes."""

import time
from pathlib import Path

import pyarrow as pa
import pytest

from caprl_ray import plan
from caprl_ray.caption.columns import CAPTION
from caprl_ray.cli import main
from caprl_ray.output.commit import CommittedRows
from caprl_ray.plan import Entry, Unit
from caprl_ray.report.compare import _parts
from caprl_ray.report.facts import facts
from caprl_ray.report.pairs import BY_BYTES, BY_PLACE, paired
from caprl_ray.rows.schema import row_schema
from caprl_ray.storage import Storage, Stored

# Two recipes on six images: the same caption, one word more, other words, another flag, failed in one, failed in both.
A = ("A red cup.", "A red cup on a table.", "A dog in the snow.", "A cat.", "A bird.", None)
B = ("A red cup.", "A red cup on a white table.", "Seven green bottles.", "A cat.", None, None)


def write(
    out: Path,
    captions: tuple[str | None, ...],
    *,
    place: str = "/in",
    bytes_of: str = "same",
    lease: int = 1,
    repeated: bool = False,
) -> Path:
    """An output with these captions, or more rows of it. `repeated`: all images have the same bytes."""
    count = len(captions)
    entries = [Entry(stored=Stored(path=f"{place}/{n}.jpg", size=1, version="v"), key=f"{n}.jpg") for n in range(count)]
    if lease == 1:
        plan.store(Storage(), str(out), [Unit(kind="files", rows=count, entries=entries)])
    rows = [
        {
            "id": f"000000-{n:08d}",
            "unit": 0,
            "index": n,
            "source": f"{place}/{n}.jpg",
            "key": f"{n}.jpg",
            "sha256": bytes_of if repeated else f"{bytes_of} {n}",
            "attempts": lease,
            "caption": caption,
            "flags": ["loop"] if n == 3 and captions is A else [],
            "caption_tokens": len(caption or ""),
            "code": None if caption else "caption_empty",
        }
        for n, caption in enumerate(captions)
    ]
    schema = row_schema(pa.schema([]), CAPTION)
    CommittedRows(Storage(), str(out), 1, CAPTION, lease).write([pa.Table.from_pylist(rows, schema=schema)], None)
    return out


@pytest.mark.parametrize("place", ["/in", "/moved"])
def test_images_are_found_again_and_those_that_differ_most_are_shown(tmp_path: Path, place: str) -> None:
    one, other = write(tmp_path / "a", A), write(tmp_path / "b", B, place=place)
    with paired(*(facts(Storage(), str(out)) for out in (one, other)), None) as pairs:
        assert pairs.by == (BY_PLACE if place == "/in" else BY_BYTES)
        assert pairs.count == 6 and pairs.same() == 2
        assert pairs.counts("a", "flags") == {"loop": 1} and pairs.counts("b", "flags") == {}
        assert pairs.counts("a", "code") == {"caption_empty": 1} and pairs.counts("b", "code") == {"caption_empty": 2}
        assert sorted(pairs.numbers("a", "characters")) == sorted(len(text) for text in A if text)
        shown = [(pair["reason"], pair["a"]["key"]) for pair in pairs.chosen(9)]
        assert sorted(shown) == [("failed", "4.jpg"), ("flags", "3.jpg"), ("words", "1.jpg"), ("words", "2.jpg")]
        assert [key for reason, key in shown if reason == "words"] == ["2.jpg", "1.jpg"]
        assert sorted(pairs.distances()) == pytest.approx([0, 0, 1 - 10 / 11, 1], abs=1e-6)


def test_rows_that_are_superseded_are_not_compared(tmp_path: Path) -> None:
    one, other = write(tmp_path / "a", A), write(tmp_path / "b", B)
    write(tmp_path / "b", ("A blue cup.", None), lease=2)  # an --again that is not finished; the second failed again
    with paired(*(facts(Storage(), str(out)) for out in (one, other)), None) as pairs:
        assert pairs.count == 6
        now = {pair["b"]["key"]: pair["b"]["caption"] for pair in pairs.chosen(9)}
        assert (now["0.jpg"], now["1.jpg"]) == ("A blue cup.", B[1])


def test_of_repeated_images_each_stands_beside_one(tmp_path: Path) -> None:
    many = tuple(f"A red cup, number {n}." for n in range(3000))  # 9 million pairs would take minutes
    one, other = (write(tmp_path / side, many, place=f"/{side}", repeated=True) for side in ("a", "b"))
    start = time.monotonic()
    with paired(*(facts(Storage(), str(out)) for out in (one, other)), None) as pairs:
        assert (pairs.by, pairs.count, pairs.same()) == (BY_BYTES, 3000, 3000)
    assert time.monotonic() - start < 20


def test_an_image_with_other_bytes_in_its_place_is_another_image(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    one, other = write(tmp_path / "a", A), write(tmp_path / "b", B, bytes_of="other")
    assert main(["compare", str(one), str(other)]) == 2
    said = capsys.readouterr().err
    assert "have no image in common" in said and said.count("\n") == 1


def test_of_large_outputs_the_same_images_are_taken(tmp_path: Path) -> None:
    one, other = (facts(Storage(), str(write(tmp_path / name, rows))) for name, rows in (("a", A), ("b", B)))
    with paired(one, other, None, most=2) as pairs:
        taken = [pairs.connection.execute(f"select list(key order by key) from {side}").fetchall() for side in "ab"]
        assert pairs.every == 3 and taken[0] == taken[1] and len(taken[0][0][0]) == pairs.count < 6


def test_words_of_one_caption_only_are_marked() -> None:
    one, other = _parts("A red cup.", "A <b>red</b> cup.")
    assert [text for marked, text in one if marked] == ["red"]
    assert [text for marked, text in other if marked] == ["<b>red</b>"]
    assert "".join(text for _, text in other) == "A <b>red</b> cup."
