"""Caption image datasets with CapRL on Ray: stream, caption, check, commit, resume.

`caption_dataset` captions a Ray Dataset. Everything else is a recipe and the command line. Both import Ray late.
"""

from typing import TYPE_CHECKING, Any

from caprl_ray.version import __version__

if TYPE_CHECKING:
    from caprl_ray.dataset import caption_dataset

__all__ = ["__version__", "caption_dataset"]


def __getattr__(name: str) -> Any:
    if name == "caption_dataset":
        from caprl_ray.dataset import caption_dataset

        return caption_dataset
    raise AttributeError(f"module 'caprl_ray' has no attribute {name!r}")
