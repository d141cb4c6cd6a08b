"""Captions inside your own Ray Data pipeline: a Dataset with images in, the same rows with captions out."""

from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from ray.actor import ActorHandle
from ray.data import DataContext, Dataset

from caprl_ray.caption.columns import caption_columns, check_prompt
from caprl_ray.caption.job import captioned
from caprl_ray.caption.rules import Rules
from caprl_ray.cluster import resources, session
from caprl_ray.engines import launch
from caprl_ray.errors import RecipeError
from caprl_ray.models.resolve import resolve
from caprl_ray.recipe import load
from caprl_ray.recipe.replicas import Replicas
from caprl_ray.recipe.sections import Recipe
from caprl_ray.rows.schema import FAILURE, META_PREFIX, Fields, row_schema
from caprl_ray.watch.breaker import await_replica
from caprl_ray.watch.counter import Counter

# Ray splits a task's output that is larger than one and a half times the context's target_max_block_size. Here rows
# keep the user's columns, including the image, and the place of the split would depend on the length of sampled
# captions. A block that is lost and rebuilt would be split elsewhere: rows would be lost or repeated (docs/design.md,
# D4). Invariant: a batch is never split. A larger one ends the run (caption/stage.py).
BLOCK_BYTES = 256 * 2**20
WHOLE_BYTES = BLOCK_BYTES * 3 // 2


def caption_dataset(rows: Dataset, settings: dict[str, Any] | None = None, *, image_column: str = "image") -> Dataset:
    """Caption the images of a Ray Dataset.

    Args:
        rows: a Dataset with a column of encoded images, as bytes or as Hugging Face's struct with a field `bytes`.
        settings: the recipe's sections `prepare`, `model`, `replicas`, `prompt`, `sampling` and `quality`, as plain
            data.
        image_column: the name of the column of images.

    Returns: A lazy Dataset of the same rows with all their columns, and the columns that captioning adds. A row whose
    image cannot be captioned has a null `caption`; `stage`, `code` and `detail` say why.

    Raises:
        RecipeError: a setting is wrong, the image column is missing, a column has the name of one that is added, or the
            cluster has too few GPUs for a replica and cannot grow.
        SystemFailure: nothing answers at RAY_ADDRESS. Reading the rows raises one if no replica has its GPUs within
            `replicas.wait_s`, or if the rows of a batch are larger than 384 MiB.
    """
    parsed = load.parse({"input": {"paths": ["-"]}, "output": {"path": "-"}} | (settings or {}))
    if parsed.score:
        raise RecipeError(
            "score: captions inside a Ray Dataset are not scored; leave the section out, and score what you have "
            "written with caprl-ray score."
        )
    launch.check_engine(parsed)
    session.check_gpus(parsed, grows=session.joined())
    Rules(parsed.quality, parsed.sampling)  # refuses checks that do not exist
    check_prompt(parsed, rows.columns() or [])
    model = resolve(parsed)
    adds = caption_columns(parsed)
    _check_columns(rows, image_column, adds)
    _check_type(rows, image_column)
    _configure(rows.context, parsed)
    batch = resources.batch_rows(model.size_rule.max_pixels)
    counter = resources.beside_driver(Counter)
    arranged = rows.map_batches(
        _arrange,
        fn_kwargs={"image_column": image_column, "adds": adds, "counter": counter, "replicas": parsed.replicas},
        batch_size=batch,
        batch_format="pyarrow",
    ).repartition(target_num_rows_per_block=batch, strict=True)  # one block of pixels for each, whatever BLOCK_BYTES is
    captions = captioned(arranged, counter, recipe=parsed, model=model, replaced=False, most_bytes=WHOLE_BYTES)
    return captions.map_batches(_release, fn_kwargs={"adds": adds}, batch_size=None, batch_format="pyarrow")


def _configure(context: DataContext, recipe: Recipe) -> None:
    """Apply the settings of a recipe's run to the context of the caller's dataset, except for changes to Ray Data in
    the whole process (cluster/internals.py), which would affect the caller's other datasets."""
    session.configure(context, debug=True)
    session.wait_for_replicas(context, recipe)
    context.target_max_block_size = BLOCK_BYTES


def _check_columns(rows: Dataset, image_column: str, adds: Fields) -> None:
    names = rows.columns() or []
    if image_column not in names:
        raise RecipeError(f"image_column: the dataset has no column {image_column}; it has {', '.join(names)}.")
    taken = [field.name for field in (*adds, *FAILURE) if field.name in names]
    if taken:
        raise RecipeError(f"image_column: the dataset already has a column {taken[0]}, which captions add; rename it.")


def _check_type(rows: Dataset, image_column: str) -> None:
    """Raise RecipeError for a type that holds no encoded images, if Ray knows it before it reads the rows."""
    schema = rows.schema()
    kinds = dict(zip(schema.names, schema.types, strict=True)) if schema else {}
    kind = kinds.get(image_column)
    if isinstance(kind, pa.DataType) and not _holds_bytes(kind):
        raise _no_images(image_column, kind)


def _holds_bytes(kind: pa.DataType) -> bool:
    if pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0:
        kind = kind.field("bytes").type
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_null(kind))


def _no_images(image_column: str, kind: pa.DataType) -> RecipeError:
    return RecipeError(
        f"image_column: {image_column} holds {kind}, not encoded images as bytes; read them without decoding, with "
        "ray.data.read_binary_files or read_webdataset(decoder=None)."
    )


def _arrange(table: pa.Table, image_column: str, adds: Fields, counter: ActorHandle, replicas: Replicas) -> pa.Table:
    """The user's rows as rows of the pipeline: their columns under META_PREFIX, and a copy of the image."""
    await_replica(counter, replicas)
    image = table[image_column].combine_chunks()
    if not _holds_bytes(image.type):
        raise _no_images(image_column, image.type)
    if pa.types.is_struct(image.type):
        image = pc.struct_field(image, "bytes")
    schema = row_schema(table.schema.remove_metadata(), adds)
    rows = table.num_rows
    columns = {META_PREFIX + name: table[name] for name in table.schema.names}
    columns |= {
        "encoded": image.cast(pa.large_binary()),
        "stage": _where(image.is_null(), "read"),
        "code": _where(image.is_null(), "no_image"),
        "unit": pa.nulls(rows, pa.int32()).fill_null(0),
        "index": pa.array(range(rows), pa.int64()),
        "attempts": pa.nulls(rows, pa.int32()).fill_null(1),
    }
    return pa.table([columns.get(f.name, pa.nulls(rows, f.type)) for f in schema], schema=schema)


def _where(rows: pa.BooleanArray, text: str) -> pa.Array:
    return pc.if_else(rows, pa.scalar(text), pa.scalar(None, pa.string()))


def _release(table: pa.Table, adds: Fields) -> pa.Table:
    """The user's own columns, then those that captioning adds."""
    own = [name for name in table.schema.names if name.startswith(META_PREFIX)]
    added = [field.name for field in (*adds, *FAILURE)]
    out = table.select([*own, *added])
    return out.rename_columns([*(name.removeprefix(META_PREFIX) for name in own), *added])
