"""Write a tiny Qwen2 with random weights that answers questions from captions at random. Nothing is downloaded.

Its tokenizer is trained on scoring prompts, so that a prompt has about as many tokens as with a real model's.
"""

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from caprl_ray.embedded import scenes
from caprl_ray.embedded.architecture import CHAT_TEMPLATE, PRE_TOKENIZER, SPECIAL_TOKENS
from caprl_ray.score import judge
from caprl_ray.score.metrics import LETTERS

WORDS = 2000
CONTEXT = 4096
SPREAD = 0.6  # of the weights: with transformers' own 0.02 nearly all answers would be the same letter


def write(folder: Path, seed: int = 0) -> None:
    """Write configuration, tokenizer and weights, as transformers and vLLM load them."""
    import torch
    from transformers import Qwen2Config, Qwen2ForCausalLM

    torch.manual_seed(seed)
    words = tokenizer()
    end, pad = (words.convert_tokens_to_ids(token) for token in ("<|im_end|>", "<|endoftext|>"))
    config = Qwen2Config(
        vocab_size=len(words),
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=CONTEXT,
        bos_token_id=pad,
        eos_token_id=end,
    )
    model = Qwen2ForCausalLM(config)
    for weight in model.parameters():
        if weight.ndim > 1:
            weight.data.normal_(0, SPREAD * weight.shape[1] ** -0.5)
    model.save_pretrained(folder)
    words.save_pretrained(folder)


def tokenizer() -> Any:
    """A byte-level BPE with Qwen's chat format, trained on what scoring prompts say."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    bpe = Tokenizer(models.BPE())
    split = pre_tokenizers.Split(Regex(PRE_TOKENIZER), "isolated")
    as_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    bpe.pre_tokenizer = pre_tokenizers.Sequence([split, as_bytes])
    bpe.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(vocab_size=WORDS, initial_alphabet=alphabet, show_progress=False)
    bpe.train_from_iterator(_corpus(), trainer)
    words = PreTrainedTokenizerFast(tokenizer_object=bpe, eos_token="<|im_end|>", pad_token="<|endoftext|>")
    words.add_special_tokens({"additional_special_tokens": SPECIAL_TOKENS})
    words.chat_template = CHAT_TEMPLATE
    return words


def _corpus() -> Iterator[str]:
    rng = random.Random(0)
    yield from (scenes.caption(scenes.sample_scene(rng)) for _ in range(2000))
    yield from [f"{judge.INSTRUCTION}\n{judge.BLIND} {judge.BEGIN}"] * 20
    yield from (f" {letter}" for letter in LETTERS for _ in range(20))
