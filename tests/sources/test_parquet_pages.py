"""Pages are inspected while they are read. All pages of honest files are found, and too large ones are refused."""

import io
import random
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from caprl_ray.sources import parquet_pages
from caprl_ray.sources.parquet_file import ParquetDamaged, ParquetStream, batches, open_file
from caprl_ray.sources.parquet_pages import Chunk, Page, PageInspector, PageRefused, page_header

RANDOM = random.Random(1)
COLUMNS = {
    "image": [RANDOM.randbytes(RANDOM.randrange(3000)) for _ in range(600)],
    "label": ["cat", "dog", None] * 200,
    "names": [[f"name {n % 7}"] * (n % 5) for n in range(600)],
    "number": list(range(600)),
    "deep": [{"a": [{"b": "text" * (n % 3)}]} if n % 4 else None for n in range(600)],
}


def written(**options: Any) -> bytes:
    file = io.BytesIO()
    pq.write_table(pa.table(COLUMNS), file, **options)
    return file.getvalue()


def rows_of(content: bytes, monkeypatch: pytest.MonkeyPatch, max_bytes: int = 10**6) -> tuple[pa.Table, list[Chunk]]:
    """All rows of a file, and the chunks that were inspected."""
    seen: list[Chunk] = []

    class Noted(PageInspector):
        def __init__(self, chunks: list[Chunk]) -> None:
            super().__init__(chunks)
            seen.extend(chunks)

    monkeypatch.setattr(parquet_pages, "PageInspector", Noted)
    source = ParquetStream(io.BytesIO(content), len(content))
    file = open_file(source)
    groups = range(file.num_row_groups)
    found = [b for group in groups for b in batches(file, source, group, list(COLUMNS), 64, max_bytes)]
    return pa.Table.from_batches(found), seen


@pytest.mark.parametrize("version", ["1.0", "2.0"])
@pytest.mark.parametrize(
    "options",
    [
        *({"compression": name} for name in ("none", "snappy", "gzip", "brotli", "zstd", "lz4")),
        {"use_dictionary": False},
        {"use_dictionary": False, "column_encoding": {"image": "DELTA_BYTE_ARRAY", "label": "DELTA_LENGTH_BYTE_ARRAY"}},
        {"data_page_size": 100, "write_batch_size": 8},
        {"row_group_size": 77, "write_page_index": True, "write_page_checksum": True},
        {"dictionary_pagesize_limit": 1000},
    ],
    ids=str,
)
def test_every_page_of_an_honest_file_is_found(
    options: dict[str, Any], version: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    table, seen = rows_of(written(data_page_version=version, **options), monkeypatch)
    assert table.to_pydict() == COLUMNS
    assert seen and all(chunk._next == chunk.end == chunk._seen for chunk in seen)


def test_headers_in_pieces_are_put_together(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ParquetStream, "read", in_pieces(ParquetStream.read))
    table, seen = rows_of(written(data_page_size=100, write_batch_size=8, use_dictionary=False), monkeypatch)
    assert table.to_pydict() == COLUMNS and all(chunk._next == chunk.end for chunk in seen)


def in_pieces(read: Any) -> Any:
    def pieces(self: ParquetStream, size: int = -1) -> bytes:
        parts = []
        while size != 0 and (part := read(self, min(size, 7) if size > 0 else size)):
            parts.append(part)
            size -= len(part)
        return b"".join(parts)

    return pieces


@pytest.mark.parametrize("limit", ["FREE_INFLATION", "FREE_VALUES", "MAX_SHARED"])
def test_each_limit_ends_the_reading(limit: str, monkeypatch: pytest.MonkeyPatch) -> None:
    content = written(compression="zstd")
    monkeypatch.setattr(parquet_pages, limit, 0)
    monkeypatch.setattr(parquet_pages, "MAX_INFLATION", 0)
    monkeypatch.setattr(parquet_pages, "VALUES_PER_BYTE", 0)
    with pytest.raises(ParquetDamaged, match="parquet file"):
        rows_of(content, monkeypatch, max_bytes=0 if limit == "FREE_INFLATION" else 10**6)


def test_columns_that_overlap_are_refused() -> None:
    group = pq.read_metadata(io.BytesIO(written())).row_group(0)
    one = Chunk(group.column(0), nested=False, max_page=1, batch_rows=1)
    with pytest.raises(PageRefused, match="overlap"):
        PageInspector([one, one])


# kind 0, 20 bytes, 10 stored; a data page's own header of 5 values in encoding 8
HEADER = b"\x15\x00\x15\x28\x15\x14\x2c\x15\x0a\x15\x10\x00\x00"


def test_a_header_is_read_as_arrows_reader_does() -> None:
    page = Page(is_dictionary=False, stored=10, inflated=20, values=5, encoding=8)
    assert page_header(HEADER + b"data") == (page, len(HEADER))
    assert all(page_header(HEADER[:cut]) is None for cut in range(len(HEADER)))
    again = b"\x05\x04\x28"  # field 2 again, by its number; the last value counts
    assert page_header(b"\x15\x00\x15\x7e" + again + HEADER[4:]) == (page, len(HEADER) + 3)
    as_64_bits = b"\x06\x04\x02"  # Arrow ignores it
    assert page_header(HEADER[:4] + as_64_bits + HEADER[4:]) == (page, len(HEADER) + 3)


@pytest.mark.parametrize(
    "content",
    [
        b"\x00",
        b"\x15\x00\x15\x29\x15\x14\x00",  # -21 bytes
        b"\x15\x00\x15\x80\x80\x80\x80\x80\x01\x15\x14\x00",  # more than 32 bits
        b"\x15\x00\x15\x28\x15\x14\x19\x15\x00\x00",  # a list
        b"\x1c" * 100,  # structs in structs
        b"\x15" + b"\xff" * 20,
        b"\x10",
    ],
)
def test_impossible_headers_are_refused(content: bytes) -> None:
    with pytest.raises(PageRefused):
        page_header(content)


@settings(max_examples=300, deadline=None, database=None)
@given(content=st.binary(max_size=60))
@example(content=b"\x18\xff\xff\xff\xff\x7f")
def test_any_bytes_are_a_header_or_none_or_refused(content: bytes) -> None:
    try:
        found = page_header(content)
    except PageRefused:
        return
    assert found is None or found[1] <= len(content)


def test_a_dictionary_is_measured_by_its_largest_value(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A million short labels from a large dictionary are accepted; as many long ones are refused."""
    words = [f"word {n}" for n in range(20_000)]
    for size, good in ((0, True), (3000, False)):
        dictionary = pa.array([*words, "x" * size])
        labels = pa.DictionaryArray.from_arrays(pa.array([n % 20_001 for n in range(500_000)], pa.int32()), dictionary)
        column = pa.ListArray.from_arrays(pa.array([0, 250_000, 500_000], pa.int32()), labels)
        file = io.BytesIO()
        pq.write_table(pa.table({"labels": column}), file, store_schema=False)
        source = ParquetStream(io.BytesIO(file.getvalue()), len(file.getvalue()))
        opened = open_file(source)
        if good:
            assert sum(b.num_rows for b in batches(opened, source, 0, ["labels"], 64, 10**6)) == 2
        else:
            with pytest.raises(ParquetDamaged, match="repeats values"):
                list(batches(opened, source, 0, ["labels"], 64, 10**6))
