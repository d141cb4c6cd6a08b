"""All questions of a run, read from its files and found by their image. A million of them take some hundred MiB."""

import posixpath
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, fields
from hashlib import blake2b
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from caprl_ray.errors import RecipeError
from caprl_ray.score.question import Question

_TEXTS = pa.list_(pa.string())
SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("image", pa.string()),
        ("text", pa.string()),
        ("metric", pa.dictionary(pa.int8(), pa.string())),
        ("benchmark", pa.dictionary(pa.int32(), pa.string())),
        ("choices", _TEXTS),
        ("right", pa.int8()),
        ("answers", _TEXTS),
        ("own_prompt", pa.bool_()),
        ("system", pa.dictionary(pa.int32(), pa.string())),
        ("begin", pa.dictionary(pa.int32(), pa.string())),
        ("kind", pa.dictionary(pa.int32(), pa.string())),
    ]
)
AT_ONCE = 8192


@dataclass(frozen=True, kw_only=True)
class Questions:
    """Questions by image, as one table that Ray's workers share without copies. Make them with `of`.

    `table` has the questions of an image side by side, in the order of `digests`. `name` is a hash of all of them,
    whatever their order in the files.
    """

    table: pa.Table
    digests: np.ndarray
    name: str

    @classmethod
    def of(cls, questions: Iterable[Question]) -> "Questions":
        """Collect questions. Those of one image keep their order."""
        tables, digests, sum_of_hashes = [SCHEMA.empty_table()], [np.empty(0, np.uint64)], 0
        for some in _chunks(questions):
            sum_of_hashes += sum(digest(repr(one)) for one in some)
            rows = [{field.name: getattr(one, field.name) for field in fields(Question)} for one in some]
            tables.append(pa.Table.from_pylist(rows, SCHEMA))
            digests.append(np.array([digest(one.image) for one in some], np.uint64))
        whole, keys = pa.concat_tables(tables).unify_dictionaries().combine_chunks(), np.concatenate(digests)
        order = np.argsort(keys, kind="stable")
        table = whole.take(pa.array(order)).combine_chunks()
        return cls(table=table, digests=keys[order], name=f"{sum_of_hashes % 2**64:016x}")

    def __len__(self) -> int:
        return len(self.digests)

    def about(self, image: str) -> list[Question]:
        """The questions about an image."""
        key = np.uint64(digest(image))
        first, end = (int(self.digests.searchsorted(key, side)) for side in ("left", "right"))
        return [one for one in self._questions(first, end) if one.image == image]

    def __contains__(self, image: str) -> bool:
        return bool(self.about(image))

    def images(self) -> Iterator[str]:
        """Every image that questions are about, once."""
        before = None
        for batch in self.table.select(["image"]).to_batches(AT_ONCE):
            for image in batch.column(0).to_pylist():
                if image != before:
                    yield image
                before = image

    def metrics(self) -> list[str]:
        """The metrics that the questions need."""
        return sorted(self.table["metric"].unique().to_pylist())

    def own_prompts(self) -> int:
        """How many questions have a prompt of their own."""
        return int(pc.sum(self.table["own_prompt"]).as_py() or 0)

    def without_system(self) -> int:
        """How many questions have a prompt of their own without a system turn."""
        return self.own_prompts() - int(len(self) - self.table["system"].null_count)

    def most_about(self) -> tuple[int, int]:
        """The most questions about one image, and the most bytes of texts and options about one image."""
        _, inverse, counts = np.unique(self.digests, return_inverse=True, return_counts=True)
        options = pc.list_parent_indices(self.table["choices"]).to_numpy()
        sizes = pc.binary_length(self.table["text"]).to_numpy().astype(float)
        lengths = pc.binary_length(pc.list_flatten(self.table["choices"])).to_numpy()
        sizes += np.bincount(options, lengths, len(self))
        return int(counts.max(initial=0)), int(np.bincount(inverse, sizes).max(initial=0))

    def most_options(self) -> int:
        """The most options of a question."""
        return int(pc.max(pc.list_value_length(self.table["choices"])).as_py() or 0)

    def _questions(self, first: int, end: int) -> Iterator[Question]:
        for row in self.table.slice(first, end - first).to_pylist():
            row["choices"], row["answers"] = tuple(row["choices"]), tuple(row["answers"])
            yield Question(**row)


def digest(text: str) -> int:
    """A hash of 64 bits, the same in every process."""
    return int.from_bytes(blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "little")


def joined(join: str, value: Any) -> str:
    """The value that joins captions and questions: of a path only the file's name."""
    text = str(value)
    if join == "path":
        return posixpath.basename(text.replace("\\", "/"))
    return text.lower() if join == "sha256" else text


def without_twins(questions: Iterator[tuple[str, Question]]) -> Iterator[Question]:
    """The questions. Raises RecipeError for a duplicate, with its place in the files."""
    seen: set[bytes] = set()
    for place, one in questions:
        key = blake2b(f"{one.benchmark}\0{one.image}\0{one.id}".encode(), digest_size=12).digest()
        if key in seen:
            raise RecipeError(
                f"{place}: the question {one.id[:80]!r} occurs twice, here and before, in this file or "
                "another; remove one."
            )
        seen.add(key)
        yield one


def _chunks(questions: Iterable[Question]) -> Iterator[Sequence[Question]]:
    some: list[Question] = []
    for one in questions:
        some.append(one)
        if len(some) == AT_ONCE:
            yield some
            some = []
    yield some
