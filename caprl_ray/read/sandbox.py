"""Read units in a child process, because a page may crash Arrow or take all memory (docs/design.md, D11).

The parent counts the samples that it receives, so it knows at which sample the child died.
"""

import json
import pickle
from collections.abc import Iterator
from dataclasses import replace
from itertools import islice
from multiprocessing.connection import Connection
from typing import Any

import pyarrow as pa
from pyroaring import BitMap

from caprl_ray import sources
from caprl_ray.child import GONE, Child, main, reason
from caprl_ray.errors import CaprlError, RecipeError, RowFailure, SystemFailure
from caprl_ray.plan import Unit
from caprl_ray.plan.left_out import LeftOut
from caprl_ray.read.search import Search
from caprl_ray.sources import parquet_rows
from caprl_ray.sources.samples import Sample
from caprl_ray.sources.source import Access
from caprl_ray.storage import prefetch
from caprl_ray.text import readable

# Seconds for a child to start, which imports Arrow on a busy machine, and starts that are tried before the run ends.
START_S, STARTS = 60.0, 3


class _Died(Exception):
    """The child is gone. The argument says how it ended."""


class ReadSandbox:
    """Context manager that runs `sources.read_unit` in a child process. The child starts with the first unit.

    A sample that kills the child fails as `read_crash`. So do the samples that cannot be read without it: in parquet,
    all from its page on to the end of the row group. The unit's other samples are read.
    """

    def __init__(self) -> None:
        self._child: _Child | None = None

    def __enter__(self) -> "ReadSandbox":
        return self

    def __exit__(self, *_: object) -> None:
        self._end()

    def __call__(self, unit: Unit, done: BitMap, access: Access, left_out: LeftOut) -> Iterator[Sample | None]:
        """Yield the unit's samples as `sources.read_unit` does. Raises RowFailure if the unit ends in a crash."""
        search, position = Search(), 0
        while True:
            lost = search.lost
            known = done | BitMap(lost) | BitMap(range(position))
            try:
                for sample in islice(self._samples(unit, known, access, left_out), position, None):
                    failed = position in lost and position not in done
                    yield _failed(unit, position, lost[position]) if failed else sample
                    position += 1
                return
            except _Died as death:
                failure = RowFailure("read_crash", str(death))
            if search.needs_suspects(position):
                search.suspects = self._suspects(unit, position, access, failure)
            search.next(position, failure)

    def plain(self, unit: Unit, done: BitMap, access: Access, left_out: LeftOut) -> Iterator[Sample | None]:
        """Read in this process. If it runs out of memory, continue in a child."""
        position, here = 0, LeftOut()
        try:
            for sample in sources.read_unit(unit, done, access, here):
                yield sample
                position += 1
            left_out.merge(here)
            return
        except RowFailure:
            left_out.merge(here)
            raise
        except MemoryError:
            known = done | BitMap(range(position))
        yield from islice(self(unit, known, access, left_out), position, None)

    def _samples(self, unit: Unit, known: BitMap, access: Access, left_out: LeftOut) -> Iterator[Sample | None]:
        """Yield the samples that the child reads. Ends the child if the caller does not take all of them.

        The child sends the counts of left out members last. So a child that dies has sent none, and nothing is counted
        twice when the next child reads the whole unit again.
        """
        child = self._running()
        finished = False
        try:
            child.ask("samples", unit, known, access)
            while "left_out" not in (answer := child.answer()):
                yield child.sample(answer) if "source" in answer else None
            finished = True
            left_out.merge(LeftOut.load(answer["left_out"]))
            if "ended" in answer:
                raise RowFailure(*answer["ended"])
        finally:
            if not finished:
                self._end()

    def _suspects(self, unit: Unit, position: int, access: Access, failure: RowFailure) -> list[range]:
        """Ask a child for the samples that may have killed the last one. Raises `failure` if this child dies too."""
        child = self._running()
        try:
            child.ask("suspects", unit, position, access)
            return [range(start, end) for start, end in child.answer()["suspects"]]
        except (_Died, RowFailure):
            self._end()
            raise failure from None

    def _running(self) -> "_Child":
        self._child = self._child or _started()
        return self._child

    def _end(self) -> None:
        if self._child:
            self._child.end()
        self._child = None


def _started() -> "_Child":
    for _ in range(STARTS):
        child = _Child()
        try:
            with child.ended_after(START_S):
                child.receive()
            return child
        except _Died as death:
            detail = str(death)
    raise SystemFailure(f"read: the process for sandboxed reading does not start ({detail}); see the worker's log.")


def _failed(unit: Unit, position: int, failure: RowFailure) -> Sample:
    """A failed sample in place of a lost one. It has a key only for loose files, whose keys are in the plan."""
    entry, known = (unit.entries[position], True) if len(unit.entries) > 1 else (unit.entries[0], False)
    key, row = readable(entry.key) if known else "", sources.KINDS[unit.kind].row(unit, position)
    failed = RowFailure(*failure.args)
    return Sample(source=entry.stored.path, row=row, key=key, image=None, metadata={}, failure=failed)


class _Child(Child):
    """The parent's side of the child. Its methods raise _Died when it is gone."""

    def __init__(self) -> None:
        super().__init__(__name__)

    def ask(self, question: str, unit: Unit, argument: BitMap | int, access: Access) -> None:
        """Send a task, pickled by import paths."""
        try:
            self.connection.send_bytes(pickle.dumps((question, unit, argument, access)))
        except GONE:
            raise _Died(reason(self.died())) from None

    def receive(self) -> bytes:
        """Receive one message."""
        try:
            return self.connection.recv_bytes()
        except GONE:
            raise _Died(reason(self.died())) from None

    def answer(self) -> dict[str, Any]:
        """Receive the next answer. Raises the error that reading raised in the child."""
        answer: dict[str, Any] = json.loads(self.receive())
        if "failure" in answer:
            raise RowFailure(*answer["failure"])
        if "fault" in answer:
            raise OSError(*answer["fault"])
        if "recipe" in answer:
            raise RecipeError(answer["recipe"])
        if "system" in answer:
            raise SystemFailure(answer["system"])
        if "memory" in answer:
            raise _Died("out of memory")
        return answer

    def sample(self, answer: dict[str, Any]) -> Sample:
        """The sample of an answer. Receives its image and arrays, which follow the answer."""
        failure = RowFailure(*answer["failed"]) if answer["failed"] else None
        image = self.receive() if answer["image"] else None
        sample = Sample(
            source=answer["source"],
            row=answer["row"],
            key=answer["key"],
            image=image,
            metadata=answer["metadata"],
            failure=failure,
            flags=tuple(answer["flags"]),
            counted=answer["size"],
        )
        return replace(sample, metadata=self._arrays()) if answer["arrays"] else sample

    def _arrays(self) -> dict[str, pa.Array]:
        schema = self.receive()
        if b"ARROW:extension:name" in schema:  # loading the type runs code, and a page may have taken over the child
            raise SystemFailure("read: the process for sandboxed reading sent an extension type; see the worker's log.")
        batch = pa.ipc.read_record_batch(pa.py_buffer(self.receive()), pa.ipc.read_schema(pa.py_buffer(schema)))
        batch.validate(full=True)
        return dict(zip(batch.schema.names, batch.columns, strict=True))


def serve(connection: Connection) -> None:
    """Run in the child: send the samples, or the suspects, of one unit after another."""
    # Reads one object at a time, so that the child dies at the sample that the parent waits for.
    prefetch.FETCHED_AHEAD = parquet_rows.IMAGES_AT_ONCE = 1
    connection.send_bytes(b"ready")
    while True:
        question, unit, argument, access = pickle.loads(connection.recv_bytes())
        try:
            if question == "suspects":
                found = sources.KINDS[unit.kind].suspects(unit, argument, access)
                _say(connection, suspects=[[rows.start, rows.stop] for rows in found])
                continue
            _send_all(connection, unit, argument, access)
        except RowFailure as failure:
            _say(connection, failure=[failure.code, failure.detail])
        except CaprlError as error:
            _say(connection, **{"recipe" if isinstance(error, RecipeError) else "system": str(error)})
        except MemoryError:
            _say(connection, memory=True)
        except OSError as fault:
            _say(connection, fault=[fault.errno, fault.strerror or type(fault).__name__, fault.filename])
        except Exception as error:
            _say(connection, system=f"read: {type(error).__name__} while a unit was read; see the worker's log.")
            raise


def _send_all(connection: Connection, unit: Unit, done: BitMap, access: Access) -> None:
    """Send a unit's samples, then the counts of left out members and the failure that ended reading, if any."""
    left_out, ended = LeftOut(), {}
    try:
        for sample in sources.read_unit(unit, done, access, left_out):
            _send(connection, sample)
    except RowFailure as failure:
        ended = {"ended": [failure.code, failure.detail]}
    _say(connection, left_out=left_out.dump(), **ended)


def _say(connection: Connection, **answer: Any) -> None:
    connection.send_bytes(json.dumps(answer).encode())


def _send(connection: Connection, sample: Sample | None) -> None:
    """Send a sample as JSON, plain bytes and Arrow. No pickle: a page may have taken over this process."""
    if sample is None:
        _say(connection, known=True)
        return
    arrays = {name: value for name, value in sample.metadata.items() if isinstance(value, pa.Array)}
    _say(
        connection,
        source=sample.source,
        row=sample.row,
        key=sample.key,
        failed=[sample.failure.code, sample.failure.detail] if sample.failure else None,
        image=sample.image is not None,
        metadata={} if arrays else sample.metadata,
        arrays=bool(arrays),
        flags=sample.flags,
        size=sample.size,
    )
    if sample.image is not None:
        connection.send_bytes(sample.image)
    if arrays:
        batch = pa.RecordBatch.from_arrays(list(arrays.values()), list(arrays))
        connection.send_bytes(batch.schema.serialize())
        connection.send_bytes(batch.serialize())


if __name__ == "__main__":
    main(serve)
