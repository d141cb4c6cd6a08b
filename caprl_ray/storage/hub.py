"""Datasets on the Hugging Face hub: `hf://datasets/ORG/NAME@REVISION/path`, only for reading.

A commit never changes. So a branch or tag is replaced by its commit when it is listed, and every path of the plan names
the commit.
"""

import errno
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any, BinaryIO, ClassVar, NoReturn
from urllib.parse import quote, unquote

from caprl_ray.errors import RecipeError, SystemFailure
from caprl_ray.recipe.storage import Storage
from caprl_ray.storage.flat import FlatStore
from caprl_ray.storage.stored import Folder, SourceChanged, Stored

SCHEME = "hf://"
ANSWER_S = 20.0  # seconds to wait for the commit of a revision, before anything is started
MAIN = "main"
_PLACE = re.compile(
    r"hf://datasets/(?P<repository>[\w.-]+/[\w.-]+)(?:@(?P<revision>refs/(?:convert|pr)/[\w.-]+|[^/]+))?(?:/(?P<name>.*))?",
    re.DOTALL,
)
_COMMIT = re.compile("[0-9a-f]{40}")
_LOOKUP = threading.Lock()
_PINNED = re.compile(r"(hf://datasets/[\w.-]+/[\w.-]+)@[0-9a-f]{40}(?=/|\Z)")


def unpinned(path: str) -> str:
    """The path without its commit, which is the same for a file in all versions of a repository."""
    return _PINNED.sub(r"\1", path) if path.startswith(SCHEME) else path


def pinned(path: str, before: str | None = None) -> str:
    """The path with the present commit of its revision.

    `before`: the pinned path of an earlier planning, whose commit is kept. Raises RecipeError for a repository that the
    hub does not give, SystemFailure if the hub does not answer.
    """
    repository, revision, name = _parts(path)
    if not _COMMIT.fullmatch(revision):
        known = _parts(before)[:2] if before and before.startswith(SCHEME) else ("", "")
        revision = known[1] if known[0] == repository else _commit(repository, revision, once=True)
    return f"hf://datasets/{repository}@{revision}/{name}"


@cache
def _known_commit(repository: str, revision: str) -> str:
    return _commit(repository, revision, once=False)


def _parts(path: str) -> tuple[str, str, str]:
    """Split a path into repository, revision and name. Raises RecipeError if it is not a path of a dataset."""
    found = _PLACE.fullmatch(path)
    if found is None:
        raise RecipeError(f"{path}: a dataset on the hub is named hf://datasets/ORG/NAME@REVISION/path.")
    return found["repository"], unquote(found["revision"] or MAIN), found["name"] or ""


def _commit(repository: str, revision: str, *, once: bool) -> str:
    """The commit of a branch or tag. `once`: without retries, for a check before anything is started."""
    from huggingface_hub import errors
    from huggingface_hub.errors import HTTPError  # type: ignore[attr-defined]

    where = f"hf://datasets/{repository}"
    try:
        answer = _ask("GET", f"/api/datasets/{repository}/revision/{quote(revision, safe='')}", ANSWER_S, once=once)
        return str(answer.json()["sha"])
    except errors.GatedRepoError:
        raise RecipeError(f"{where} is gated; accept its terms on the hub and set HF_TOKEN.") from None
    except errors.RepositoryNotFoundError:
        reason = "the hub has no such dataset; check the name, and HF_TOKEN if the dataset is private"
        raise RecipeError(f"{where}: {reason}.") from None
    except errors.RevisionNotFoundError:
        raise RecipeError(f"{where} has no branch, tag or commit {revision}.") from None
    except (OSError, HTTPError, ValueError, KeyError) as error:
        raise SystemFailure(
            f"{where}: the commit of {revision} is not known ({_reason(error)}); check HF_ENDPOINT and the network, "
            f"and run again, or name the commit itself as {where}@COMMIT."
        ) from None


def _ask(method: Any, path: str, timeout: float, *, once: bool = False, **arguments: Any) -> Any:
    """Request a path or a whole URL of the hub, and return its answer. Raises errors of huggingface_hub.

    `once`: without the client's retries, and without the line that it logs for each.
    """
    from huggingface_hub import constants
    from huggingface_hub.utils import (  # type: ignore[attr-defined]
        build_hf_headers,
        get_session,
        hf_raise_for_status,
        http_backoff,
    )

    headers = build_hf_headers() | arguments.pop("headers", {})
    url = constants.ENDPOINT + path if path.startswith("/") else path
    send = get_session().request if once else http_backoff
    answer = send(method, url, headers=headers, timeout=timeout, **arguments)
    hf_raise_for_status(answer)
    return answer


def _reason(error: Exception) -> str:
    """The reason of a failure. Drops the client's text, which may hold signed URLs."""
    from huggingface_hub.errors import OfflineModeIsEnabled

    status = getattr(getattr(error, "response", None), "status_code", None)
    if isinstance(error, OfflineModeIsEnabled):
        return "HF_HUB_OFFLINE is set"
    return f"the hub answers {status}" if status else f"the hub gave no answer: {type(error).__name__}"


@contextmanager
def _faults(path: str) -> Iterator[None]:
    """Convert the client's exceptions to OSErrors."""
    from huggingface_hub import errors
    from huggingface_hub.errors import HTTPError  # type: ignore[attr-defined]

    try:
        yield
    except errors.EntryNotFoundError:
        raise FileNotFoundError(errno.ENOENT, "no such file in the repository", path) from None
    except (errors.GatedRepoError, errors.RepositoryNotFoundError, errors.RevisionNotFoundError):
        reason = "the hub does not give this repository or commit; check HF_TOKEN on every node"
        raise OSError(errno.EIO, reason, path) from None
    except (HTTPError, ConnectionError) as error:
        raise OSError(errno.EIO, _reason(error), path) from None


class HubStore(FlatStore):
    """The files of datasets on the hub."""

    scheme: ClassVar[str] = SCHEME

    def __init__(self, settings: Storage) -> None:
        self._timeout = settings.timeout_s

    def real(self, path: str) -> str:
        """The path with its commit. A process looks up each revision once."""
        if _PINNED.match(path):
            return path
        repository, revision, name = _parts(path)
        with _LOOKUP:
            return f"hf://datasets/{repository}@{_known_commit(repository, revision)}/{name}"

    def root(self, path: str) -> str:
        repository, revision, _ = _parts(path)
        return f"hf://datasets/{repository}@{revision}/"

    def below(self, prefix: str, after: str | None) -> Iterator[Stored]:
        """Sorts the whole listing in memory: the hub defines no order, and no repository has millions of files."""
        root = self.root(prefix)
        repository, revision, name = _parts(prefix)
        folder = name.rpartition("/")[0]
        at = f"/api/datasets/{repository}/tree/{revision}" + (f"/{quote(folder)}" if folder else "")
        try:
            with _faults(prefix):
                found = list(self._listed(at))
        except FileNotFoundError:
            return
        files = (_stored(root, entry) for entry in found if entry["type"] == "file")
        yield from sorted((s for s in files if s.path.startswith(prefix)), key=lambda stored: stored.path)

    def _listed(self, at: str) -> Iterator[dict[str, Any]]:
        page = _ask("GET", at, self._timeout, params={"recursive": True})
        yield from page.json()
        while following := page.links.get("next", {}).get("url"):
            page = _ask("GET", following, self._timeout)
            yield from page.json()

    def lookup(self, path: str) -> Stored | Folder | None:
        """Takes one request, because the hub knows folders."""
        path = self.real(path)
        repository, revision, name = _parts(path)
        wanted = name.rstrip("/")
        if not wanted:
            return Folder(path=self.root(path))
        with _faults(path):
            at = f"/api/datasets/{repository}/paths-info/{revision}"
            found = _ask("POST", at, self._timeout, data={"paths": [wanted], "expand": False}).json()
        entry = next((entry for entry in found if entry["path"] == wanted), None)
        if entry and entry["type"] == "file":
            return None if name.endswith("/") else _stored(self.root(path), entry)
        return Folder(path=f"{self.root(path)}{wanted}/") if entry else None

    def look(self, path: str) -> Stored:
        found = self.lookup(path)
        if not isinstance(found, Stored):
            raise FileNotFoundError(errno.ENOENT, "no such file in the repository", path)
        return found

    def probe(self, path: str, root: str) -> None:
        if self.lookup(root) is None:
            raise FileNotFoundError(errno.ENOENT, "nothing is below the prefix", root)

    def fetch(self, stored: Stored, start: int, end: int) -> bytes:
        repository, revision, name = _parts(stored.path)
        at = f"/datasets/{repository}/resolve/{revision}/{quote(name)}"
        with _faults(stored.path):
            headers = {"Range": f"bytes={start}-{end - 1}", "Accept-Encoding": "identity"}
            answer = _ask("GET", at, self._timeout, headers=headers)
        content: bytes = answer.content
        if answer.status_code == 200 and len(content) == stored.size:  # the hub sent a small file as a whole
            return content[start:end]
        if answer.headers.get("Content-Range") != f"bytes {start}-{end - 1}/{stored.size}":
            raise SourceChanged(errno.ESTALE, "the hub gives a file of another size than it lists", stored.path)
        return content

    def put(self, path: str, content: bytes) -> NoReturn:
        raise _read_only(path)

    def upload(self, path: str, file: BinaryIO) -> NoReturn:
        raise _read_only(path)

    def create(self, path: str, content: bytes) -> NoReturn:
        raise _read_only(path)

    def replace(self, stored: Stored, content: bytes) -> NoReturn:
        raise _read_only(stored.path)

    def delete(self, path: str) -> NoReturn:
        raise _read_only(path)


def _read_only(path: str) -> OSError:
    return OSError(errno.EROFS, "hf:// is read-only", path)


def _stored(root: str, entry: dict[str, Any]) -> Stored:
    """A file of the hub. Its version is the hash of its content."""
    lfs = entry.get("lfs") or {}
    return Stored(path=root + entry["path"], size=entry["size"], version=f"oid:{lfs.get('oid') or entry['oid']}")
