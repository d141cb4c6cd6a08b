"""Read one version of an S3 object as a stream of ranges (ranges.py), each with `If-Match` on the planned ETag."""

import errno
from contextlib import closing
from typing import Any, BinaryIO

from caprl_ray.storage.ranges import RANGE_BYTES, RANGE_BYTES_AFTER_JUMP, Ranges, buffered
from caprl_ray.storage.s3_client import bucket_and_key, changed, faults
from caprl_ray.storage.stored import Archived, Stored

__all__ = ["RANGE_BYTES", "RANGE_BYTES_AFTER_JUMP", "opened"]

BODY_ATTEMPTS = 5  # attempts to fetch a range whose answer breaks off


def opened(client: Any, stored: Stored, piece: int | None) -> BinaryIO:
    """The object from its start. `piece` is the number of bytes per request; by default the stream decides."""
    return buffered(_Ranges(client, stored), piece, RANGE_BYTES)


class _Ranges(Ranges):
    def __init__(self, client: Any, stored: Stored) -> None:
        super().__init__(stored)
        self._s3 = client

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
        """Raise plain OSError if S3 denies more than this object: otherwise every row would fail."""
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
    """An answer broke off. botocore does not retry once an answer has begun."""
