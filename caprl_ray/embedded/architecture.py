"""Tokenizer, configuration and processor of the embedded captioner: CapRL-3B's classes, under a million parameters.

Chat format and special tokens are those of Qwen2.5-VL, so the same code makes the prompts and image sizes of both
models.
"""

import json
import random
from pathlib import Path
from typing import Any

from caprl_ray.embedded import scenes

SPECIAL_TOKENS = [
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|object_ref_start|>",
    "<|object_ref_end|>",
    "<|box_start|>",
    "<|box_end|>",
    "<|quad_start|>",
    "<|quad_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|vision_pad|>",
    "<|image_pad|>",
    "<|video_pad|>",
]

CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{% if loop.first and message['role'] != 'system' %}"
    "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
    "{% endif %}"
    "<|im_start|>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}"
    "{% else %}{% for part in message['content'] %}"
    "{% if part['type'] == 'image' or 'image' in part or 'image_url' in part %}"
    "<|vision_start|><|image_pad|><|vision_end|>"
    "{% elif 'text' in part %}{{ part['text'] }}{% endif %}"
    "{% endfor %}{% endif %}<|im_end|>\n"
    "{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)

# The prompts of training: the recipe's default, the one of CapRL's evaluation, and a few similar ones.
SYSTEM_PROMPTS = ("You are a helpful assistant.", None, "You caption images.")
USER_PROMPTS = (
    "Please describe this image in detail.",
    "Please describe this image in detail",
    "Describe this image.",
    "Describe the image in detail.",
)

# Qwen2's pre-tokenisation: contractions, words, single digits, punctuation, line ends, white space.
PRE_TOKENIZER = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)

PATCH, MERGE = 14, 2
# Squares become 84x84 pixels (9 image tokens), 4:3 becomes 112x84, 3:4 becomes 84x112.
PROCESSOR = {
    "image_processor_type": "Qwen2VLImageProcessor",
    "processor_class": "Qwen2_5_VLProcessor",
    "min_pixels": 6500,
    "max_pixels": 9500,
    "patch_size": PATCH,
    "temporal_patch_size": 2,
    "merge_size": MERGE,
    "image_mean": [0.48145466, 0.4578275, 0.40821073],
    "image_std": [0.26862954, 0.26130258, 0.27577711],
}

TEXT_WIDTH, TEXT_LAYERS, TEXT_HEADS, TEXT_KV_HEADS = 128, 3, 4, 2
VISION_WIDTH, VISION_LAYERS, VISION_HEADS = 64, 2, 2
# The sections share half a head's width (16) between time, row and column. The base of the rotations is small, because
# there are few positions.
MROPE_SECTIONS, ROPE_THETA = [4, 6, 6], 3.0


def build_tokenizer() -> Any:
    """Train a byte-level BPE tokenizer on captions and prompts. The result is always the same."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    rng = random.Random(0)
    kinds = scenes.SHAPES + scenes.DIGITS
    corpus = [scenes.caption(scenes.sample_scene(rng, kinds=kinds)) for _ in range(3000)]
    corpus += [f"user\n{prompt}" for prompt in USER_PROMPTS] * 500
    corpus += [f"system\n{prompt}" for prompt in SYSTEM_PROMPTS if prompt] * 500 + ["assistant\n"] * 500
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PRE_TOKENIZER), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    bpe.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    bpe.train_from_iterator(
        corpus,
        trainers.BpeTrainer(vocab_size=600, min_frequency=2, initial_alphabet=alphabet, show_progress=False),
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        additional_special_tokens=SPECIAL_TOKENS,
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def build_config(tokenizer: Any) -> Any:
    """The Qwen2_5_VLConfig of the embedded captioner."""
    from transformers import Qwen2_5_VLConfig

    ids = {token: tokenizer.convert_tokens_to_ids(token) for token in SPECIAL_TOKENS}
    return Qwen2_5_VLConfig(
        text_config={
            "model_type": "qwen2_5_vl_text",
            "vocab_size": len(tokenizer),
            "hidden_size": TEXT_WIDTH,
            "intermediate_size": 2 * TEXT_WIDTH,
            "num_hidden_layers": TEXT_LAYERS,
            "num_attention_heads": TEXT_HEADS,
            "num_key_value_heads": TEXT_KV_HEADS,
            "max_position_embeddings": 4096,
            "rope_parameters": {
                "rope_type": "default",
                "type": "default",
                "mrope_section": MROPE_SECTIONS,
                "rope_theta": ROPE_THETA,
            },
            "bos_token_id": ids["<|endoftext|>"],
            "eos_token_id": ids["<|im_end|>"],
            "rms_norm_eps": 1e-6,
        },
        vision_config={
            "depth": VISION_LAYERS,
            "hidden_size": VISION_WIDTH,
            "intermediate_size": 2 * VISION_WIDTH,
            "num_heads": VISION_HEADS,
            "out_hidden_size": TEXT_WIDTH,
            "patch_size": PATCH,
            "spatial_merge_size": MERGE,
            "temporal_patch_size": 2,
            "window_size": 112,
            "fullatt_block_indexes": [VISION_LAYERS - 1],
        },
        image_token_id=ids["<|image_pad|>"],
        video_token_id=ids["<|video_pad|>"],
        vision_start_token_id=ids["<|vision_start|>"],
        vision_end_token_id=ids["<|vision_end|>"],
        vision_token_id=ids["<|vision_pad|>"],
    )


def save(model: Any, tokenizer: Any, directory: Path) -> None:
    """Write model, tokenizer and processor configuration as a directory that transformers and vLLM can load."""
    directory.mkdir(parents=True, exist_ok=True)
    end, pad = (tokenizer.convert_tokens_to_ids(token) for token in ("<|im_end|>", "<|endoftext|>"))
    model.generation_config.update(bos_token_id=pad, eos_token_id=[end, pad], pad_token_id=pad)
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    (directory / "preprocessor_config.json").write_text(json.dumps(PROCESSOR, indent=1) + "\n")
