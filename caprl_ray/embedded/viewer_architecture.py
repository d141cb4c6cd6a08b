"""Tokenizer and configuration of the embedded viewer, which answers multiple-choice questions about scenes.

It is a Qwen2.5-VL, as the captioner, with the captioner's eyes. Its text model has more layers, because an answer takes
more steps than a caption: what is asked, where that is in the image, which option says so, and that option's letter.
"""

import itertools
import random
from typing import Any

from caprl_ray.embedded import architecture, kinds, questions, scenes
from caprl_ray.score import seeing
from caprl_ray.score.judge import BEGIN
from caprl_ray.score.question import Question

LAYERS, HEADS = 5, 4
# Prompts have 80 tokens. So some rotations are slow enough to find equal words far away, and the rows and columns of
# nine image tokens get those that are not.
MROPE_SECTIONS, ROPE_THETA = [2, 4, 10], 300.0
SYSTEM_PROMPTS = ("You are a helpful assistant.", None)


def build_tokenizer() -> Any:
    """A tokenizer that knows as whole words what prompts about scenes say; deterministic."""
    return architecture.byte_pairs(_corpus(), vocabulary=2000)


def as_question(asked: questions.SceneQuestion) -> Question:
    """A question about a scene as curation asks it."""
    right = asked.choices.index(asked.answer)
    return Question(id="", image="", text=asked.text, metric="choice", benchmark="", choices=asked.choices, right=right)


def _corpus() -> list[str]:
    """Texts with all words that prompts have, each at least twice."""
    rng = random.Random(0)
    texts = [f"{role}\n" for role in ("system", "user", "assistant")]
    texts += [f"system\n{prompt}" for prompt in SYSTEM_PROMPTS if prompt]
    for _ in range(1000):
        scene = scenes.sample_scene(rng)
        for asked in questions.about(scene, rng, 2):
            question = as_question(asked)
            order = tuple(range(len(question.choices)))
            turns = (seeing.with_image(question, order), seeing.without_image(question, order))
            texts += [f"{one.user}\n{BEGIN} {letter}" for one in turns for letter in "ABCDEFGH"]
    for kind in kinds.KINDS:
        lists = [kinds.VALUES[name] for name in kind.by]
        for text, values in itertools.product(kind.texts, itertools.product(*lists)):
            texts.append(text.format(**dict(zip(kind.by, values, strict=True))))
    texts += [f") {value}" for values in kinds.VALUES.values() for value in values]
    return texts * 2


def build_config(tokenizer: Any) -> Any:
    """The Qwen2_5_VLConfig of the embedded viewer."""
    rope = {"rope_type": "default", "type": "default", "mrope_section": MROPE_SECTIONS, "rope_theta": ROPE_THETA}
    return architecture.build_config(
        tokenizer,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        num_key_value_heads=HEADS,
        rope_parameters=rope,
    )
