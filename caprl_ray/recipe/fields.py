"""Common parts of the recipe's sections: the frozen base class, and types of values."""

import os
import re
from typing import Annotated, Any
from urllib.parse import urlsplit

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from caprl_ray.recipe import accelerators

Positive = Annotated[int, Field(ge=1)]
Accelerator = Annotated[str, Field(min_length=1), AfterValidator(accelerators.check)]


def service_url(url: Any) -> str | None:
    """The base URL of a service, without a slash at its end. Raises ValueError if it is none.

    The message does not repeat the URL, because it may contain a password.
    """
    if url is None:
        return None
    try:
        parts = urlsplit(url if isinstance(url, str) else "")
        known = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
    except ValueError:  # the port is not a number, or the IPv6 address is broken
        known = False
    if not known or re.search(r"[\s?#\\]", url):
        raise ValueError("it should be a service's base URL such as http://host:8000/v1, without a query or fragment")
    if "@" in parts.netloc:
        raise ValueError("it may not hold a user or a password; keys and credentials come from the environment")
    return str(url).rstrip("/")


def without_nul(path: str) -> str:
    """The path as it is. Raises ValueError for one that no file can have."""
    if "\0" in path or (path.startswith("file://") and "%00" in path):
        raise ValueError(f"{path!r} is not allowed; a path holds no NUL")
    return path


def absolute(path: str) -> str:
    """Make a local path absolute, because workers have other working folders. A URI is returned as it is."""
    path = without_nul(path)
    return path if "://" in path else os.path.abspath(os.path.expanduser(path))


def absolute_on_nodes(path: str | None) -> str | None:
    """As `absolute`, for a folder on each node. A leading `~` stays, because each node's user has another home."""
    return path if path is None or path.startswith("~") else absolute(path)


class Section(BaseModel):
    """A section of the recipe. It is frozen and refuses unknown fields."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, use_attribute_docstrings=True)
