"""Warn about a unit that is so large that the replicas would wait for it.

One stream reads a unit, and its rows are prepared and captioned in parallel. So a large unit costs nothing if the
stream is faster than the replicas, or while other units are read at the same time.
"""

from dataclasses import dataclass

from caprl_ray.recipe.replicas import Replicas
from caprl_ray.watch.words import clock

# The rate of one connection to S3, by Amazon's guidelines (85 to 90 MB/s).
STREAM_BYTES_S = 85e6
# The rate of the fastest GPU: an H200 at 80 % of its arithmetic limit (docs/clusters.md).
IMAGES_S = 29.0
# The size of an image if the plan does not know the number of images: a JPEG of a megapixel.
IMAGE_BYTES = 300_000.0
# Waiting that is worth a warning: seconds, and a share of the whole run.
LEAST_S, LEAST_SHARE = 60.0, 0.05
MENDED = {
    "webdataset": "pack its samples into shards of about 1 GB",
    "parquet": "write it again with row groups of at most 1,000 images",
}


@dataclass(frozen=True, kw_only=True)
class Largest:
    """The largest unit, and the totals of all units. `images` is None if it is not known before reading."""

    kind: str
    bytes: int
    all_bytes: int
    images: int | None


def waiting(largest: Largest, replicas: Replicas) -> tuple[float, float]:
    """The seconds that the replicas wait at worst, if this unit is read last, and the seconds of the whole run.

    `replicas.max` replicas need `bytes / rate` seconds for the unit, and a stream needs `bytes / STREAM_BYTES_S`. The
    replicas wait for the difference.
    """
    image = largest.all_bytes / largest.images if largest.images else IMAGE_BYTES
    rate = replicas.most * IMAGES_S * image
    waits = max(0.0, largest.bytes / STREAM_BYTES_S - largest.bytes / rate) if rate else 0.0
    return waits, largest.all_bytes / rate + waits if rate else waits


def warning(path: str, largest: Largest, replicas: Replicas) -> str | None:
    """A sentence about the largest unit, whose object is at `path`; None if no replica has to wait for it."""
    waits, whole = waiting(largest, replicas)
    if waits <= max(LEAST_S, LEAST_SHARE * whole):
        return None
    mend = MENDED.get(largest.kind, "cut it")
    return (
        f"{path}: {largest.bytes / 1e9:,.1f} GB are one unit, which one stream reads in {clock(_read_s(largest))} at "
        f"{STREAM_BYTES_S / 1e6:.0f} MB/s; {replicas.most} replicas may wait for it for {clock(waits)} of "
        f"{clock(whole)}; {mend}"
    )


def _read_s(largest: Largest) -> float:
    return largest.bytes / STREAM_BYTES_S
