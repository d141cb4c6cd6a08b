"""`preflight` tries a sample of the whole input, refuses what a run refuses, and leaves nothing behind."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from caprl_ray import cli
from caprl_ray.commands import forecast
from caprl_ray.commands.demo import demo_recipe, render_dataset
from caprl_ray.commands.preflight import preflight
from caprl_ray.errors import RecipeError
from caprl_ray.output import lease
from caprl_ray.recipe.load import parse
from caprl_ray.sources import files
from caprl_ray.storage import Storage

IMAGES = 600


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Loose files; every sixth is broken."""
    folder = tmp_path_factory.mktemp("rendered") / "images"
    render_dataset(folder, 2 * IMAGES)
    for path in sorted((folder / "files").iterdir())[::6]:
        path.write_bytes(b"broken")
    return folder / "files"


@pytest.fixture
def image(tmp_path: Path) -> Path:
    """A folder with one file."""
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "a.png").write_bytes(b"broken")
    return tmp_path / "images"


@pytest.fixture(autouse=True)
def _units_of_ten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "FILES_PER_UNIT", 10)


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
    said = capsys.readouterr()
    seen = json.loads(said.out)
    passed = ("the recipe is right", f"{seen['sampled']} images were read", "can be written", "they were prepared")
    places = [said.err.find(step) for step in passed]
    assert min(places) >= 0 and places == sorted(places), said.err
    assert seen["images"] == IMAGES and 256 <= seen["sampled"] <= 256 + 60
    broken = seen["failed"].pop("image_format")
    assert not seen["failed"] and seen["captioned"] + broken == seen["sampled"]
    assert sum(seen["megapixels"].values()) == seen["captioned"]
    assert 0.1 < broken / seen["sampled"] < 0.25, "one in six: the sample is even"
    assert seen["images_s"] > 0 and seen["whole"]["seconds"] == pytest.approx(IMAGES / seen["images_s"])
    assert seen["whole"]["cost"] == 0, "by the recipe's price, of no GPU"
    assert seen["caption_tokens_p95"] >= seen["caption_tokens"] > 5
    assert not (tmp_path / "new").exists()


@pytest.mark.usefixtures("ray_cluster")
def test_an_estimate_has_an_interval_for_each_figure_and_says_what_it_rests_on(
    images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(forecast, "gpus", lambda: 0)
    paths = [str(images), str(images.parent / "shards")]  # 600 files, 100 of them broken, and a shard of 600 images
    recipe = document(images, tmp_path / "out") | {"input": {"paths": paths}, "replicas": {"gpus": 1, "max": 4}}
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    command = ["plan", str(tmp_path / "recipe.yaml"), "--estimate", "--sample", "200", "--seconds", "1"]
    assert cli.main([*command, "--price", "2.24", "--json"]) == 0
    seen = json.loads(capsys.readouterr().out)
    assert 200 <= seen["sampled"] <= 260 and seen["units"] == 61
    count, broken, tokens = seen["images"], seen["failed"]["image_format"], seen["caption_tokens"]
    assert count["low"] < 2 * IMAGES < count["high"] and 0.9 < count["value"] / (2 * IMAGES) < 1.1
    assert seen["bytes"]["low"] == sum(path.stat().st_size for one in paths for path in Path(one).iterdir())
    assert broken["low"] < IMAGES / 6 / (2 * IMAGES) < broken["high"]
    assert tokens["value"] == pytest.approx(10), "the stub's captions of this prompt"
    assert seen["all_caption_tokens"]["value"] == pytest.approx(10 * (1 - broken["value"]) * count["value"], rel=0.02)
    rate, hours = seen["images_s"], seen["gpu_hours"]
    assert hours["value"] == pytest.approx(count["value"] / rate["value"] / 3600)
    assert seen["hours"]["value"] == pytest.approx(hours["value"] / 4)
    assert [seen["cost"][end] for end in ("low", "high")] == pytest.approx(
        [2.24 * hours["low"], 2.24 * hours["high"]]
    ) and hours["low"] < hours["value"] < hours["high"]
    assert all(figure["rests_on"] for figure in (count, tokens, rate, hours, seen["hours"], seen["cost"]))
    assert not seen["on_the_recipes_gpu"] and sum(one["value"] for one in seen["megapixels"].values()) == pytest.approx(
        1
    )
    assert not (tmp_path / "out").exists()


def test_a_wrong_combination_is_one_sentence(image: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(document(image, tmp_path / "out")))
    for wrong, said in (
        (["--estimate", "--duplicates"], "--estimate: cannot be given with --duplicates"),
        (["--sample", "5"], "--sample: needs --duplicates or --estimate"),
        (["--price", "2"], "--price: needs --estimate"),
        (["--duplicates", "--seconds", "2"], "--seconds: needs --estimate"),
        (["--estimate", "--price", "-1"], "--price: -1 is no price"),
        (["--estimate", "--price", "nan"], "--price: nan is no price"),
    ):
        assert cli.main(["plan", str(tmp_path / "recipe.yaml"), *wrong]) == 2
        assert said in capsys.readouterr().err


def test_it_refuses_what_a_run_refuses_and_starts_nothing(image: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"

    def refused(recipe: dict[str, Any], said: str) -> None:
        with pytest.raises(RecipeError, match=said):
            preflight(parse(recipe))

    with lease.held(Storage(), str(out)):
        refused(document(image, out), "is writing here and holds the output until")
    refused(document(image, image), "is the input itself")
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs" / "thesis.txt").touch()
    refused(document(image, tmp_path / "theirs"), "has files that no run has written, such as thesis.txt")
    refused(document(image, out, quality={"checks": {"nowhere:check": "keep"}}), "nowhere")
    refused(document(image, out, prompt={"user": "{txt}"}), "names a column that the input does not have")
    refused(document(image, out, input={"paths": [str(image)], "placeholders": str(out / "none")}), "placeholders")
    refused(document(image, out, replicas={"gpus": 64}), "64 GPUs|parallel sizes")


def test_the_embedded_model_needs_no_gpu_unless_it_is_given_one(tmp_path: Path) -> None:
    plain = {"input": {"paths": ["x"]}, "output": {"path": str(tmp_path)}}
    assert parse(plain | {"model": {"source": "embedded"}, "replicas": {"max": 3}}).replicas.gpus == 0
    assert parse(plain | {"model": {"source": "embedded"}, "replicas": {"gpus": 1}}).replicas.gpus == 1
    assert parse(plain).replicas.gpus == 1
