"""Google Cloud Storage, `gs://bucket/key`, through its own client. An object's version is its generation.

Every read and every conditional write names the generation, so that another version is never read or overwritten.
"""

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from typing import Any, BinaryIO, ClassVar

from caprl_ray.errors import RecipeError
from caprl_ray.recipe.storage import Storage
from caprl_ray.storage.flat import FlatStore
from caprl_ray.storage.stored import NotGranted, SourceChanged, Stored

CONNECTIONS = 32  # per process
FIELDS = "items(name,size,generation),nextPageToken"  # to request in a listing


@cache
def _client(settings: Storage) -> Any:
    """One client per process. Credentials: Google's usual chain, or none for an emulator."""
    try:
        from google.auth.exceptions import DefaultCredentialsError
        from google.cloud import storage  # type: ignore[import-untyped]
        from requests.adapters import HTTPAdapter
    except ImportError:
        raise RecipeError("gs:// paths need Google's client; run pip install 'caprl_ray[gcs]'.") from None
    project = os.environ.get("GOOGLE_CLOUD_PROJECT", "none")  # objects need no project
    try:
        anonymous = settings.anonymous
        client = storage.Client.create_anonymous_client() if anonymous else storage.Client(project=project)
    except DefaultCredentialsError:
        reason = "no Google credentials were found; give them in the usual ways, or set storage.anonymous"
        raise NotGranted(errno.EIO, reason) from None
    client._http.mount("https://", HTTPAdapter(pool_maxsize=CONNECTIONS))  # as Google's own samples do it
    return client


@contextmanager
def _faults(path: str) -> Iterator[None]:
    """Convert the client's exceptions to OSErrors. Drops their texts, which may hold signed URLs."""
    from google.api_core.exceptions import Forbidden, GoogleAPIError, NotFound, PreconditionFailed
    from google.auth.exceptions import GoogleAuthError
    from requests import RequestException

    try:
        yield
    except PreconditionFailed:
        raise SourceChanged(errno.ESTALE, "changed since it was planned", path) from None
    except NotFound:
        raise FileNotFoundError(errno.ENOENT, "no such object", path) from None
    except Forbidden:
        raise PermissionError(errno.EACCES, "the store denies access", path) from None
    except GoogleAPIError as error:
        code = getattr(error, "code", None)
        said = f"the store answers {int(code)}" if code else f"the store gave no answer: {type(error).__name__}"
        raise OSError(errno.EIO, said, path) from None
    except GoogleAuthError:
        raise NotGranted(errno.EIO, "the store refuses the credentials, or they cannot be renewed", path) from None
    except RequestException as error:
        raise OSError(errno.EIO, f"the store gave no answer: {type(error).__name__}", path) from None


class GoogleStore(FlatStore):
    """The objects of Google's buckets, with their keys as they are."""

    scheme: ClassVar[str] = "gs://"

    def __init__(self, settings: Storage) -> None:
        self._settings = settings
        self._timeout = settings.timeout_s

    @property
    def _client(self) -> Any:
        return _client(self._settings)

    def _blob(self, path: str) -> Any:
        bucket, key = self.split(path)
        return self._client.bucket(bucket).blob(key)

    def below(self, prefix: str, after: str | None) -> Iterator[Stored]:
        root, (name, key) = self.root(prefix), self.split(prefix)
        start = after[len(root) :] if after and after.startswith(root) else None
        try:
            with _faults(prefix):
                found = self._client.list_blobs(
                    name, prefix=key, start_offset=start, fields=FIELDS, timeout=self._timeout
                )
                for blob in found:
                    if blob.size or not blob.name.endswith("/"):  # consoles show a folder by such an empty object
                        yield _stored(root + blob.name, blob)
        except FileNotFoundError:
            raise NotGranted(errno.EIO, "the bucket does not exist", prefix) from None

    def look(self, path: str) -> Stored:
        blob = self._blob(path)
        with _faults(path):
            blob.reload(timeout=self._timeout)
        return _stored(path, blob)

    def fetch(self, stored: Stored, start: int, end: int) -> bytes:
        with _faults(stored.path):
            content: bytes = self._blob(stored.path).download_as_bytes(
                start=start,
                end=end - 1,
                raw_download=True,  # the stored bytes, even if they are compressed
                if_generation_match=_generation(stored),
                timeout=self._timeout,
                checksum=None,
            )
        return content

    def put(self, path: str, content: bytes) -> None:
        self._upload(path, content, None)

    def create(self, path: str, content: bytes) -> Stored:
        try:
            return self._upload(path, content, 0)
        except SourceChanged:
            raise FileExistsError(errno.EEXIST, "an object of this name exists already", path) from None

    def replace(self, stored: Stored, content: bytes) -> Stored:
        return self._upload(stored.path, content, _generation(stored))

    def _upload(self, path: str, content: bytes, generation: int | None) -> Stored:
        from google.cloud.storage.retry import DEFAULT_RETRY  # type: ignore[import-untyped]

        blob = self._blob(path)
        with _faults(path):
            blob.upload_from_string(
                content,
                content_type="application/octet-stream",
                if_generation_match=generation,
                timeout=self._timeout,
                retry=DEFAULT_RETRY,
            )
        return _stored(path, blob)

    def upload(self, path: str, file: BinaryIO) -> None:
        with _faults(path):
            self._blob(path).upload_from_file(file, content_type="application/octet-stream", timeout=self._timeout)

    def delete(self, path: str) -> None:
        with suppress(FileNotFoundError), _faults(path):
            self._blob(path).delete(timeout=self._timeout)


def _stored(path: str, blob: Any) -> Stored:
    return Stored(path=path, size=blob.size, version=f"generation:{blob.generation}")


def _generation(stored: Stored) -> int:
    return int(stored.version.removeprefix("generation:"))
