"""Select rows of an output by a condition: an SQL expression over its columns, such as `flags = []`.

DuckDB evaluates it, on one thread, without access to files, the network, extensions and its own settings. The text must
be one expression, not a statement. Its value may depend only on the row.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
from pyroaring import BitMap

from caprl_ray.errors import RecipeError
from caprl_ray.output.committed import Committed, identities, opened
from caprl_ray.output.fence import committed_objects
from caprl_ray.output.objects import DATA, FAILED, Written, written_under
from caprl_ray.output.repair import may_hold, standing_more_than_once
from caprl_ray.output.scan import Tell, scan, silent
from caprl_ray.storage import Storage, Stored
from caprl_ray.storage.prefetch import prefetched

if TYPE_CHECKING:
    import duckdb

SETTINGS: Mapping[str, str] = {
    "enable_external_access": "false",
    "autoload_known_extensions": "false",
    "autoinstall_known_extensions": "false",
    "python_enable_replacements": "false",  # no table is a variable of this program
    "memory_limit": "1GB",
    "threads": "1",
}
# Functions whose answer is not one of their arguments, macros that use the clock, and what DuckDB reads like columns.
CHANGING = """
    SELECT DISTINCT function_name FROM duckdb_functions()
    WHERE stability <> 'CONSISTENT' OR regexp_matches(macro_definition, 'current_|now\\(|random\\(')
"""
CLOCKS = frozenset(
    [
        *("current_time", "current_timestamp", "localtime", "localtimestamp", "current_localtime"),
        "current_localtimestamp",
    ]
)
ROW = "caprl_ray row"  # the number of a row in its table
BATCH = 2**16  # rows that are evaluated at once
MOST_SHOWN = 60  # columns in a message
# One of several rows with the same identity, and whether it meets the condition.
JUDGED = np.dtype([("identity", "<i8"), ("attempts", "<i4"), ("object", "<i4"), ("meets", "?")])
Numbered = tuple[int, Stored]


@dataclass(frozen=True, kw_only=True)
class Condition:
    """An SQL expression that is true or false for a row of `schema`. `option` names it in messages.

    Raises RecipeError if it is no condition, or if its value may depend on more than the row.
    """

    text: str
    schema: pa.Schema
    option: str = "--where"
    columns: list[str] = field(init=False)
    """The columns that it reads."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "columns", self._checked())

    def of(self, rows: pa.Table) -> np.ndarray:
        """A mask of the rows that meet it. A column that the rows lack is null."""
        import duckdb

        columns = [_column(rows, self.schema.field(name)) for name in self.columns]
        numbered = pa.table([np.arange(rows.num_rows), *columns], names=[ROW, *self.columns])
        cursor = self._connection.cursor()  # in DuckDB 1.4, its results end with it
        try:
            found = cursor.from_arrow(numbered).filter(self._sql).project(f'"{ROW}"').fetchnumpy()[ROW]
        except duckdb.Error as error:
            raise RecipeError(f"{self.option}: {_said(error)}.") from None
        meets = np.zeros(rows.num_rows, bool)
        meets[found] = True
        return meets

    @cached_property
    def _sql(self) -> str:
        return _with_has(self.text)

    @cached_property
    def _connection(self) -> "duckdb.DuckDBPyConnection":
        return connected()

    def __reduce__(self) -> Any:
        """Travels without its connection."""
        return partial(Condition, text=self.text, schema=self.schema, option=self.option), ()

    def _checked(self) -> list[str]:
        """The columns that it reads, if it is a condition."""
        import duckdb

        connection, shown = self._connection, ", ".join(self.schema.names[:MOST_SHOWN])
        try:
            duckdb.SQLExpression(self._sql)  # one expression, and no statement
            parts = list(_parts(_parsed(connection, self._sql)))
            used = self._used({name for part in parts for name in part.get("column_names", ())})
            empty = connection.from_arrow(pa.schema([*map(self.schema.field, used), (ROW, pa.int64())]).empty_table())
            empty.filter(self._sql)
            (kind,) = empty.project(self._sql).types
        except duckdb.BinderException as error:
            raise RecipeError(f"{self.option}: {_said(error)}; the columns are {shown}.") from None
        except duckdb.Error as error:
            raise RecipeError(
                f'{self.option}: {self.text!r} is no SQL condition ({_said(error)}); write one such as "flags = [] and '
                'caption_tokens > 32".'
            ) from None
        if str(kind) != "BOOLEAN":
            raise RecipeError(f"{self.option}: {self.text!r} is neither true nor false, but {kind}; compare it.")
        self._refuse(connection, parts)
        return used

    def _used(self, names: set[str]) -> list[str]:
        """The columns of these names. SQL ignores case, so that one of two is told by its own spelling."""
        others = {name.lower() for name in names.difference(self.schema.names)}
        used = [name for name in self.schema.names if name in names or name.lower() in others]
        known: dict[str, str] = {}
        for name in used:
            other = known.setdefault(name.lower(), name)
            if other != name:
                raise RecipeError(
                    f"{self.option}: the rows have columns {other} and {name}, which SQL does not tell apart; name "
                    "only one of them, spelled as it is, or rename one with input.rename."
                )
        return used

    def _refuse(self, connection: "duckdb.DuckDBPyConnection", parts: list[dict[str, Any]]) -> None:
        """Refuse expressions that depend on more than the row: the same export would have other rows each time."""
        if any(part.get("class") == "SUBQUERY" for part in parts):
            raise RecipeError(f"{self.option}: a condition is about one row; it has no SELECT inside.")
        changing = CLOCKS | {name for (name,) in connection.execute(CHANGING).fetchall()}
        columns = {name.lower() for name in self.schema.names}
        for part in parts:
            for name in [name.lower() for name in part.get("column_names", ())][-1:]:
                if name in changing - columns:
                    raise RecipeError(f"{self.option}: {name} is another time in each run; compare with a constant.")
            one_age = part.get("function_name") == "age" and len(part.get("arguments", ())) == 1
            if part.get("function_name") in changing or one_age:
                raise RecipeError(
                    f"{self.option}: {part['function_name']} gives another value each time, so that no export could "
                    "be resumed; use hash(id) % 100 < 5 for a sample."
                )


def connected() -> "duckdb.DuckDBPyConnection":
    """DuckDB, which reads nothing but what it is given, on one thread."""
    import duckdb

    connection = duckdb.connect(":memory:", config=dict(SETTINGS))
    connection.execute("SET lock_configuration = true")
    return connection


def _with_has(text: str) -> str:
    """The text with `LIST has 'WORD'` as DuckDB writes it, `list_has(LIST, 'WORD')`. Quoted text stays as it is."""
    import duckdb

    sql = text.encode()  # DuckDB's tokens count in bytes
    starts = [*(start for start, _ in duckdb.tokenize(text)), len(sql)]
    tokens = [sql[start:end].strip() for start, end in pairwise(starts)]
    for n in range(len(tokens) - 2, 0, -1):
        if tokens[n].lower() == b"has" and tokens[n + 1].startswith(b"'"):
            named = b"list_has(%b, %b) " % (tokens[n - 1], tokens[n + 1])
            sql = sql[: starts[n - 1]] + named + sql[starts[n + 2] :]
    return sql.decode()


def _parsed(connection: "duckdb.DuckDBPyConnection", text: str) -> Any:
    row = connection.execute("SELECT json_serialize_sql(?)", [f"SELECT 1 WHERE ({text}\n)"]).fetchone()
    return json.loads(row[0]) if row else None


def _parts(node: Any) -> Iterator[dict[str, Any]]:
    """Every part of a parsed expression."""
    if isinstance(node, dict):
        yield node
    for inner in node.values() if isinstance(node, dict) else node if isinstance(node, list) else ():
        yield from _parts(inner)


def _said(error: Exception) -> str:
    """The first line of DuckDB's message, without the kind of error."""
    return str(error).strip().splitlines()[0].partition("Error: ")[2].rstrip(".!") or type(error).__name__


def _column(rows: pa.Table, wanted: pa.Field) -> pa.Array | pa.ChunkedArray:
    if wanted.name not in rows.schema.names:
        return pa.nulls(rows.num_rows, wanted.type)
    found = rows[wanted.name]
    return found if found.type == wanted.type else found.cast(wanted.type)


def output_schema(storage: Storage, output: str, folders: Sequence[str] = (DATA,)) -> pa.Schema:
    """The columns of an output's rows, of the newest objects first; without any if it has no rows there."""
    newest: dict[tuple[str, Written | None], Stored] = {}  # of each run: runs may add columns
    for folder, objects in committed_objects(storage, output, folders).items():
        newest |= {(folder, written_under(stored.path)): stored for stored in objects}
    schemas = []
    for stored in reversed(newest.values()):
        with opened(storage, stored) as file:
            schemas.append(file.schema_arrow)
    return pa.unify_schemas(schemas, promote_options="permissive") if schemas else pa.schema([])


def matching(
    storage: Storage,
    output: str,
    condition: Condition,
    committed: Mapping[int, Committed],
    folders: Sequence[str] = (DATA,),
    tell: Tell = silent,
) -> dict[int, BitMap]:
    """The rows that meet a condition, by unit: one bit a row. Reads only the columns that the condition names.

    `committed` are the rows of the output. Each counts once (docs/design.md, D7): a finished row before a failed one,
    then the highest `attempts`, then the first object by name.
    """
    several = {
        DATA: standing_more_than_once(committed, lambda unit: unit.extra_finished),
        FAILED: standing_more_than_once(committed, lambda unit: unit.extra_failed - unit.finished),
    }
    objects = {folder: list(enumerate(found)) for folder, found in committed_objects(storage, output, folders).items()}
    rows: dict[int, BitMap] = {}
    judged: dict[str, list[np.ndarray]] = {DATA: [], FAILED: []}
    for folder, parts, again in scan(partial(_judged, storage, condition, several), objects, "looking at rows", tell):
        judged[folder].append(again)
        for number, content in parts.items():
            found = BitMap.deserialize(content)
            unit = committed.get(number) or Committed()
            rows.setdefault(number, BitMap()).update(found & (unit.finished if folder == DATA else unit.failed))
    for some in judged.values():
        for identity in _met(np.concatenate([np.empty(0, JUDGED), *some])):
            rows.setdefault(identity >> 32, BitMap()).add(identity & 0xFFFFFFFF)
    return rows


def _judged(
    storage: Storage, condition: Condition, several: Mapping[str, np.ndarray], folder: str, objects: Sequence[Numbered]
) -> tuple[str, dict[int, bytes], np.ndarray]:
    """The rows of some objects that meet a condition, as bitmaps by unit; and separately, all duplicate rows."""
    rows: dict[int, BitMap] = {}
    again = [np.empty(0, JUDGED)]
    found = prefetched(lambda item: list(_judged_in(storage, condition, several[folder], *item)), objects, 2)
    for tables in found:
        for one in tables:
            more = np.isin(one["identity"], several[folder])
            again.append(one[more])
            met = one["identity"][one["meets"] & ~more]
            for number in np.unique(met >> 32).tolist():
                rows.setdefault(number, BitMap()).update(met[met >> 32 == number].astype(np.uint32))
    return folder, {number: bitmap.serialize() for number, bitmap in rows.items()}, np.concatenate(again)


def _judged_in(
    storage: Storage, condition: Condition, several: np.ndarray, number: int, stored: Stored
) -> Iterator[np.ndarray]:
    with opened(storage, stored) as file:
        attempts = ["attempts"] if may_hold(file.metadata, several) else []
        there = [name for name in condition.columns if name in file.schema_arrow.names]
        wanted = dict.fromkeys(["unit", "index", *attempts, *there])
        for batch in file.iter_batches(BATCH, columns=list(wanted), use_threads=False):
            rows = pa.Table.from_batches([batch])
            judged = np.zeros(rows.num_rows, JUDGED)
            judged["identity"], judged["meets"], judged["object"] = identities(rows), condition.of(rows), number
            if attempts:
                judged["attempts"] = rows["attempts"].fill_null(0).to_numpy()
            yield judged


def _met(judged: np.ndarray) -> list[int]:
    """The identities whose row that counts meets the condition."""
    order = np.lexsort((judged["object"], -judged["attempts"], judged["identity"]))
    identity = judged["identity"][order]
    first = order[np.diff(identity, prepend=-1) != 0]
    found: list[int] = judged["identity"][first[judged["meets"][first]]].tolist()
    return found
