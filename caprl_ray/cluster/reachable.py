"""Whether something listens at an address: asked before a library waits for it in silence."""

import socket
from urllib.parse import urlsplit

from caprl_ray.errors import SystemFailure

CONNECT_S = 10.0
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
