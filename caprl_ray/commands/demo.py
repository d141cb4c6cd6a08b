"""`caprl-ray demo`: render scenes, caption them with the embedded model, and count the correct captions."""

import io
import json
import random
import shlex
import shutil
import tarfile
import time
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from caprl_ray.caption.job import caption_job
from caprl_ray.embedded import scenes
from caprl_ray.errors import RecipeError
from caprl_ray.pipeline import run
from caprl_ray.recipe.commented import Comments, section
from caprl_ray.recipe.load import parse
from caprl_ray.report.report import written
from caprl_ray.storage import Storage

# Sizes of the stored images in pixels, and their formats. The job resizes all of them for the model.
SIZES = ((84, 84), (240, 240), (448, 448), (320, 240), (240, 320))
FORMATS: tuple[tuple[str, str, dict[str, Any]], ...] = (
    ("png", "PNG", {}),
    ("jpg", "JPEG", {"quality": 92}),
    ("webp", "WEBP", {"lossless": True}),
)
MARKER = ".caprl-ray-demo"
RECIPE = "recipe.yaml"
ANOTHER_PROMPT = "What does this image show?"
COMMENTS: dict[str, Comments] = {
    "input": {"paths": ["Half of the scenes are loose files, the others lie in a WebDataset shard."]},
    "model": {"source": ["The tiny model of the package. It describes such scenes and nothing else."]},
    "replicas": {"gpus": ["0: the model runs on this machine's CPU."]},
    "sampling": {
        "temperature": ["Greedy: the same picture always gets the same caption."],
        "max_tokens": ["The longest caption, in tokens."],
    },
    "output": {"path": ["One recipe belongs to one output: give another folder for another prompt or model."]},
}


def run_demo(folder: Path, images: int, *, debug: bool = False) -> int:
    """Render `images` scenes below `folder`, half as loose files and half in a WebDataset shard, and caption them.

    Prints a few captions and the number of correct ones. Returns the exit code 0. Raises RecipeError if the folder is
    neither empty nor from an earlier demo.
    """
    here = folder.absolute()
    out, document = folder / "captions", demo_recipe([here / "images/files", here / "images/shards"], here / "captions")
    job = caption_job(parse(document))
    _clear(folder)
    (folder / RECIPE).write_text(_recipe_text(document), encoding="utf-8")
    captions = render_dataset(folder / "images", images)
    print(f"captioning {images} rendered scenes with the embedded model; its engine takes about a minute to start")
    began = time.monotonic()
    ledger = run(job, debug=debug)
    seconds = time.monotonic() - began
    right, shown = check(out, captions)
    for name, caption in shown:
        print(f"  {name}: {caption}")
    print(f"captions: {out / 'data'}")
    print(f"{ledger.summary()}; {ledger.finished / seconds:.1f} images/s with the engine's start")
    print(
        "the ledger balances: every planned image is one row, captioned or failed, and none is missing or there twice"
    )
    print(f"{right} of {images} captions are right to the letter")
    print(written(Storage(), str(out)))
    print("what to try next:")
    for command, said in next_commands(folder):
        print(f"  {command}\n      {said}")
    return 0


def next_commands(folder: Path) -> list[tuple[str, str]]:
    """Commands to try after the demonstration, each with what it does."""
    recipe, captions, again = (shlex.quote(str(folder / name)) for name in (RECIPE, "captions", "another-prompt"))
    prompt = shlex.quote(f"prompt.user={ANOTHER_PROMPT}")
    return [
        (f"caprl-ray verify {captions}", "count the rows again and prove it"),
        (f"caprl-ray plan {recipe}", "the work units of the recipe that the demo has used"),
        (
            f"caprl-ray caption {recipe} {prompt} output.path={again}",
            "another prompt, into another output; this model has learned only one, so its captions get worse",
        ),
    ]


def _recipe_text(document: dict[str, Any]) -> str:
    """The recipe of the demonstration, with comments."""
    lines = ["# What `caprl-ray demo` has captioned. `caprl-ray caption` with this file finds nothing left to do."]
    for name, values in document.items():
        lines += ["", *section(name, values, COMMENTS.get(name, {}))]
    return "\n".join([*lines, ""])


def demo_recipe(paths: list[Path], out: Path, **sampling: Any) -> dict[str, Any]:
    """Return a recipe, as plain data, for the embedded model on this machine's CPU. Decoding is greedy by default."""
    return {
        "input": {"paths": [str(path) for path in paths]},
        "model": {"source": "embedded"},
        "replicas": {"gpus": 0},
        "sampling": {"temperature": 0, "max_tokens": 96} | sampling,
        "output": {"path": str(out)},
    }


def render_dataset(folder: Path, images: int, seed: int = 1) -> dict[str, str]:
    """Write scenes as `files/*.{png,jpg,webp}` and `shards/00000.tar`. Returns the correct caption of each key."""
    rng = random.Random(seed)
    captions = {}
    files, shards = folder / "files", folder / "shards"
    files.mkdir(parents=True)
    shards.mkdir()
    with tarfile.open(shards / "00000.tar", "w") as tar:
        for number in range(images):
            scene = scenes.sample_scene(rng)
            extension, content = encode_scene(scene, rng)
            if number % 2:
                key = f"scene-{number:05d}.{extension}"
                (files / key).write_bytes(content)
            else:
                key = f"scene-{number:05d}"
                meta = json.dumps({"scene": number, "background": scene.background}).encode()
                for name, data in ((f"{key}.{extension}", content), (f"{key}.json", meta)):
                    member = tarfile.TarInfo(name)
                    member.size = len(data)
                    tar.addfile(member, io.BytesIO(data))
            captions[key] = scenes.caption(scene)
    return captions


def encode_scene(scene: scenes.Scene, rng: random.Random) -> tuple[str, bytes]:
    """Render a scene at a random size in a random format. Returns the file extension and the bytes."""
    width, height = rng.choice(SIZES)
    extension, kind, options = rng.choice(FORMATS)
    buffer = io.BytesIO()
    scenes.render(scene, width, height, rng=rng).save(buffer, kind, **options)
    return extension, buffer.getvalue()


def check(out: Path, captions: dict[str, str], show: int = 5) -> tuple[int, list[tuple[str, str]]]:
    """Return the number of correct captions in an output, and about `show` pairs of key and caption."""
    rows = pq.read_table(out / "data", columns=["key", "caption"]).to_pylist()
    right = sum(captions[row["key"]] == row["caption"] for row in rows)
    return right, [(row["key"], row["caption"]) for row in rows[:: max(1, len(rows) // show)][:show]]


def _clear(folder: Path) -> None:
    """Empty the folder if it is from an earlier demo. Any other folder with content is refused."""
    if folder.exists() and any(folder.iterdir()):
        if not (folder / MARKER).exists():
            raise RecipeError(f"--out: {folder} is not empty and not from an earlier demo; name another folder.")
        shutil.rmtree(folder)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / MARKER).touch()
