"""Which images are drawn, what they are called, and which captions are swapped."""

import json
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from caprl_ray.errors import RecipeError
from caprl_ray.evaluate import captions
from caprl_ray.evaluate.answers import Image
from caprl_ray.evaluate.folder import Place
from caprl_ray.evaluate.kinds import image_kinds, question_kind
from caprl_ray.evaluate.pictures import stored
from caprl_ray.evaluate.sample import Drawn, _Scan, sample, stratified
from caprl_ray.report.facts import facts
from caprl_ray.storage import Storage
from tests.evaluate.outputs import alt_text, full, half, key, picture, write


def image(number: int, kind: str = "photo", side: int = 100) -> Drawn:
    name = f"{number * 2654435761 % 2**32:08x}{number:056x}"  # of a hash the first digits differ
    return Drawn(image=Image(key=name, source="", kind=kind, width=side, height=side), rows=())


MANY = [
    image(number, kind, side)
    for number, (kind, side) in enumerate([("photo", 100)] * 600 + [("chart", 100)] * 300 + [("chart", 5000)] * 100)
]


def test_a_sample_has_of_each_kind_and_resolution_as_large_a_share_as_there_is() -> None:
    drawn = stratified(MANY, 50, seed=1)
    assert Counter((one.image.kind, one.image.width) for one in drawn) == {
        ("photo", 100): 30,
        ("chart", 100): 15,
        ("chart", 5000): 5,
    }
    assert stratified(list(reversed(MANY)), 50, seed=1) == drawn
    other = stratified(MANY, 50, seed=2)
    assert len({one.image.key for one in other} & {one.image.key for one in drawn}) < 15
    smaller, keys = stratified(MANY, 20, seed=1), {one.image.key for one in drawn}
    assert all(one.image.key in keys for one in smaller)
    assert len(stratified(MANY, 5000, seed=1)) == 1000


def test_the_same_images_are_drawn_from_all_outputs_whatever_their_order(tmp_path: Path) -> None:
    first = write(tmp_path, "first", range(40), full)
    second = write(tmp_path, "second", range(44, 3, -1), half, failed=(7,))
    a, b = (facts(Storage(), str(path)) for path in (first, second))
    found = sample([a, b], 12, 0)
    assert found.common == 35 and found.every == 1 and len(found.drawn) == 12
    assert Counter(one.image.kind for one in found.drawn) == {"even": 6, "odd": 6}  # the recipe's two paths
    assert [one.image for one in sample([b, a], 12, 0).drawn] == [one.image for one in found.drawn]
    for one in found.drawn:
        assert {row["sha256"] for row in one.rows} == {one.image.key}
    texts = captions.captions([a, b], found.drawn, 0)
    assert texts.references == ("empty", "swapped", "alt text") and texts.outputs == (f"A: {first}", f"B: {second}")
    numbers = {key(picture(tmp_path, number)): number for number in range(44)}
    for one in found.drawn:
        number, name = numbers[one.image.key], one.image.key
        assert texts.texts[f"A: {first}", name] == full(number) and texts.texts[f"B: {second}", name] == half(number)
        assert texts.texts.get(("alt text", name)) == alt_text(number)
        assert texts.texts["swapped", name] != full(number)


def test_of_large_outputs_the_same_part_is_looked_at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    outputs = [write(tmp_path, "a", range(48), full), write(tmp_path, "b", range(47, -1, -1), half)]
    monkeypatch.setattr("caprl_ray.evaluate.sample.MOST_CANDIDATES", 12)
    found = sample([facts(Storage(), str(path)) for path in outputs], 40, 0)
    assert found.every == 4 and 4 <= found.common == len(found.drawn) <= 24
    outputs.append(write(tmp_path, "c", range(6), full))
    kept, rows = list[int](), _Scan.rows

    def spied(*arguments: Any, **more: Any) -> dict[str, Any]:
        of = rows(*arguments, **more)
        kept.append(len(of))
        return of

    monkeypatch.setattr(_Scan, "rows", spied)
    found = sample([facts(Storage(), str(path)) for path in outputs], 40, 0)
    assert found.every == 1 and found.common == 6 == max(kept) and len(kept) == 3  # no more of the larger ones
    for one in found.drawn:
        assert [Path(row["object"].path).parts[-3] for row in one.rows] == ["a", "b", "c"]


def test_all_images_that_may_be_drawn_are_checked(tmp_path: Path) -> None:
    checked: list[Drawn] = []
    output = facts(Storage(), str(write(tmp_path, "out", range(8), full)))
    assert len(sample([output], 1, 0, check=checked.extend).drawn) == 1
    assert {one.image.key for one in checked} == {key(picture(tmp_path, number)) for number in range(8)}


def test_a_swapped_caption_is_of_another_image_of_the_same_kind_and_resolution() -> None:
    drawn = stratified(MANY, 200, seed=3)
    there = {one.image.key: one for one in drawn}
    found = captions.swapped(drawn, seed=3)
    assert found.keys() == set(found.values()) == there.keys()
    for name, other in found.items():
        assert name != other and there[name].stratum == there[other].stratum
    assert captions.swapped(drawn, seed=3) == found != captions.swapped(drawn, seed=4)
    lonely = [image(1), image(2), image(3, "chart")]
    assert all(name != other for name, other in captions.swapped(lonely, 0).items())
    assert len(captions.swapped(lonely, 0)) == 3 and captions.swapped(lonely[:1], 0) == {}


def test_outputs_without_common_images_are_refused(tmp_path: Path) -> None:
    paths = [write(tmp_path, name, numbers, full) for name, numbers in (("a", range(4)), ("b", range(10, 14)))]
    with pytest.raises(RecipeError, match="have no captioned image in common, by the SHA-256"):
        sample([facts(Storage(), str(path)) for path in paths], 10, 0)


def test_the_kind_of_an_image_is_a_column_of_the_source_if_that_is_wanted(tmp_path: Path) -> None:
    out = write(tmp_path, "out", range(8), full)
    found = sample([facts(Storage(), str(out))], 8, 0, column="alt_text")
    assert Counter(one.image.kind for one in found.drawn)["all"] == 2  # those without a value
    with pytest.raises(RecipeError, match=r"^--by: .* has no column kind of its source; it has alt_text\."):
        sample([facts(Storage(), str(out))], 8, 0, column="kind")
    told = json.loads((out / "run.json").read_text())
    told["input"]["paths"] = [str(tmp_path / "images")]
    (out / "run.json").write_text(json.dumps(told))
    assert {one.image.kind for one in sample([facts(Storage(), str(out))], 8, 0).drawn} == {"png"}


@pytest.mark.parametrize(
    ("paths", "kinds"),
    [
        (
            ["s3://b/photos/{00000..00099}.tar", "s3://b/charts/{00000..00099}.tar"],
            {"s3://b/photos/00000.tar": "photos", "s3://b/charts/00000.tar": "charts"},
        ),
        (["/d/photos-*.tar", "/d/charts-*.tar"], {"/d/photos-1.tar": "photos", "/d/charts-1.tar": "charts"}),
        (["/d/a/images", "/d/b/images/"], {"/d/a/images/1.png": "a", "/d/b/images/1.png": "b"}),
        (["/d", "/d/charts"], {"/d/1.png": "d", "/d/charts/1.png": "charts", "/d/charts-2/1.png": "d"}),
        (["/d/*.jpg", "/d/*.png"], {"/d/1.jpg": "jpg", "/d/1.png": "png"}),
    ],
)
def test_the_kind_of_an_image_is_the_input_path_that_it_comes_from(paths: list[str], kinds: dict[str, str]) -> None:
    facts: Any = SimpleNamespace(run={"input": {"paths": paths}}, plan=SimpleNamespace(units=[]))
    kind = image_kinds(facts, None)
    assert {source: kind({"source": source, "key": None, "unit": 0}) for source in kinds} == kinds


def test_a_column_of_labels_names_kinds_also_by_its_zeros() -> None:
    facts: Any = None
    kind = image_kinds(facts, "label")
    assert [kind({"old_text": value}) for value in (0, 0.0, False, 3, None, "")] == [
        "0",
        "0.0",
        "False",
        "3",
        "all",
        "all",
    ]


def test_a_caption_that_was_replaced_is_kept_where_the_column_of_old_ones_is_empty() -> None:
    rows = [{"old_text": None, "previous": "mine"}, {"old_text": "theirs", "previous": "mine"}]
    assert [list(captions._before(row, "old_caption")) for row in rows] == [
        [("previous caption", "mine")],
        [("previous caption", "theirs")],
    ]
    assert list(captions._before(rows[1], "alt")) == [("alt text", "theirs"), ("previous caption", "mine")]


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("How many dogs are there?", "counting"),
        ("What color is the shape at the left?", "color"),
        ("Where is the cat?", "position"),
        ("What stands to the left of the tree?", "position"),
        ("What does the sign say? What text is on it?", "text"),
        ("How large is the shape at the top?", "size"),
        ("What is the man holding?", "action"),
        ("What animal is it?", "other"),
    ],
)
def test_the_kind_of_a_question_follows_from_its_words(text: str, kind: str) -> None:
    assert question_kind(text) == kind and question_kind(text, "chart") == "chart"


def test_an_image_is_kept_as_it_is_stored_and_a_gone_one_is_empty(tmp_path: Path) -> None:
    out = write(tmp_path, "out", range(8), full)
    output, place = facts(Storage(), str(out)), Place(storage=Storage(), path=str(tmp_path / "work"))
    picture(tmp_path, 3).unlink()
    drawn = sample([output], 8, 0).drawn
    found = stored(place, output, drawn)
    contents = {one.image.key: Path(one.rows[0]["source"]) for one in drawn}
    seen = {name: found.read(name) for name in contents}
    assert seen == {name: path.read_bytes() if path.exists() else b"" for name, path in contents.items()}
    ((gone, said),) = found.gone.items()
    assert contents[gone].name == "003.png" and said
    for path in contents.values():
        path.unlink(missing_ok=True)
    again = stored(place, output, drawn)
    assert {name: again.read(name) for name in contents} == seen and again.gone.keys() == found.gone.keys()
    path = picture(tmp_path, 3)
    back = stored(place, output, drawn)  # what could not be read is looked for again
    assert {name: back.read(name) for name in contents} == seen | {gone: path.read_bytes()} and not back.gone
    path.unlink()
    assert stored(place, output, drawn).read(gone) and not stored(place, output, drawn).gone
