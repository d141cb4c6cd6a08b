"""`caprl-ray demo`: render scenes, caption them with the embedded model, count the correct captions and score them."""

import io
import json
import random
import shlex
import shutil
import tarfile
import time
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from caprl_ray.caption.job import caption_job
from caprl_ray.cluster import session
from caprl_ray.commands import demo_score
from caprl_ray.embedded import scenes
from caprl_ray.errors import RecipeError
from caprl_ray.job import Job
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
RECIPE, SCORE_RECIPE, QUESTIONS = "recipe.yaml", "score.yaml", "questions.parquet"
JUDGE, OWN_QUESTIONS = "judge.yaml", "scene-questions.parquet"
AGAIN = "with this file finds nothing left to do."
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
SCORE_COMMENTS: dict[str, Comments] = {
    "input": {"paths": ["The captions, with all columns that their rows have."]},
    "model": {"source": ["The tiny reader of the package. It sees no image, and knows only the words of such scenes."]},
    "replicas": COMMENTS["replicas"],
    "score": {
        "questions": ["A table: key, question, choices, answer. Half are asked about the caption of another scene."],
        "join": ["The column that captions and questions have in common."],
        "rotations": ["Each question is asked once. If left out: in every rotation of its options."],
    },
}
JUDGE_COMMENTS: dict[str, Comments] = {
    "score": {
        "model": SCORE_COMMENTS["model"]["source"],
        "rotations": SCORE_COMMENTS["score"]["rotations"],
    },
}


def run_demo(folder: Path, images: int, *, debug: bool = False) -> int:
    """Render `images` scenes below `folder`, half as loose files and half in a WebDataset shard, and caption them.

    Prints a few captions and the number of correct ones. Returns the exit code 0. Raises RecipeError if the folder is
    neither empty nor from an earlier demo.
    """
    here = folder.absolute()
    out, document = here / "captions", demo_recipe([here / "images/files", here / "images/shards"], here / "captions")
    scoring = demo_score.score_recipe(out, here / QUESTIONS, here / "scores")
    job = caption_job(parse(document))
    clear(folder, MARKER, "demo")
    (folder / RECIPE).write_text(_recipe_text(document), encoding="utf-8")
    (folder / SCORE_RECIPE).write_text(_score_recipe_text(scoring), encoding="utf-8")
    (folder / JUDGE).write_text(_judge_text(demo_score.judge_recipe()), encoding="utf-8")
    drawn = render_scenes(folder / "images", images)
    lucky = demo_score.write_questions(folder / QUESTIONS, drawn, folder / OWN_QUESTIONS)
    with session.lasting(debug, job.engine_on_cpu), session.connected(debug):  # both jobs use one Ray
        print(f"captioning {images} rendered scenes with the embedded model; its engine takes about a minute to start")
        _captioned(job, out, {key: scenes.caption(scene) for key, scene in drawn.items()}, debug)
        print("answering questions from the captions, with a tiny model that sees no image")
        began = time.monotonic()
        for line in demo_score.scored(scoring, partial(run, debug=debug), lucky):
            print(line)
        print(f"scoring took {time.monotonic() - began:.0f} s with the engine's start")
    print("what to try next:")
    for command, said in next_commands(folder):
        print(f"  {command}\n      {said}")
    return 0


def _captioned(job: Job, out: Path, captions: dict[str, str], debug: bool) -> None:
    """Run the job, and print what came of it."""
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
    print(f"{right} of {len(captions)} captions are exactly right")
    print(written(Storage(), str(out)))


def next_commands(folder: Path) -> list[tuple[str, str]]:
    """Commands to try after the demonstration, each with what it does."""
    names = (RECIPE, SCORE_RECIPE, JUDGE, OWN_QUESTIONS, "captions", "another-prompt", "scores", "other-scores")
    recipe, scoring, judge, own, captions, again, scores, others = (shlex.quote(str(folder / name)) for name in names)
    prompt = shlex.quote(f"prompt.user={ANOTHER_PROMPT}")
    return [
        (f"caprl-ray verify {captions}", "count the rows again and prove it"),
        (f"caprl-ray plan {recipe}", "the work units of the recipe that the demo has used"),
        (
            f"caprl-ray caption {recipe} {prompt} output.path={again}",
            "another prompt, into another output; this model has learned only one, so its captions get worse",
        ),
        (
            f"caprl-ray score {scoring} input.paths={again} output.path={others} --against {scores}",
            "how much worse: the same questions, answered from the other captions",
        ),
        (
            f"caprl-ray evaluate {captions} {again} --questions {own} --judge {judge}",
            "both beside an empty and a swapped caption, and a page with the worst captions",
        ),
    ]


def _recipe_text(document: dict[str, Any]) -> str:
    """The recipe of the demonstration, with comments."""
    return _commented(f"captioned. `caprl-ray caption` {AGAIN}", document, COMMENTS)


def _score_recipe_text(document: dict[str, Any]) -> str:
    """The recipe that scores the demonstration's captions, with comments."""
    return _commented(f"scored. `caprl-ray score` {AGAIN}", document, SCORE_COMMENTS)


def _judge_text(document: dict[str, Any]) -> str:
    """The recipe of the demonstration's judge, with comments."""
    return _commented("left for `caprl-ray evaluate`: who answers questions.", document, JUDGE_COMMENTS)


def _commented(done: str, document: dict[str, Any], comments: dict[str, Comments]) -> str:
    lines = [f"# What `caprl-ray demo` has {done}"]
    for name, values in document.items():
        lines += ["", *section(name, values, comments.get(name, {}))]
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
    return {key: scenes.caption(scene) for key, scene in render_scenes(folder, images, seed).items()}


def render_scenes(folder: Path, images: int, seed: int = 1) -> dict[str, scenes.Scene]:
    """Write scenes as `render_dataset` does. Returns the scene of each key."""
    rng = random.Random(seed)
    drawn = {}
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
            drawn[key] = scene
    return drawn


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


def clear(folder: Path, marker: str, name: str) -> None:
    """Empty the folder if it is from an earlier run, which left the marker. Any other folder with content is
    refused."""
    if folder.exists() and any(folder.iterdir()):
        if not (folder / marker).exists():
            raise RecipeError(f"--out: {folder} is not empty and not from an earlier {name}; name another folder.")
        shutil.rmtree(folder)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / marker).touch()
