"""What every kind of source gets: the objects that were found, and how to reach and read them."""

from dataclasses import dataclass

from caprl_ray.recipe import Input
from caprl_ray.storage import Storage, Stored


@dataclass(frozen=True, kw_only=True)
class Found:
    """An object that the recipe's paths name.

    `key` is its path below the folder that was named, or else its own name; `named` says that the recipe names the
    object itself, so that it is taken whatever its name says of its kind.
    """

    stored: Stored
    key: str
    named: bool


@dataclass(frozen=True, kw_only=True)
class Access:
    """How a source is planned and read: its storage, the recipe's section, and the most bytes of one image."""

    storage: Storage
    input: Input
    max_bytes: int
