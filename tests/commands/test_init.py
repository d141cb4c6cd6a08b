"""`caprl-ray init`: it writes a recipe that can be planned as it is, or says in one sentence why it cannot."""

import re
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import yaml

from caprl_ray.cli import main
from caprl_ray.commands import init, survey
from caprl_ray.commands.demo import render_dataset
from caprl_ray.recipe.commented import flow, section
from caprl_ray.recipe.load import parse
from tests.s3_server import BUCKET, S3Server
from tests.sources.tables import HF_IMAGE, contents, write

IMAGES = pa.array([{"bytes": content, "path": None} for content in contents(3)], HF_IMAGE)
NAMES = ["x", "y", "z"]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder, with inputs of every kind."""
    monkeypatch.chdir(tmp_path)
    render_dataset(tmp_path / "scenes", 8)
    write(tmp_path / "hub/a.parquet", {"image": IMAGES, "mask": IMAGES, "caption": NAMES, "width": [1, 2, 3]})
    ours = dict.fromkeys(("id", "key", "previous", "run"), NAMES)  # some columns of an output
    write(tmp_path / "ours/a.parquet", {"image": IMAGES, **ours})
    write(tmp_path / "named/a.parquet", {"data": contents(3), "photo": IMAGES})
    write(tmp_path / "two/a.parquet", {"left": contents(3), "right": contents(3)})
    write(tmp_path / "lists/a.parquet", {"images": pa.array([contents(2), None, []], pa.list_(pa.binary()))})
    return tmp_path


def made(*arguments: str) -> tuple[dict[str, Any], str]:
    """The recipe that the command writes, after `plan` has taken it as it is."""
    assert main(["init", "--force", *arguments]) == 0
    assert main(["plan", "recipe.yaml"]) == 0
    text = Path("recipe.yaml").read_text()
    return yaml.safe_load(text), text


@pytest.mark.parametrize(
    ("paths", "settings", "words"),
    [
        (["scenes/files"], {}, ["files: 1 units, 4 images"]),
        (["scenes/shards/00000.tar"], {}, ["webdataset: 1 units", "{txt|nothing}"]),
        (
            ["hub"],
            {"rename": {"caption": "source_caption", "width": "source_width"}},
            ['#image_column: "mask"', "{source_caption|nothing}"],
        ),
        (["ours"], {"rename": {name: f"source_{name}" for name in ("id", "key", "previous", "run")}}, []),
        (["named"], {}, ['#image_column: "data"']),
        (["two"], {"image_column": "left"}, ['#image_column: "right"']),
        (["lists"], {"image_column": "images[*]"}, ["parquet: 1 units"]),
        (
            ["scenes/files", "hub", "input.columns.drop=[width]"],
            {"rename": {"caption": "source_caption"}},
            ["3 images"],
        ),
    ],
)
def test_a_recipe_for_each_kind_of_input_is_planned_as_it_is(
    here: Path, paths: list[str], settings: Any, words: list[str]
) -> None:
    document, text = made(*paths)
    assert document["output"] == {"path": "captions"}
    assert {**document["input"], **settings} == document["input"]
    assert ("image_column" in document["input"]) == ("image_column" in settings)
    assert all(word in text for word in words)


def test_a_recipe_for_s3_holds_its_storage_and_an_output_beside_the_input(s3: S3Server, here: Path) -> None:
    s3.put("set/photos/1.jpg", b"x")
    storage = [f"storage.endpoint={s3.endpoint}", "storage.region=us-east-1"]
    document, _ = made(f"s3://{BUCKET}/set/photos/", *storage)
    assert document["storage"] == {"endpoint": s3.endpoint, "region": "us-east-1"}
    assert document["output"] == {"path": f"s3://{BUCKET}/set/captions"}
    shards = made(f"s3://{BUCKET}/set/photos/{{1..1}}.jpg", *storage)[0]
    assert shards["output"] == {"path": f"s3://{BUCKET}/set/captions"}
    s3.put("set/captions/other.txt", b"somebody's")
    assert made(f"s3://{BUCKET}/set/photos/", *storage)[0]["output"] == {"path": f"s3://{BUCKET}/set/captions-2"}
    assert made(f"s3://{BUCKET}", *storage)[0]["output"] == {"path": "captions"}


def test_the_output_is_not_inside_the_input(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(here / "scenes" / "files")
    assert made(".")[0]["output"] == {"path": "../captions"}


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["nowhere"], "input.paths: nothing was found at nowhere."),
        (["scenes"], "input.paths: scenes holds files and webdataset"),
        (
            ["hub", "--out", "hub/a.parquet"],
            "--out: hub/a.parquet exists; give another name, or --force to replace it.",
        ),
        (["hub", "input.image_column=width"], "input.image_column: column width"),
        (["hub", "model.endpoint=nonsense"], "model.endpoint: it should be a service's base URL"),
        (["storage.region=x"], "init: name the input before overrides"),
    ],
)
def test_an_input_that_fits_no_recipe_is_refused_in_one_sentence(
    here: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], sentence: str
) -> None:
    assert main(["init", *arguments]) == 2
    assert capsys.readouterr().err.startswith(f"caprl-ray: {sentence}")
    assert not (here / "recipe.yaml").exists()


def test_hints_follow_the_machine_and_the_overrides(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(init, "DEVICES", here)
    assert "no GPUs" in made("hub")[1]
    (here / "nvidia0").touch()
    (here / "nvidiactl").touch()
    assert "has 1 GPU.\n" in made("hub")[1]
    document, text = made("hub", "model.endpoint=http://localhost:1/v1")
    assert "GPU" not in text and "replicas" not in document
    assert made("hub", "model.source=embedded")[0]["replicas"] == {"gpus": 0}


@pytest.mark.parametrize("end", ["\n", "\r", "\x85", "\u2028", "\u2029", "\x7f"])
def test_no_name_of_the_data_and_no_path_writes_a_line_of_the_recipe(here: Path, end: str) -> None:
    def hostile(line: str) -> str:
        return f"x{end}{line} #"

    roots, storage, path = hostile("  image_roots: [/]"), hostile("storage: {endpoint: evil}"), hostile("quality: {}")
    write(here / "names/a.parquet", {"image": IMAGES, roots: IMAGES, "text": NAMES})
    rename = {"text": storage}
    document, text = made("names", f"input.rename={flow(rename)}")
    assert {name for name in document if name not in ("model", "replicas", "prompt")} == {"input", "output"}
    assert document["input"] == {"paths": ["names"], "rename": rename}
    hint = yaml.safe_load("\n".join(re.findall(r"^  #(image_column: .*)$", text, re.MULTILINE)))
    assert hint == {"image_column": roots}
    alt = list(init._alt(survey.Survey(document={}, found={}, whole=True, alt=storage)))[-1]
    assert f"says: {{{storage}|nothing}}." in yaml.safe_load(alt[1:])["user"]
    lines = section("input", {"paths": [path]}, {"paths": [f"{path}: 1 units", f"#{path}: 1 units"], "": [f"#{path}"]})
    assert yaml.safe_load("\n".join(lines)) == {"input": {"paths": [path]}}


def test_a_large_input_is_not_listed_to_its_end(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(survey, "SECONDS", -1)
    said = "# scenes/files: files: 1 units, 4 images, 0.000 GB so far; the listing was stopped\n"
    assert said in made("scenes/files")[1]


def test_without_a_path_every_field_stands_there_with_its_default(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["init", "--out", "-"]) == 0
    text = capsys.readouterr().out
    short = parse(yaml.safe_load(text))
    whole = yaml.safe_load(re.sub(r"^( *)#(?=[a-z_]+:)", r"\1", text, flags=re.MULTILINE))
    assert parse(whole) == short
    named = [{name: set(fields or ()) for name, fields in one.items()} for one in (whole, short.model_dump())]
    assert named[0] == named[1]
