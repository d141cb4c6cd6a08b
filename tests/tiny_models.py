"""Tiny models with random weights, in the layout of the folders on the hub: what they write means nothing.

Their image processors, tokens of images and chat formats are those of the real models. CapRL 2.0 is a Qwen3-VL, and
CapRL-InternVL3.5-8B an InternVL in the layout of transformers.
"""

import json
from pathlib import Path
from typing import Any

from caprl_ray.models.resolve import EMBEDDED_FOLDER

CONTEXT = 16384
QWEN3_PROCESSOR: dict[str, Any] = {
    "image_processor_type": "Qwen2VLImageProcessorFast",
    "processor_class": "Qwen3VLProcessor",
    "size": {"shortest_edge": 65536, "longest_edge": 16777216},
    "patch_size": 16,
    "temporal_patch_size": 2,
    "merge_size": 2,
    "image_mean": [0.5, 0.5, 0.5],
    "image_std": [0.5, 0.5, 0.5],
}
INTERNVL_PROCESSOR: dict[str, Any] = {
    "image_processor_type": "GotOcr2ImageProcessorFast",
    "processor_class": "InternVLProcessor",
    "crop_to_patches": False,
    "min_patches": 1,
    "max_patches": 12,
    "size": {"height": 448, "width": 448},
    "image_mean": [0.485, 0.456, 0.406],
    "image_std": [0.229, 0.224, 0.225],
}
INTERNVL_TOKENS = {
    "start_image_token": "<img>",
    "end_image_token": "</img>",
    "context_image_token": "<IMG_CONTEXT>",
    "video_token": "<video>",
}
INTERNVL_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<IMG_CONTEXT>\n{% elif part['type'] == 'text' %}{{ part['text'] }}{% endif %}"
    "{% endfor %}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
_TEXT = {
    "hidden_size": 32,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 1,
    "num_key_value_heads": 1,
    "head_dim": 32,
    "max_position_embeddings": CONTEXT,
}


def qwen3_vl(folder: Path) -> Path:
    """Write a Qwen3-VL, as CapRL 2.0 is one."""
    from transformers import Qwen3VLConfig, Qwen3VLForConditionalGeneration

    tokenizer = _tokenizer()
    ids = {name: tokenizer.convert_tokens_to_ids(f"<|{name}|>") for name in ("image_pad", "video_pad", "im_end")}
    config = Qwen3VLConfig(
        text_config=_TEXT
        | {
            "vocab_size": len(tokenizer),
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 5e6,
                "mrope_section": [6, 5, 5],
                "mrope_interleaved": True,
            },
            "eos_token_id": ids["im_end"],
        },
        vision_config={
            "depth": 2,
            "hidden_size": 32,
            "intermediate_size": 32,
            "num_heads": 2,
            "out_hidden_size": 32,
            "patch_size": 16,
            "spatial_merge_size": 2,
            "temporal_patch_size": 2,
            "num_position_embeddings": 2304,
            "deepstack_visual_indexes": [0],
        },
        image_token_id=ids["image_pad"],
        video_token_id=ids["video_pad"],
        vision_start_token_id=tokenizer.convert_tokens_to_ids("<|vision_start|>"),
        vision_end_token_id=tokenizer.convert_tokens_to_ids("<|vision_end|>"),
    )
    _save(Qwen3VLForConditionalGeneration, config, tokenizer, QWEN3_PROCESSOR, folder)
    (folder / "video_preprocessor_config.json").write_text(
        json.dumps(QWEN3_PROCESSOR | {"video_processor_type": "Qwen3VLVideoProcessor"})
    )
    return folder


def internvl(folder: Path) -> Path:
    """Write an InternVL 3.5 in the layout of transformers, as CapRL-InternVL3.5-8B has it."""
    from transformers import InternVLConfig, InternVLForConditionalGeneration

    tokenizer = _tokenizer(*INTERNVL_TOKENS.values())
    tokenizer.chat_template = INTERNVL_TEMPLATE
    config = InternVLConfig(
        text_config=_TEXT
        | {
            "model_type": "qwen3",
            "architectures": ["Qwen3ForCausalLM"],
            "vocab_size": len(tokenizer),
            "eos_token_id": tokenizer.convert_tokens_to_ids("<|im_end|>"),
        },
        vision_config={
            "hidden_size": 32,
            "intermediate_size": 32,
            "num_hidden_layers": 1,
            "num_attention_heads": 1,
            "image_size": [448, 448],
            "patch_size": [14, 14],
            "attention_bias": True,
        },
        image_token_id=tokenizer.convert_tokens_to_ids("<IMG_CONTEXT>"),
        image_seq_length=256,
        tie_word_embeddings=False,
    )
    _save(InternVLForConditionalGeneration, config, tokenizer, INTERNVL_PROCESSOR, folder)
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps(settings | {"extra_special_tokens": INTERNVL_TOKENS}))
    (folder / "processor_config.json").write_text(
        json.dumps({"image_seq_length": 256, "processor_class": "InternVLProcessor"})
    )
    (folder / "video_preprocessor_config.json").write_text(
        json.dumps({"video_processor_type": "InternVLVideoProcessor", "size": {"height": 448, "width": 448}})
    )
    return folder


def _tokenizer(*tokens: str) -> Any:
    """The embedded model's tokenizer, with more special tokens."""
    from transformers import PreTrainedTokenizerFast

    tokenizer = PreTrainedTokenizerFast.from_pretrained(EMBEDDED_FOLDER)
    tokenizer.add_tokens(list(tokens), special_tokens=True)
    return tokenizer


def _save(kind: Any, config: Any, tokenizer: Any, processor: dict[str, Any], folder: Path) -> None:
    import torch

    torch.manual_seed(0)
    kind(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps(processor))
