"""Hostile tar shards, made by hand block by block."""

import bz2
import gzip
import io
import json
import lzma
import pickle
import struct
import tarfile
import zlib
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
from backports import zstd

from tests.hostile.case import ELSEWHERE, HARM, OK, PICKLED, Case, Payload
from tests.hostile.images import plain

GIB = 1 << 30
END = bytes(1024)


def header(name: bytes = b"a.jpg", size: bytes = b"", kind: bytes = b"0", rest: bytes = b"") -> bytes:
    """A header block made by hand, `rest` from its magic on; the checksum is right."""
    block = name.ljust(100, b"\0") + b"0000644\0" * 3 + size.ljust(12, b"\0") + b"0" * 12 + b" " * 8 + kind
    return resummed((block.ljust(257, b"\0") + rest).ljust(512, b"\0"))


def resummed(block: bytes) -> bytes:
    total = sum(block[:148]) + 8 * 32 + sum(block[156:])
    return block[:148] + b"%06o\0 " % total + block[156:]


def pax(*records: tuple[str, str]) -> bytes:
    """A pax header and its padded data."""
    content = b""
    for keyword, value in records:
        record = f" {keyword}={value}\n".encode()
        length = next(n for n in range(len(record), len(record) + 9) if len(str(n)) + len(record) == n)
        content += b"%d" % length + record
    return header(b"pax", b"%o" % len(content), b"x") + padded(content)


def padded(content: bytes) -> bytes:
    return content + bytes(-len(content) % 512)


def large(size: int) -> bytes:
    """A size beyond what fits in octal digits."""
    return b"\x80" + size.to_bytes(11, "big")


def member(name: str, content: bytes | None = None) -> bytes:
    """A file of an archive; a good picture unless it says otherwise."""
    content = plain("JPEG") if content is None else content
    return header(name.encode(), b"%o" % len(content)) + padded(content)


def shard(*names: str) -> bytes:
    """An archive of good pictures, and of texts where a name says so, whatever the names are."""
    return b"".join(member(name, b"words" if name.endswith(".txt") else None) for name in names) + END


def others() -> bytes:
    """Links, devices, a folder and a pipe of the names of images, then an image."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for number, kind in enumerate([tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE, b"5", b"6"]):
            info = tarfile.TarInfo(f"other{number}.jpg")
            info.type, info.linkname, info.devmajor, info.devminor = kind, "/etc/passwd", 1, 5
            tar.addfile(info)
    return buffer.getvalue()[: 6 * 512] + shard("a.jpg")


def xz_of_window(content: bytes, window: int) -> bytes:
    """`content` in xz, whose header asks the decoder for a window of so many bytes."""
    packed = lzma.compress(content, preset=0)
    size = (packed[12] + 1) * 4  # of the block header; the byte of the window stands before its padding and checksum
    block = bytearray(packed[12 : 12 + size - 4])
    block[block.index(b"\x21\x01") + 2] = 2 * (window.bit_length() - 1) - 24
    return packed[:12] + bytes(block) + struct.pack("<I", zlib.crc32(block)) + packed[12 + size :]


def gzip_zeros(front: bytes, size: int) -> bytes:
    """`front`, and then zeros, in gzip, of which no more than a megabyte is held at a time."""
    packer = zlib.compressobj(9, wbits=31)
    parts = [packer.compress(front), *(packer.compress(bytes(1 << 20)) for _ in range(size >> 20))]
    return b"".join([*parts, packer.flush()])


def loaded_kinds() -> bytes:
    """A sample with a payload in everything that a WebDataset reader may unpickle or run."""
    objects = io.BytesIO()
    np.save(objects, np.array([Payload()], dtype=object), allow_pickle=True)
    contents = {
        "a.jpg": None,
        "a.pyd": PICKLED,
        "a.pkl": PICKLED,
        "a.pickle": PICKLED,
        "a.pt": torch_file(),
        "a.pth": PICKLED,
        "a.npy": objects.getvalue(),
        "a.py": f"open({HARM!r}, 'w')".encode(),
        "a.json": json.dumps({"__reduce__": ["os.system", f"touch {HARM}"]}).encode(),
    }
    return b"".join(member(name, content) for name, content in contents.items()) + END


def torch_file() -> bytes:
    """What `torch.save` writes: a zip with a pickle."""
    import zipfile

    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps(Payload(), protocol=2))
    return file.getvalue()


def sparse() -> bytes:
    """A sparse file of a hundred gigabytes of which nothing is stored, in GNU's old way and in pax."""
    old = resummed(header(b"old.jpg", b"0", b"S", b"ustar  \0")[:483] + large(100 * GIB) + bytes(17))
    records = pax(("GNU.sparse.major", "1"), ("GNU.sparse.realsize", str(100 * GIB)))
    new = records + header(b"new.jpg", b"1000") + padded(b"0\n")
    return old + new + shard("a.jpg")


def holes(size: int) -> bytes:
    """Sparse files without end in a few kilobytes, each below the limit of an image."""
    return b"".join(
        pax(("GNU.sparse.size", str(size)), ("GNU.sparse.map", "0,0")) + header(b"%d.jpg" % n, b"0") for n in range(99)
    )


def _map_of(parts: int) -> bytes:
    """A sparse file whose map claims very many parts."""
    front = b"%d\n" % parts
    return pax(("GNU.sparse.major", "1"), ("GNU.sparse.realsize", "9")) + header(b"a.jpg", b"2000") + padded(front)


def cases() -> list[Case]:
    """Every hostile shard."""
    hundred = header(b"c.jpg", large(100 * GIB))
    two = member("a.jpg") + member("b.jpg")
    return [
        *_names(),
        # sizes
        _case("claims_100_gb", two + hundred + bytes(5000), f"{OK}, truncated_unit"),
        _case("negative_size", two + header(b"c.jpg", b"\xff" * 12) + END, f"{OK}, truncated_unit"),
        _case("size_of_no_number", two + header(b"c.jpg", b"12x4") + END, f"{OK}, truncated_unit"),
        _case("truncated_mid_member", two + member("c.jpg")[:1000], f"{OK}, truncated_unit"),
        _case("no_end", two, f"{OK} x2"),
        _case("pax_of_a_gigabyte", two + header(b"x", b"%o" % GIB, b"x") + bytes(5000), f"{OK}, truncated_unit"),
        _case("name_of_a_gigabyte", two + header(b"x", b"%o" % GIB, b"L") + bytes(5000), f"{OK}, truncated_unit"),
        _case("sparse_100_gb", sparse(), f"image_too_large x2, {OK}"),
        _case("sparse_holes", two + holes(20 << 20), f"{OK} x2, truncated_unit"),
        _case("sparse_map_100_gb", _map_of(100 * GIB), "truncated_unit"),
        _case("image_65_mb", lambda: member("a.jpg", bytes(65 << 20)) + shard("b.jpg"), f"image_too_large, {OK}"),
        # gzip
        _gz("gzip_member_of_100_gb", partial(gzip_zeros, two + hundred, 512 << 20), f"{OK}, truncated_unit"),
        _gz(
            "gzip_unused_member",
            partial(gzip_zeros, two + header(b"c.npy", large(100 * GIB)), 512 << 20),
            f"{OK}, truncated_unit",
        ),
        _gz("gzip_zeros_behind_the_end", partial(gzip_zeros, two + END, 512 << 20), f"{OK}, truncated_unit"),
        _gz("gzip_of_headers", lambda: gzip.compress(header(b"a.npy") * 200_000), "truncated_unit"),
        _gz("gzip_in_gzip", lambda: gzip.compress(gzip.compress(shard("a.jpg"))), "unit_format"),
        _gz("gzip_truncated", lambda: gzip.compress(shard("a.jpg", "b.jpg"))[:-20], "truncated_unit"),
        _gz("gzip_not_at_all", lambda: shard("a.jpg"), OK),
        # other compression
        _case("zst_bomb", lambda: zstd.compress(two + hundred + bytes(512 << 20)), f"{OK}, truncated_unit"),
        _case("xz_bomb", lambda: lzma.compress(two + hundred + bytes(64 << 20), preset=0), f"{OK}, truncated_unit"),
        _case("bz2_bomb", lambda: bz2.compress(two + hundred + bytes(64 << 20)), f"{OK}, truncated_unit"),
        _case("xz_window_of_a_gigabyte", xz_of_window(shard("a.jpg"), GIB), "truncated_unit"),
        # no archives
        _case("empty_tar", END, "empty_unit"),
        _case("no_bytes", b"", "unit_format"),
        _case("text_named_tar", b"<!DOCTYPE html><html><body>404 Not Found</body></html>\n" * 20, "unit_format"),
        # what a reader might load
        _case("payloads", loaded_kinds(), OK),
        _case("deep_json", member("a.jpg") + member("a.json", b"[" * 200_000) + END, OK),
        _case("text_of_a_megabyte", member("a.jpg") + member("a.txt", b"t" * (1 << 20)) + END, OK),
    ]


def _names() -> list[Case]:
    return [
        _case("name_above", shard(f"../../{HARM}.jpg", f"../../{HARM}/b.jpg"), f"{OK} x2"),
        _case("name_absolute", shard(f"{ELSEWHERE}.jpg"), OK),
        _case("name_of_two_dots", shard("a.b.jpg"), OK),
        _case("name_in_capitals", shard("A.JPG"), OK),
        _case("name_without_extension", shard("a", "b.jpg"), OK),
        _case("name_in_two_folders", shard("x/a.jpg", "y/a.jpg"), f"{OK} x2"),
        _case("name_of_control_characters", shard("a\x1b[2J\r\n.jpg", "b\u202egpj.jpg"), f"{OK} x2"),
        _case("name_not_utf8", header(b"\xff\xfe.jpg", b"0") + END, "image_empty"),
        _case("names_interleaved", shard("a.jpg", "b.jpg", "a.txt", "b.txt"), f"{OK} x2, no_image x2"),
        _case("names_twice", shard("a.jpg", "a.jpg"), "duplicate_member"),
        _case("links_and_devices", others(), OK),
    ]


def _case(name: str, content: bytes | Callable[[], bytes], expected: str, **more: Any) -> Case:
    made = content if callable(content) else lambda: content
    return Case(name=f"tar_{name}", file="shard.tar", content=made, expected=expected, **more)


def _gz(name: str, content: Any, expected: str) -> Case:
    return Case(name=f"tar_{name}", file="shard.tar.gz", content=content, expected=expected)
