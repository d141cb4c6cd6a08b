"""`preflight`: a sample of the whole input, what a run would refuse, and nothing left behind."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from caprl_ray import cli
from caprl_ray.commands.demo import demo_recipe, render_dataset
from caprl_ray.commands.preflight import preflight
from caprl_ray.errors import RecipeError
from caprl_ray.output import lease
from caprl_ray.recipe.load import parse
from caprl_ray.sources import files
from caprl_ray.storage import Storage

IMAGES = 600


@pytest.fixture
def images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Loose files in units of ten; every sixth is broken."""
    monkeypatch.setattr(files, "FILES_PER_UNIT", 10)
    render_dataset(tmp_path / "images", 2 * IMAGES)
    for path in sorted((tmp_path / "images" / "files").iterdir())[::6]:
        path.write_bytes(b"broken")
    return tmp_path / "images" / "files"


def document(images: Path, out: Path, **sections: Any) -> dict[str, Any]:
    return demo_recipe([images], out) | {"model": {"source": "stub"}, "prepare": {"max_pixels": 20_000}} | sections


@pytest.mark.usefixtures("ray_cluster")
def test_it_measures_a_sample_of_the_whole_input_and_leaves_nothing(
    images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = document(images, tmp_path / "new" / "out", replicas={"gpus": 0, "price": 2.5})
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    command = ["preflight", str(tmp_path / "recipe.yaml"), "--seconds", "1", "--json"]
    assert cli.main(command) == 0
    seen = json.loads(capsys.readouterr().out)
    assert seen["images"] == IMAGES and 256 <= seen["sampled"] <= 256 + 60
    broken = seen["failed"].pop("image_format")
    assert not seen["failed"] and seen["captioned"] + broken == seen["sampled"]
    assert sum(seen["megapixels"].values()) == seen["captioned"]
    assert 0.1 < broken / seen["sampled"] < 0.25, "one in six: the sample is even"
    assert seen["images_s"] > 0 and seen["whole"]["seconds"] == pytest.approx(IMAGES / seen["images_s"])
    assert seen["whole"]["cost"] == 0, "by the recipe's price, of no GPU"
    assert seen["caption_tokens_p95"] >= seen["caption_tokens"] > 5
    assert not (tmp_path / "new").exists()


def test_it_refuses_what_a_run_refuses_and_starts_nothing(images: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"

    def refused(recipe: dict[str, Any], said: str) -> None:
        with pytest.raises(RecipeError, match=said):
            preflight(parse(recipe))

    with lease.held(Storage(), str(out)):
        refused(document(images, out), "is writing here and holds the output until")
    refused(document(images, images), "is the input itself")
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs" / "thesis.txt").touch()
    refused(document(images, tmp_path / "theirs"), "has files that no run has written, such as thesis.txt")
    refused(document(images, out, quality={"checks": {"nowhere:check": "keep"}}), "nowhere")
    refused(document(images, out, prompt={"user": "{txt}"}), "names a column that the input does not have")
    refused(document(images, out, input={"paths": [str(images)], "placeholders": str(out / "none")}), "placeholders")
    refused(document(images, out, replicas={"gpus": 64}), "64 GPUs|parallel sizes")


def test_the_embedded_model_needs_no_gpu_unless_it_is_given_one(tmp_path: Path) -> None:
    plain = {"input": {"paths": ["x"]}, "output": {"path": str(tmp_path)}}
    assert parse(plain | {"model": {"source": "embedded"}, "replicas": {"max": 3}}).replicas.gpus == 0
    assert parse(plain | {"model": {"source": "embedded"}, "replicas": {"gpus": 1}}).replicas.gpus == 1
    assert parse(plain).replicas.gpus == 1
