"""Commit: each write task puts one parquet object into `data/` and, for failed rows, one into `failed/`.

An object is built in memory and put once (docs/design.md, D6). Its name is the number of the run's lease
(output/fence.py), and a hash of the identities of all rows of the write task, finished and failed. A retried task
overwrites its own two objects, even if a row failed in one attempt only. It never overwrites the objects of another
task or run.
"""

from collections.abc import Iterable

import pyarrow as pa
import pyarrow.compute as pc
from ray.actor import ActorHandle
from ray.data import Datasink
from ray.data.block import Block, BlockAccessor

from caprl_ray.errors import SystemFailure
from caprl_ray.output.objects import DATA, FAILED, Written, dated, object_name, parquet_bytes
from caprl_ray.rows.codes import UNFINISHED
from caprl_ray.rows.features import with_features
from caprl_ray.rows.schema import META_PREFIX, RUN, Fields, data_schema, failed_schema, metadata_schema
from caprl_ray.storage import Storage, join


class CommittedRows(Datasink):  # type: ignore[misc]
    """Ray datasink that writes the rows of a write task completely or not at all.

    `lease` is the number of the run's lease, `part` its part of the output (output/part.py), if any. `run` names the
    recipe that writes the rows. `counter` counts the written rows.
    """

    def __init__(
        self,
        storage: Storage,
        output: str,
        rows_per_object: int,
        adds: Fields,
        lease: int,
        run: str | None = None,
        part: str = "",
        counter: ActorHandle | None = None,
    ) -> None:
        self._storage = storage
        self._output = output
        self._rows_per_object = rows_per_object
        self._adds = adds
        self._written = Written(number=lease, part=part)
        self._run = run
        self._counter = counter

    @property
    def min_rows_per_write(self) -> int:
        return self._rows_per_object

    def write(self, blocks: Iterable[Block], ctx: object) -> None:
        """Write all blocks of one task. Raises SystemFailure if the output cannot be written."""
        tables = [BlockAccessor.for_block(block).to_arrow() for block in blocks]
        tables = [table for table in tables if table.num_rows]
        if not tables:  # Ray also passes a block from a task without rows
            return
        rows = pa.concat_tables(tables)
        rows = rows.filter(pc.not_equal(rows["code"], UNFINISHED).fill_null(True))
        if not rows.num_rows:
            return
        rows = rows.sort_by([("unit", "ascending"), ("index", "ascending")])
        name, finished = object_name(rows), pc.is_null(rows["code"])
        metadata = metadata_schema(rows.schema)
        self._put(DATA, name, rows.filter(finished), data_schema(metadata, self._adds), metadata)
        self._put(FAILED, name, rows.filter(pc.invert(finished)), failed_schema(metadata), metadata)
        if self._counter:
            self._counter.committed.remote(rows.num_rows)

    def on_write_complete(self, write_result: object) -> None:
        """Remove files of killed writers. Ray calls it once, in the driver."""
        for folder in (DATA, FAILED):
            self._storage.sweep(join(self._output, folder))

    def _put(self, folder: str, name: str, rows: pa.Table, schema: pa.Schema, metadata: pa.Schema) -> None:
        if not rows.num_rows:
            return
        ours = schema.names[: len(schema) - len(metadata)]
        names = [*ours, *(META_PREFIX + name for name in metadata.names)]
        path = join(self._output, folder, f"{self._written.name}-{name}.parquet")
        if RUN.name in ours:  # see rows.schema.LATER
            rows = rows.append_column(RUN, pa.repeat(pa.scalar(self._run, RUN.type), rows.num_rows))
        stored = rows.select(names).rename_columns(schema.names).cast(with_features(schema))
        try:
            self._storage.put(path, parquet_bytes(dated(stored)))
        except OSError as error:
            raise SystemFailure(f"output.path: {path} cannot be written ({error.strerror or error}).") from error
