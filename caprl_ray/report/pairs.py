"""The same images in two outputs, side by side: joined by DuckDB, which keeps on disk what memory has no room for."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.compute as pc

from caprl_ray.errors import RecipeError
from caprl_ray.output.objects import DATA, FAILED
from caprl_ray.output.scan import Tell, silent
from caprl_ray.report.facts import Facts
from caprl_ray.report.sample import tables

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection

COLUMNS = {
    **dict.fromkeys(("id", "source", "key", "sha256", "caption", "code", "finish_reason"), pa.string()),
    **dict.fromkeys(("width", "height", "caption_tokens", "decodes", "unit"), pa.int32()),
    "index": pa.int64(),
    "flags": pa.list_(pa.string()),
    "old_text": pa.string(),
}
SCHEMA = pa.schema(list(COLUMNS.items()))
MOST_ROWS = 200_000  # of each output; of larger ones every n-th image is compared, the same in both
MEMORY = "1GB"
OFFLINE = {"autoinstall_known_extensions": False, "autoload_known_extensions": False}
# How images are matched: by their place, or, if the input was moved, by their bytes. For a repeated image, the n-th
# rows are matched.
BY_PLACE, BY_BYTES = "source and key", "SHA-256"
_JOINS = {
    BY_PLACE: ("source, key", "coalesce(a.sha256 = b.sha256, true)"),
    BY_BYTES: ("sha256", "true"),
}
_KIND = "unnest(list_distinct(list_transform(flags, lambda f: split_part(f, ':', 1))))"
# The share of different words that two captions do not have in common: 0 same words, 1 none.
_PAIRED = """
create table pairs as
with every_a as (
  select id, source, key, sha256, row_number() over (partition by {by} order by id) as repeat from a
), every_b as (
  select id, source, key, sha256, row_number() over (partition by {by} order by id) as repeat from b
), matched as (
  select a.id as a_id, b.id as b_id from every_a a join every_b b using ({by}, repeat) where {same}
), words as (
  select a_id, b_id,
    list_distinct(regexp_extract_all(lower(coalesce(a.caption, '')), '[\\w]+')) as a_words,
    list_distinct(regexp_extract_all(lower(coalesce(b.caption, '')), '[\\w]+')) as b_words
  from matched join a on a.id = a_id join b on b.id = b_id
)
select a_id, b_id, case when len(a_words) + len(b_words) = 0 then 0.0
  else 1 - 2.0 * len(list_intersect(a_words, b_words)) / (len(a_words) + len(b_words)) end as distance
from words
"""
# The pairs to show: only one failed, flags differ, or captions differ most. A pair has one reason.
_CHOSEN = """
with seen as (
  select a_id, b_id, distance, a.code is null as a_done, b.code is null as b_done,
    list_sort(coalesce(a.flags, [])) <> list_sort(coalesce(b.flags, [])) as flags_differ,
    a.caption = b.caption as same
  from pairs join a on a.id = a_id join b on b.id = b_id
), reasons as (
  select *, case when a_done <> b_done then 'failed' when flags_differ then 'flags' else 'words' end as reason from seen
  where a_done <> b_done or flags_differ or (a_done and not same)
), ranked as (
  select *, row_number() over (partition by reason order by distance desc, a_id) as place from reasons
)
select reason, distance, {columns} from ranked
  join a on a.id = a_id join b on b.id = b_id
  order by place * case reason when 'failed' then 4 when 'flags' then 3 else 1 end, reason, a_id limit ?
"""


@dataclass(frozen=True, kw_only=True)
class Pairs:
    """Two outputs in a database, joined. `by` is the kind of match, `every` n: only every n-th image was compared."""

    connection: "DuckDBPyConnection"
    by: str
    every: int
    count: int

    def chosen(self, most: int) -> list[dict[str, Any]]:
        """The pairs to show, with the rows of both: `a` and `b`."""
        names = [f'{side}."{name}"' for side in "ab" for name in SCHEMA.names]
        rows = self.connection.execute(_CHOSEN.format(columns=", ".join(names)), [most]).fetchall()
        width = len(SCHEMA.names)
        return [
            {
                "reason": row[0],
                "distance": float(row[1]),
                "a": dict(zip(SCHEMA.names, row[2 : 2 + width], strict=True)),
                "b": dict(zip(SCHEMA.names, row[2 + width :], strict=True)),
            }
            for row in rows
        ]

    def numbers(self, side: str, name: str) -> Any:
        """A number of each finished row of one side that is in both, as an array."""
        value = {"characters": "length(caption)"}.get(name, name)
        rows = f"from {side} join pairs on id = {side}_id where code is null and {value} is not null"
        return self.connection.execute(f"select {value} as n {rows}").fetchnumpy()["n"]

    def counts(self, side: str, what: str) -> dict[str, int]:
        """Rows of one side that are in both, by `flags` (without what follows a colon) or by `code`."""
        value = _KIND if what == "flags" else what
        rows = f"(select {value} as k from {side} join pairs on id = {side}_id) where k is not null"
        return dict(self.connection.execute(f"select k, count(*) from {rows} group by k order by k").fetchall())

    def same(self) -> int:
        """Pairs with the same caption, to the letter."""
        query = "select count(*) from pairs join a on a.id = a_id join b on b.id = b_id where a.caption = b.caption"
        return int(self.connection.execute(query).fetchall()[0][0])

    def distances(self) -> Any:
        """The share of words that the captions of each pair do not have in common."""
        query = "select distance from pairs join a on a.id = a_id join b on b.id = b_id"
        return self.connection.execute(f"{query} where a.code is null and b.code is null").fetchnumpy()["distance"]


@contextmanager
def paired(first: Facts, second: Facts, old: str | None, tell: Tell = silent, most: int = MOST_ROWS) -> Iterator[Pairs]:
    """Join two outputs. Raises RecipeError if they have no image in common."""
    import duckdb

    rows = max(facts.ledger.finished + facts.ledger.failed for facts in (first, second))
    every = -(-rows // most) if rows else 1
    with tempfile.TemporaryDirectory(prefix="caprl-ray-") as folder:
        settings: dict[str, Any] = {"memory_limit": MEMORY, "temp_directory": folder, **OFFLINE}
        with duckdb.connect(str(Path(folder) / "pairs.db"), config=settings) as connection:
            for side, facts in (("a", first), ("b", second)):
                _load(connection, side, facts, old, every, tell)
            for by, (columns, same) in _JOINS.items():
                connection.execute("drop table if exists pairs")
                connection.execute(_PAIRED.format(by=columns, same=same))
                count = int(connection.execute("select count(*) from pairs").fetchall()[0][0])
                if count:
                    yield Pairs(connection=connection, by=by, every=every, count=count)
                    return
    raise RecipeError(
        f"{first.path} and {second.path} have no image in common, neither by source and key nor by SHA-256; compare "
        "outputs of the same input."
    )


def _load(connection: "DuckDBPyConnection", side: str, facts: Facts, old: str | None, every: int, tell: Tell) -> None:
    """Every n-th image of an output as a table."""
    connection.register("batch", SCHEMA.empty_table())
    connection.execute(f"create table {side} as select * from batch")
    objects = [(folder, stored) for folder in (DATA, FAILED) for stored in facts.objects[folder]]
    for done, (_, stored) in enumerate(objects, 1):
        for table in tables(facts, stored, tuple(SCHEMA.names), old):
            connection.register("batch", _fitted(table))
            taken = f"where hash(coalesce(sha256, key)) % {every} = 0"
            connection.execute(f"insert into {side} select * from batch {taken}")
        tell("reading captions", done, len(objects))


def _fitted(table: pa.Table) -> pa.Table:
    """A table with all columns that are compared, those that an output lacks as nulls."""
    columns = []
    for field in SCHEMA:
        there = field.name in table.schema.names
        castable = there and (table[field.name].type == field.type or not pa.types.is_nested(table[field.name].type))
        columns.append(
            pc.cast(table[field.name], field.type, safe=False) if castable else pa.nulls(len(table), field.type)
        )
    return pa.table(columns, schema=SCHEMA)
