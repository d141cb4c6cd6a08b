"""Recognize a rendered scene from its pixels by rules, without a model and without errors."""

from collections.abc import Iterator

import numpy as np
from PIL import Image

from caprl_ray.embedded import scenes
from caprl_ray.embedded.scenes import BACKGROUNDS, COLOURS, SHAPES, SIZES, Scene, Thing

GRID = 3  # cells along a side
# The largest mean difference, of 255, between an image and its scene, whose positions and colours are varied a little.
MOST_APART = 20
PROFILE = 16  # pixels along a side of the outlines that are compared to find the kind of a shape
EDGE = 0.07  # the share of a cell by which a large thing of the next cell may overlap it
# As a share of a cell: the diameter halfway between large and small things (the sum of the radii).
BETWEEN_SIZES = sum(SIZES.values())


def seen(image: Image.Image) -> Scene:
    """The scene in an image, as `scenes.render` draws it: each thing lies in its cell of the grid."""
    pixels = np.asarray(image.convert("RGB"), np.float32)
    names = np.array(list(BACKGROUNDS))[_nearest(pixels)]
    values, counts = np.unique(names, return_counts=True)
    background = str(values[counts.argmax()])
    return Scene(background=background, things=tuple(_things(pixels, background)))


def alike(image: Image.Image, scene: Scene) -> bool:
    """Whether an image looks like a rendering of this scene. If not, the image shows no scene."""
    if not scene.things:
        return False
    drawn = np.asarray(scenes.render(scene, *image.size), np.float32)
    return float(np.abs(np.asarray(image.convert("RGB"), np.float32) - drawn).mean()) < MOST_APART


def _nearest(pixels: np.ndarray) -> np.ndarray:
    """The index of the nearest background colour for each pixel."""
    colours = np.array(list(BACKGROUNDS.values()), np.float32)
    distances = ((pixels[..., None, :] - colours) ** 2).sum(-1)
    found: np.ndarray = distances.argmin(-1)
    return found


def _things(pixels: np.ndarray, background: str) -> Iterator[Thing]:
    height, width, _ = pixels.shape
    for row in range(GRID):
        for column in range(GRID):
            top, bottom = (height * (row + step) // GRID for step in (0, 1))
            left, right = (width * (column + step) // GRID for step in (0, 1))
            thing = _thing(pixels[top:bottom, left:right], background, row, column)
            if thing:
                yield thing


def _thing(cell: np.ndarray, background: str, row: int, column: int) -> Thing | None:
    height, width, _ = cell.shape
    middle = np.median(cell[height // 2 - 1 : height // 2 + 2, width // 2 - 1 : width // 2 + 2], axis=(0, 1))
    colour = _name(middle)
    if colour == background or colour not in COLOURS:
        return None
    mask = _mask(cell, background, colour)
    edge = round(EDGE * min(height, width))
    inner = mask[edge : height - edge, edge : width - edge]
    if not inner.any():  # no scene: no pixel has the median colour of the middle, because its colours differ
        return None
    large = _extent(inner) > BETWEEN_SIZES * min(height, width)
    size, kind = ("large", _kind(mask)) if large else ("small", _kind(inner))
    return Thing(size=size, colour=colour, kind=kind, row=row, column=column)


def _extent(mask: np.ndarray) -> int:
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    return int(max(rows[-1] - rows[0], columns[-1] - columns[0]) + 1)


def _name(colour: np.ndarray) -> str:
    return list(BACKGROUNDS)[int(_nearest(colour[None])[0])]


def _mask(cell: np.ndarray, background: str, colour: str) -> np.ndarray:
    """A mask of a cell's pixels that are nearer to the thing's colour than to the background's."""
    ours, theirs = (np.array(BACKGROUNDS[name], np.float32) for name in (colour, background))
    near: np.ndarray = ((cell - ours) ** 2).sum(-1) < ((cell - theirs) ** 2).sum(-1)
    return near


def _kind(mask: np.ndarray) -> str:
    """The kind of shape with the most similar outline, when both are scaled to the same bounds."""
    outline = _outline(mask)
    return min(OUTLINES, key=lambda kind: float(np.abs(OUTLINES[kind] - outline).mean()))


def _outline(mask: np.ndarray) -> np.ndarray:
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    cut = mask[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    image = Image.fromarray((255 * cut).astype(np.uint8)).resize((PROFILE, PROFILE), Image.Resampling.BOX)
    return np.asarray(image, np.float32) / 255


def _drawn(kind: str) -> np.ndarray:
    thing = Thing(size="large", colour="black", kind=kind, row=1, column=1)
    image = scenes.render(Scene(background="white", things=(thing,)), 240, 240)
    cell = np.asarray(image, np.float32)[80:160, 80:160]
    return _outline(_mask(cell, "white", "black"))


OUTLINES = {kind: _drawn(kind) for kind in SHAPES}
