"""Report batches of a job's last stage."""

import pyarrow as pa
import pyarrow.compute as pc
from ray.actor import ActorHandle

from caprl_ray.rows.codes import UNFINISHED
from caprl_ray.rows.schema import FAILED_BEFORE


def counted(rows: pa.Table, counter: ActorHandle) -> pa.Table:
    """Report a batch of finished and failed rows to the counter actor, for progress and the circuit breaker."""
    ended = rows.filter(pc.not_equal(rows["code"], UNFINISHED).fill_null(True))
    counter.add.remote(ended.num_rows, _codes(ended), *_retried(ended))
    return rows


def _retried(rows: pa.Table) -> tuple[int, list[str], list[str]] | tuple[()]:
    """How many rows were retried, their codes if they failed for another reason, and their codes if for the same."""
    before = rows[FAILED_BEFORE.name]
    if before.null_count == len(before):
        return ()
    retried = rows.filter(before.is_valid())
    same = pc.equal(retried["code"], retried[FAILED_BEFORE.name]).fill_null(False)
    return retried.num_rows, _codes(retried.filter(pc.invert(same))), _codes(retried.filter(same))


def _codes(rows: pa.Table) -> list[str]:
    return list(rows["code"].drop_null().to_pylist())
