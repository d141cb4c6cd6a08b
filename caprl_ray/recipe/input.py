"""The section `input`: the images to caption."""

from typing import Annotated, Literal

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from caprl_ray.recipe import hashes
from caprl_ray.recipe.fields import Section, absolute, without_nul

MAX_METADATA_BYTES = 256 * 1024
STORES = ("s3", "gs", "az", "hf")  # schemes of stores that images are read from


def _image_root(path: str) -> str:
    """Check a folder or prefix and make a local path absolute, because workers have other working folders."""
    scheme, is_uri, place = path.partition("://")
    if "\0" in path or (is_uri and scheme != "file" and (scheme not in STORES or place.startswith("/"))):
        raise ValueError(f"{path!r} is not allowed; it should be a folder or a prefix such as s3://bucket/photos")
    return absolute(path)


class Columns(Section):
    """Which of the source's own columns are in the output. The images are read in any case."""

    keep: list[str] | None = None
    """The columns that are in the output. If left out, all of them."""
    drop: list[str] = []
    """Columns that are not in the output. They are not even read. Use it for second images and other large values."""

    def keeps(self, name: str) -> bool:
        """Whether a column of the source is in the output."""
        return name not in self.drop and (self.keep is None or name in self.keep)

    @model_validator(mode="after")
    def _check(self) -> "Columns":
        both = [name for name in self.keep or () if name in self.drop]
        if both:
            raise ValueError(f"{both[0]} is in keep and in drop; remove it from one of them")
        return self


def _image_key(key: str) -> str:
    """The extensions as they are compared with members: in lower case, without a leading dot."""
    return ";".join(part.lower().removeprefix(".") for part in key.split(";"))


class Input(Section):
    """The images to caption."""

    kind: Literal["files", "webdataset", "parquet", "manifest"] | None = None
    """The kind of input. If left out, it is inferred from the file names, for each path separately. Set it if a folder
    holds several kinds of files, or if the names do not show the kind. A manifest is a list of images as CSV or JSON
    lines. It is inferred only if the path itself has such an ending, for example lists/*.csv."""
    paths: Annotated[
        list[Annotated[str, Field(min_length=1), AfterValidator(without_nul)]],
        Field(min_length=1),
        BeforeValidator(lambda v: [v] if isinstance(v, str) else v),
    ]
    """The input: files, folders, prefixes, globs or brace ranges such as shards/{00000..00099}.tar; local, s3://,
    gs://, az:// or hf://datasets/ORG/NAME@REVISION/path."""
    hidden: bool = False
    """Whether hidden files in folders and globs are read. A file is hidden if its name or the name of a folder above it
    begins with a dot, and a table also if such a name begins with an underscore. Hidden files that a path names are
    always read. Files that tools keep beside data, such as those in __MACOSX or _delta_log, are never read."""
    image_column: str | None = None
    """The column of a table or manifest that holds the bytes or the paths of the images. If left out, it is found by
    type and name. Set it if several columns fit. Write `name[*]` for a parquet column of lists of images: each image
    becomes a row, which also has the other columns of its list's row."""
    image_key: Annotated[str, Field(pattern=r"^[^;/\s]+(;[^;/\s]+)*$"), AfterValidator(_image_key)] | None = None
    """The extension of the image that is captioned in a WebDataset sample, such as jpg. Of several, such as jpg;png,
    the first that the sample has is used. If left out, a sample may have images of one kind only. Set it if your
    samples hold maps, masks or edges beside the photo."""
    max_metadata_bytes: Annotated[int, Field(ge=1, le=512 * 1024)] = MAX_METADATA_BYTES
    """The largest total size of the texts and other values beside an image, in bytes. Raise it for long texts, to at
    most 512 KiB."""
    long_metadata: Literal["drop", "fail"] = "drop"
    """The action for a text that does not fit: `drop` leaves it out and flags the row, `fail` makes a failed row. Set
    fail if a caption is worthless without its text."""
    image_roots: Annotated[
        list[Annotated[str, Field(min_length=1), AfterValidator(_image_root)]],
        BeforeValidator(lambda v: [v] if isinstance(v, str) else v),
    ] = []
    """Folders and prefixes, such as s3://bucket/photos, from which the rows of tables and manifests may take their
    images. The table's own folder is always allowed. A row whose image is elsewhere, also through a symbolic link,
    becomes a failed row. Set it if your tables hold absolute paths."""
    rename: dict[str, Annotated[str, Field(min_length=1)]] = {}
    """New names for source columns, as {source name: output name}. A column whose name the output itself uses, such as
    width, must be renamed."""
    columns: Columns = Columns()
    """The source's own columns that are in the output, as {keep: [...]} or {drop: [...]}, by their names in the source.
    If left out, all of them."""
    placeholders: Annotated[
        list[str] | str,
        BeforeValidator(hashes.check),
        AfterValidator(lambda value: absolute(value) if isinstance(value, str) else value),
    ] = []
    """Images that only stand for a missing one, such as "image not available", by the SHA-256 of their bytes in hex: a
    list, or the path of a text file (local or s3://) with one per line, where # begins a comment. Their rows are not
    captioned and become failed rows. `caprl-ray plan --duplicates` finds such images."""
