"""The hashes of placeholder images (input.placeholders), from the recipe or from a file."""

from collections.abc import Iterable

import numpy as np

from caprl_ray.errors import RecipeError, SystemFailure
from caprl_ray.recipe import hashes
from caprl_ray.recipe.input import Input
from caprl_ray.storage import Storage, Stored

# Most hashes. They take 32 MB of the object store on each node.
MOST = 1_000_000
MOST_BYTES = 256 * MOST  # of the file, comments included
_DIGEST = np.dtype("S32")


class Placeholders:
    """A set of SHA-256 digests, 32 bytes each, as one sorted array. Ray's workers share it without copies."""

    def __init__(self, hashes: Iterable[str] = ()) -> None:
        """`hashes` in hex."""
        self.digests = np.unique(np.array([bytes.fromhex(entry) for entry in hashes], _DIGEST))

    def __len__(self) -> int:
        return len(self.digests)

    def __contains__(self, digest: object) -> bool:
        if not isinstance(digest, bytes):
            return False
        place = int(self.digests.searchsorted(digest))
        # numpy removes zeros from the end of a value.
        return place < len(self.digests) and bool(self.digests[place] == digest.rstrip(b"\0"))


def load(storage: Storage, settings: Input) -> Placeholders:
    """The recipe's placeholders. Raises RecipeError if the file is missing or wrong, SystemFailure if storage fails."""
    given = settings.placeholders
    if not isinstance(given, str):
        return Placeholders(given)
    found = _hashes(_text(storage, given), given)
    if len(found) > MOST:
        raise RecipeError(f"input.placeholders: {given} has {len(found):,} hashes; at most {MOST:,} are allowed.")
    return Placeholders(found)


def _hashes(text: str, path: str) -> list[str]:
    try:
        return list(hashes.lines(text))
    except ValueError as error:
        raise RecipeError(f"input.placeholders: {path}: {error}.") from None


def _text(storage: Storage, path: str) -> str:
    try:
        there = storage.lookup(path)
        if not isinstance(there, Stored):
            what = "is a folder" if there else "does not exist"
            raise RecipeError(f"input.placeholders: {path} {what}; give a list of SHA-256, or a text file of them.")
        if there.size > MOST_BYTES:
            raise RecipeError(
                f"input.placeholders: {path} has {there.size:,} bytes; give a text file of at most {MOST:,} SHA-256."
            )
        return storage.read(path).decode("utf-8-sig")
    except UnicodeDecodeError:
        raise RecipeError(f"input.placeholders: {path} is not a text file in UTF-8.") from None
    except OSError as error:
        raise SystemFailure(f"input.placeholders: {path} cannot be read ({error.strerror}).") from error
