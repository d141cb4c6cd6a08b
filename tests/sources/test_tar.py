"""The tar reader is compared with the standard library's, and tried on hostile archives."""

import bz2
import gzip
import io
import lzma
import random
import shutil
import subprocess
import tarfile
import tracemalloc
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import BinaryIO, cast

import pytest
from backports import zstd
from hypothesis import given, settings
from hypothesis import strategies as st

from caprl_ray.plan.left_out import LeftOut
from caprl_ray.sources.tape import CHUNK, TarDamaged, TarFormat
from caprl_ray.sources.tar import MOST_ZEROS, Member, read_members
from caprl_ray.sources.tar_header import MAX_EXTENSION, MAX_NAME
from caprl_ray.sources.unpacked import FREE_INFLATION
from tests.hostile.shards import END, GIB, header, padded, pax, resummed
from tests.tars import tar_of

# Each packs one stream; zst-frames packs many frames.
PACKERS: dict[str, Callable[[bytes], bytes]] = {
    "plain": bytes,
    "gz": gzip.compress,
    "bz2": bz2.compress,
    "xz": lzma.compress,
    "zst": zstd.compress,
    "zst-frames": lambda content: b"".join(zstd.compress(content[n : n + 3000]) for n in range(0, len(content), 3000)),
}
FORMATS = {"ustar": tarfile.USTAR_FORMAT, "gnu": tarfile.GNU_FORMAT, "pax": tarfile.PAX_FORMAT}
# A name of 150 bytes fits ustar with its prefix; the others need a long name or pax.
PREFIXED = "d" * 90 + "/" + "n" * 55 + ".jpg"
LONG_NAMES = ["x" * 101 + ".jpg", "/".join(["f" * 60] * 5) + "/a.jpg", "y" * 5000 + ".txt"]
NAMES = ["a.jpg", "./b.txt", PREFIXED, "bücher/猫.png", "n" * 100]


class Trickle:
    """A stream with only `read`, which returns fewer bytes than requested, like a socket."""

    def __init__(self, content: bytes, seed: int = 0) -> None:
        self._stream, self._random = io.BytesIO(content), random.Random(seed)

    def read(self, size: int) -> bytes:
        assert 0 < size <= CHUNK
        return self._stream.read(self._random.randint(1, size))


class Endless:
    """A header, then zeros to the end. Each read returns the same buffer."""

    def __init__(self, header: bytes, end: int) -> None:
        self._header, self._zeros, self.given, self._end = header, bytes(CHUNK), 0, end

    def read(self, size: int) -> bytes:
        assert 0 < size <= CHUNK
        size = min(size, self._end - self.given)
        part, self._header = self._header[:size], self._header[size:]
        part = part or (self._zeros if size == CHUNK else self._zeros[:size])
        self.given += len(part)
        return part


def content_of(position: int) -> bytes:
    return random.Random(position).randbytes([0, 1, 511, 512, 513, 3000][position % 6])


def archive(names: list[str], form: str = "ustar", *, others: bool = False) -> bytes:
    """A tar as the standard library writes it; with `others`, a link, a folder and a device before each file."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=FORMATS[form]) as tar:
        for position, name in enumerate(names):
            kinds = [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.DIRTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE]
            for kind in kinds if others else []:
                info = tarfile.TarInfo(f"other{position}.jpg")
                info.type, info.linkname = kind, "t" * (30 if form == "ustar" else 300)
                tar.addfile(info)
            info = tarfile.TarInfo(name)
            info.size = len(content_of(position))
            tar.addfile(info, io.BytesIO(content_of(position)))
    return buffer.getvalue()


def members_of(content: bytes, *, limit: int = GIB) -> list[Member]:
    return list(read_members(io.BytesIO(content), left_out=LeftOut(), limit=lambda name: limit))


def readable_part(content: bytes) -> tuple[list[Member], str | None]:
    """The members before the damage, and what TarDamaged said; any other exception fails the test."""
    found: list[Member] = []
    try:
        for member in read_members(io.BytesIO(content), left_out=LeftOut(), limit=lambda name: 100_000):
            found.append(member)
    except TarDamaged as damage:
        return found, str(damage)
    return found, None


def oracle(content: bytes) -> Iterator[tuple[str, bytes]]:
    with tarfile.open(fileobj=io.BytesIO(content), mode="r|*") as tar:
        for info in tar:
            if info.isreg():
                yield info.name, cast(BinaryIO, tar.extractfile(info)).read()


@pytest.mark.parametrize("pack", PACKERS.values(), ids=PACKERS)
@pytest.mark.parametrize("others", [False, True], ids=["files", "links-between"])
@pytest.mark.parametrize("form", FORMATS)
def test_reads_the_names_and_bytes_that_tarfile_wrote(form: str, others: bool, pack: Callable[[bytes], bytes]) -> None:
    names = NAMES + (LONG_NAMES if form != "ustar" else [])
    written = archive(names, form, others=others)
    assert list(oracle(written)) == [(name, content_of(i)) for i, name in enumerate(names)]
    stream = cast(BinaryIO, Trickle(pack(written)))
    found = list(read_members(stream, left_out=LeftOut(), limit=lambda name: GIB))
    assert [(m.name, m.content) for m in found] == list(oracle(written))
    assert [m.size for m in found] == [len(cast(bytes, m.content)) for m in found]


def test_several_gzip_members_in_one_file_are_one_archive() -> None:
    written = archive(NAMES)
    joined = gzip.compress(written[:1000]) + gzip.compress(written[1000:])
    assert [m.name for m in members_of(joined)] == NAMES


def test_old_and_odd_headers_are_read_by_their_own_rules() -> None:
    file = b"5" + bytes(511)
    gnu_times = (b"ustar  \0".ljust(88, b"\0")) + b"07777777777\0"
    content = b"".join(
        [
            header(b"v7.jpg", b"          1 ", b"\0") + file,
            header(b"v7folder/", b"1", b"\0"),  # has no data
            header(b"contiguous.jpg", b"1\0garbage", b"7") + file,
            header(b"gnu.jpg", b"1", b"0", gnu_times) + file,  # GNU stores times in place of the prefix
            header(b"binary.jpg", b"\x80" + bytes(10) + b"\x01") + file,
            *[header(b"no data follows", b"70000", kind) for kind in (b"1", b"2", b"3", b"4", b"5", b"6")],
            header(b"unknown", b"1", b"Z") + file,
            header("é.jpg".encode("latin-1"), b"1") + file,
            END,
        ]
    )
    names = ["v7.jpg", "contiguous.jpg", "gnu.jpg", "binary.jpg", "\\xe9.jpg"]
    assert [(m.name, m.content) for m in members_of(content)] == [(name, b"5") for name in names]


def test_signed_checksums_are_accepted_and_wrong_ones_are_not() -> None:
    block = bytearray(header(b"\xe9\xe8.jpg", b"0", b"0", b"ustar\x0000"))
    total = int(bytes(block[148:154]), 8)
    for stated, good in [(total, True), (total - 512, True), (total - 256, False), (total + 1, False), (0, False)]:
        block[148:156] = b"%06o\0 " % stated
        found, damage = readable_part(bytes(block) + END)
        assert (len(found), damage) == ((1, None) if good else (0, "wrong header checksum at byte 0"))


def test_pax_gives_name_and_size_and_overrules_long_names_for_one_member_only() -> None:
    global_path = header(b"g", b"15", b"g") + padded(b"13 path=glob\n")
    long_name = header(b"././@LongLink", b"5", b"L") + padded(b"long\0")
    content = (
        global_path
        + long_name
        + pax(("path", "päx.jpg"), ("size", "600"), ("comment", "a=b\nc"))
        + header(b"short.jpg", b"1")
        + padded(b"p" * 600)
        + header(b"next.jpg", b"1")
        + padded(b"n")
        + END
    )
    assert [(m.name, m.content) for m in members_of(content)] == [("päx.jpg", b"p" * 600), ("next.jpg", b"n")]


BMP = bytes([7]) * 1500 + bytes(200_000) + bytes([9]) * 700 + bytes(50_000)


@pytest.mark.skipif(shutil.which("tar") is None, reason="needs GNU tar")
@pytest.mark.parametrize(
    "options",
    [["--format=gnu"], *(["--format=posix", f"--sparse-version={version}"] for version in ("0.0", "0.1", "1.0"))],
    ids=lambda options: options[-1],
)
def test_sparse_files_of_gnu_tar_are_read_as_the_files_that_they_stand_for(tmp_path: Path, options: list[str]) -> None:
    parts = [bytes([n]) * 5000 + bytes(100_000) for n in range(1, 60)]  # more parts than a header has room for
    for name, content in {"1.bmp": BMP, "2.bmp": b"".join(parts), "3.bmp": bytes(300_000), "4.bmp": b"plain"}.items():
        with (tmp_path / name).open("wb") as file:
            for start in range(0, len(content), 512):
                part = content[start : start + 512]
                file.seek(len(part), 1) if not any(part) else file.write(part)
            file.truncate(len(content))
    names = sorted(path.name for path in tmp_path.iterdir())
    subprocess.run(["tar", "-C", tmp_path, "-S", *options, "-cf", tmp_path / "s.tar", *names], check=True)
    written = (tmp_path / "s.tar").read_bytes()
    assert len(written) < 700_000
    expected = [(name, (tmp_path / name).read_bytes()) for name in names]
    assert [(m.name, m.content) for m in members_of(written)] == expected
    over = [(m.name, m.size, m.content) for m in members_of(written, limit=10)]
    assert over == [(name, len(content), content if len(content) < 10 else None) for name, content in expected]
    assert [m.name for m in sought_part(written, {3})[0]] == names


@pytest.mark.parametrize(
    "records",
    [
        (("GNU.sparse.major", "1"), ("GNU.sparse.realsize", "9")),  # the map in front is missing
        (("GNU.sparse.size", "9"), ("GNU.sparse.map", "0,5,3,1")),  # parts that overlap
        (("GNU.sparse.size", "9"), ("GNU.sparse.map", "5,5")),  # beyond the end
        (("GNU.sparse.size", "9"), ("GNU.sparse.map", "0,5,7")),
        (("GNU.sparse.size", "9999"), ("GNU.sparse.map", "0,600")),  # more than is stored
        (("GNU.sparse.map", "0,1"),),  # without a size
    ],
)
def test_impossible_sparse_maps_are_damage(records: tuple[tuple[str, str], ...]) -> None:
    content = pax(*records) + header(b"a.bmp", b"10") + padded(b"12345678") + END
    assert readable_part(content) == ([], "impossible sparse map for the header at byte 1024")


def test_holes_without_end_are_damage() -> None:
    size = str(FREE_INFLATION // 2)
    hole = pax(("GNU.sparse.size", size), ("GNU.sparse.map", "0,0")) + header(b"a.bmp", b"0")
    found = read_members(io.BytesIO(hole * 9 + END), limit=lambda name: GIB, left_out=LeftOut())
    assert [len(next(found).content or b"") for _ in range(2)] == [FREE_INFLATION // 2] * 2
    with pytest.raises(TarDamaged, match="sparse members expand more than 100 to 1 by byte 4608"):
        next(found)


@pytest.mark.parametrize("pack", PACKERS.values(), ids=PACKERS)
def test_joined_archives_are_read_on(pack: Callable[[bytes], bytes]) -> None:
    first, second = archive(NAMES), archive(LONG_NAMES, "gnu", others=True)
    left_out = LeftOut()
    apart = bytes(1024)
    for joined in (pack(first) + pack(second), pack(first + apart + second), pack(first) + apart + pack(second)):
        found = [m.name for m in read_members(io.BytesIO(joined), limit=lambda name: 0, left_out=left_out)]
        assert found == NAMES + LONG_NAMES
    assert left_out.report().keys() == {"link", "special"} and left_out.report()["link"]["count"] == 3 * 6


@pytest.mark.parametrize("pack", PACKERS.values(), ids=PACKERS)
def test_bytes_after_the_end_are_counted(pack: Callable[[bytes], bytes]) -> None:
    written, left_out = archive(NAMES), LeftOut()
    for content in (pack(written) + b"<html>" * 1000, pack(written + b"<html>" * 1000)):
        for length in (None, len(content)):
            read = read_members(
                io.BytesIO(content), limit=lambda name: 0, left_out=left_out, shard="s.tar", length=length
            )
            assert [m.name for m in read] == NAMES
    assert left_out.report() == {"after_end": {"count": 4, "example": "6000 bytes after the end of s.tar"}}


def test_more_zeros_than_pad_an_archive_are_counted() -> None:
    left_out = LeftOut()
    for zeros in (500_000, 3_000_000, MOST_ZEROS + 3_000_000):
        content = archive(NAMES) + bytes(zeros)
        list(read_members(io.BytesIO(content), limit=lambda name: 0, left_out=left_out, length=len(content)))
    assert left_out.report()["after_end"]["count"] == 2


@pytest.mark.parametrize("pack", PACKERS.values(), ids=PACKERS)
def test_an_archive_without_its_end_marker_is_read_whole_and_noted(pack: Callable[[bytes], bytes]) -> None:
    written = without_end(archive(NAMES))
    for content in (written, written + bytes(100)):
        left_out = LeftOut()
        found = read_members(io.BytesIO(pack(content)), limit=lambda name: GIB, left_out=left_out, shard="s.tar")
        assert [(m.name, m.content) for m in found] == list(oracle(archive(NAMES)))
        assert left_out.report() == {"no_end_marker": {"count": 1, "example": "s.tar"}}


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"<!DOCTYPE html><html>404</html>", "an HTML page"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n", "a Git LFS pointer"),
        (b"\x04\x22\x4d\x18" + bytes(600), "lz4"),
        (b"PK\3\4" + bytes(600), "zip"),
        (gzip.compress(gzip.compress(b"x", mtime=0), mtime=0), "gzip in gzip"),
        (random.Random(1).randbytes(2000), "of an unknown kind"),
    ],
)
def test_bytes_that_are_no_archive_are_told_by_their_kind(content: bytes, says: str) -> None:
    with pytest.raises(TarFormat, match=f"^the bytes are {says}, not a tar archive$"):
        members_of(content)


def test_an_archive_without_members_is_empty_and_no_bytes_are_damage() -> None:
    assert members_of(END) == []
    assert members_of(gzip.compress(END)) == []
    assert readable_part(b"") == ([], "there are no bytes")
    assert readable_part(gzip.compress(b"")) == ([], "there are no bytes in gzip")


def test_every_cut_gives_the_members_before_it_and_then_damage() -> None:
    written = archive([*NAMES, LONG_NAMES[0]], "pax", others=True)
    whole = members_of(written)
    with tarfile.open(fileobj=io.BytesIO(written)) as tar:
        ends = [i.offset_data + i.size + -i.size % 512 for i in tar if i.isreg()]
        between = {i.offset for i in tar if i.offset}  # a cut before a header leaves a complete archive
        marker = tar.offset
    edges = {block + d for block in range(0, marker + 512, 512) for d in (-1, 0, 1, 156, 511)}
    for cut in [*sorted(edges & set(range(marker))), marker + 1, marker + 511]:
        found, damage = readable_part(written[:cut])
        assert found == whole[: sum(end <= cut for end in ends)]
        if cut in between or cut % 512 or cut > marker:
            assert (damage is None) == (cut in between or cut > marker)
    assert readable_part(written[: marker + 512]) == (whole, None)


def test_a_cut_or_flipped_gzip_stream_is_damage_even_behind_the_last_member() -> None:
    written = archive([*NAMES] * 3)
    packed, whole = gzip.compress(written), members_of(written)
    for cut in [*range(40), *range(40, len(packed) - 12, 97), *range(len(packed) - 12, len(packed))]:
        found, damage = readable_part(packed[:cut])
        assert found == whole[: len(found)]
        assert damage is not None
    wrong_checksum = packed[:-8] + bytes([packed[-8] ^ 1]) + packed[-7:]
    found, damage = readable_part(wrong_checksum)
    assert found == whole
    assert damage is not None
    assert "gzip" in damage


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (header(size=b"\xff" * 12), "size"),
        (header(size=b"\x80" + b"\x7f" * 11), "size"),
        (header(size=b"-1"), "size"),
        (header(size=b"0o17"), "size"),
        (header(size=b"-1", kind=b"L") + header(), "size"),
        (header(size=b"\xff" * 12, kind=b"x") + header(), "extension header"),
        (header(size=b"1_0"), "size"),
        (header(size=b"9"), "size"),
        (pax(("size", "-1")) + header(), "size"),
        (pax(("size", "9" * 5000)) + header(), "size"),
        (pax(("size", "9" * 19)) + header(), "size"),
        (header(b"x", b"%o" % (MAX_EXTENSION + 1), b"x"), "extension header of 1048577 bytes"),
        (header(b"L", b"77777777777", b"L"), "extension header of 8589934591 bytes"),
        (header(b"L", b"%o" % MAX_EXTENSION, b"L") + b"n" * MAX_EXTENSION + header(), f"name of {MAX_EXTENSION}"),
        (header(b"x", b"5", b"x") + padded(b"1 a=b"), "pax record"),
        (header(b"x", b"6", b"x") + padded(b"9 a=b\n"), "pax record"),
        (header(b"x", b"6", b"x") + padded(b"6 ab\n\n"), "pax record"),
        (header(b"x", b"14", b"x") + padded(b"6 a=b\n0 a=b\n"), "pax record"),
        (pax(("path", "a.jpg")), "extension header without its member"),
    ],
)
def test_impossible_headers_are_damage(content: bytes, says: str) -> None:
    found, damage = readable_part(content + END)
    assert found == []
    assert says in str(damage)


def test_a_name_of_the_longest_allowed_length_is_read() -> None:
    long_name = header(b"L", b"%o" % MAX_NAME, b"L") + b"n" * MAX_NAME
    assert members_of(long_name + header() + END)[0].name == "n" * MAX_NAME


def test_a_hundred_gibibytes_are_read_past_without_memory() -> None:
    size = 100 * GIB
    stream = Endless(header(size=b"\x80" + size.to_bytes(11, "big")), 512 + size + 512)
    tracemalloc.start()
    (member,) = read_members(cast(BinaryIO, stream), left_out=LeftOut(), limit=lambda name: size - 1)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert member == Member(name="a.jpg", size=size, content=None)
    assert stream.given == 512 + size + 512
    assert peak < 4 * CHUNK


def test_a_size_that_is_only_claimed_costs_no_memory_even_under_its_limit() -> None:
    content = header(size=b"\x80" + (100 * GIB).to_bytes(11, "big")) + bytes(100_000)
    stream = cast(BinaryIO, Trickle(content))  # it asserts that no read asks for more than a chunk
    tracemalloc.start()
    with pytest.raises(TarDamaged, match="ends in a member at byte 100512"):
        list(read_members(stream, left_out=LeftOut(), limit=lambda name: 1000 * GIB))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 4 * CHUNK


def test_a_gzip_bomb_over_its_limit_is_read_past_and_its_neighbour_read() -> None:
    size = 30 << 20
    bomb = header(b"bomb.jpg", b"%o" % size) + bytes(size) + header(b"good.jpg", b"1") + padded(b"1") + END
    packed = gzip.compress(bomb, 1)
    del bomb
    tracemalloc.start()
    found = members_of(packed, limit=size - 1)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    expected = [("bomb.jpg", size, None), ("good.jpg", 1, b"1")]
    assert [(m.name, m.size, m.content) for m in found] == expected
    assert peak < 8 * CHUNK


def test_a_gzip_stream_that_inflates_without_end_is_damage_however_it_trickles_in() -> None:
    front = archive(NAMES).removesuffix(bytes(10240))
    size = 100 * GIB
    bomb = front + header(b"bomb.npy", b"\x80" + size.to_bytes(11, "big")) + bytes(2 * FREE_INFLATION)
    packed = gzip.compress(bomb, 9)
    assert len(packed) < FREE_INFLATION // 100
    said = set()
    for seed in range(3):
        members = read_members(cast(BinaryIO, Trickle(packed, seed)), left_out=LeftOut(), limit=lambda name: 9999)
        assert [next(members).name for _ in NAMES] == NAMES
        with pytest.raises(TarDamaged, match="inflates more than 100 to 1") as damage:
            next(members)
        said.add(str(damage.value))
    assert len(said) == 1


def test_an_archive_that_packs_well_and_is_no_bomb_is_read() -> None:
    """A hundred members of raw pixels that compress 50 to 1, far more than FREE_INFLATION in all."""
    content = random.Random(1).randbytes(20_000).ljust(1 << 20, b"\0")
    written = tar_of({f"{n}.bmp": content for n in range(64)})
    assert len(written) > 1.9 * FREE_INFLATION
    packed = gzip.compress(written, 1)
    assert 40 < len(written) / len(packed) < 60
    assert len(members_of(packed)) == 64


def test_many_extension_headers_before_one_member_cost_no_memory() -> None:
    def records(first: int) -> bytes:
        content = b"".join(b"17 k%d=vvvvvv\n" % n for n in range(first, first + 5000))
        return header(b"x", b"%o" % len(content), b"x") + padded(content)

    one = len(records(10_000))
    stream = io.BytesIO(b"".join(records(first) for first in range(10_000, 60_000, 5000)) + header() + END)
    tracemalloc.start()
    (member,) = read_members(stream, left_out=LeftOut(), limit=lambda name: 0)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert member.name == "a.jpg"
    assert peak < 4 * one


def test_the_limit_is_asked_by_name_and_decides_what_is_held() -> None:
    limits = {"a.jpg": 0, "./b.txt": 1, PREFIXED: 510, "bücher/猫.png": 512, "n" * 100: 512}
    found = list(read_members(io.BytesIO(archive(NAMES)), left_out=LeftOut(), limit=limits.__getitem__))
    assert [m.content is None for m in found] == [False, False, True, False, True]


def test_faults_of_the_stream_itself_are_not_called_damage() -> None:
    class Broken:
        def read(self, size: int) -> bytes:
            raise OSError("network down")

    with pytest.raises(OSError, match="network down"):
        list(read_members(cast(BinaryIO, Broken()), left_out=LeftOut(), limit=lambda name: 0))


def without_end(content: bytes) -> bytes:
    with tarfile.open(fileobj=io.BytesIO(content)) as tar:
        tar.getmembers()
        return content[: tar.offset]


GOOD = without_end(archive([*NAMES, LONG_NAMES[0]], "pax", others=True)) + archive(LONG_NAMES, "gnu", others=True)
HEADERS = [at for at in range(0, len(GOOD), 512) if GOOD[at + 257 : at + 262] == b"ustar"]


@settings(max_examples=300, deadline=None, database=None)
@given(
    changes=st.lists(st.tuples(st.sampled_from(HEADERS), st.integers(100, 511), st.integers(0, 255)), max_size=4),
    blocks=st.lists(st.tuples(st.integers(0, len(GOOD) - 1), st.integers(0, 255)), max_size=2),
    compressed=st.booleans(),
)
def test_changed_archives_with_right_checksums_are_read_or_damage(
    changes: list[tuple[int, int, int]], blocks: list[tuple[int, int]], compressed: bool
) -> None:
    content = bytearray(GOOD)
    for at, value in blocks:
        content[at] = value
    for start, at, value in changes:
        content[start + at] = value
        content[start : start + 512] = resummed(bytes(content[start : start + 512]))
    found, damage = readable_part(gzip.compress(content, 1) if compressed else bytes(content))
    assert changes or blocks or (len(found), damage) == (len(NAMES) + 1 + len(LONG_NAMES), None)
    for member in found:
        assert member.name.encode("utf-8") is not None  # a lone surrogate would raise here
        assert member.content is None or len(member.content) == member.size


@settings(max_examples=300, deadline=None, database=None)
@given(
    changes=st.lists(st.tuples(st.sampled_from(HEADERS), st.integers(100, 511), st.integers(0, 255)), max_size=2),
    end=st.just(len(GOOD)) | st.integers(0, len(GOOD)),
    wanted=st.sets(st.integers(0, len(NAMES) + 1 + len(LONG_NAMES))),
)
def test_seeking_over_members_changes_no_other_member(
    changes: list[tuple[int, int, int]], end: int, wanted: set[int]
) -> None:
    content = bytearray(GOOD)
    for start, at, value in changes:
        content[start + at] = value
        content[start : start + 512] = resummed(bytes(content[start : start + 512]))
    whole, damage = readable_part(bytes(content[:end]))
    expected = [replace(m, content=m.content if n in wanted or not m.size else None) for n, m in enumerate(whole)]
    assert sought_part(bytes(content[:end]), wanted) == (expected, damage)


def sought_part(content: bytes, wanted: set[int]) -> tuple[list[Member], str | None]:
    """As `readable_part`, but from a seekable stream, with the content of only the members `wanted`."""
    numbers = count()
    found: list[Member] = []
    try:
        for member in read_members(
            io.BytesIO(content),
            left_out=LeftOut(),
            limit=lambda name: 100_000 if next(numbers) in wanted else 0,
            length=len(content),
        ):
            found.append(member)
    except TarDamaged as damage:
        return found, str(damage)
    return found, None


def test_unwanted_members_are_not_read() -> None:
    size = 10_000_000
    content = header(b"big.jpg", b"%o" % size) + padded(bytes(size)) + header(b"b.jpg", b"1") + padded(b"b") + END
    given = 0

    class Counted(io.BytesIO):
        def read(self, size: int | None = -1) -> bytes:
            nonlocal given
            part = super().read(size)
            given += len(part)
            return part

    limit = {"big.jpg": 0, "b.jpg": 1}.__getitem__
    found = list(read_members(Counted(content), left_out=LeftOut(), limit=limit, length=len(content)))
    assert [(m.name, m.size, m.content) for m in found] == [("big.jpg", size, None), ("b.jpg", 1, b"b")]
    assert given == 4 * 512 + 1
    with pytest.raises(TarDamaged, match="ends in a member at byte 9000000"):
        list(read_members(io.BytesIO(content[:9_000_000]), left_out=LeftOut(), limit=limit, length=9_000_000))


@settings(max_examples=300, deadline=None, database=None)
@given(content=st.binary(max_size=2000), front=st.integers(0, 600), compressed=st.booleans())
def test_any_bytes_are_read_or_damage(content: bytes, front: int, compressed: bool) -> None:
    readable_part((gzip.compress(GOOD, 1) if compressed else GOOD)[:front] + content)


def test_damage_names_the_byte_where_it_was_found() -> None:
    written = archive(NAMES)
    with tarfile.open(fileobj=io.BytesIO(written)) as tar:
        starts = [info.offset for info in tar]
    for before, start in zip(NAMES, starts[1:], strict=False):
        content = bytearray(written)
        content[start + 3] ^= 0x40
        found, damage = readable_part(bytes(content))
        assert found[-1].name == before
        assert damage == f"wrong header checksum at byte {start}"
