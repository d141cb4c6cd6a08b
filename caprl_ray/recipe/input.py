"""The section `input`: the images to caption."""

from typing import Annotated, Literal

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from caprl_ray.recipe import hashes
from caprl_ray.recipe.fields import Section, absolute, without_nul

MAX_METADATA_BYTES = 256 * 1024
STORES = ("s3", "gs", "az", "hf")  # schemes of stores that images are read from


def _image_root(path: str) -> str:
    """A local folder as an absolute path: Ray's workers have other working directories."""
    scheme, is_uri, place = path.partition("://")
    if "\0" in path or (is_uri and scheme != "file" and (scheme not in STORES or place.startswith("/"))):
        raise ValueError(f"{path!r} is not allowed; it should be a folder or a prefix such as s3://bucket/photos")
    return absolute(path)


class Columns(Section):
    """Which of the source's own columns the output gets. The images are not concerned."""

    keep: list[str] | None = None
    """The columns that the output gets. If left out, all of them."""
    drop: list[str] = []
    """Columns that the output does not get. They are not read. Use it for second images and other large values."""

    def keeps(self, name: str) -> bool:
        """Whether the output gets a column of the source."""
        return name not in self.drop and (self.keep is None or name in self.keep)

    @model_validator(mode="after")
    def _check(self) -> "Columns":
        both = [name for name in self.keep or () if name in self.drop]
        if both:
            raise ValueError(f"{both[0]} stands in keep and in drop; take it out of one")
        return self


def _image_key(key: str) -> str:
    """Extensions as members have them: without a dot in front, in small letters."""
    return ";".join(part.lower().removeprefix(".") for part in key.split(";"))


class Input(Section):
    """The images to caption."""

    kind: Literal["files", "webdataset", "parquet", "manifest"] | None = None
    """The kind of input. If left out, it is inferred from the file names, for each path separately. Set it if a folder
    holds several kinds of files, or if the names do not show the kind. A manifest is a list of images as CSV or JSON
    lines: it is inferred if the path itself ends like one, such as lists/*.csv."""
    paths: Annotated[
        list[Annotated[str, Field(min_length=1), AfterValidator(without_nul)]],
        Field(min_length=1),
        BeforeValidator(lambda v: [v] if isinstance(v, str) else v),
    ]
    """The input: files, folders, prefixes, globs or brace ranges such as shards/{00000..00099}.tar; local, s3://,
    gs://, az:// or hf://datasets/ORG/NAME@REVISION/path."""
    hidden: bool = False
    """Whether files whose names begin with a dot, or tables whose names begin with an underscore, are taken below a
    folder or glob, and files in folders of such names. A path that names them always takes them. Files that tools
    keep beside data, such as those in __MACOSX or _delta_log, are never taken."""
    image_column: str | None = None
    """The column of a table or manifest that holds the bytes or the paths of the images. If left out, it is found by
    type and name. Set it if several columns fit. `name[*]` is a column of lists of images in parquet: each image
    becomes a row, with the other columns of its row."""
    image_key: Annotated[str, Field(pattern=r"^[^;/\s]+(;[^;/\s]+)*$"), AfterValidator(_image_key)] | None = None
    """Which member of a WebDataset sample is captioned, by its extension: jpg, or jpg;png, of which the first that a
    sample has is taken. If left out, a sample may have images of one kind only. Set it if your samples hold maps, masks
    or edges beside the photo."""
    max_metadata_bytes: Annotated[int, Field(ge=1, le=512 * 1024)] = MAX_METADATA_BYTES
    """The most bytes of text and other values beside an image that its row may carry. Raise it for long texts; blocks
    of rows have room for at most 512 KiB of each row."""
    long_metadata: Literal["drop", "fail"] = "drop"
    """The fate of a longer text: drop leaves it out of the row and says so in its flags, fail makes it a failed
    row. Set fail if a caption without its text is worth nothing."""
    image_roots: Annotated[
        list[Annotated[str, Field(min_length=1), AfterValidator(_image_root)]],
        BeforeValidator(lambda v: [v] if isinstance(v, str) else v),
    ] = []
    """Folders and prefixes, such as s3://bucket/photos, below which a row of a table or manifest may name its image,
    beside the table's own folder. A row that names an image elsewhere, also through a symbolic link, becomes a failed
    row. Set it if your tables hold absolute paths."""
    rename: dict[str, Annotated[str, Field(min_length=1)]] = {}
    """New names for source columns, as {source name: output name}. A column whose name the output itself uses, such as
    width, must be renamed."""
    columns: Columns = Columns()
    """The source's own columns that the output gets, as {keep: [...]} or {drop: [...]}, by their names in the source.
    If left out, all of them."""
    placeholders: Annotated[
        list[str] | str,
        BeforeValidator(hashes.check),
        AfterValidator(lambda value: absolute(value) if isinstance(value, str) else value),
    ] = []
    """The SHA-256 in hex of stored images that stand for a missing one, such as "image not available": as a list, or as
    the path of a text file with one a line, local or s3://, # for comments. Such a row is not captioned; it becomes a
    failed row. `caprl-ray plan --duplicates` finds them."""
