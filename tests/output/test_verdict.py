"""By which rows an output is judged."""

from collections import Counter
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from caprl_ray.output import record, verdict
from caprl_ray.output.counts import Counts
from caprl_ray.output.ledger import Ledger, UnitLedger
from caprl_ray.recipe.output import Failures
from caprl_ray.rows.schema import failed_schema
from caprl_ray.storage import Storage
from caprl_ray.watch.start import Start


def test_rows_that_the_user_asked_to_fail_are_no_reserve_for_others(tmp_path: Path) -> None:
    def ledger(finished: int, placeholders: int, corrupt: int) -> Ledger:
        failed = placeholders + corrupt
        unit = UnitLedger(unit=0, planned=finished + failed, finished=finished, failed=failed, duplicate=0)
        codes = Counter({"placeholder": placeholders, "image_corrupt": corrupt})
        return Ledger(units=[unit], done="captioned", counts=Counts(codes=codes))

    accepted = record.accepted(record.counted({}, ledger(60, 40, 5), accepted=True))
    assert accepted == (65, 5)
    wrong = verdict.over(ledger(60, 40, 35), Failures(), *accepted)  # an extension whose rows all fail
    assert wrong and "35 of 95 images failed" in wrong and wrong.endswith("(image_corrupt 35)")
    start = Start.of(ledger(60, 40, 5), None, {"placeholder": 10, "image_corrupt": 1})
    assert (start.done, start.failed, start.judged) == (94, 34, (64, 4))
    rows = [{"key": str(n), "source": "s", "code": "placeholder"} for n in range(9)]
    rows.append({"key": "9", "source": "s", "code": "image_corrupt"})
    schema = failed_schema(pa.schema([]))
    (tmp_path / "failed").mkdir()
    table = pa.Table.from_pylist([dict.fromkeys(schema.names) | row for row in rows], schema=schema)
    pq.write_table(table, tmp_path / "failed" / "0.parquet")
    assert verdict.examples(Storage(), str(tmp_path)) == "s 9: image_corrupt; "
