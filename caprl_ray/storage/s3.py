"""S3, and stores that speak its protocol, through boto3."""

import errno
import tempfile
from collections import deque
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from email.utils import parsedate_to_datetime
from functools import partial
from itertools import islice
from typing import Any, BinaryIO

from caprl_ray.recipe.storage import Storage
from caprl_ray.storage.listing import Listing, Page
from caprl_ray.storage.prefetch import readers
from caprl_ray.storage.s3_client import bucket_and_key, changed, client, faults, lacking, path_of, version_of
from caprl_ray.storage.s3_stream import opened
from caprl_ray.storage.stored import Folder, Listed, Passed, SourceChanged, Stored
from caprl_ray.storage.wanted import Rule, Sieve, States, Wanted

LISTED_AHEAD = 16  # concurrent listings, of sub-prefixes or of ranges of one prefix


class S3Store:
    """The objects of S3 buckets. A path is `s3://bucket/key`, where nothing of the key is encoded."""

    def __init__(self, settings: Storage) -> None:
        self._settings = settings

    @property
    def _s3(self) -> Any:
        return client(self._settings)

    def lookup(self, path: str) -> Stored | Folder | None:
        """An object wins over a folder of the same name."""
        bucket, key = bucket_and_key(path)
        _refuse_unordered(bucket)
        if key and not key.endswith("/"):
            try:
                return self._head(path)
            except FileNotFoundError:
                pass
        folder = _folder_key(key)
        with faults(path):
            found = self._s3.list_objects_v2(Bucket=bucket, Prefix=folder, MaxKeys=1)
        return Folder(path=path_of(bucket, folder)) if found.get("Contents") else None

    def _head(self, path: str) -> Stored:
        bucket, key = bucket_and_key(path)
        with faults(path):
            head = self._s3.head_object(Bucket=bucket, Key=key)
        return Stored(path=path, size=head["ContentLength"], version=version_of(head))

    def age(self, path: str) -> float | None:
        """By the clock of the service: its answers carry the time."""
        bucket, key = bucket_and_key(path)
        with suppress(FileNotFoundError), faults(path):
            head = self._s3.head_object(Bucket=bucket, Key=key)
            date = head["ResponseMetadata"]["HTTPHeaders"].get("date")
            return max(0.0, (parsedate_to_datetime(date) - head["LastModified"]).total_seconds()) if date else None
        return None

    def wanted(self, pattern: str, rule: Rule | None = None) -> Wanted:
        bucket, key = bucket_and_key(pattern)
        return Wanted.of(path_of(bucket, ""), key, rule)

    def find(self, wanted: Wanted, after: str | None = None) -> Iterator[Listed | Passed]:
        bucket, _ = bucket_and_key(wanted.folder)
        _refuse_unordered(bucket)
        if after is not None and not after.startswith(wanted.folder):
            after = None
        return self._find(wanted, wanted.begin(), wanted.folder, after)

    def _find(self, wanted: Wanted, states: States, folder: str, after: str | None) -> Iterator[Listed | Passed]:
        """The wanted objects below a folder that matches so far. Lists level by level until a pattern takes any depth,
        then flat."""
        if wanted.deep(states):
            yield from Sieve(wanted, states, folder).of(self.walk(folder, after))
            return
        for child in self._children(folder, wanted.head(states), after):
            if isinstance(child, Stored):
                yield from Sieve(wanted, states, folder).of(iter([child]))
                continue
            within = wanted.below(states, child.path[len(folder) : -1])
            if isinstance(within, str):
                yield Passed(path=child.path, reason=within)
            elif within:
                inner = after if after is not None and after.startswith(child.path) else None
                yield from self._find(wanted, within, child.path, inner)

    def _children(self, folder: str, head: str, after: str | None) -> Iterator[Stored | Folder]:
        """The objects and folders directly in a folder whose names begin with `head`, in the order of paths.

        `after`: only those that come after this path, and the folder that it is in.
        """
        bucket, prefix = bucket_and_key(folder)
        if after and (slash := after.find("/", len(folder))) >= 0:
            after = after[: slash + 1]
            yield Folder(path=after)
        for page in self._pages(bucket, prefix + head, "/", after=after):
            yield from (child for child in page if after is None or child.path > after)

    def walk(self, folder: str, after: str | None = None) -> Iterator[Stored]:
        bucket, key = bucket_and_key(folder)
        _refuse_unordered(bucket)
        prefix = _folder_key(key)
        while lone := self._lone_folder(bucket, prefix):  # descend to where several can be listed at the same time
            prefix = lone
        if after is None or not after.startswith(path_of(bucket, prefix)):
            return (stored for stored in self._below(bucket, prefix) if after is None or stored.path > after)
        return self._after(bucket, prefix, after)

    def _after(self, bucket: str, prefix: str, after: str) -> Iterator[Stored]:
        """The objects below a prefix that come after a path in it: first the rest of the innermost sub-prefix, then of
        the one around it, and so on."""
        folder = path_of(bucket, prefix)
        while len(after) > len(folder):
            inner = after[: after.rindex("/", 0, -1) + 1]
            yield from self._below(bucket, bucket_and_key(inner)[1], after)
            after = inner

    def _lone_folder(self, bucket: str, prefix: str) -> str | None:
        """The sub-prefix that all keys below a prefix share, up to its next slash; None if they share none."""
        pages = list(islice(self._pages(bucket, prefix, "/", 3), 2))
        if len(pages) == len(pages[0]) == 1 and isinstance(pages[0][0], Folder):
            return bucket_and_key(pages[0][0].path)[1]
        return None

    def _below(self, bucket: str, prefix: str, after: str = "") -> Iterator[Stored]:
        """Every object below a prefix, in order of keys. Several sub-prefixes are listed at the same time.

        `after`: an object or a sub-prefix directly below the prefix; only what comes after it.

        Memory holds the first page of each of LISTED_AHEAD sub-prefixes, and what `Listing` holds of two prefixes.
        """
        ahead: deque[Stored | Listing] = deque()
        with readers(LISTED_AHEAD) as pool:
            for page in self._listing(pool, bucket, prefix, "/", after or None):
                for child in page:
                    if child.path <= after:  # the store names this sub-prefix again, as its keys come after its name
                        continue
                    if isinstance(child, Folder):
                        ahead.append(self._listing(pool, bucket, bucket_and_key(child.path)[1], ""))
                    else:
                        ahead.append(child)
                    if len(ahead) > LISTED_AHEAD:
                        yield from _objects(ahead.popleft())
            while ahead:
                yield from _objects(ahead.popleft())

    def _listing(
        self, pool: ThreadPoolExecutor, bucket: str, prefix: str, delimiter: str, after: str | None = None
    ) -> Listing:
        fetch = partial(self._page, bucket, prefix, delimiter, 1000)
        return Listing(pool, path_of(bucket, prefix), fetch, after)

    def _pages(
        self, bucket: str, prefix: str, delimiter: str, size: int = 1000, after: str | None = None
    ) -> Iterator[list[Stored | Folder]]:
        """Pages of at most `size` objects and, with a delimiter, sub-prefixes, in order of keys, one after another.

        `after`: a path; the sub-prefix of this name may be named again.
        """
        page = self._page(bucket, prefix, delimiter, size, after, None)
        while page.token:
            yield page.children
            page = self._page(bucket, prefix, delimiter, size, None, page.token)
        yield page.children

    def _page(self, bucket: str, prefix: str, delimiter: str, size: int, after: str | None, token: str | None) -> Page:
        """Fetch the page after a path, the page after the one that gave a token, or the first page.

        Leaves out empty objects whose keys end with a slash. Consoles create them to show a folder.
        """
        where = {"StartAfter": bucket_and_key(after)[1]} if after else {}
        where |= {"ContinuationToken": token} if token else {}
        with faults(path_of(bucket, prefix)):
            page = self._s3.list_objects_v2(Bucket=bucket, Prefix=prefix, Delimiter=delimiter, MaxKeys=size, **where)
        found: list[Stored | Folder] = [
            Stored(path=path_of(bucket, entry["Key"]), size=entry["Size"], version=version_of(entry))
            for entry in page.get("Contents", ())
            if entry["Size"] or not entry["Key"].endswith("/")
        ]
        found += [Folder(path=path_of(bucket, entry["Prefix"])) for entry in page.get("CommonPrefixes", ())]
        found.sort(key=lambda child: child.path)
        if "IsTruncated" not in page and not page.get("NextContinuationToken") and found:
            page["IsTruncated"] = self._goes_on(bucket, prefix, bucket_and_key(found[-1].path)[1])
        return Page(found, _next(page))

    def _goes_on(self, bucket: str, prefix: str, last: str) -> bool:
        """Whether a prefix has keys after the key or sub-prefix `last`. For stores whose listing does not tell."""
        after = last[:-1] + "0" if last.endswith("/") else last  # 0 comes after the slash
        with faults(path_of(bucket, prefix)):
            page = self._s3.list_objects_v2(Bucket=bucket, Prefix=prefix, StartAfter=after, MaxKeys=1)
        return bool(page.get("Contents"))

    def objects(self, folder: str) -> list[Stored]:
        bucket, key = bucket_and_key(folder)
        children = (child for page in self._pages(bucket, _folder_key(key), "/") for child in page)
        return [child for child in children if isinstance(child, Stored)]

    def open(self, stored: Stored, piece: int | None = None) -> BinaryIO:
        if stored.size == 0 and self._head(stored.path) != stored:  # there is no range to ask for
            raise changed(stored.path)
        return opened(self._s3, stored, piece)

    def read(self, path: str) -> bytes:
        with self.open(self._head(path)) as stream:
            return stream.read()

    def put(self, path: str, content: bytes) -> None:
        bucket, key = bucket_and_key(path)
        with faults(path):
            self._s3.put_object(Bucket=bucket, Key=key, Body=content)

    @contextmanager
    def written(self, path: str) -> Iterator[BinaryIO]:
        """Large files are uploaded in parts, and the object appears when all parts are there."""
        bucket, key = bucket_and_key(path)
        with tempfile.TemporaryFile(prefix="caprl-ray-") as file:
            yield file
            file.seek(0)
            with faults(path):
                self._s3.upload_fileobj(file, bucket, key)

    def create(self, path: str, content: bytes) -> Stored:
        try:
            return self._put_if(path, content, IfNoneMatch="*")
        except SourceChanged:
            raise FileExistsError(errno.EEXIST, "an object of this name exists already", path) from None

    def replace(self, stored: Stored, content: bytes) -> Stored:
        return self._put_if(stored.path, content, IfMatch=stored.version.removeprefix("etag:"))

    def _put_if(self, path: str, content: bytes, **condition: str) -> Stored:
        bucket, key = bucket_and_key(path)
        with faults(path):
            put = self._s3.put_object(Bucket=bucket, Key=key, Body=content, **condition)
        return Stored(path=path, size=len(content), version=version_of(put))

    def delete(self, path: str) -> None:
        bucket, key = bucket_and_key(path)
        with faults(path):
            self._s3.delete_object(Bucket=bucket, Key=key)

    def real(self, path: str) -> str:
        return path

    def sweep(self, folder: str) -> None:
        """Nothing to do: an object is written whole or not at all."""

    def probe(self, path: str, root: str) -> None:
        """Raises nothing if the credentials may read but not list."""
        bucket, key = bucket_and_key(root)
        with suppress(PermissionError):
            page = self._page(bucket, _folder_key(key), "", 1, None, None)
            if not page.children and not page.token:
                raise FileNotFoundError(errno.ENOENT, "nothing is below the prefix", root)


def _objects(found: Stored | Listing) -> Iterator[Stored]:
    if isinstance(found, Stored):
        yield found
        return
    for page in found:
        for stored in page:
            assert isinstance(stored, Stored), "a listing without a delimiter has no sub-prefixes"
            yield stored


def _next(page: Mapping[str, Any]) -> str | None:
    """The token for the page after this one."""
    token: str | None = page.get("NextContinuationToken")
    if page.get("IsTruncated") and not token:
        raise lacking("NextContinuationToken, which the next page of a listing needs")
    return token if page.get("IsTruncated", True) else None


def _refuse_unordered(bucket: str) -> None:
    """Raise OSError for a directory bucket (S3 Express). It lists keys in no order and cannot start after a key;
    listing.py needs both."""
    if bucket.endswith("--x-s3"):
        raise OSError(errno.EOPNOTSUPP, "an S3 directory bucket lists its keys in no order; use a general purpose one")


def _folder_key(key: str) -> str:
    """The prefix of a folder's contents; empty for the whole bucket."""
    return key if not key or key.endswith("/") else key + "/"
