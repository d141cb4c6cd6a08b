"""Decompress streams. Their first bytes tell the compression: gzip, bzip2, xz or zstd.

A stream may hold several members (frames), one after the other, also of different kinds. Bytes after
the last one are not read; `junk` counts them. No header is trusted: memory and inflation are bounded.
"""

import bz2
import lzma
import re
import sys
import zlib
from collections.abc import Callable
from typing import BinaryIO, Protocol

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

from caprl_ray.sources.tape import CHUNK, TarDamaged

PACKED_CHUNK = 64 << 10  # compressed bytes per read
LONGEST_MAGIC = 16

# A few megabytes of gzip can inflate to gigabytes of zeros (deflate: up to 1030 to 1). Images hardly compress at all;
# flat pictures in raw formats compress 20 to 50 to 1. All the data of a stream may inflate to at most FREE_INFLATION
# bytes + MAX_INFLATION x the compressed bytes read so far.
FREE_INFLATION, MAX_INFLATION = 32 << 20, 100
# The largest window of a decoder. xz and zstd use 64 and 128 MiB at most, unless they are told to use more.
WINDOW_LOG = 27
XZ_MEMORY = (1 << WINDOW_LOG) + (32 << 20)


class _Decoder(Protocol):
    """The common interface of the decoders of bz2, lzma and zstd."""

    @property
    def eof(self) -> bool: ...

    @property
    def needs_input(self) -> bool: ...

    @property
    def unused_data(self) -> bytes: ...

    def decompress(self, data: bytes, max_length: int) -> bytes:
        """At most `max_length` bytes."""
        ...


class _Gzip:
    """zlib's decoder with the interface of the others. It checks the header, the checksum and the length."""

    def __init__(self) -> None:
        self._zlib = zlib.decompressobj(wbits=31)
        self.needs_input = True

    @property
    def eof(self) -> bool:
        return self._zlib.eof

    @property
    def unused_data(self) -> bytes:
        return self._zlib.unused_data

    def decompress(self, data: bytes, max_length: int) -> bytes:
        part = self._zlib.decompress(self._zlib.unconsumed_tail + data, max_length)
        self.needs_input = not self._zlib.unconsumed_tail and len(part) < max_length
        return part


_KINDS: tuple[tuple[str, re.Pattern[bytes], Callable[[], _Decoder]], ...] = (
    ("gzip", re.compile(rb"\x1f\x8b\x08"), _Gzip),
    ("bzip2", re.compile(rb"BZh[1-9](?:1AY&SY|\x17rE8P\x90)"), bz2.BZ2Decompressor),
    ("xz", re.compile(rb"\xfd7zXZ\0"), lambda: lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=XZ_MEMORY)),
    (
        "zstd",
        re.compile(rb"\x28\xb5\x2f\xfd|[\x50-\x5f]\x2a\x4d\x18"),  # a frame, or a skippable one
        lambda: zstd.ZstdDecompressor(options={zstd.DecompressionParameter.window_log_max: WINDOW_LOG}),
    ),
)
_FAULTS = (zlib.error, OSError, EOFError, ValueError, lzma.LZMAError, zstd.ZstdError)


def compression(front: bytes) -> str | None:
    """How a stream is compressed, by its first bytes; None if it is not."""
    return next((name for name, magic, _ in _KINDS if magic.match(front)), None)


class Unpacked:
    """Reads the plain bytes of a compressed stream. `front` are its first bytes, which have been read already.

    Attributes:
        kind: the compression of the current member.
        junk: the number of bytes after the last member, once that is read.
    """

    def __init__(self, stream: BinaryIO, front: bytes) -> None:
        self._packed = _Packed(stream, front)
        self._decoder: _Decoder | None = None
        self._given = 0
        self.kind = ""
        self.junk = 0
        begun = self._next(front=b"")
        assert begun, "`front` are the first bytes of a compressed stream"

    def read(self, size: int) -> bytes:
        """At most `size` bytes; none at the end of the last member. Raises TarDamaged."""
        part = b""
        while not part and self._decoder is not None:
            part = self._decoded(self._decoder, min(size, CHUNK))
            if self._decoder.eof and not self._next(self._decoder.unused_data):
                self._decoder = None
        self._given += len(part)
        if self._given > FREE_INFLATION + MAX_INFLATION * self._packed.offset:
            raise TarDamaged(f"the {self.kind} stream inflates more than {MAX_INFLATION} to 1 by byte {self._given}")
        return part

    def _decoded(self, decoder: _Decoder, size: int) -> bytes:
        data = self._packed.read(PACKED_CHUNK) if decoder.needs_input else b""
        ended = decoder.needs_input and not data
        try:
            part = decoder.decompress(data, size)
        except _FAULTS as error:
            raise self._damage(error) from error
        if ended and not part and not decoder.eof:
            raise self._damage()
        return part

    def _damage(self, error: Exception | None = None) -> TarDamaged:
        if "memory" in str(error).lower():
            return TarDamaged(f"the {self.kind} stream needs a window of more than {1 << WINDOW_LOG} bytes")
        return TarDamaged(f"the {self.kind} stream is damaged or ends early after byte {self._given}")

    def _next(self, front: bytes) -> bool:
        """Begin the next member, after padding zeros. If there is none, count the remaining bytes; returns False."""
        front = front.lstrip(b"\0")
        while len(front) < LONGEST_MAGIC and (more := self._packed.read(PACKED_CHUNK)):
            front = (front + more).lstrip(b"\0")
        for name, magic, decoder in _KINDS:
            if magic.match(front):
                self.kind, self._decoder = name, decoder()
                self._packed.put_back(front)
                return True
        self.junk = len(front)
        while more := self._packed.read(CHUNK):
            self.junk += len(more)
        return False


class _Packed:
    """Counts the compressed bytes that are read.

    Each read is complete, so that the count at any point does not depend on how the network splits the data.
    """

    def __init__(self, stream: BinaryIO, front: bytes) -> None:
        self._stream = stream
        self._held = front
        self.offset = 0

    def read(self, size: int) -> bytes:
        content, self._held = self._held[:size], self._held[size:]
        while len(content) < size and (part := self._stream.read(size - len(content))):
            content += part
        self.offset += len(content)
        return content

    def put_back(self, content: bytes) -> None:
        self._held = content + self._held
        self.offset -= len(content)
