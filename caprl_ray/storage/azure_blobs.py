"""Azure Blob Storage, `az://container/key`, through its own client. An object's version is its ETag.

The account comes from the environment: AZURE_STORAGE_CONNECTION_STRING, or AZURE_STORAGE_ACCOUNT with
AZURE_STORAGE_KEY, AZURE_STORAGE_SAS_TOKEN, or what azure-identity finds.
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
from caprl_ray.storage.stored import Archived, NotGranted, SourceChanged, Stored

CONNECTION, ACCOUNT = "AZURE_STORAGE_CONNECTION_STRING", "AZURE_STORAGE_ACCOUNT"
KEYS = ("AZURE_STORAGE_KEY", "AZURE_STORAGE_SAS_TOKEN")
RETRIES, BACKOFF_S = 6, 1  # about a minute in all


@cache
def _client(settings: Storage) -> Any:
    """One client per process."""
    try:
        from azure.storage.blob import BlobServiceClient
    except ImportError:
        raise RecipeError("az:// paths need Azure's client; run pip install 'caprl_ray[azure]'.") from None
    limits: dict[str, Any] = {
        "connection_timeout": min(10, settings.timeout_s),
        "read_timeout": settings.timeout_s,
        "retry_total": RETRIES,
        "initial_backoff": BACKOFF_S,
        "increment_base": 2,
    }
    try:
        if os.environ.get(CONNECTION):
            return BlobServiceClient.from_connection_string(os.environ[CONNECTION], **limits)
        account = os.environ.get(ACCOUNT)
        if not account:
            raise RecipeError(
                f"az:// paths need the account in the environment of every node, as {CONNECTION} or {ACCOUNT}."
            )
        return BlobServiceClient(f"https://{account}.blob.core.windows.net", _credential(settings), **limits)
    except ValueError:
        raise RecipeError(f"{CONNECTION} or {ACCOUNT} has an invalid value; copy it from Azure's portal.") from None


def _credential(settings: Storage) -> Any:
    if settings.anonymous:
        return None
    key = next((os.environ[name] for name in KEYS if os.environ.get(name)), None)
    if key:
        return key
    try:
        from azure.identity import DefaultAzureCredential  # type: ignore[import-untyped,import-not-found,unused-ignore]
    except ImportError:
        raise RecipeError(
            f"az:// paths need a credential in the environment of every node: {CONNECTION}, {' or '.join(KEYS)}; or "
            "pip install azure-identity, or storage.anonymous=true."
        ) from None
    return DefaultAzureCredential()


@contextmanager
def _faults(path: str) -> Iterator[None]:
    """Convert the client's exceptions to OSErrors. Drops their texts, which may hold signed URLs."""
    from azure.core.exceptions import AzureError, HttpResponseError

    try:
        yield
    except HttpResponseError as error:
        raise _answer(error, path) from None
    except AzureError as error:
        raise OSError(errno.EIO, f"the store gave no answer: {type(error).__name__}", path) from None


def _answer(error: Any, path: str) -> OSError:
    """The OSError for a refusal."""
    code = str(getattr(error.error_code, "value", error.error_code) or error.status_code)
    if code == "BlobArchived":
        return Archived(errno.EACCES, "archived: restore it", path)
    if error.status_code in (409, 412):
        return SourceChanged(errno.ESTALE, "changed since it was planned", path)
    if code == "ContainerNotFound":
        return NotGranted(errno.EIO, "the container does not exist", path)
    if error.status_code == 404:
        return FileNotFoundError(errno.ENOENT, "no such object", path)
    if error.status_code == 403 and code != "AuthenticationFailed":
        return PermissionError(errno.EACCES, "the store denies access", path)
    return OSError(errno.EIO, f"the store answers {code if code.isalnum() else error.status_code}", path)


class AzureStore(FlatStore):
    """The objects of Azure's containers, with their keys as they are."""

    scheme: ClassVar[str] = "az://"

    def __init__(self, settings: Storage) -> None:
        self._settings = settings

    @property
    def _client(self) -> Any:
        return _client(self._settings)

    def _blob(self, path: str) -> Any:
        return self._client.get_blob_client(*self.split(path))

    def below(self, prefix: str, after: str | None) -> Iterator[Stored]:
        """Lists from the first key and ignores `after`, because Azure cannot start at a key."""
        root, (name, key) = self.root(prefix), self.split(prefix)
        with _faults(prefix):
            found = self._client.get_container_client(name).list_blobs(name_starts_with=key, include=["metadata"])
            for blob in found:
                folder = (blob.metadata or {}).get("hdi_isfolder") == "true" or blob.name.endswith("/")
                if blob.size or not folder:
                    yield _stored(root + blob.name, blob.size, blob.etag)

    def look(self, path: str) -> Stored:
        with _faults(path):
            found = self._blob(path).get_blob_properties()
        if (found.metadata or {}).get("hdi_isfolder") == "true":
            raise FileNotFoundError(errno.ENOENT, "a folder", path)
        return _stored(path, found.size, found.etag)

    def fetch(self, stored: Stored, start: int, end: int) -> bytes:
        with _faults(stored.path):
            part = self._blob(stored.path).download_blob(start, end - start, **_same(stored))
            content: bytes = part.readall()
        return content

    def put(self, path: str, content: bytes) -> None:
        self._upload(path, content, overwrite=True)

    def create(self, path: str, content: bytes) -> Stored:
        try:
            return self._upload(path, content, overwrite=False)
        except SourceChanged:
            raise FileExistsError(errno.EEXIST, "an object of this name exists already", path) from None

    def replace(self, stored: Stored, content: bytes) -> Stored:
        return self._upload(stored.path, content, overwrite=True, **_same(stored))

    def _upload(self, path: str, content: bytes, **condition: Any) -> Stored:
        with _faults(path):
            written = self._blob(path).upload_blob(content, **condition)
        return _stored(path, len(content), written["etag"])

    def upload(self, path: str, file: BinaryIO) -> None:
        with _faults(path):
            self._blob(path).upload_blob(file, overwrite=True)

    def delete(self, path: str) -> None:
        with suppress(FileNotFoundError), _faults(path):
            self._blob(path).delete_blob()


def _stored(path: str, size: int, etag: str) -> Stored:
    """The quotes of the ETag are removed, because listings give it without them."""
    return Stored(path=path, size=size, version=f"etag:{etag.strip(chr(34))}")


def _same(stored: Stored) -> dict[str, Any]:
    """Arguments of a request that is refused if the object has another version."""
    from azure.core import MatchConditions

    etag = stored.version.removeprefix("etag:")
    return {"etag": f'"{etag}"', "match_condition": MatchConditions.IfNotModified}
