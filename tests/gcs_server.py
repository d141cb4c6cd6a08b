"""A Google Cloud Storage server on loopback: gcp-storage-emulator, which lacks conditions, with conditions."""

import io
import json
import re
import threading
from functools import partial
from http.server import ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from gcp_storage_emulator.exceptions import NotFound
from gcp_storage_emulator.handlers import buckets
from gcp_storage_emulator.server import RequestHandler
from gcp_storage_emulator.storage import Storage

BUCKET = "photos"


class GoogleServer:
    """`requests` are methods, paths and ranges. Paths in `denied` are refused."""

    def __init__(self) -> None:
        self.requests: list[tuple[str, str | None]] = []
        self.denied = ""
        self.storage = Storage(use_memory_fs=True)
        buckets.create_bucket(BUCKET, self.storage)
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), partial(_Requests, self))
        self.endpoint = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def stop(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def generation(self, name: str) -> str:
        """That of an object; 0 if there is none."""
        try:
            return str(self.storage.get_file_obj(BUCKET, name)["generation"])
        except NotFound:
            return "0"


class _Requests(RequestHandler):  # type: ignore[misc]
    def __init__(self, server: GoogleServer, *args: Any) -> None:
        self.google = server
        super().__init__(server.storage, *args)

    def do_GET(self) -> None:  # noqa: N802
        self._guarded(super().do_GET)

    def do_POST(self) -> None:  # noqa: N802
        self._guarded(super().do_POST)

    def do_DELETE(self) -> None:  # noqa: N802
        self._guarded(super().do_DELETE)

    def _guarded(self, answer: Any) -> None:
        self.google.requests.append((f"{self.command} {self.path}", self.headers.get("Range")))
        url = urlsplit(self.path)
        wanted = parse_qs(url.query).get("ifGenerationMatch", [None])[0]
        if self.google.denied and self.google.denied in unquote(self.path):
            self.send_error(403)
        elif self._is_met(url.path, wanted):
            answer()
        else:
            self.send_error(412)

    def _is_met(self, path: str, wanted: str | None) -> bool:
        if wanted is None:
            return True
        there = self.google.generation(self._name(path))
        return there == wanted or (self.command == "GET" and there == "0")  # reading what is not there is answered so

    def _name(self, path: str) -> str:
        """The object of a request, which an upload names in its body."""
        if self.command != "POST":
            return unquote(path.partition("/o/")[2])
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.rfile = io.BytesIO(body)
        found = re.search(rb'\{"name": .*?\}', body)
        assert found
        return str(json.loads(found[0])["name"])
