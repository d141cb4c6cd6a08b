"""Write a model folder with CapRL-3B's exact shape but without weights. Nothing is downloaded.

The engine fills the weights with random numbers (`load_format: dummy`). A step then costs as much as with the real
model, but the captions are meaningless. `ignore_eos` and `max_tokens` set their length.
"""

import json
from pathlib import Path
from typing import Any

from caprl_ray.embedded.architecture import PROCESSOR, SPECIAL_TOKENS
from caprl_ray.models.resolve import EMBEDDED_FOLDER

# The config.json that is published with CapRL-3B, a Qwen2.5-VL-3B with 3,754,622,976 parameters. Special tokens have
# the ids from FIRST_SPECIAL on, in the order of SPECIAL_TOKENS. Lower ids are words.
FIRST_SPECIAL = 151_643
CONFIG: dict[str, Any] = {
    "architectures": ["Qwen2_5_VLForConditionalGeneration"],
    "model_type": "qwen2_5_vl",
    "torch_dtype": "bfloat16",
    "vocab_size": 151_936,
    "hidden_size": 2048,
    "intermediate_size": 11_008,
    "num_hidden_layers": 36,
    "num_attention_heads": 16,
    "num_key_value_heads": 2,
    "hidden_act": "silu",
    "rms_norm_eps": 1e-06,
    "tie_word_embeddings": True,
    "max_position_embeddings": 128_000,
    "rope_theta": 1_000_000.0,
    "rope_scaling": {"type": "mrope", "mrope_section": [16, 24, 24]},
    "use_sliding_window": False,
    "bos_token_id": 151_643,
    "eos_token_id": 151_645,
    "vision_start_token_id": 151_652,
    "vision_end_token_id": 151_653,
    "vision_token_id": 151_654,
    "image_token_id": 151_655,
    "video_token_id": 151_656,
    "vision_config": {
        "model_type": "qwen2_5_vl",
        "depth": 32,
        "hidden_size": 1280,
        "intermediate_size": 3420,
        "num_heads": 16,
        "out_hidden_size": 2048,
        "hidden_act": "silu",
        "in_channels": 3,
        "patch_size": 14,
        "spatial_merge_size": 2,
        "temporal_patch_size": 2,
        "tokens_per_second": 2,
        "window_size": 112,
        "fullatt_block_indexes": [7, 15, 23, 31],
    },
}
OWN_PIXELS = {"min_pixels": 3136, "max_pixels": 12_845_056}


def write(folder: Path) -> None:
    """Write the configuration, the processor, the tokenizer, and a file of weights with one placeholder tensor."""
    import numpy as np
    from safetensors.numpy import save_file

    folder.mkdir()
    for name in ("chat_template.jinja", "tokenizer_config.json"):
        (folder / name).write_bytes((EMBEDDED_FOLDER / name).read_bytes())
    for name, content in (
        ("config.json", CONFIG),
        ("preprocessor_config.json", PROCESSOR | OWN_PIXELS),
        ("tokenizer.json", _tokenizer()),
    ):
        (folder / name).write_text(json.dumps(content))
    save_file({"none": np.zeros(1, np.uint8)}, folder / "model.safetensors")


def _tokenizer() -> dict[str, Any]:
    """The embedded model's tokenizer, with as many words as the real one, so that every id has a text.

    Its own words keep their ids and merge rules. The other words are made up and have about the usual length; they
    occur in the output only.
    """
    tokenizer: dict[str, Any] = json.loads((EMBEDDED_FOLDER / "tokenizer.json").read_text(encoding="utf-8"))
    words = tokenizer["model"]["vocab"]
    words |= {f"Ġ{number:05x}": number for number in range(len(words), FIRST_SPECIAL)}
    assert len(words) == FIRST_SPECIAL
    for token in tokenizer["added_tokens"]:
        token["id"] = FIRST_SPECIAL + SPECIAL_TOKENS.index(token["content"])
    tokenizer["added_tokens"].sort(key=lambda token: token["id"])
    return tokenizer
