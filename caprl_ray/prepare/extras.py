"""Image formats that Pillow does not read. They need this package's extra `formats`."""

from io import BytesIO

from PIL import ImageFile

from caprl_ray.errors import RowFailure


def missing(kind: str) -> RowFailure:
    """The failure of an image whose decoder is not installed."""
    return RowFailure("image_format", f"{kind}, which is read after pip install 'caprl_ray[formats]'")


def heic(file: BytesIO) -> ImageFile.ImageFile:
    """Open a HEIC and read only its headers, within libheif's own limits. Raises RowFailure without the extra."""
    try:
        from pillow_heif import HeifImageFile
    except ImportError:
        raise missing("HEIC") from None
    return HeifImageFile(file)  # type: ignore[no-untyped-call]
