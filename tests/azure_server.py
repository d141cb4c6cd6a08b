"""An Azure Blob Storage server on loopback: the few requests that the store makes, with their conditions."""

import itertools
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit
from xml.sax.saxutils import escape

ACCOUNT, CONTAINER = "devstoreaccount1", "photos"
KEY = "c2VjcmV0c2VjcmV0c2VjcmV0"
PAGE = 3
DATE = "Sun, 29 Nov 2026 12:00:00 GMT"


class AzureServer:
    """`blobs` are contents and ETags by name; `folders` are names that a hierarchical account lists as folders."""

    def __init__(self) -> None:
        self.requests: list[tuple[str, str | None]] = []
        self.blobs: dict[str, tuple[bytes, str]] = {}
        self.folders: set[str] = set()
        self.denied = ""
        self.backwards = False
        self._numbers = itertools.count(1)
        handler = type("Handler", (_Requests,), {"azure": self})
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        endpoint = f"http://127.0.0.1:{self._server.server_port}/{ACCOUNT}"
        self.connection = (
            f"DefaultEndpointsProtocol=http;AccountName={ACCOUNT};AccountKey={KEY};BlobEndpoint={endpoint};"
        )
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def stop(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def put(self, name: str, content: bytes) -> str:
        """Store a blob; returns its ETag."""
        self.blobs[name] = content, f"0x8D{next(self._numbers):04X}"
        return self.blobs[name][1]


class _Requests(BaseHTTPRequestHandler):
    azure: AzureServer
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self._handle()

    def do_HEAD(self) -> None:
        self._handle()

    def do_PUT(self) -> None:
        self._handle()

    def do_DELETE(self) -> None:
        self._handle()

    def _handle(self) -> None:
        part = self.headers.get("x-ms-range")
        self.azure.requests.append((f"{self.command} {self.path}", part))
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        url = urlsplit(self.path)
        _, _, container, *names = unquote(url.path).split("/", 3)
        if "Authorization" not in self.headers or (self.azure.denied and self.azure.denied in unquote(self.path)):
            self._refuse(403, "AuthorizationPermissionMismatch")
        elif container != CONTAINER:
            self._refuse(404, "ContainerNotFound")
        elif not names:
            self._list(parse_qs(url.query))
        elif self._is_met(names[0]):
            getattr(self, f"_{self.command.lower()}")(names[0], body)

    def _is_met(self, name: str) -> bool:
        found = self.azure.blobs.get(name)
        wanted = self.headers.get("If-Match")
        if found is None and self.command != "PUT":
            self._refuse(404, "BlobNotFound")
        elif wanted is not None and (found is None or wanted != f'"{found[1]}"'):
            self._refuse(412, "ConditionNotMet")
        elif self.headers.get("If-None-Match") == "*" and found:
            self._refuse(409, "BlobAlreadyExists")
        else:
            return True
        return False

    def _list(self, query: dict[str, list[str]]) -> None:
        prefix, marker = query.get("prefix", [""])[0], query.get("marker", [""])[0]
        names = [name for name in sorted({*self.azure.blobs, *self.azure.folders}) if name.startswith(prefix)]
        names = names[::-1] if self.azure.backwards else names
        page = [name for name in names if name >= marker][: PAGE + 1]
        following = page.pop() if len(page) > PAGE else ""
        blobs = "".join(map(self._entry, page))
        text = f"<Prefix>{escape(prefix)}</Prefix><Blobs>{blobs}</Blobs><NextMarker>{escape(following)}</NextMarker>"
        document = f"<EnumerationResults>{text}</EnumerationResults>"
        self._answer(200, document.encode(), {"Content-Type": "application/xml"})

    def _entry(self, name: str) -> str:
        content, etag = self.azure.blobs.get(name, (b"", "0x8D0"))
        metadata = (
            "<Metadata><hdi_isfolder>true</hdi_isfolder></Metadata>" if name in self.azure.folders else "<Metadata />"
        )
        return (
            f"<Blob><Name>{escape(name)}</Name><Properties><Content-Length>{len(content)}</Content-Length>"
            f"<Etag>{etag}</Etag><BlobType>BlockBlob</BlobType></Properties>{metadata}</Blob>"
        )

    def _head(self, name: str, _: bytes) -> None:
        content, etag = self.azure.blobs[name]
        self._answer(200, content, {"ETag": f'"{etag}"', "Last-Modified": DATE, "x-ms-blob-type": "BlockBlob"})

    def _get(self, name: str, _: bytes) -> None:
        content, etag = self.azure.blobs[name]
        asked = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers["x-ms-range"])
        assert asked
        start, end = int(asked[1]), min(int(asked[2]) + 1, len(content))
        headers = {"ETag": f'"{etag}"', "Content-Range": f"bytes {start}-{end - 1}/{len(content)}"}
        self._answer(206, content[start:end], headers | {"Last-Modified": DATE, "x-ms-blob-type": "BlockBlob"})

    def _put(self, name: str, body: bytes) -> None:
        self._answer(201, b"", {"ETag": f'"{self.azure.put(name, body)}"', "Last-Modified": DATE})

    def _delete(self, name: str, _: bytes) -> None:
        del self.azure.blobs[name]
        self._answer(202, b"", {})

    def _refuse(self, status: int, code: str) -> None:
        text = f"<Error><Code>{code}</Code><Message>{KEY} is not allowed.</Message></Error>"
        self._answer(status, text.encode(), {"x-ms-error-code": code, "Content-Type": "application/xml"})

    def _answer(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in ({"Content-Length": str(len(body))} | headers).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        pass
