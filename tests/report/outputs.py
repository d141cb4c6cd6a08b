"""An output with every kind of row, from pictures on disk: ordinary and hostile ones."""

import hashlib
import io
import json
import random
from pathlib import Path
from typing import Any

import pyarrow as pa
from PIL import Image

from caprl_ray import plan
from caprl_ray.caption.columns import CAPTION
from caprl_ray.output.commit import CommittedRows
from caprl_ray.plan import Entry, Unit
from caprl_ray.rows.schema import META_PREFIX, column, row_id, row_schema
from caprl_ray.storage import Storage

PHOTOGRAPHS = sorted((Path(__file__).parent.parent / "prepare" / "photographs").glob("*.jpg"))
SOURCE = pa.schema([column("alt_text", pa.string(), "The source's column alt_text.")])
SCHEMA = row_schema(SOURCE, CAPTION)
SCRIPT = "<script>document.title='owned'</script><img src=x onerror=\"document.title='owned'\">"
STYLE = '</style><style>*{display:none!important}</style>" style="position:fixed;inset:0'
BIDI = "\u202egnp.exe\u2066 שלום"
REVERSED = "\u202egnp.exe"  # shown as exe.png, as is all that follows in its line if nothing ends it
HOSTILE = (SCRIPT, STYLE, BIDI)
WORDS = (
    "The image shows a white cup of coffee on a dark wooden table, seen from above at a slight angle. The foam has a "
    "pattern in the shape of a leaf. To its right lies a silver spoon, and behind it stands a small glass of water. "
    "Soft light falls from the left and leaves long shadows on the grain of the wood."
)
ROCKET = (
    "The image shows a slender white rocket on its launch pad at dusk, held by a tower of dark steel. Two tall masts "
    "stand to its left and right, and floodlights throw warm spots on the ground. The sky behind them fades from deep "
    "blue to a pale glow at the horizon. No people are visible."
)
MARKDOWN = (
    "# Overview\n\nA table with prices:\n\n| item | price |\n|---|---|\n| coffee | 2.40 |\n| tea | 2.10 |\n\n"
    "- the first row is **bold**\n- a [link](https://example.com)"
)


def picture(folder: Path, number: int, size: tuple[int, int]) -> Path:
    """A part of a photograph as a file of its own."""
    rng, path = random.Random(number), folder / f"{number:04d}.jpg"
    with Image.open(PHOTOGRAPHS[number % len(PHOTOGRAPHS)]) as photograph:
        left, top = rng.randint(0, photograph.width // 3), rng.randint(0, photograph.height // 3)
        part = photograph.crop((left, top, photograph.width - rng.randint(0, left), photograph.height - left // 2))
        buffer = io.BytesIO()
        part.resize(size).save(buffer, "JPEG", quality=85)
    path.write_bytes(buffer.getvalue())
    return path


def write(folder: Path, images: int = 60, *, longer: bool = False) -> Path:
    """Write pictures, and an output with their rows: every sixth row failed, every fifth is flagged. The pictures are
    shared by the outputs of one folder. With `longer` captions are others."""
    files, out = folder / "images", folder / ("longer" if longer else "out")
    files.mkdir(parents=True, exist_ok=True)
    rng, storage, entries, rows = random.Random(7), Storage(), [], []
    for number in range(images):
        size = rng.choice(((640, 480), (480, 640), (1024, 683), (160, 120), (300, 300)))
        path = files / f"{number:04d}.jpg"
        path = path if path.exists() else picture(files, number, size)
        stored = storage.lookup(str(path))
        entries.append(Entry(stored=stored, key=path.name))
        content = path.read_bytes()
        rows.append(row(number, path, size, hashlib.sha256(content).hexdigest(), longer=longer))
    rows[-1]["unit_rows"] = images
    plan.store(storage, str(out), [Unit(kind="files", rows=images, entries=entries, columns=SOURCE)])
    sink = CommittedRows(storage, str(out), 1, CAPTION, 1, "0123456789ab")
    for start in range(0, images, 16):
        sink.write([pa.Table.from_pylist(rows[start : start + 16], schema=SCHEMA)], None)
    write_run(out, [files])
    return out


def write_run(out: Path, paths: list[Path]) -> None:
    """The run.json of an output, as far as pages read it."""
    recipe = {
        "input": {"paths": [str(path) for path in paths]},
        "prompt": {"system": "You are a helpful assistant.", "user": f"Please describe this image. {SCRIPT}"},
    }
    (out / "run.json").write_text(json.dumps({"fingerprint": {}, "recipe": recipe, "input": recipe["input"]}))


def row(number: int, path: Path, size: tuple[int, int], digest: str, *, longer: bool) -> dict[str, Any]:
    """The row of a picture."""
    caption = (ROCKET if number % 2 else WORDS)[: 80 + 40 * (number % 6)] if number % 7 else MARKDOWN
    if number < len(HOSTILE):
        caption = f"{HOSTILE[number]} {WORDS}"
    if longer and number % 4 == 1:
        caption = f"{caption} Beyond the window a street with parked bicycles is visible, out of focus."
    found = {
        "id": row_id(0, number),
        "unit": 0,
        "index": number,
        "source": str(path),
        "key": {0: f"{BIDI}{SCRIPT}", 4: REVERSED}.get(number, path.name),
        "sha256": digest,
        "width": size[0],
        "height": size[1],
        "caption": caption,
        "finish_reason": "stop",
        "flags": {0: ["loop"], 5: ["truncated", "opener"], 10: ["metadata_too_large:<b>txt"]}.get(number % 15, []),
        "repaired": ["loop"] if number % 11 == 4 else [],
        "decodes": 3 if number % 11 == 4 else 1,
        "decoded_tokens": 200,
        "attempts": 1,
        "prompt_tokens": 400,
        "caption_tokens": len(caption) // 4,
        "model": "internlm/CapRL-3B@0123456789abcdef",
        f"{META_PREFIX}alt_text": f"{SCRIPT} coffee"
        if number == 1
        else ("rocket launch wallpaper hd" if number % 2 else "coffee cup stock photo"),
    }
    if number % 6 == 4:
        code = ("image_corrupt", "engine_timeout", "quality")[number // 6 % 3]
        stage = "prepare" if code.startswith("image") else "caption"
        found |= {"stage": stage, "code": code, "detail": "loop" if code == "quality" else "JPEG"}
        found["flags"] = []
    return found
