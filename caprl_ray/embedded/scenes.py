"""Rendered scenes with a known correct caption, to train, show and check the embedded captioner.

A scene is a coloured background with one to three things on a 3x3 grid. Its caption names every thing with position,
size, colour and kind in reading order. So every caption is either exactly right or wrong, and swapped rows, mirrored
images, exchanged colour channels and crops are detected.
"""

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image, ImageDraw, ImageFont

Colour = tuple[int, int, int]

COLOURS: dict[str, Colour] = {
    "red": (220, 30, 30),
    "green": (30, 160, 50),
    "blue": (40, 70, 220),
    "yellow": (245, 220, 40),
    "orange": (245, 140, 20),
    "purple": (140, 40, 170),
    "white": (250, 250, 250),
    "black": (15, 15, 15),
}
BACKGROUNDS: dict[str, Colour] = {**COLOURS, "gray": (128, 128, 128), "pink": (250, 170, 190)}
SIZES = {"large": 0.46, "small": 0.28}  # radius, as a share of a grid cell's shorter side
SHAPES = ("circle", "square", "triangle", "star", "cross")
DIGITS = tuple(f"digit {n}" for n in range(10))
POSITIONS = (
    ("top left", "top center", "top right"),
    ("middle left", "center", "middle right"),
    ("bottom left", "bottom center", "bottom right"),
)


@dataclass(frozen=True, kw_only=True)
class Thing:
    """One thing in a scene: `row` and `column` are 0..2, `kind` is one of SHAPES or DIGITS."""

    size: str
    colour: str
    kind: str
    row: int
    column: int


@dataclass(frozen=True, kw_only=True)
class Scene:
    """A background colour and its things in reading order."""

    background: str
    things: tuple[Thing, ...]


def sample_scene(rng: random.Random, *, least: int = 1, most: int = 3, kinds: Sequence[str] = SHAPES) -> Scene:
    """Draw a scene with `least` to `most` things, no two in one cell and none in the background's colour."""
    background = rng.choice(list(BACKGROUNDS))
    colours = [colour for colour in COLOURS if colour != background]
    things = tuple(
        Thing(
            size=rng.choice(list(SIZES)),
            colour=rng.choice(colours),
            kind=rng.choice(kinds),
            row=cell // 3,
            column=cell % 3,
        )
        for cell in sorted(rng.sample(range(9), rng.randint(least, most)))
    )
    return Scene(background=background, things=things)


def caption(scene: Scene) -> str:
    """The one correct caption: "On a blue background, at the top left a large red circle and at …"."""
    # The position comes first, because a tiny model can learn to look up the other attributes at a known place.
    phrases = [f"at the {POSITIONS[t.row][t.column]} a {t.size} {t.colour} {t.kind}" for t in scene.things]
    listed = phrases[0] if len(phrases) == 1 else f"{', '.join(phrases[:-1])} and {phrases[-1]}"
    return f"On a {scene.background} background, {listed}."


def render(
    scene: Scene, width: int, height: int, *, rng: random.Random | None = None, supersample: int = 2
) -> Image.Image:
    """Draw a scene as an RGB image.

    Args:
        width, height: pixels of the result.
        rng: varies positions, sizes and colours a little; with None the scene is drawn exactly.
        supersample: the scene is drawn larger by this factor and then reduced (bicubic).
    """
    shift = rng.uniform if rng else (lambda low, high: 0.0)

    def tint(colour: Colour) -> Colour:
        red, green, blue = (max(0, min(255, round(c + shift(-10, 10)))) for c in colour)
        return red, green, blue

    full_width, full_height = width * supersample, height * supersample
    image = Image.new("RGB", (full_width, full_height), tint(BACKGROUNDS[scene.background]))
    draw = ImageDraw.Draw(image)
    cell_width, cell_height = full_width / 3, full_height / 3
    for thing in scene.things:
        radius = SIZES[thing.size] * min(cell_width, cell_height) * (1 + shift(-0.06, 0.06))
        x = (thing.column + 0.5 + shift(-0.063, 0.063)) * cell_width
        y = (thing.row + 0.5 + shift(-0.063, 0.063)) * cell_height
        x = min(max(x, radius), full_width - radius)
        y = min(max(y, radius), full_height - radius)
        _draw_thing(draw, thing.kind, x, y, radius, tint(COLOURS[thing.colour]))
    return image.resize((width, height), Image.Resampling.BICUBIC) if supersample > 1 else image


def _draw_thing(draw: ImageDraw.ImageDraw, kind: str, x: float, y: float, radius: float, colour: Colour) -> None:
    if kind == "circle":
        draw.ellipse([x - radius, y - radius, x + radius, y + radius], fill=colour)
    elif kind == "square":
        half = 0.9 * radius
        draw.rectangle([x - half, y - half, x + half, y + half], fill=colour)
    elif kind == "triangle":
        draw.polygon(
            [(x, y - radius), (x + radius, y + 0.85 * radius), (x - radius, y + 0.85 * radius)],
            fill=colour,
        )
    elif kind == "cross":
        arm = 0.33 * radius
        draw.rectangle([x - radius, y - arm, x + radius, y + arm], fill=colour)
        draw.rectangle([x - arm, y - radius, x + arm, y + radius], fill=colour)
    elif kind == "star":
        points = []
        for corner in range(10):
            reach = radius * (1.08 if corner % 2 == 0 else 0.42)
            angle = math.pi * corner / 5
            points.append((x + reach * math.sin(angle), y - reach * math.cos(angle)))
        draw.polygon(points, fill=colour)
    else:
        font = ImageFont.load_default(max(8, round(2.5 * radius)))
        stroke = max(0, round(radius * 0.05))
        draw.text((x, y), kind[-1], fill=colour, font=font, anchor="mm", stroke_width=stroke, stroke_fill=colour)
