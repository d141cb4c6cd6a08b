"""Tokenizer and configuration of the embedded answerer: a Llama of under a million parameters, without vision.

Its vocabulary is the words of scenes and of questions about them. Each fixed text of the judge's prompts is one word,
so a prompt has only about forty tokens, and most of them belong to the caption and the question.

The answerer is not a Qwen2 model, because transformers applies Qwen2's own word splitting to every Qwen2 tokenizer.
"""

import itertools
import random
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from caprl_ray.embedded import kinds, scenes
from caprl_ray.score import judge
from caprl_ray.score.metrics import LETTERS
from caprl_ray.score.question import CAN_NOT_ANSWER

UNKNOWN, END, ROLES = "<|unknown|>", "<|end|>", ("<|system|>", "<|user|>", "<|assistant|>")
ASSISTANT = ROLES[-1]
CHAT_TEMPLATE = (
    "{% for message in messages %}<|{{ message['role'] }}|>{{ message['content'] }}"
    "{% if message['role'] == 'assistant' %}<|end|>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
# Phrases that are one word each in the vocabulary, so that prompts are short.
PHRASES = (
    *("On a", " at the", " of the", " in the image", " of the image"),
    *("What is the", "Where is the", "Where in the image is the", "How large is the"),
)
MARKERS = tuple(f"\n- {letter})" for letter in LETTERS)  # an option begins with one of them
NO_OPTION = f" {CAN_NOT_ANSWER}"
SYSTEM_PROMPTS = (None, "You are a helpful assistant.")
# Words, single digits, punctuation and white space.
WORDS = r" ?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]|\s"
WIDTH, INNER, LAYERS, HEADS = 128, 256, 5, 4


def fixed_texts() -> list[str]:
    """The texts that are one word each, the longest first: the tokenizer's pattern takes the first one that fits."""
    prompts = (
        part for text in (judge.INSTRUCTION, judge.BLIND) for part in re.split(r"\{caption\}|\{question\}", text)
    )
    places = (f" {place}" for place in kinds.VALUES[kinds.PLACE])
    texts = {*prompts, *places, *MARKERS, *PHRASES, NO_OPTION, judge.BEGIN} - {""}
    return sorted(texts, key=lambda text: (-len(text), text))


def build_tokenizer() -> Any:
    """A tokenizer of whole words. Every word outside its vocabulary is UNKNOWN."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    literal = "|".join(re.escape(text) + (r"\b" if text[-1].isalpha() else "") for text in fixed_texts())
    splitter = pre_tokenizers.Split(Regex(f"{literal}|{WORDS}"), "isolated")
    found = {word for text in _corpus() for word, _ in splitter.pre_tokenize_str(text)}
    words = [UNKNOWN, *sorted(found | {f" {letter}" for letter in LETTERS} | set(fixed_texts()))]
    model = Tokenizer(models.WordLevel({word: number for number, word in enumerate(words)}, unk_token=UNKNOWN))
    model.pre_tokenizer, model.decoder = splitter, decoders.Fuse()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=model,
        eos_token=END,
        pad_token=END,
        unk_token=UNKNOWN,
        additional_special_tokens=[*ROLES, END],
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def _corpus() -> Iterator[str]:
    """Texts that together have every word of scenes and questions."""
    rng = random.Random(0)
    yield from (" shape", "At", "A", *filter(None, SYSTEM_PROMPTS))
    for _ in range(1000):
        scene = scenes.sample_scene(rng)
        yield scenes.caption(scene)
    for kind in kinds.KINDS:
        lists = [kinds.VALUES[name] for name in kind.by]
        for text, values in itertools.product(kind.texts, itertools.product(*lists)):
            yield text.format(**dict(zip(kind.by, values, strict=True)))
    yield from (f" {value}" for values in kinds.VALUES.values() for value in values)


def build_config(tokenizer: Any) -> Any:
    """The LlamaConfig of the embedded answerer."""
    from transformers import LlamaConfig

    end = tokenizer.convert_tokens_to_ids(END)
    return LlamaConfig(
        architectures=["LlamaForCausalLM"],
        vocab_size=len(tokenizer),
        hidden_size=WIDTH,
        intermediate_size=INNER,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        num_key_value_heads=HEADS,
        attention_bias=True,
        max_position_embeddings=2048,
        rope_parameters={"rope_type": "default", "rope_theta": 1000.0},
        bos_token_id=end,
        eos_token_id=end,
        pad_token_id=end,
    )


def save(model: Any, tokenizer: Any, directory: Path) -> None:
    """Write model and tokenizer as a directory that transformers and vLLM can load."""
    directory.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
