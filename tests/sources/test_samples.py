"""Grouping into samples, compared with the webdataset library, and the failed rows of faulty samples."""

import io
import json
import random
import re
import tarfile
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from pyroaring import BitMap

from caprl_ray.plan.left_out import LeftOut
from caprl_ray.recipe.input import MAX_METADATA_BYTES, Input
from caprl_ray.rows.codes import FAILURE_CODES
from caprl_ray.sources.housekeeping import housekeeping
from caprl_ray.sources.samples import (
    IMAGE_EXTENSIONS,
    METADATA,
    Rules,
    Sample,
    group_samples,
    member_limit,
)
from caprl_ray.sources.tar import Member, TarDamaged, read_members

MAX_IMAGE = 100_000
RULES = Rules(max_image_bytes=MAX_IMAGE)


def content_of(position: int, name: str) -> bytes:
    """A different content for each member, valid for its kind."""
    kind = name.rpartition(".")[2].lower()
    text = {"json": '{"n": %d}', "cls": "%d"}.get(kind, "member %d")
    return (text % position).encode()


def archive(names: list[str], contents: list[bytes] | None = None) -> bytes:
    buffer = io.BytesIO()
    contents = contents or [content_of(position, name) for position, name in enumerate(names)]
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.GNU_FORMAT) as tar:
        for name, content in zip(names, contents, strict=True):
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


def samples_of(content: bytes, left_out: LeftOut | None = None, **rules: Any) -> Iterator[Sample]:
    found, by = LeftOut() if left_out is None else left_out, Rules(max_image_bytes=MAX_IMAGE, **rules)
    return group_samples(read_members(io.BytesIO(content), limit=member_limit(by), left_out=found), by, found)


def sample_of(*members: tuple[str, bytes]) -> Sample:
    (sample,) = samples_of(archive([name for name, _ in members], [content for _, content in members]))
    return sample


def by_webdataset(content: bytes) -> list[dict[str, bytes]]:
    """The library's samples. It refuses duplicate members; these are left out, and their sample is marked."""
    duplicates: list[str] = []

    def on_error(error: Exception) -> bool:
        assert isinstance(error, ValueError), error
        match = re.match(r"(.*): duplicate file name in tar file", str(error.args[0]), re.DOTALL)
        assert match is not None, error
        duplicates.append(match[1])
        return True

    found = []
    from webdataset.tariterators import group_by_keys, tar_file_expander  # imports torch, which takes seconds

    files = tar_file_expander([{"url": "shard.tar", "stream": io.BytesIO(content)}], handler=on_error)
    for sample in group_by_keys(files, handler=on_error):
        found.append({**sample, "duplicate": bool(duplicates)})
        duplicates.clear()
    return found


def as_ours(sample: dict[str, bytes]) -> tuple[object, ...]:
    """The library's sample in our columns. Their rules are simple enough to repeat here."""
    members = {name: value for name, value in sample.items() if not name.startswith("__") and name != "duplicate"}
    images = [value for name, value in members.items() if name.split(".")[-1] in IMAGE_EXTENSIONS]
    texts = {name: v.decode() for name, v in members.items() if name.split(".")[-1] in ("json", "txt", "cls")}
    extra = {name: value for name, value in texts.items() if "." in name} or None
    number = int(texts["cls"]) if "cls" in texts else None
    kinds = {name.rpartition(".")[0] for name in members if name.split(".")[-1] in IMAGE_EXTENSIONS}
    code = "duplicate_member" if sample["duplicate"] else None if images else "no_image"
    if code is None and len(kinds) > 1:
        code, images = "ambiguous_image", []
    return sample["__key__"], images[:1], texts.get("json"), texts.get("txt"), number, extra, code


def as_tuple(sample: Sample) -> tuple[object, ...]:
    extra = json.loads(str(sample.metadata["extra"])) if sample.metadata["extra"] is not None else None
    columns = [sample.metadata[name] for name in ("json", "txt", "cls")]
    images = [] if sample.image is None else [sample.image]
    return sample.key, images, *columns, extra, sample.failure.code if sample.failure else None


FOLDERS = st.sampled_from(["", "", "", "a/", "a.b/", "./", "/", "a.b/c/", "__m__/", "x/__m__/", ".h/", "//", "é/"])
BASES = st.sampled_from(["a", "a", "a", "b", "A", "", "__m__", "__m", "a b", "é", "\\"])
USED = ["jpg", "JPG", "seg.png", "Png", "jpeg", "txt", "TXT", "alt.txt", "json", "meta.JSON", "cls", "x.cls"]
UNUSED = ["tar.gz", "", ".", "npy", "jpg.bak", "..jpg", "a__", "jpg "]
EXTENSIONS = st.sampled_from([*USED, *UNUSED])
DOTTED = st.builds("{}{}.{}".format, FOLDERS, BASES, EXTENSIONS)
ANY_NAME = st.text(alphabet="a./_J", min_size=1, max_size=12).filter(
    lambda name: name.strip("/") and not housekeeping(name)
)


@settings(max_examples=400, deadline=None, database=None)
@given(names=st.lists(DOTTED | DOTTED | ANY_NAME, min_size=1, max_size=12))
@example(names=["a.jpg", "b.jpg", "a.txt", "a.jpg"])
@example(names=["a.seg.png", "a.jpg", "a.JPG", "a.alt.txt", "a.txt"])
@example(names=["x.y/.h.jpg", "x/.h.jpg", ".jpg", "/.jpg", "//.jpg", "x.y/z/.jpg", "__m__/a.jpg", "__a.jpg__"])
def test_keys_extensions_and_groups_are_those_of_webdataset(names: list[str]) -> None:
    content = archive(names)
    assert [as_tuple(sample) for sample in samples_of(content)] == [as_ours(s) for s in by_webdataset(content)]


@settings(max_examples=300, deadline=None, database=None)
@given(names=st.lists(DOTTED, min_size=1, max_size=12), done=st.sets(st.integers(0, 6)))
@example(names=["a.jpg", "a.txt", "b.jpg", ".jpg", "b.txt", "a.jpg", "c.jpg"], done={1, 3})
def test_samples_that_are_done_are_not_held_and_the_others_are_what_they_would_be(
    names: list[str], done: set[int]
) -> None:
    content, held = archive(names), []

    def members() -> Iterator[Member]:
        limit = member_limit(RULES, BitMap(done))
        for member in read_members(io.BytesIO(content), left_out=LeftOut(), limit=limit, length=len(content)):
            held.append(member.content)
            yield member

    def rest(samples: Iterator[Sample]) -> list[tuple[object, ...]]:
        return [as_tuple(sample) if index not in done else () for index, sample in enumerate(samples)]

    whole = list(samples_of(content))
    assert rest(group_samples(members(), RULES, LeftOut())) == rest(iter(whole))
    if done.issuperset(range(len(whole))):
        assert not any(held)


@settings(max_examples=300, deadline=None, database=None)
@given(name=st.text(alphabet="aB./_", max_size=30))
def test_a_member_has_the_key_that_webdataset_gives_it(name: str) -> None:
    from webdataset.tariterators import base_plus_ext

    key, _ = base_plus_ext(name)
    reserved = re.match(r"__[^/]*__($|/)", name) or housekeeping(name)
    expected = [] if key is None or reserved else [key]
    assert [s.key for s in group_samples(iter([Member(name=name, size=0, content=b"")]), RULES, LeftOut())] == expected


def test_hostile_names_are_split_in_linear_time() -> None:
    names = ["/" * 65_000, "a/" * 32_000, "_" * 65_000, "." * 65_000, ".a/" * 21_000]
    limit = member_limit(replace(RULES, max_image_bytes=1))
    for name in names * 100:  # the library's pattern takes seconds for each
        assert limit(name) == 0


def test_only_members_that_are_used_are_held() -> None:
    limit = member_limit(replace(RULES, max_image_bytes=7))
    assert [limit(name) for name in ("a.jpg", "d.d/a.seg.PNG", "a.b.avif")] == [7, 7, 7]
    assert [limit(name) for name in ("a.json", "a.alt.TXT", "a.cls")] == [MAX_METADATA_BYTES] * 3
    assert [limit(name) for name in ("a.mp4", "a.jpg.gz", "jpg", ".txt", "__m__.jpg/", "__m__/a.jpg")] == [0] * 6


ONLY_NPY = (
    "only npy; set input.image_key if one of them is the image; a sample's members must stand together in one shard"
)


@pytest.mark.parametrize(
    ("members", "code", "detail"),
    [
        ([("a.txt", b"t")], "no_image", "only txt; a sample's members must stand together in one shard"),
        ([("a.npy", b"t")], "no_image", ONLY_NPY),
        ([("a.jpg", b"1"), ("a.JPG", b"2"), ("a.txt", b"t")], "duplicate_member", "jpg"),
        ([("a.jpg", b"1"), ("a.txt", b"t"), ("a.txt", b"u")], "duplicate_member", "txt"),
        ([("a.jpg", b"1"), ("a.npy", b""), ("a.npy", b""), ("a.txt", b"t")], "duplicate_member", "npy"),
        ([("a.jpg", bytes(MAX_IMAGE + 1)), ("a.txt", b"t")], "image_too_large", "100001 bytes"),
        ([("a.depth.png", b"1"), ("a.jpg", b"1"), ("a.txt", b"t")], "ambiguous_image", "depth.png, jpg"),
        ([("a.2.jpg", b"1"), ("a.\u202e.jpg", b"1")], "ambiguous_image", r"2.jpg, \u202e.jpg"),
    ],
)
def test_a_faulty_sample_keeps_its_key_and_valid_metadata(
    members: list[tuple[str, bytes]], code: str, detail: str
) -> None:
    assert code in FAILURE_CODES
    found = list(
        samples_of(archive(["z.jpg", *(n for n, _ in members), "b.jpg"], [b"z", *(c for _, c in members), b"b"]))
    )
    assert [s.key for s in found] == ["z", "a", "b"]
    assert [s.failure is None for s in found] == [True, False, True]  # its neighbours are unaffected
    sample = found[1]
    assert sample.failure is not None
    assert (sample.failure.code, sample.failure.detail) == (code, detail)
    texts = [c for n, c in members if n == "a.txt"][:1]
    assert sample.metadata == {"json": None, "txt": texts[0].decode() if texts else None, "cls": None, "extra": None}


JPG = ("a.jpg", b"1")


@pytest.mark.parametrize(
    ("members", "flags", "metadata"),
    [
        ([("a.txt", "Käse".encode("latin-1"))], ["metadata_undecoded:txt"], {}),
        ([("a.txt", "犬の写真".encode("shift-jis"))], ["metadata_undecoded:txt"], {}),
        ([("a.txt", "a dog".encode("utf-16-le"))], ["metadata_undecoded:txt"], {}),
        ([("a.txt", "a dog".encode("utf-16"))], ["metadata_recoded:txt"], {"txt": "a dog"}),
        ([("a.json", b"\xfe\xff" + '{"a": 1}'.encode("utf-16-be"))], ["metadata_recoded:json"], {"json": '{"a": 1}'}),
        ([("a.txt", b"\xef\xbb\xbfa dog")], ["metadata_recoded:txt"], {"txt": "a dog"}),
        ([("a.txt", b"\xff\xfe\x00")], ["metadata_undecoded:txt"], {}),
        ([("a.b.txt", b"\xff"), ("a.txt", b"t")], ["metadata_undecoded:b.txt"], {"txt": "t"}),
        ([("a.\x07\u202e.txt", b"\xff")], [r"metadata_undecoded:\x07\u202e.txt"], {}),
        ([("a.json", b"{"), ("a.cls", b"3")], ["metadata_invalid:json"], {"cls": 3, "extra": '{"json": "{"}'}),
        ([("a.json", b"")], ["metadata_invalid:json"], {"extra": '{"json": ""}'}),
        ([("a.cls", b"cat"), ("a.txt", b"t")], ["metadata_invalid:cls"], {"txt": "t", "extra": '{"cls": "cat"}'}),
        *[
            ([("a.cls", number.encode())], ["metadata_invalid:cls"], {"extra": f'{{"cls": "{number}"}}'})
            for number in ("1.5", "1_0", "9223372036854775808", "9" * 9999, "٣")
        ],
        ([("a.txt", b"t"), ("a.json", b"1" * (MAX_METADATA_BYTES + 1))], ["metadata_too_large:json"], {"txt": "t"}),
        ([("a.txt", b"t"), ("a.b.txt", b"u" * MAX_METADATA_BYTES)], ["metadata_too_large:b.txt"], {"txt": "t"}),
    ],
)
def test_a_text_that_cannot_be_used_costs_its_column_and_not_the_picture(
    members: list[tuple[str, bytes]], flags: list[str], metadata: dict[str, object]
) -> None:
    sample = sample_of(JPG, *members)
    assert (sample.image, sample.failure, list(sample.flags)) == (b"1", None, flags)
    assert sample.metadata == {"json": None, "txt": None, "cls": None, "extra": None} | metadata


def test_json_without_end_in_depth_costs_its_column() -> None:
    sample = sample_of(JPG, ("a.json", b"[" * 200_000))
    assert sample.failure is None and sample.flags == ("metadata_invalid:json",)


def test_the_recipe_says_how_long_texts_may_be_and_what_becomes_of_longer_ones() -> None:
    content = archive(["a.jpg", "a.txt"], [b"1", b"t" * 11])
    (kept,) = samples_of(content, max_metadata_bytes=11)
    (failed,) = samples_of(content, max_metadata_bytes=10, fail_long=True)
    assert kept.metadata["txt"] == "t" * 11
    assert failed.failure and (failed.failure.code, failed.failure.detail) == ("metadata_too_large", "txt")


@pytest.mark.parametrize(
    ("key", "image", "further"),
    [("jpg", b"3", 2), ("png;jpg", b"3", 2), ("depth.png;jpg", b"2", 2), (".JPG", b"3", 2), ("webp", None, 0)],
)
def test_the_image_key_says_which_member_is_captioned(key: str, image: bytes | None, further: int) -> None:
    content = archive(["a.canny.png", "a.depth.png", "a.jpg", "a.txt"], [b"1", b"2", b"3", b"t"])
    rules, left_out = Rules.of(Input(paths=["-"], image_key=key), MAX_IMAGE), LeftOut()
    limit = member_limit(rules)
    assert limit("a.canny.png") == 0  # only images that may be captioned are held
    members = read_members(io.BytesIO(content), limit=member_limit(rules), left_out=left_out)
    (sample,) = group_samples(members, rules, left_out)
    assert sample.image == image
    assert left_out.report().get("further_image", {"count": 0})["count"] == further
    if image is None:
        assert sample.failure and sample.failure.code == "no_image"
        assert sample.failure.detail == "no webp (input.image_key) among canny.png, depth.png, jpg"


def test_members_that_are_in_no_row_are_counted() -> None:
    names = ["__MACOSX/._a.jpg", "x/.DS_Store", "._a.jpg", "a.jpg", "._a.txt", "a.png", "a.npy", "README", "b.jpg"]
    left_out = LeftOut()
    samples = list(samples_of(archive([*names, "photo.v2.jpg"]), left_out))
    assert [(s.key, s.failure) for s in samples] == [("a", None), ("b", None), ("photo", None)]
    assert left_out.report() == {
        "further_image": {"count": 1, "example": "a.png"},
        "housekeeping": {"count": 4, "example": "__MACOSX/._a.jpg"},
        "other_member": {"count": 1, "example": "a.npy"},
        "unkeyed_member": {"count": 1, "example": "README"},
    }


def test_the_first_image_counts_also_when_it_is_too_large_and_later_ones_do_not() -> None:
    assert sample_of(("a.png", b"1"), ("a.jpg", b"2")).image == b"1"
    assert sample_of(("a.png", b"1"), ("a.jpg", bytes(MAX_IMAGE + 1))).failure is None
    large_first = sample_of(("a.png", bytes(MAX_IMAGE + 1)), ("a.jpg", b"2"))
    assert (large_first.image, large_first.failure is None) == (None, False)
    assert sample_of(("a.png", b""), ("a.jpg", b"2")).image == b""


def test_metadata_is_kept_to_the_letter_and_fits_its_columns() -> None:
    text = 'naïve\0\r\n猫 "quoted" \ufeff'
    document = '{"b": NaN, "a": [%s, "\\ud800"]}' % ("9" * 6000)
    sample = sample_of(
        ("a.jpg", b"1"),
        ("a.txt", text.encode()),
        ("a.json", b"\xef\xbb\xbf" + document.encode()),
        ("a.cls", b" -9223372036854775808\n"),
        ("a.alt.txt", text.encode()),
        ("a.B.cls", b"+7"),
    )
    assert sample.failure is None
    extra = json.loads(str(sample.metadata.pop("extra")))
    assert extra == {"alt.txt": text, "b.cls": "+7"}
    assert sample.metadata == {"txt": text, "json": document, "cls": -(2**63)}
    assert METADATA.names == ["json", "txt", "cls", "extra"]
    assert all(METADATA.field(name).metadata[b"description"] for name in METADATA.names)


def test_metadata_of_exactly_the_limit_is_kept() -> None:
    sample = sample_of(("a.jpg", b"1"), ("a.txt", b"t" * (MAX_METADATA_BYTES - 1)), ("a.cls", b"5"))
    assert sample.failure is None
    assert sample.metadata["cls"] == 5


@pytest.mark.parametrize(
    "members",
    [
        [("a.alt.txt", b"\x01" * (MAX_METADATA_BYTES - 100))],  # six characters each, in JSON
        [("a.cls", b"\x01" * (MAX_METADATA_BYTES // 5))],
        [("a.txt", "猫".encode("utf-16") * (MAX_METADATA_BYTES // 5))],  # three bytes of UTF-8 for two
        [("a.txt", b"t" * 300_000), ("a.b.txt", b'"' * 200_000)],
        [(f"a.{n:0100d}.txt", b"\x01" * 100) for n in range(2_000)],
    ],
)
def test_a_row_carries_no_more_than_the_limit_however_its_texts_are_written(members: list[tuple[str, bytes]]) -> None:
    sample = sample_of(JPG, *members)
    carried = sum(len(str(value).encode()) for value in sample.metadata.values() if value is not None)
    assert carried <= MAX_METADATA_BYTES and sample.size >= carried
    assert sample.failure is None and sample.flags[-1].startswith("metadata_too_large:")


def test_an_unused_text_is_never_too_long() -> None:
    content = archive(["a.jpg", "a.txt", "a.png", "a.b.txt"], [b"1", b"t" * 15, b"2", b"u" * 15])
    rules = Rules(max_image_bytes=MAX_IMAGE, max_metadata_bytes=20, fail_long=True)

    def told(done: set[int]) -> tuple[Sample, dict[str, Any]]:
        left_out = LeftOut()
        members = read_members(io.BytesIO(content), limit=member_limit(rules, BitMap(done)), left_out=left_out)
        (sample,) = group_samples(members, rules, left_out)
        return sample, left_out.report()

    (read, counted), (skipped, again) = told(set()), told({0})
    assert read.failure and read.failure.code == "metadata_too_large"
    assert skipped.failure is None or skipped.failure.code != "metadata_too_large"
    assert counted == again == {"further_image": {"count": 1, "example": "a.png"}}


def test_a_sample_of_very_many_members_is_one_failed_sample_of_bounded_size() -> None:
    members = (Member(name=f"a.{n:0100d}.txt", size=1, content=b"t") for n in range(20_000))
    (sample,) = group_samples(members, RULES, LeftOut())
    assert sample.failure is not None
    assert sample.failure.code == "metadata_too_large"
    assert len(str(sample.metadata["extra"])) <= MAX_METADATA_BYTES


def test_a_cut_shard_gives_every_complete_sample_right_and_never_the_one_it_cut() -> None:
    names = ["a.jpg", "a.json", "b.txt", "b.png", "c.jpg", "a.jpg", "long" * 40 + ".jpg", "d.jpg", "d.txt"]
    written = archive(names)
    whole = [as_tuple(sample) for sample in samples_of(written)]
    with tarfile.open(fileobj=io.BytesIO(written)) as tar:
        ends = [info.offset_data + 512 for info in tar]  # every member is one block
        marker = tar.offset
    opens = [end for end, at in zip(ends, range(len(names)), strict=True) if at in (2, 4, 5, 6, 7)]
    edges = {block + d for block in range(0, marker + 1, 512) for d in (-1, 0, 1)} & set(range(marker + 1))
    for cut in sorted(edges | set(random.Random(1).sample(range(marker), 30))):
        found: list[tuple[object, ...]] = []
        at_end = cut in ends  # all members are complete; only the end marker is missing
        with nullcontext() if at_end else pytest.raises(TarDamaged):
            found.extend(map(as_tuple, samples_of(written[:cut])))
        assert found[: len(found) - at_end] == whole[: sum(end <= cut for end in opens)][: len(found) - at_end]
        assert len(found) >= sum(end <= cut for end in opens)
    assert len(whole) == len(opens) + 1
    assert [as_tuple(sample) for sample in samples_of(written[: marker + 512])] == whole


@settings(max_examples=200, deadline=None, database=None)
@given(
    members=st.lists(
        st.builds(
            lambda name, content: Member(name=name, size=9, content=content),
            DOTTED | ANY_NAME,
            st.none() | st.binary(max_size=20) | st.sampled_from([b"{}", b"1", b"t"]),
        ),
        max_size=15,
    )
)
def test_whatever_the_members_hold_every_sample_has_an_image_or_a_named_failure(members: list[Member]) -> None:
    for sample in group_samples(iter(members), RULES, LeftOut()):
        assert set(sample.metadata) == set(METADATA.names)
        assert sample.image is not None or sample.failure is not None
        assert sample.failure is None or sample.failure.code in FAILURE_CODES


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        *((name, True) for name in ("._a.jpg", "x/._a.jpg", "__MACOSX/a.jpg", "a/.DS_Store", "@eaDir/a.jpg/T.jpg")),
        *((name, True) for name in ("Thumbs.db", "x/desktop.ini", ".Trash-1000/files/a.jpg", ".git/a.png")),
        *((name, False) for name in ("a.jpg", "x/_a.jpg", "my__MACOSX/a.jpg", "a._b.jpg", "thumbs.db.jpg", ".a/b.jpg")),
    ],
)
def test_leftovers_of_tools_are_known_by_their_names(name: str, expected: bool) -> None:
    assert housekeeping(name) is expected
