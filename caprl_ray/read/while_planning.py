"""Plan while the engines start: while a long input is listed, nodes join and replicas load the model.

Ray Data starts replicas when an execution begins, and its input must be known by then. So the input is one task that
waits for the plan and then yields one row for each read task behind it.
"""

import pickle
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager

import pyarrow as pa
import ray
from ray.actor import ActorHandle
from ray.data import DataContext, Dataset, Datasource
from ray.data.block import BlockMetadata
from ray.data.datasource import ReadTask

from caprl_ray.cluster import resources
from caprl_ray.plan import Plan
from caprl_ray.read.datasource import groups, read_units, remaining
from caprl_ray.sources.source import Access

# Seconds to wait for the plan before anything is started. Most inputs are listed sooner, and their mistakes are found
# first.
HEAD_START_S = 3.0
POLL_S = 0.2
WORK = pa.schema([("work", pa.large_binary())])


@contextmanager
def begun(make: Callable[[Callable[[], bool]], Plan]) -> Iterator["Future[Plan]"]:
    """Make the plan in a thread that ends with the block.

    `make` gets a function that says whether the block has been left. It should then raise Abandoned.
    """
    left = threading.Event()
    executor = ThreadPoolExecutor(1, thread_name_prefix="plan")
    try:
        yield executor.submit(make, left.is_set)
    finally:
        left.set()
        executor.shutdown()


class PlannedWork(Datasource):  # type: ignore[misc]
    """Ray datasource with one task: it waits for the plan and yields one row per read task."""

    def __init__(self, counter: ActorHandle) -> None:
        super().__init__()
        self._counter = counter

    def get_name(self) -> str:
        return "Plan"

    def estimate_inmemory_data_size(self) -> int | None:
        return None

    def get_read_tasks(
        self, parallelism: int, per_task_row_limit: int | None = None, data_context: DataContext | None = None
    ) -> list[ReadTask]:
        counter = self._counter

        def read() -> Iterator[pa.Table]:
            while (work := ray.get(counter.work.remote())) is None:
                time.sleep(POLL_S)
            yield pa.table([pa.array(work, pa.large_binary())], schema=WORK)

        metadata = BlockMetadata(num_rows=None, size_bytes=None, exec_stats=None, input_files=None)
        return [ReadTask(read, metadata, WORK)]


class ReadRows:
    """A read task by the plan: one row of work in, the rows of its units out."""

    def __init__(self, access: Access, counter: ActorHandle) -> None:
        self._access = access
        self._counter = counter

    def __call__(self, table: pa.Table) -> Iterator[pa.Table]:
        """Read the rows of one read task."""
        for row in table["work"]:
            work, schema = pickle.loads(row.as_buffer())
            yield from read_units(work, schema, self._access, self._counter)


def read(counter: ActorHandle, access: Access) -> Dataset:
    """The plan, once it is there -> rows."""
    work = ray.data.read_datasource(PlannedWork(counter), override_num_blocks=1, num_cpus=0)
    return work.repartition(target_num_rows_per_block=1, strict=True).map_batches(
        ReadRows(access, counter), batch_size=1, batch_format="pyarrow", num_cpus=resources.READ_CPUS
    )


def hand_over(plan: Plan, schema: pa.Schema, counter: ActorHandle) -> None:
    """Give the plan of a new output to the waiting task; `schema` is that of its rows."""
    work = [pickle.dumps((group, schema)) for group in groups(remaining(plan.units, {}))]
    ray.get(counter.plan.remote(work))
