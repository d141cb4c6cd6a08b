"""Resolve the paths by which a table names images: relative to the table, absolute, or the URI of an object."""

import posixpath
import re

from caprl_ray.errors import RowFailure

MAX_PATH_BYTES = 1024  # S3's limit for a key; the limit for local paths is far higher
# A store's root, which is a bucket or a repository, and a name below it.
_ROOT = re.compile(r"(?:s3|gs|az)://[A-Za-z0-9$][A-Za-z0-9._-]{1,221}/|hf://datasets/[\w.-]+/[\w.-]+(?:@[^/]+)?/")


def is_web_address(path: str) -> bool:
    """Whether the path is an http:// or https:// address."""
    return path.lower().startswith(("http://", "https://"))


def may_be_path(text: str) -> bool:
    """Whether a text can be the path of a file or object. A web address cannot; it may hold a secret."""
    return not is_web_address(text) and "\0" not in text and len(text.encode()) <= MAX_PATH_BYTES


def resolve(path: str, parquet: str) -> str:
    """Return the full path or URI of the image that a row names. `parquet` is the path of the parquet file.

    Relative paths start at the parquet file's folder. Raises RowFailure for web addresses, for storage that is not
    supported, and for a text that is not a path.
    """
    if is_web_address(path):
        raise RowFailure("source_refused", "a web address")
    if "\0" in path or len(path.encode()) > MAX_PATH_BYTES:
        raise RowFailure("source_refused", "not a path")
    if path.startswith(("/", "file:///")):
        return path
    root = _ROOT.match(path)
    if root and len(path) > root.end() and not path.endswith("/"):
        # Keys are not normalized here, but some stores and proxies resolve these names.
        if {".", ".."} & set(path.split("/")):
            raise RowFailure("source_refused", "a URI with . or .. as a name")
        return path
    if "://" in path:
        raise RowFailure("source_refused", "storage that is not supported")
    root = _ROOT.match(parquet)
    if root:
        return root[0] + _key_below(parquet[root.end() :].split("/")[:-1], path)
    return posixpath.normpath(f"{parquet.rpartition('/')[0]}/{path}")


def bucket_of(path: str) -> str | None:
    """The bucket or repository that a path or folder is in, without a slash; None if it is local."""
    root = _ROOT.match(path + "/")
    return root[0].rstrip("/") if root else None


def _key_below(parts: list[str], path: str) -> str:
    """Resolve a path relative to some folders of a store, where `a//b` is another key than `a/b`."""
    for part in path.split("/"):
        if part == ".." and not parts:
            raise RowFailure("source_refused", "a path that leaves the bucket")
        if part == "..":
            parts.pop()
        elif part != ".":
            parts.append(part)
    return "/".join(parts)
