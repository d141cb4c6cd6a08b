"""Inputs of every kind, under the names of the pages, and checks of the pages' joins."""

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import duckdb
import pandas as pd
import polars as pl
import pyarrow as pa

from caprl_ray import plan, sources
from caprl_ray.caption.columns import CAPTION
from caprl_ray.commands.demo import encode_scene, render_dataset
from caprl_ray.embedded.scenes import sample_scene
from caprl_ray.output.commit import CommittedRows
from caprl_ray.recipe.sections import Recipe
from caprl_ray.storage import Storage
from tests.expected import expected_caption
from tests.sources.tables import HF_IMAGE, access_to, contents, table_of, write

IMAGES, ROWS = 24, 9
# Of each list the images' numbers; None is a null image.
LISTS: list[list[int | None] | None] = [[0, 1], None, [2, None, 3], [4]]


def make_inputs(folder: Path) -> dict[str, Path]:
    """Write inputs of every kind; returns a value for each name in capitals of the pages' blocks."""
    import datasets  # and so torch, which takes seconds

    render_dataset(folder, IMAGES)
    rng = random.Random(7)
    images: list[Any] = [
        {"bytes": encode_scene(sample_scene(rng), rng)[1], "path": "image.png"} for _ in range(2 * ROWS)
    ]
    images[ROWS + 4] = None
    (folder / "tables").mkdir()
    for number in range(2):
        some = pa.array(images[number * ROWS :][:ROWS], HF_IMAGE)
        write(folder / f"tables/{number}.parquet", {"image": some, "label": list(range(ROWS))}, row_group_size=4)
    (folder / "named").mkdir()
    for number in range(ROWS):
        (folder / f"named/{number}.png").write_bytes(images[number]["bytes"])
    named = write(folder / "named/a.parquet", {"file_name": [f"{number}.png" for number in range(ROWS)]})
    photos = sorted(map(str, (folder / "files").iterdir()))
    saved = datasets.Dataset.from_dict({"image": photos}).cast_column("image", datasets.Image())
    saved.save_to_disk(folder / "saved")
    return {
        "SAVED": folder / "saved",
        "PHOTOS": folder / "files",
        "SHARD": folder / "shards/00000.tar",
        "TABLES": folder / "tables",
        "TABLE": folder / "tables/1.parquet",
        "NAMED": named,
    }


def make_lists(folder: Path) -> dict[str, Path]:
    """An output of lists of images, where each caption is the image's own bytes as text."""
    texts = contents(5)
    values = [row and [None if number is None else texts[number] for number in row] for row in LISTS]
    write(folder / "lists/a.parquet", {"images": pa.array(values, pa.list_(pa.binary()))}, row_group_size=1)
    access = access_to(folder / "lists", image_column="images[*]")
    plan.store(Storage(), str(folder / "out"), sources.plan_units(access))
    rows = table_of(access)
    captions = rows["encoded"].cast(pa.large_string()).cast(pa.string())
    rows = rows.set_column(rows.schema.get_field_index("caption"), rows.schema.field("caption"), captions)
    CommittedRows(Storage(), str(folder / "out"), 1, CAPTION, 1).write([rows], None)
    return {"LISTS": folder / "lists", "OUT": folder / "out"}


def check_joined(joined: Any, recipe: Recipe, inputs: dict[str, Path]) -> None:
    """Every picture that a block has joined must have its own caption, and a row that failed must have none."""
    rows = list(_rows(joined))
    if "images" in rows[0]:
        for row, images in zip(sorted(rows, key=lambda row: str(row["images"])), sorted(map(str, LISTS)), strict=True):
            assert _texts(row["images"]) == (_none(row["captions"])), images
        return
    assert len(rows) in (IMAGES // 2, ROWS, 2 * ROWS)
    assert len({str(row.get("image")) for row in rows}) in (1, len(rows))
    for row in rows:
        content = _content(row, inputs)
        wanted = expected_caption(content, recipe) if content else None
        assert _none(row["caption"]) == wanted


def check_saved(folder: Path) -> None:
    """The parquet file of a saved dataset must hold the bytes of its images."""
    rows = table_of(access_to(folder / "train.parquet", max_bytes=2**20))
    assert rows.num_rows == IMAGES // 2 and rows["encoded"].null_count == rows["encoded"].to_pylist().count(b"") == 0


def _content(row: dict[str, Any], inputs: dict[str, Path]) -> bytes | None:
    for extension in ("png", "jpg", "webp"):
        if extension in row:
            return bytes(row[extension])
    if "image" in row:
        return row["image"] and bytes(row["image"]["bytes"])
    return Path(row["source"] if "source" in row else inputs["NAMED"].parent / row["file_name"]).read_bytes()


def _rows(joined: Any) -> Iterator[dict[str, Any]]:
    if isinstance(joined, duckdb.DuckDBPyRelation):
        yield from joined.to_arrow_table().to_pylist()
    elif isinstance(joined, pd.DataFrame):
        yield from joined.to_dict("records")
    elif isinstance(joined, pl.DataFrame):
        yield from joined.to_dicts()
    elif isinstance(joined, list):
        yield from joined
    else:
        yield from joined.with_format("arrow")[:].to_pylist()


def _texts(images: list[bytes | None] | None) -> list[str | None] | None:
    return images and [image and image.decode() for image in images]


def _none(value: Any) -> Any:
    """pandas says NaN where others say None."""
    return None if isinstance(value, float) else value
