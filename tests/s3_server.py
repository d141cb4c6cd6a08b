"""A real S3 server on loopback (moto's), with a record of requests, and with faults on demand."""

import re
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import unquote

import boto3
from botocore.config import Config
from moto.s3.models import s3_backends
from moto.server import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import WSGIRequestHandler, make_server

BUCKET = "bucket"
HANG_S = 3.0
Fault = Callable[["Request"], str | None]


class _Quiet(WSGIRequestHandler):
    """Logs no requests."""

    def log(self, type: str, message: str, *args: Any) -> None:
        pass


@dataclass(frozen=True)
class Request:
    """One request as the server got it. `key` is decoded, without the bucket."""

    method: str
    key: str
    query: str
    range: str | None
    if_match: str | None


@dataclass
class S3Server:
    """The server of a test session. `faults` names the fault of a request, by a name of `FAULTS`."""

    requests: list[Request] = field(default_factory=list)
    fault: Fault | None = None
    without: str = ""
    """A field that listings lack, as those of some stores do."""
    faulted: list[Request] = field(default_factory=list)
    fired: Counter[str] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        app = DomainDispatcherApplication(create_backend_app)
        self._app = app
        self._server = make_server("127.0.0.1", 0, self._respond, threaded=True, request_handler=_Quiet)
        self.endpoint = f"http://127.0.0.1:{self._server.port}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        self.client = boto3.client(
            "s3",
            endpoint_url=self.endpoint,
            region_name="us-east-1",
            aws_access_key_id="test",
            aws_secret_access_key="test",
            config=Config(max_pool_connections=32),
        )
        self.client.create_bucket(Bucket=BUCKET)

    def stop(self) -> None:
        self._server.shutdown()

    def reset(self) -> None:
        """Forget requests and faults and empty the bucket."""
        self.fault, self.without = None, ""
        self._backend.buckets[BUCKET].keys.clear()
        self.requests.clear()
        self.faulted.clear()
        self.fired.clear()

    @property
    def _backend(self) -> Any:
        return s3_backends["123456789012"]["aws"]

    def fill(self, keys: Iterable[str]) -> None:
        """Store many empty objects without a request for each."""
        for key in keys:
            self._backend.put_object(BUCKET, key, b"")

    def put(self, key: str, content: bytes) -> str:
        """Store an object; returns its path."""
        self.client.put_object(Bucket=BUCKET, Key=key, Body=content)
        return f"s3://{BUCKET}/{key}"

    def of(self, method: str, prefix: str = "") -> list[Request]:
        """The requests so far of one method whose key begins with `prefix`."""
        return [r for r in self.requests if r.method == method and r.key.startswith(prefix)]

    def _respond(self, environ: dict[str, Any], start_response: Any) -> Iterator[bytes]:
        path = unquote(environ["RAW_URI"].partition("?")[0])
        request = Request(
            method=environ["REQUEST_METHOD"],
            key=path.removeprefix(f"/{BUCKET}").removeprefix("/"),
            query=environ["QUERY_STRING"],
            range=environ.get("HTTP_RANGE"),
            if_match=environ.get("HTTP_IF_MATCH"),
        )
        self.requests.append(request)
        fault = self.fault(request) if self.fault else None
        if fault:
            self.faulted.append(request)
            self.fired[fault] += 1
            return FAULTS[fault](self._app, environ, start_response)
        if self.without and "list-type" in request.query:
            return self._lacking(environ, start_response)
        return self._app(environ, start_response)

    def _lacking(self, environ: dict[str, Any], start_response: Any) -> Iterator[bytes]:
        kept: list[Any] = []
        content = b"".join(self._app(environ, lambda status, headers, *_: kept.extend((status, headers))))
        content = re.sub(rf"<{self.without}>[^<]*</{self.without}>".encode(), b"", content)
        headers = [header for header in kept[1] if header[0].lower() != "content-length"]
        start_response(kept[0], [*headers, ("Content-Length", str(len(content)))])
        return iter([content])


def _slow_down(_: Any, __: Any, start_response: Any) -> Iterator[bytes]:
    start_response("503 Slow Down", [("Content-Type", "application/xml")])
    return iter([b"<Error><Code>SlowDown</Code><Message>Reduce your request rate.</Message></Error>"])


def _denied(_: Any, __: Any, start_response: Any) -> Iterator[bytes]:
    start_response("403 Forbidden", [("Content-Type", "application/xml")])
    return iter([b"<Error><Code>AccessDenied</Code><Message>Access Denied</Message></Error>"])


def _archived(_: Any, __: Any, start_response: Any) -> Iterator[bytes]:
    start_response("403 Forbidden", [("Content-Type", "application/xml")])
    return iter([b"<Error><Code>InvalidObjectState</Code><Message>The object is archived.</Message></Error>"])


def _expired(_: Any, __: Any, start_response: Any) -> Iterator[bytes]:
    start_response("400 Bad Request", [("Content-Type", "application/xml")])
    return iter([b"<Error><Code>ExpiredToken</Code><Message>AKIDSECRET has expired.</Message></Error>"])


def _short(app: Any, environ: Any, start_response: Any) -> Iterator[bytes]:
    """Half of the body under the whole body's Content-Length, then the connection closes."""
    content = b"".join(app(environ, start_response))
    return iter([content[: len(content) // 2]])


def _reset(_: Any, environ: Any, start_response: Any) -> Iterator[bytes]:
    environ["werkzeug.socket"].shutdown(socket.SHUT_RDWR)
    start_response("200 OK", [])
    return iter([])


def _lost(app: Any, environ: Any, start_response: Any) -> Iterator[bytes]:
    """The request is done, and the connection closes before the answer."""
    b"".join(app(environ, lambda *_: None))
    return _reset(app, environ, start_response)


def _hang(app: Any, environ: Any, start_response: Any) -> Iterator[bytes]:
    """No answer for longer than HANG_S."""
    time.sleep(HANG_S)
    return _reset(app, environ, start_response)


FAULTS = {
    "slow_down": _slow_down,
    "denied": _denied,
    "archived": _archived,
    "expired": _expired,
    "short": _short,
    "reset": _reset,
    "lost": _lost,
    "hang": _hang,
}
