"""A server on loopback that answers as the Hugging Face hub does for datasets, with a record of requests."""

import hashlib
import json
import re
import threading
import time
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

REPOSITORY = "org/photos"
GATED, HANGS = "org/gated", "org/hangs"
PAGE = 3  # entries of a listing
HANG_S = 3.0

Files = dict[str, bytes]


def commit(number: int) -> str:
    """The name of a commit."""
    return f"{number:040x}"


@dataclass
class HubServer:
    """`commits` are the files of each commit, `branches` the commit of each branch or tag."""

    commits: dict[str, Files] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)
    requests: list[tuple[str, str | None]] = field(default_factory=list)
    """Method and path, and the range."""
    lost: int = 0
    """How many of the next questions for a commit get no answer."""
    tokens: set[str | None] = field(default_factory=set)

    def __post_init__(self) -> None:
        handler = type("Handler", (_Requests,), {"hub": self})
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self.endpoint = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def stop(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def push(self, files: Files, branch: str = "main") -> str:
        """A new commit of a branch."""
        name = commit(len(self.commits) + 1)
        self.commits[name], self.branches[branch] = files, name
        return name

    def entries(self, name: str) -> list[dict[str, Any]]:
        """The files and folders of a commit, in no order that a reader could use."""
        files = self.commits[name]
        found = [
            {"type": "file", "path": path, "size": len(content), "oid": hashlib.sha1(content).hexdigest()}
            for path, content in files.items()
        ]
        folders = {path[:end] for path in files for end in (m.start() for m in re.finditer("/", path))}
        found += [{"type": "directory", "path": path, "size": 0, "oid": "0" * 40} for path in folders]
        return sorted(found, key=lambda entry: entry["oid"])


class _Requests(BaseHTTPRequestHandler):
    hub: HubServer
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self._note()
        path = urlsplit(self.path).path
        asked = re.fullmatch(r"/(?:api/)?datasets/([^/]+/[^/]+)/(revision|tree|resolve)/([^/]+)(?:/(.*))?", path)
        if asked and (found := self._commit(asked[1], unquote(asked[3]))):
            getattr(self, f"_{asked[2]}")(found, unquote(asked[4] or ""))

    def do_POST(self) -> None:
        self._note()
        wanted = parse_qs(self.rfile.read(int(self.headers["Content-Length"])).decode())["paths"]
        asked = re.fullmatch(r"/api/datasets/([^/]+/[^/]+)/paths-info/([^/]+)", self.path)
        assert asked
        if found := self._commit(asked[1], unquote(asked[2])):
            self._json([entry for entry in self.hub.entries(found) if entry["path"] in wanted])

    def _note(self) -> None:
        self.hub.requests.append((f"{self.command} {self.path}", self.headers.get("Range")))
        if "/datasets/" in self.path:
            self.hub.tokens.add(self.headers.get("Authorization"))

    def _commit(self, repository: str, revision: str) -> str | None:
        """The commit, or an answer that there is none."""
        found = self.hub.branches.get(revision, revision)
        if repository == HANGS:
            time.sleep(HANG_S)
            self.close_connection = True
            return None
        if repository == GATED:
            self._answer(403, b"", {"X-Error-Code": "GatedRepo"})
        elif repository != REPOSITORY:
            self._answer(401, b"", {"X-Error-Code": "RepoNotFound"})
        elif found not in self.hub.commits:
            self._answer(404, b"", {"X-Error-Code": "RevisionNotFound"})
        else:
            return found
        return None

    def _revision(self, found: str, _: str) -> None:
        if self.hub.lost:
            self.hub.lost -= 1
            self.close_connection = True
            return
        self._json({"id": REPOSITORY, "sha": found})

    def _tree(self, found: str, folder: str) -> None:
        below = [entry for entry in self.hub.entries(found) if not folder or entry["path"].startswith(folder + "/")]
        if not below:
            self._answer(404, b"", {"X-Error-Code": "EntryNotFound"})
            return
        url = urlsplit(self.path)
        start = int(parse_qs(url.query).get("cursor", ["0"])[0])
        following = f'<{self.hub.endpoint}{url.path}?recursive=True&cursor={start + PAGE}>; rel="next"'
        self._json(below[start : start + PAGE], {"Link": following} if start + PAGE < len(below) else {})

    def _resolve(self, found: str, path: str) -> None:
        content = self.hub.commits[found].get(path)
        if content is None:
            self._answer(404, b"", {"X-Error-Code": "EntryNotFound"})
            return
        if "large" in path and not self.path.endswith("?signed=SECRET"):  # as large files are, from another host
            self._answer(302, b"", {"Location": f"{self.path}?signed=SECRET"})
            return
        asked = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
        if asked is None:
            self._answer(200, content)
            return
        start, end = int(asked[1]), min(int(asked[2]) + 1, len(content))
        self._answer(206, content[start:end], {"Content-Range": f"bytes {start}-{end - 1}/{len(content)}"})

    def _json(self, document: Any, headers: dict[str, str] | None = None) -> None:
        self._answer(200, json.dumps(document).encode(), {"Content-Type": "application/json"} | (headers or {}))

    def _answer(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in ({"Content-Length": str(len(body))} | (headers or {})).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        pass
