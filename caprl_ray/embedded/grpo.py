"""Train the embedded captioner by GRPO with TRL's own trainer, as CapRL trains captioners (docs/caprl.md).

`dataset` makes scenes with questions in TRL's form, and `curated` reads them from the output of a curation run.
`unsure` is a captioner that makes mistakes, so that it has something to learn. `trainer` puts them together with a
reward (caprl_ray.score.trainers). TRL must be installed: `pip install trl`.
"""

import random
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from caprl_ray.embedded import architecture, questions, scenes
from caprl_ray.output.fence import committed_objects
from caprl_ray.output.objects import DATA
from caprl_ray.storage import Storage

FOLDER = Path(__file__).with_name("model")
SIDE = 84  # pixels of a scene: 9 image tokens
MOST_TOKENS = 40  # of a caption; a caption of three things has 32
# The divisor of the unsure captioner's logits. With it, a third of the facts in its sampled captions are wrong.
UNSURE = 2.5


def dataset(count: int, *, seed: int, most: int = 5) -> Any:
    """A `datasets.Dataset` of `count` scenes for GRPOTrainer: `prompt`, `image`, and at most `most` `questions` each.

    The reward uses the questions. The prompt is a conversation without an image; TRL puts the column `image` before the
    user's text.
    """
    from datasets import Dataset

    rng = random.Random(seed)
    return Dataset.from_list([_row(scenes.sample_scene(rng), rng, most) for _ in range(count)])


def curated(output: Path, names: str) -> Any:
    """As `dataset`, from the output of a curation run: images with questions whose file names begin with `names`."""
    from datasets import Dataset

    parts = committed_objects(Storage(), str(output), (DATA,))[DATA]
    table = pa.concat_tables([pq.read_table(part.path, columns=["source", "reward_model"]) for part in parts])
    rows = [row for row in table.to_pylist() if Path(row["source"]).name.startswith(names)]
    asked = [(Path(row["source"]), row["reward_model"]["ground_truth"]) for row in rows]
    return Dataset.from_list([_example(_picture(file), some) for file, some in sorted(asked) if some])


def _row(scene: scenes.Scene, rng: random.Random, most: int) -> dict[str, Any]:
    asked = questions.about(scene, rng, most)
    given = [{"question": one.text, "choices": list(one.choices), "answer": one.answer} for one in asked]
    return _example(scenes.render(scene, SIDE, SIDE, rng=rng), given)


def _picture(file: Path) -> Image.Image:
    with Image.open(file) as image:
        return image.convert("RGB")


def _example(image: Image.Image, asked: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    return {
        "prompt": [
            {"role": "system", "content": architecture.SYSTEM_PROMPTS[0]},
            {"role": "user", "content": architecture.USER_PROMPTS[0]},
        ],
        "image": image,
        "questions": list(asked),
    }


def unsure(folder: Path = FOLDER, by: float = UNSURE) -> Any:
    """The captioner in a folder with its logits divided by `by`, as if it were sampled at this temperature."""
    import torch
    from transformers import Qwen2_5_VLForConditionalGeneration

    model = Qwen2_5_VLForConditionalGeneration.from_pretrained(folder, dtype=torch.float32)
    with torch.no_grad():
        model.lm_head.weight /= by
    return model


def save(model: Any, folder: Path) -> None:
    """Write a captioner as a folder that a recipe can name in `model.source`."""
    from transformers import AutoTokenizer

    architecture.save(model, AutoTokenizer.from_pretrained(FOLDER), folder)


def settings(folder: Path, **changes: Any) -> Any:
    """A `GRPOConfig` for the embedded captioner on a CPU. `changes` replace its fields."""
    from trl import GRPOConfig

    fields: dict[str, Any] = {
        "output_dir": str(folder),
        "use_cpu": True,
        "bf16": False,
        "gradient_checkpointing": False,
        "num_generations": 8,
        "per_device_train_batch_size": 32,  # captions per step, of four scenes
        "per_device_eval_batch_size": 32,
        "max_completion_length": MOST_TOKENS,
        "learning_rate": 5e-4,
        "lr_scheduler_type": "constant",
        "logging_steps": 1,
        "report_to": "none",
        "save_strategy": "no",
        "disable_tqdm": True,
    }
    return GRPOConfig(**fields | changes)


def trainer(model: Any, reward: Callable[..., Any], data: Any, config: Any, held_out: Any = None) -> Any:
    """TRL's GRPOTrainer. `reward` is one of caprl_ray.score.trainers; `held_out` is a dataset for its `evaluate`."""
    from transformers import AutoProcessor
    from trl import GRPOTrainer

    processor = AutoProcessor.from_pretrained(FOLDER, padding_side="left")
    return GRPOTrainer(
        model=model,
        reward_funcs=reward,
        args=config,
        train_dataset=data,
        eval_dataset=held_out,
        processing_class=processor,
    )
