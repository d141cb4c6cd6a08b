"""Outputs of the same images with captions of our own, made without Ray: what the stub's questions can be answered
from."""

import hashlib
import io
import json
from collections.abc import Callable, Collection
from pathlib import Path

import pyarrow as pa
from PIL import Image

from caprl_ray import plan
from caprl_ray.caption.columns import CAPTION
from caprl_ray.output.commit import CommittedRows
from caprl_ray.plan import Entry, Unit
from caprl_ray.rows.schema import META_PREFIX, column, row_id, row_schema
from caprl_ray.storage import Storage

SOURCE = pa.schema([column("alt_text", pa.string(), "The source's column alt_text.")])
SCHEMA = row_schema(SOURCE, CAPTION)


def size(number: int) -> tuple[int, int]:
    return 56 + 28 * (number % 3), 84


def color(number: int) -> tuple[int, int, int]:
    return 5 * number, 255 - 5 * number, 90


def full(number: int) -> str:
    """A caption that answers both of the stub's questions that are kept."""
    width, height = size(number)
    return f"{width}x{height} rgb({','.join(map(str, color(number)))})"


def half(number: int) -> str:
    """A caption that answers one of them for every second image."""
    return full(number) if number % 2 else full(number).partition(" ")[0]


def alt_text(number: int) -> str | None:
    return f"stock photo {size(number)[0]}x84" if number % 4 else None


def picture(folder: Path, number: int) -> Path:
    path = folder / "images" / ("even" if number % 2 == 0 else "odd") / f"{number:03d}.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    buffer = io.BytesIO()
    Image.new("RGB", size(number), color(number)).save(buffer, "PNG")
    path.write_bytes(buffer.getvalue())
    return path


def key(path: Path) -> str:
    """The name of an image in an evaluation."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def write(
    folder: Path, name: str, numbers: Collection[int], caption: Callable[[int], str], failed: Collection[int] = ()
) -> Path:
    """Write an output of these images. Its rows lie in several objects, and in an order of its own."""
    storage, out, rows, entries = Storage(), folder / name, [], []
    for index, number in enumerate(numbers):
        path = picture(folder, number)
        stored = storage.lookup(str(path))
        entries.append(Entry(stored=stored, key=f"{path.parent.name}/{path.name}"))
        row = {
            "id": row_id(0, index),
            "unit": 0,
            "index": index,
            "source": str(path),
            "row": 0,
            "key": f"{path.parent.name}/{path.name}",
            "sha256": key(path),
            "width": size(number)[0],
            "height": size(number)[1],
            "caption": caption(number),
            "finish_reason": "stop",
            "attempts": 1,
            "model": "stub",
            f"{META_PREFIX}alt_text": alt_text(number),
        }
        rows.append(row | ({"stage": "caption", "code": "engine_crash", "detail": ""} if number in failed else {}))
    rows[-1]["unit_rows"] = len(rows)
    plan.store(storage, str(out), [Unit(kind="files", rows=len(rows), entries=entries, columns=SOURCE)])
    sink = CommittedRows(storage, str(out), 1, CAPTION, 1, "0123456789ab")
    for start in range(0, len(rows), 16):
        sink.write([pa.Table.from_pylist(rows[start : start + 16], schema=SCHEMA)], None)
    recipe = {"input": {"paths": [str(folder / "images" / name) for name in ("even", "odd")]}}
    (out / "run.json").write_text(json.dumps({"fingerprint": {}, "recipe": recipe, "input": recipe["input"]}))
    return out
