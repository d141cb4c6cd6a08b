"""Write an output of a billion rows in minutes: one window of units by the job's own code, and copies for other units.

`synthetic_output.py` takes an hour for as many rows. Here the sink writes only the objects of one window of WINDOW
units, which are read at the same time. In each copy, only the numbers of the units are replaced: in the dictionary page
of `unit`, which is therefore not compressed, and in its statistics. So every object is a real file with its own rows,
which the usual code reads. Data that resume does not read is the same in all windows: ids, sources, captions, sums in
the footers; and all hashes are equal. The shards are links to one tar, as in `synthetic_output.py`.
"""

import io
import os
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.parquet as pq
import synthetic_output
from synthetic_output import Synthetic

from caprl_ray import plan
from caprl_ray.caption.columns import CAPTION
from caprl_ray.output.commit import CommittedRows
from caprl_ray.output.objects import KEY
from caprl_ray.storage import Storage

WINDOW = synthetic_output.UNDONE  # units; one of them is half done
# The first unit's number in the window that is copied, and its higher bytes: no text has them.
FIRST = 0x7BF1E300
HIGH = FIRST.to_bytes(4, "little")[1:]
LEASE = 1


@dataclass(frozen=True)
class Template:
    """One object of the window: its folder, its content, and where a unit's number stands: (place, unit) each."""

    folder: str
    content: bytes
    places: list[tuple[int, int]]

    def copy(self, first: int) -> bytes:
        """The object of the window that begins with another unit."""
        content = bytearray(self.content)
        for place, unit in self.places:
            content[place : place + 4] = (first + unit).to_bytes(4, "little")
        return bytes(content)


class Kept(Storage):
    """Keeps what is written."""

    def put(self, path: str, content: bytes) -> None:
        KEPT.append((path.split("/")[-2], content))


KEPT: list[tuple[str, bytes]] = []


def write(output: Synthetic, processes: int = 2) -> int:
    """Write shards, plan and rows, unless they exist. Returns the number of rows that are done."""
    done = sum(output.done(unit) for unit in range(output.units))
    if (output.out / "data").exists():
        return done
    synthetic_output.shards(output)
    plan.store(Storage(), str(output.out), synthetic_output.planned(output))
    templates, windows = list(window(output)), range(0, output.units, WINDOW)
    parts = [windows[n * len(windows) // processes : (n + 1) * len(windows) // processes] for n in range(processes)]
    for folder in ("data", "failed"):
        (output.out / folder).mkdir(exist_ok=True)
    with ProcessPoolExecutor(processes) as pool:
        list(pool.map(copies, [output] * processes, [templates] * processes, parts))
    os.sync()
    return done


def window(output: Synthetic) -> Iterator[Template]:
    """The objects of one window."""
    KEPT.clear()
    sink = CommittedRows(Kept(), "-", output.rows_per_object, CAPTION, LEASE)
    for number, (unit, index) in enumerate(synthetic_output.objects(output, range(WINDOW))):
        failed = index < 0
        failed[-1] = number % synthetic_output.FAILED_OBJECTS == 0
        rows = synthetic_output.rows(output, unit + FIRST, index, failed)
        same = pa.array([synthetic_output.HASHES[0]] * len(index))  # a hash of each row's own is most of an object
        sink.write([rows.set_column(rows.schema.get_field_index("sha256"), "sha256", same)], None)
    for folder, content in KEPT:
        plain = uncompressed_unit(content)
        yield Template(folder, plain, list(numbers(plain)))


def uncompressed_unit(content: bytes) -> bytes:
    """The same object, whose column `unit` is not compressed."""
    table = pq.ParquetFile(io.BytesIO(content)).read()
    buffer, names = io.BytesIO(), table.schema.names
    pq.write_table(
        table,
        buffer,
        compression={name: "NONE" if name == "unit" else "ZSTD" for name in names},
        use_dictionary=["unit", "source", "finish_reason", "model", "stage", "code", "run"],
        column_encoding=dict.fromkeys([name for name in ("index", "row") if name in names], "DELTA_BINARY_PACKED"),
    )
    assert pq.read_metadata(buffer).metadata[KEY] == table.schema.metadata[KEY]
    return buffer.getvalue()


def numbers(content: bytes) -> Iterator[tuple[int, int]]:
    """The offsets of a unit's number in an object, in the column's pages, which come first, and in the footer; each
    with the unit's position in the window."""
    metadata = pq.read_metadata(io.BytesIO(content))
    columns = map(metadata.row_group(0).column, range(metadata.num_columns))
    unit = next(column for column in columns if column.path_in_schema == "unit")
    pages, footer = unit.dictionary_page_offset, len(content) - 8 - int.from_bytes(content[-8:-4], "little")
    for start, end in ((pages, unit.data_page_offset), (footer, len(content))):
        place = start
        while (place := content.find(HIGH, place, end)) >= 0:
            assert content[place - 1] < WINDOW
            yield place - 1, content[place - 1]
            place += len(HIGH)


def copies(output: Synthetic, templates: list[Template], windows: range) -> None:
    """Write the objects of these windows."""
    for first in windows:
        for number, template in enumerate(templates):
            name = f"{LEASE:06d}-{first:016x}{number:016x}.parquet"
            (output.out / template.folder / name).write_bytes(template.copy(first))
