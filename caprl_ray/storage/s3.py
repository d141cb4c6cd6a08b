"""S3 and stores that speak its protocol, through boto3.

Objects are read in exact ranges, each with `If-Match` on the planned ETag: a changed object is noticed in the middle of
a read too, a range that comes short is fetched again, and connections stay open from one range to the next.
"""

import errno
import io
import os
from collections import deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager, suppress
from datetime import datetime
from fnmatch import fnmatchcase
from functools import cache, partial
from glob import has_magic
from itertools import islice
from typing import Any, BinaryIO, cast

from caprl_ray import recipe
from caprl_ray.storage.listing import Listing, Page
from caprl_ray.storage.stored import Folder, SourceChanged, Stored

# One request of a stream: large enough that its latency does not count, small enough to be held for each read task.
RANGE_BYTES = 8 * 2**20
# A stream that jumps this far forward, or back, does so again, as over the members of a tar that nobody wants: its next
# range is a small one, enough for headers. A store sends about as much as the jump in the time of one request more
# (30 ms at 70 MB/s). Ranges that follow on one another grow until they are whole again: what is fetched and not used
# stays below a few times what is, and reading on costs four requests more.
JUMP_BYTES = 2 * 2**20
RANGE_BYTES_AFTER_JUMP, RANGE_GROWTH = 64 * 2**10, 4
LISTED_AHEAD = 16  # listings at once, of sub-prefixes or of ranges of one prefix
# Attempts of one request, where AWS_MAX_ATTEMPTS or the profile says no other number: about a minute of waiting in all
# by botocore's "legacy" backoff with jitter, whatever the fault. Its newer modes allow 35 retries (14 of a quota of 500
# each) to all threads of a process together, which a store that is away uses up within a second.
ATTEMPTS = 8
BODY_ATTEMPTS = 5  # of one range whose answer breaks off

# The request was refused for what its sender is, not for what it asked: every other one would be, too.
DENIED_SENDERS = frozenset(
    {"ExpiredToken", "InvalidAccessKeyId", "InvalidToken", "RequestTimeTooSkewed", "SignatureDoesNotMatch"}
)


@cache
def _client(settings: recipe.Storage) -> Any:
    """One client a process; boto3's clients may be used by several threads. Credentials: boto3's usual chain."""
    import boto3
    from botocore import UNSIGNED
    from botocore.config import Config
    from botocore.session import Session

    path_style = settings.endpoint is not None if settings.path_style is None else settings.path_style
    # Stores that are not Amazon's may refuse the checksums that botocore adds where nothing requires them.
    checksums = "when_required" if settings.endpoint else "when_supported"
    session = Session(profile=settings.profile)
    with _faults("storage"):
        attempts = session.get_config_variable("max_attempts") or ATTEMPTS
    config = Config(
        retries={"mode": "legacy", "total_max_attempts": attempts},
        connect_timeout=min(10, settings.timeout_s),
        read_timeout=settings.timeout_s,
        max_pool_connections=2 * LISTED_AHEAD,
        s3={"addressing_style": "path" if path_style else "auto"},
        signature_version=UNSIGNED if settings.anonymous else None,
        request_checksum_calculation=checksums,
        response_checksum_validation=checksums,
    )
    with _faults("storage"):
        session.get_component("response_parser_factory").set_parser_defaults(timestamp_parser=_moment)
        connected = boto3.Session(botocore_session=session, region_name=settings.region)
        return connected.client("s3", endpoint_url=settings.endpoint, config=config)


def _moment(value: Any) -> datetime:
    """A time as S3 writes it; botocore's own parser takes two thirds of the time that a listing costs."""
    from botocore.utils import parse_timestamp

    with suppress(TypeError, ValueError):
        moment = datetime.fromisoformat(value)
        if moment.tzinfo:
            return moment
    return cast("datetime", parse_timestamp(value))


class S3Store:
    """The objects of S3 buckets; a path is `s3://bucket/key` with the key as it is, nothing in it encoded."""

    def __init__(self, settings: recipe.Storage) -> None:
        self._settings = settings

    @property
    def _s3(self) -> Any:
        return _client(self._settings)

    def lookup(self, path: str) -> Stored | Folder | None:
        """An object goes before a folder of the same name."""
        bucket, key = _parts(path)
        if key and not key.endswith("/"):
            try:
                return self._head(path)
            except FileNotFoundError:
                pass
        folder = _folder_key(key)
        with _faults(path):
            found = self._s3.list_objects_v2(Bucket=bucket, Prefix=folder, MaxKeys=1)
        return Folder(path=_path(bucket, folder)) if found["KeyCount"] else None

    def _head(self, path: str) -> Stored:
        bucket, key = _parts(path)
        with _faults(path):
            head = self._s3.head_object(Bucket=bucket, Key=key)
        return Stored(path=path, size=head["ContentLength"], version=_version(head["ETag"]))

    def find(self, pattern: str) -> Iterator[Stored | Folder]:
        bucket, key = _parts(pattern)
        if not has_magic(key):
            for page in self._pages(bucket, key, "/"):
                yield from page
            return
        literal, magic = [], key.split("/")
        while not has_magic(magic[0]):
            literal.append(magic.pop(0) + "/")
        yield from self._expand(bucket, "".join(literal), magic)

    def _expand(self, bucket: str, prefix: str, parts: list[str]) -> Iterator[Stored | Folder]:
        """What matches the remaining parts of a glob below a prefix, level by level."""
        part, rest = parts[0], parts[1:]
        if part == "**" and not rest:
            yield from self._below(bucket, prefix)
            return
        if part == "**":
            yield from self._expand(bucket, prefix, rest)
        for page in self._pages(bucket, prefix, "/"):
            for child in page:
                name = child.path.rstrip("/").rpartition("/")[2]
                if part == "**":
                    if isinstance(child, Folder):
                        yield from self._expand(bucket, prefix + name + "/", parts)
                elif fnmatchcase(name, part) and not rest:
                    yield child
                elif fnmatchcase(name, part) and isinstance(child, Folder):
                    yield from self._expand(bucket, prefix + name + "/", rest)

    def walk(self, folder: str) -> Iterator[Stored]:
        bucket, key = _parts(folder)
        prefix = _folder_key(key)
        while lone := self._lone_folder(bucket, prefix):  # or nothing would be listed at the same time
            prefix = lone
        return self._below(bucket, prefix)

    def _lone_folder(self, bucket: str, prefix: str) -> str | None:
        """The sub-prefix that everything below a prefix has in common, up to its next slash."""
        pages = list(islice(self._pages(bucket, prefix, "/", 3), 2))
        if len(pages) == len(pages[0]) == 1 and isinstance(pages[0][0], Folder):
            return _parts(pages[0][0].path)[1]
        return None

    def _below(self, bucket: str, prefix: str) -> Iterator[Stored]:
        """Every object below a prefix, in order of keys; several sub-prefixes are listed at the same time.

        What is held: the first page of each of LISTED_AHEAD sub-prefixes, and what `Listing` holds of two prefixes.
        """
        pool = ThreadPoolExecutor(LISTED_AHEAD)
        ahead: deque[Stored | Listing] = deque()
        try:
            for page in self._listing(pool, bucket, prefix, "/"):
                for child in page:
                    if isinstance(child, Folder):
                        ahead.append(self._listing(pool, bucket, _parts(child.path)[1], ""))
                    else:
                        ahead.append(child)
                    if len(ahead) > LISTED_AHEAD:
                        yield from _objects(ahead.popleft())
            while ahead:
                yield from _objects(ahead.popleft())
        finally:
            pool.shutdown(cancel_futures=True)

    def _listing(self, pool: ThreadPoolExecutor, bucket: str, prefix: str, delimiter: str) -> Listing:
        fetch = partial(self._page, bucket, prefix, delimiter, 1000)
        return Listing(pool, _path(bucket, prefix), fetch)

    def _pages(self, bucket: str, prefix: str, delimiter: str, size: int = 1000) -> Iterator[list[Stored | Folder]]:
        """Pages of at most `size` objects and, with a delimiter, sub-prefixes, in order of keys, one after another."""
        page = self._page(bucket, prefix, delimiter, size, None, None)
        while page.token:
            yield page.children
            page = self._page(bucket, prefix, delimiter, size, None, page.token)
        yield page.children

    def _page(self, bucket: str, prefix: str, delimiter: str, size: int, after: str | None, token: str | None) -> Page:
        """A page after a path, after the page that gave a token, or the first one.

        The empty objects that consoles make to show a folder, whose keys end with a slash, are left out.
        """
        where = {"StartAfter": _parts(after)[1]} if after else {}
        where |= {"ContinuationToken": token} if token else {}
        with _faults(_path(bucket, prefix)):
            page = self._s3.list_objects_v2(Bucket=bucket, Prefix=prefix, Delimiter=delimiter, MaxKeys=size, **where)
        found: list[Stored | Folder] = [
            Stored(path=_path(bucket, entry["Key"]), size=entry["Size"], version=_version(entry["ETag"]))
            for entry in page.get("Contents", ())
            if not entry["Key"].endswith("/")
        ]
        found += [Folder(path=_path(bucket, entry["Prefix"])) for entry in page.get("CommonPrefixes", ())]
        token = page["NextContinuationToken"] if page["IsTruncated"] else None
        return Page(sorted(found, key=lambda child: child.path), token)

    def objects(self, folder: str) -> list[Stored]:
        bucket, key = _parts(folder)
        children = (child for page in self._pages(bucket, _folder_key(key), "/") for child in page)
        return [child for child in children if isinstance(child, Stored)]

    def open(self, stored: Stored, piece: int | None = None) -> BinaryIO:
        if stored.size == 0 and self._head(stored.path) != stored:  # there is no range to ask for
            raise _changed(stored.path)
        ranges = _Ranges(self._s3, stored)
        return cast("BinaryIO", io.BufferedReader(ranges, piece) if piece else _Stream(ranges, RANGE_BYTES))

    def read(self, path: str) -> bytes:
        with self.open(self._head(path)) as stream:
            return stream.read()

    def put(self, path: str, content: bytes) -> None:
        bucket, key = _parts(path)
        with _faults(path):
            self._s3.put_object(Bucket=bucket, Key=key, Body=content)

    def create(self, path: str, content: bytes) -> Stored:
        try:
            return self._put_if(path, content, IfNoneMatch="*")
        except SourceChanged:
            raise FileExistsError(errno.EEXIST, "there is one already", path) from None

    def replace(self, stored: Stored, content: bytes) -> Stored:
        return self._put_if(stored.path, content, IfMatch=stored.version.removeprefix("etag:"))

    def _put_if(self, path: str, content: bytes, **condition: str) -> Stored:
        bucket, key = _parts(path)
        with _faults(path):
            put = self._s3.put_object(Bucket=bucket, Key=key, Body=content, **condition)
        return Stored(path=path, size=len(content), version=_version(put["ETag"]))

    def delete(self, path: str) -> None:
        bucket, key = _parts(path)
        with _faults(path):
            self._s3.delete_object(Bucket=bucket, Key=key)


def _objects(found: Stored | Listing) -> Iterator[Stored]:
    if isinstance(found, Stored):
        yield found
        return
    for page in found:
        for stored in page:
            assert isinstance(stored, Stored), "a listing without a delimiter has no sub-prefixes"
            yield stored


class _Stream(io.BufferedReader):
    """An object's ranges, buffered; notices jumps, also those that stay inside the buffer."""

    raw: "_Ranges"

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        before = self.tell()
        position = super().seek(offset, whence)
        if not 0 <= position - before < JUMP_BYTES:
            self.raw.jumped()
        return position


class _Ranges(io.RawIOBase):
    """One version of an object as a raw stream, each read one request for exactly its bytes.

    A buffer that is to be filled may get less than it has room for, as any raw stream's: see JUMP_BYTES.
    """

    def __init__(self, client: Any, stored: Stored) -> None:
        self._s3 = client
        self._stored = stored
        self._position = 0
        self._begun = False
        self._most: int | None = None

    def jumped(self) -> None:
        """Fetch little the next time that a buffer is filled; where a reader begins is no jump."""
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
        """The bytes from `start` to before `end`; an answer that breaks off is asked for again."""
        from tenacity import Retrying, retry_if_exception_type, stop_after_attempt, wait_random_exponential

        retrying = Retrying(
            retry=retry_if_exception_type(_BrokenOff),
            stop=stop_after_attempt(BODY_ATTEMPTS),
            wait=wait_random_exponential(multiplier=0.5, max=20),
            reraise=True,
        )
        try:
            with _faults(self._stored.path):
                return bytes(retrying(self._request, start, end))
        except PermissionError:
            self._check_bucket()
            raise

    def _check_bucket(self) -> None:
        """Raise OSError where not this object alone is denied: that would pass for as many bad rows."""
        bucket, key = _parts(self._stored.path)
        try:
            with _faults(self._stored.path):
                self._s3.list_objects_v2(Bucket=bucket, Prefix=key, MaxKeys=1)
        except PermissionError:
            raise OSError(errno.EIO, "S3 denies access to the bucket", self._stored.path) from None

    def _request(self, start: int, end: int) -> bytes:
        from botocore.exceptions import HTTPClientError, IncompleteReadError

        bucket, key = _parts(self._stored.path)
        etag = self._stored.version.removeprefix("etag:")
        response = self._s3.get_object(Bucket=bucket, Key=key, Range=f"bytes={start}-{end - 1}", IfMatch=etag)
        try:
            with closing(response["Body"]) as body:
                content: bytes = body.read()  # raises where the connection ends before Content-Length
        except (HTTPClientError, IncompleteReadError) as error:
            raise _BrokenOff(errno.EIO, f"S3's answer broke off: {type(error).__name__}", self._stored.path) from None
        if response["ETag"] != etag or response.get("ContentRange") != f"bytes {start}-{end - 1}/{self._stored.size}":
            raise _changed(self._stored.path)
        return content


class _BrokenOff(OSError):
    """An answer began and did not end: botocore, which has seen its beginning, does not ask again."""


@contextmanager
def _faults(path: str) -> Iterator[None]:
    """botocore's exceptions as OSErrors; their own texts may hold signed addresses and are not passed on."""
    from botocore.exceptions import BotoCoreError, ClientError, NoCredentialsError, ProfileNotFound

    try:
        yield
    except ClientError as error:
        raise _answer(error, path) from None
    except NoCredentialsError:
        reason = "no S3 credentials were found; give them in the usual ways, or set storage.anonymous"
        raise OSError(errno.EIO, reason, path) from None
    except ProfileNotFound:
        raise OSError(errno.EIO, "storage.profile names no profile of this machine", path) from None
    except BotoCoreError as error:
        raise OSError(errno.EIO, f"S3 gave no answer: {type(error).__name__}", path) from None


def _answer(error: Any, path: str) -> OSError:
    """What S3's refusal means."""
    code, status = str(error.response["Error"].get("Code")), error.response["ResponseMetadata"]["HTTPStatusCode"]
    if status in (409, 412):  # 409: another conditional write of the same object is under way
        return _changed(path)
    if code == "NoSuchBucket":
        return OSError(errno.EIO, "the bucket does not exist", path)
    if status == 404:
        return FileNotFoundError(errno.ENOENT, "no such object", path)
    if status == 403 and code not in DENIED_SENDERS:
        return PermissionError(errno.EACCES, "S3 denies access", path)
    return OSError(errno.EIO, f"S3 answers {code}", path)


def _changed(path: str) -> SourceChanged:
    return SourceChanged(errno.ESTALE, "changed since it was planned", path)


def _version(etag: str) -> str:
    return f"etag:{etag}"


def _parts(path: str) -> tuple[str, str]:
    """Bucket and key."""
    bucket, _, key = path.removeprefix("s3://").partition("/")
    return bucket, key


def _path(bucket: str, key: str) -> str:
    return f"s3://{bucket}/{key}"


def _folder_key(key: str) -> str:
    """The prefix of what lies in a folder; empty for the whole bucket."""
    return key if not key or key.endswith("/") else key + "/"
