"""The sections `output` and `failures`: where captions are written, and when a run stops."""

from typing import Annotated

from pydantic import AfterValidator, Field

from caprl_ray.recipe.fields import Positive, Section, absolute


class Failures(Section):
    """When a run stops because too many rows failed."""

    max_fraction: Annotated[float, Field(ge=0, le=1)] = 0.25
    """The largest share of rows that may fail, 0 to 1. A run stops early when a larger share of its rows has failed; up
    to 50 x `min_rows` good rows of earlier runs count in its favour. At the end of a run the whole output is judged,
    however few rows it has: if a larger share failed, the run exits with 3 and writes no `_SUCCESS`. Run again with a
    higher value to accept the output; 1 accepts everything. In a web dataset a few per cent of the rows fail; with a
    wrong recipe nearly all do."""
    min_rows: Positive = 1000
    """A run with fewer finished rows (captioned or failed) is not stopped early for `max_fraction`. Lower it to notice
    a wrong recipe sooner; raise it if the first shards are worse than the rest. At the end of a run `max_fraction`
    applies to any number of rows."""


def _writable(path: str) -> str:
    if path.startswith("hf://"):
        raise ValueError(f"{path} is read-only; write to a folder or bucket, and upload it with the hub's own client")
    return path


class Output(Section):
    """Where the captions are written."""

    path: Annotated[str, Field(min_length=1), AfterValidator(absolute), AfterValidator(_writable)]
    """The output folder, local, s3://, gs:// or az://. On a cluster it must be the same folder on every node. If it
    holds an earlier run of the same recipe, that run is resumed."""
    rows_per_object: Positive = 2048
    """The minimum number of rows in one parquet object (the last ones may have fewer). Rows that are not yet written
    are lost when a node dies, so a lower value loses less work, and a higher one writes fewer objects."""
    stop_s: Annotated[float, Field(ge=0, le=600)] = 10
    """The time that a run has to commit its finished rows when Ctrl-C, SIGTERM, a closed terminal or `ray job stop`
    stops it, in seconds. Captions that are not finished are dropped, and the next run writes them. `ray job stop` kills
    a job after 3 seconds, or after RAY_JOB_STOP_WAIT_TIME_S."""
