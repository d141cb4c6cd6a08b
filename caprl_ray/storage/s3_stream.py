"""One version of an object of S3 as a stream of exact ranges, each with `If-Match` on the planned ETag.

So a change in the middle of a read is noticed, an incomplete range is fetched again, and connections stay open between
ranges.
"""

import errno
import io
import os
from contextlib import closing
from typing import Any, BinaryIO, cast

from caprl_ray.storage.s3_client import bucket_and_key, changed, faults
from caprl_ray.storage.stored import Archived, Stored

# One request of a stream: large enough to hide its latency, small enough for each read task to hold.
RANGE_BYTES = 8 * 2**20
# After a large seek, forward or back, expect more of them (skipping tar members): the next range is a small one, enough
# for headers. A store sends about as much as the seek in the time of one more request (30 ms at 70 MB/s). While reads
# are sequential, ranges grow until they are whole again. So the unused bytes stay below a few times the used ones, and
# continued reading costs four more requests.
JUMP_BYTES = 2 * 2**20
RANGE_BYTES_AFTER_JUMP, RANGE_GROWTH = 64 * 2**10, 4
BODY_ATTEMPTS = 5  # attempts at a range whose answer breaks off


def opened(client: Any, stored: Stored, piece: int | None) -> BinaryIO:
    """The object from its start. `piece` is the number of bytes per request; by default the stream decides."""
    ranges = _Ranges(client, stored)
    return cast("BinaryIO", io.BufferedReader(ranges, piece) if piece else _Stream(ranges, RANGE_BYTES))


class _Stream(io.BufferedReader):
    """An object's ranges, buffered. Notices seeks, also those inside the buffer."""

    raw: "_Ranges"

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        before = self.tell()
        position = super().seek(offset, whence)
        if not 0 <= position - before < JUMP_BYTES:
            self.raw.jumped()
        return position


class _Ranges(io.RawIOBase):
    """One version of an object as a raw stream. Each read is one request for exactly its bytes.

    A read may fill less than the whole buffer, as any raw stream may: see JUMP_BYTES.
    """

    def __init__(self, client: Any, stored: Stored) -> None:
        self._s3 = client
        self._stored = stored
        self._position = 0
        self._begun = False
        self._most: int | None = None

    def jumped(self) -> None:
        """Fetch little for the next buffer. The start of a reader is no seek."""
        if self._begun:
            self._most = RANGE_BYTES_AFTER_JUMP

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        start = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._stored.size}[whence]
        self._position = max(0, start + offset)
        return self._position

    def readinto(self, buffer: Any) -> int:
        wanted = len(buffer) if self._most is None else min(len(buffer), self._most)
        content = self.read(wanted)
        buffer[: len(content)] = content
        if self._most is not None:
            self._most = self._most * RANGE_GROWTH if wanted < len(buffer) else None
        return len(content)

    def readall(self) -> bytes:
        return self.read(self._stored.size)

    def read(self, size: int = -1) -> bytes:
        end = self._stored.size if size < 0 else min(self._stored.size, self._position + size)
        if self._position >= end:
            return b""
        content = self._fetch(self._position, end)
        self._begun = True
        self._position = end
        return content

    def _fetch(self, start: int, end: int) -> bytes:
        """The bytes from `start` to before `end`. An answer that breaks off is requested again."""
        from tenacity import Retrying, retry_if_exception_type, stop_after_attempt, wait_random_exponential

        retrying = Retrying(
            retry=retry_if_exception_type(_BrokenOff),
            stop=stop_after_attempt(BODY_ATTEMPTS),
            wait=wait_random_exponential(multiplier=0.5, max=20),
            reraise=True,
        )
        try:
            with faults(self._stored.path):
                return bytes(retrying(self._request, start, end))
        except Archived:
            raise
        except PermissionError:
            self._check_bucket()
            raise

    def _check_bucket(self) -> None:
        """Raise OSError if the refusal concerns more than this object: otherwise as many bad rows would result."""
        bucket, key = bucket_and_key(self._stored.path)
        try:
            with faults(self._stored.path):
                self._s3.list_objects_v2(Bucket=bucket, Prefix=key, MaxKeys=1)
        except PermissionError:
            raise OSError(errno.EIO, "S3 denies access to the bucket", self._stored.path) from None

    def _request(self, start: int, end: int) -> bytes:
        from botocore.exceptions import HTTPClientError, IncompleteReadError

        bucket, key = bucket_and_key(self._stored.path)
        etag = self._stored.version.removeprefix("etag:")
        response = self._s3.get_object(Bucket=bucket, Key=key, Range=f"bytes={start}-{end - 1}", IfMatch=etag)
        try:
            with closing(response["Body"]) as body:
                content: bytes = body.read()  # raises if the connection ends before Content-Length
        except (HTTPClientError, IncompleteReadError) as error:
            raise _BrokenOff(errno.EIO, f"S3's answer broke off: {type(error).__name__}", self._stored.path) from None
        if (
            response.get("ETag", etag) != etag
            or response.get("ContentRange") != f"bytes {start}-{end - 1}/{self._stored.size}"
        ):
            raise changed(self._stored.path)
        return content


class _BrokenOff(OSError):
    """An answer began and did not end. botocore, which has seen its beginning, does not retry."""
