"""Check that something listens at an address, before a library silently waits for it."""

import socket
from http.client import HTTPConnection, HTTPException, HTTPSConnection
from urllib.parse import urlsplit

from caprl_ray.errors import SystemFailure

CONNECT_S = 10.0
ANSWER_S = 10.0  # unless the caller knows a time
PORTS = {"http": 80, "https": 443}


def check_address(field: str, address: str) -> None:
    """Raise SystemFailure if nothing listens at `scheme://host:port` or `host:port`. Other addresses pass."""
    parts = urlsplit(address if "://" in address else f"//{address}")
    try:
        host, port = parts.hostname, parts.port or PORTS.get(parts.scheme)
    except ValueError:
        raise SystemFailure(f"{field}: {parts.hostname} has a port that is no number.") from None
    if not host or not port:
        return
    try:
        socket.create_connection((host, port), CONNECT_S).close()
    except OSError as error:
        reason = "no answer" if isinstance(error, TimeoutError) else error.strerror or type(error).__name__
        raise SystemFailure(f"{field}: nothing can be reached at {host}:{port} ({reason}).") from error


def check_service(field: str, url: str, seconds: float | None = None) -> None:
    """Raise SystemFailure if nothing listens at an `http://` or `https://` address, or answers a request in time.

    Any HTTP status is an answer. Other faults of the connection are left to the library that uses it.
    """
    check_address(field, url)
    parts, limit = urlsplit(url), ANSWER_S if seconds is None else seconds
    kind = HTTPSConnection if parts.scheme == "https" else HTTPConnection
    connection = kind(parts.hostname or "", parts.port, timeout=limit)
    try:
        connection.request("HEAD", "/")
        connection.getresponse()
    except TimeoutError as error:
        where = f"{parts.hostname}:{parts.port or PORTS[parts.scheme]}"
        raise SystemFailure(f"{field}: {where} accepts connections, but answers nothing within {limit:g} s.") from error
    except (HTTPException, OSError):
        return
    finally:
        connection.close()
