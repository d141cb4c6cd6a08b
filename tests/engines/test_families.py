"""The captioners of the CapRL family by the whole job and vLLM: tiny models of their architectures count as many tokens
as the models' own processors."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import yaml
from PIL import Image

from tests import tiny_models
from tests.checkout import ROOT

SIZES = [(64, 48), (640, 480), (480, 640), (200, 1500), (448, 448), (1000, 1000), (3840, 2160)]
MOST = 1_003_520
# Arguments that narrow the model's own processor to the recipe's limits.
QWEN3 = {"size": {"shortest_edge": 65536, "longest_edge": MOST}}
INTERNVL = {"max_patches": MOST // 448**2}
OVERRIDE = {"hf_overrides": {"text_config": {"architectures": ["Qwen3ForCausalLM"]}}}


def images(folder: Path) -> None:
    folder.mkdir()
    rng = np.random.default_rng(0)
    for width, height in SIZES:
        rough = Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8))
        rough.resize((width, height)).save(folder / f"{width}x{height}.jpg")


def counted(model: Path, image: Path, system: str, user: str, limits: dict[str, Any]) -> int:
    """The tokens of a prompt with an image of any size, by the model's own processor."""
    from transformers import AutoProcessor

    processor = AutoProcessor.from_pretrained(model)
    content = [{"type": "image"}, {"type": "text", "text": user}]
    turns = [{"role": "system", "content": system}, {"role": "user", "content": content}]
    text = processor.apply_chat_template(turns, add_generation_prompt=True, tokenize=False)
    with Image.open(image) as picture:
        return len(processor(images=[picture], text=[text], images_kwargs=limits)["input_ids"][0])


@pytest.mark.engine
@pytest.mark.slow
@pytest.mark.parametrize(
    ("write", "limits", "engine"),
    [(tiny_models.qwen3_vl, QWEN3, OVERRIDE), (tiny_models.internvl, INTERNVL, {})],
    ids=["qwen3_vl", "internvl"],
)
def test_the_engine_counts_the_tokens_that_the_models_own_processor_counts(
    write: Callable[[Path], Path], limits: dict[str, Any], engine: dict[str, Any], tmp_path: Path
) -> None:
    images(tmp_path / "images")
    system, user = "You are a helpful assistant.", "Please describe this image in detail."
    recipe = {
        "input": {"paths": [str(tmp_path / "images")]},
        "model": {"source": str(write(tmp_path / "model")), "engine": engine},
        "replicas": {"gpus": 0},
        "prepare": {"max_pixels": MOST},
        "prompt": {"system": system, "user": user},
        "sampling": {"temperature": 0, "max_tokens": 4, "ignore_eos": True},
        "quality": {"retries": [], "self_check": 0},  # random weights write nonsense
        "output": {"path": str(tmp_path / "captions")},
    }
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    command = [sys.executable, "-m", "caprl_ray", "caption", str(tmp_path / "recipe.yaml")]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=540, check=False)
    assert ended.returncode == 0, ended.stderr
    rows = {row["key"]: row for row in pq.read_table(tmp_path / "captions" / "data").to_pylist()}
    assert len(rows) == len(SIZES)
    for width, height in SIZES:
        row = rows[f"{width}x{height}.jpg"]
        own = counted(tmp_path / "model", tmp_path / "images" / row["key"], system, user, limits)
        assert (row["prompt_tokens"], row["caption_tokens"]) == (own, 4), row["key"]
        assert (row["width"], row["height"]) == (width, height)
