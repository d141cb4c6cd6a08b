"""Hostile parquet files."""

import io
from collections.abc import Callable
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from tests.hostile.case import OK, PICKLED, REFUSED, Case
from tests.hostile.images import plain

MIB = 2**20


def table(columns: dict[str, Any], schema: pa.Schema | None = None, **options: Any) -> bytes:
    """A parquet file as pyarrow writes it."""
    file = io.BytesIO()
    pq.write_table(pa.table(columns, schema=schema), file, **options)
    return file.getvalue()


def images(count: int = 2) -> list[bytes]:
    return [plain("JPEG")] * count


def with_footer(content: bytes, change: Callable[[bytes], bytes]) -> bytes:
    """The file with another footer, whose length is stated as it is."""
    start = len(content) - 8 - int.from_bytes(content[-8:-4], "little")
    footer = change(content[start:-8])
    assert footer != content[start:-8]
    return content[:start] + footer + len(footer).to_bytes(4, "little") + b"PAR1"


def pickled_extension() -> bytes:
    """A column of the extension type that old versions of pyarrow unpickled, and one that a schema names as text."""
    kinds = {b"ARROW:extension:name": b"arrow.py_extension_type", b"ARROW:extension:metadata": PICKLED}
    schema = pa.schema(
        [("image", pa.binary()), pa.field("extension", pa.binary(), metadata=kinds)],
        metadata={b"pandas": PICKLED, b"huggingface": PICKLED, b"PANDAS_ATTRS": PICKLED},
    )
    return table({"image": images(), "extension": [PICKLED] * 2}, schema)


def nested_pickles() -> bytes:
    """Pickles in the columns beside the image, however deep."""
    deep = {"nested": [{"blob": PICKLED, "list": [PICKLED, None]}, None]}
    return table({"image": images(), "pickled": [deep, None], "pickle": [PICKLED] * 2})


def page_bomb() -> bytes:
    """One value that inflates to a quarter of a gigabyte, beside a good one, in a file of some kilobytes."""
    return table({"image": [*images(1), bytes(256 * MIB)]}, compression="zstd", use_dictionary=False)


def dictionary_bomb() -> bytes:
    """The same in a dictionary page."""
    columns = {"image": [*images(1), bytes(256 * MIB)]}
    return table(columns, compression="zstd", dictionary_pagesize_limit=2**30)


def dictionary_that_rows_share() -> bytes:
    """Forty rows of one image of 20 MB, which a dictionary holds once."""
    column = pa.DictionaryArray.from_arrays(pa.array([0] * 40, pa.int32()), pa.array([bytes(20 * MIB)]))
    return table({"image": column}, compression="zstd", store_schema=False)


def lying_footer() -> bytes:
    """The same, whose footer says that there is hardly anything to decompress and no dictionary."""
    content = dictionary_that_rows_share()
    column = pq.read_metadata(io.BytesIO(content)).row_group(0).column(0)
    size, data, dictionary = map(
        zigzag, (column.total_uncompressed_size, column.data_page_offset, column.dictionary_page_offset)
    )

    def change(footer: bytes) -> bytes:
        """Sizes of 30 bytes, and the data where the dictionary is; the field after both is then three further on."""
        assert footer.count(b"\x16" + size) == 2
        offsets = b"\x26" + data + b"\x26" + dictionary + b"\x1c"
        assert footer.count(offsets) == 1
        return footer.replace(b"\x16" + size, b"\x16" + zigzag(30)).replace(offsets, b"\x26" + dictionary + b"\x3c")

    return with_footer(content, change)


def nested_dictionary() -> bytes:
    """One row whose list has one value of a megabyte a hundred thousand times."""
    values = pa.DictionaryArray.from_arrays(pa.array([0] * 100_000, pa.int32()), pa.array([bytes(MIB)]))
    column = pa.ListArray.from_arrays(pa.array([0, 100_000, 100_000], pa.int32()), values)
    return table({"image": images(), "repeated": column}, compression="zstd", store_schema=False)


def nested_nulls() -> bytes:
    """One row whose list has fifty million nulls."""
    column = pa.ListArray.from_arrays(
        pa.array([0, 50_000_000, 50_000_000], pa.int32()), pa.nulls(50_000_000, pa.int8())
    )
    return table({"image": images(), "nulls": column}, compression="zstd")


def prefixes() -> bytes:
    """Images of 20 MB of which each but the first is stored as "begins as the one before"."""
    options: dict[str, Any] = {"use_dictionary": False, "column_encoding": "DELTA_BYTE_ARRAY"}
    return table({"image": [bytes(20 * MIB)] * 12}, compression="zstd", **options)


def claimed_rows() -> bytes:
    """A footer of seventy-seven rows that claims thousands of millions of millions."""
    written = zigzag(77)
    return with_footer(
        table({"image": images(77)}), lambda footer: footer.replace(b"\x16" + written, b"\x16" + zigzag(10**15))
    )


def damaged_page() -> bytes:
    content = bytearray(table({"image": images()}, use_dictionary=False))
    content[4:20] = b"\xff" * 16
    return bytes(content)


def zigzag(number: int) -> bytes:
    """A number as Thrift's compact protocol writes it."""
    number, groups = number << 1, []
    while number > 127:
        groups.append(number & 127 | 128)
        number >>= 7
    return bytes([*groups, number])


def cases() -> list[Case]:
    """Every hostile table."""
    good = table({"image": images()})
    paths = ["/dev/zero", "/etc/passwd", "file:///dev/stdin", "../outside.jpg", "https://host/a.jpg", "a\0.jpg"]
    paths += ["/proc/self/mem", "file:///proc/self/pagemap", "file:///a%00b.png", "table.parquet"]
    listed = "source_refused x9, image_format"
    return [
        # what a reader might load
        _case("pickled_extension_type", pickled_extension, f"{OK} x2"),
        _case("nested_pickles", nested_pickles, f"{OK} x2"),
        # what inflates
        _case("page_of_256_mb", page_bomb, "truncated_unit x2"),
        _case("dictionary_of_256_mb", dictionary_bomb, "truncated_unit x2"),
        _case("dictionary_shared", dictionary_that_rows_share, "image_format x40"),
        _case("dictionary_shared_lying_footer", lying_footer, "truncated_unit x40"),
        _case("nested_dictionary_100_gb", nested_dictionary, "truncated_unit x2"),
        _case("nested_nulls_50_million", nested_nulls, "truncated_unit x2"),
        _case("prefixes_240_mb", prefixes, "image_format x12"),
        _case("rows_claimed", claimed_rows, "truncated_unit"),
        # values
        _case("image_of_numbers", lambda: table({"image": [1, 2]}), REFUSED),
        _case("image_of_lists", lambda: table({"image": [[b"x"], None]}), REFUSED),
        _case("image_all_null", lambda: table({"image": pa.nulls(2, pa.binary())}), "no_image x2"),
        _case("image_some_null", lambda: table({"image": [*images(1), None, b""]}), f"{OK}, no_image, image_empty"),
        _case("paths", lambda: table({"path": paths}), listed),
        _case("paths_that_all_lead_elsewhere", lambda: table({"path": paths[:-1]}), REFUSED),
        # damage
        _case("footer_corrupt", lambda: good[:-40] + b"\xff" * 32 + good[-8:], "truncated_unit"),
        _case("footer_length", lambda: good[:-8] + b"\xff\xff\xff\x7fPAR1", "truncated_unit"),
        _case("truncated", lambda: good[:-10], "truncated_unit"),
        _case("page_damaged", damaged_page, "truncated_unit x2"),
        _case("no_bytes", lambda: b"", "unit_format"),
        _case("text_named_parquet", lambda: b"not found\n" * 100, "unit_format"),
    ]


def _case(name: str, content: Callable[[], bytes], expected: str) -> Case:
    return Case(name=f"parquet_{name}", file="table.parquet", content=content, expected=expected)
