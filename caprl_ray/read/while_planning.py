"""Plan while the engines start: nodes join and replicas load the model while a long input is still being listed.

Ray Data starts replicas when an execution begins, and its input must be known by then. So the input is one task that
waits for the plan and then yields one row for each read task. Replicas cost money, so the execution begins only when
the plan's first part is stored.
"""

import pickle
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, wait
from contextlib import contextmanager
from dataclasses import dataclass

import pyarrow as pa
import ray
from ray.actor import ActorHandle
from ray.data import DataContext, Dataset, Datasource
from ray.data.block import BlockMetadata
from ray.data.datasource import ReadTask

from caprl_ray.cluster import resources
from caprl_ray.plan import Plan, Planning
from caprl_ray.plan.planning import THREAD
from caprl_ray.read.datasource import Reading, groups, read_units, remaining
from caprl_ray.sources.source import Access

# Seconds to wait for the plan before anything is started. Most inputs are listed by then, and an error in one of them
# is found before replicas start.
HEAD_START_S = 3.0
POLL_S = 0.2
TOLD_S = 15.0  # seconds between two progress lines while the run only waits for the plan
WORK = pa.schema([("work", pa.large_binary())])


@dataclass(frozen=True)
class Underway:
    """A plan that a thread is making."""

    plan: "Future[Plan]"
    planning: Planning

    def begins(self) -> None:
        """Wait up to HEAD_START_S for the plan. Raises the error if planning fails in that time."""
        if wait([self.plan], HEAD_START_S).done:
            self.plan.result()

    def soon(self) -> bool:
        """Wait for the plan's first part. Returns whether the plan is complete."""
        while not self.planning.begun.wait(TOLD_S):
            self._tell()
        return self.plan.done()

    def whole(self) -> Plan:
        """Wait for the complete plan, however long the input takes to list."""
        while not wait([self.plan], TOLD_S).done:
            self._tell()
        return self.plan.result()

    def _tell(self) -> None:
        sys.stderr.write(f"caprl-ray: {self.planning.status()}.\n")


@contextmanager
def begun(make: Callable[[Planning], Plan]) -> Iterator[Underway]:
    """Make the plan in a thread.

    The end of the block does not wait for the thread, which may be waiting for storage. After it, the thread stores
    nothing.
    """
    underway = Underway(Future(), Planning())

    def work() -> None:
        try:
            underway.plan.set_result(make(underway.planning))
        except BaseException as error:  # noqa: BLE001 (raised where the plan is waited for)
            underway.plan.set_exception(error)
        finally:
            underway.planning.begun.set()

    threading.Thread(target=work, name=THREAD, daemon=True).start()
    try:
        yield underway
    finally:
        underway.planning.leave()


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
                if ray.get(counter.closing.remote()):
                    return
                time.sleep(POLL_S)
            yield pa.table([pa.array(work, pa.large_binary())], schema=WORK)

        metadata = BlockMetadata(num_rows=None, size_bytes=None, exec_stats=None, input_files=None)
        return [ReadTask(read, metadata, WORK)]


class ReadRows:
    """Runs the read tasks of the plan: takes a row of work and yields the rows of its units."""

    def __init__(self, reading: Reading) -> None:
        self._reading = reading

    def __call__(self, table: pa.Table) -> Iterator[pa.Table]:
        """Read the rows of one read task."""
        for row in table["work"]:
            work, schema = pickle.loads(row.as_buffer())
            yield from read_units(work, schema, self._reading)


def read(counter: ActorHandle, access: Access) -> Dataset:
    """The dataset of the plan's rows. Its first task waits for the plan."""
    work = ray.data.read_datasource(PlannedWork(counter), override_num_blocks=1, num_cpus=0)
    return work.repartition(target_num_rows_per_block=1, strict=True).map_batches(
        ReadRows(Reading.of(access, counter)), batch_size=1, batch_format="pyarrow", num_cpus=resources.READ_CPUS
    )


def hand_over(plan: Plan, schema: pa.Schema, counter: ActorHandle, *, planned_order: bool = False) -> None:
    """Give the plan of a new output to the waiting task. `schema`: of the rows. `planned_order`: as in `groups`."""
    split = groups(remaining(plan.units, {}), planned_order=planned_order)
    work = [pickle.dumps((group, schema)) for group in split]
    ray.get(counter.plan.remote(work))
