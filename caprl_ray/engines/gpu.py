"""Engine arguments that fit CapRL-3B on the GPU where a replica lands. Nodes may have different GPUs."""

from typing import Any

from caprl_ray.engines import internals

# CapRL-3B is Qwen2.5-VL-3B: 3.75 B parameters with the vision tower, in bfloat16. Each token has keys and values of 36
# layers x 2 heads x 128 numbers.
WEIGHT_BYTES = 7_500_000_000
TOKEN_BYTES = 36 * 2 * 2 * 128 * 2
# The longest sequence of the default recipe: an image of max_pixels, chat format and prompt, a caption of max_tokens.
SEQUENCE_TOKENS = 1280 + 128 + 2048
# Working memory: about 300 kB for each token of a step (the widest layers of the vision tower and the text), the logits
# (256 rows of 151,936 in float32, a few copies), and CUDA graphs.
STEP_TOKEN_BYTES, FIXED_BYTES = 300_000, 1_500_000_000

SMALL_BYTES = 24_000_000_000
LARGE_FROM_BYTES = 40_000_000_000
MOST_SEQUENCES, FEWEST_SEQUENCES, SEQUENCES_STEP = 512, 16, 16


def gpu_defaults(memory_bytes: int, share: float) -> dict[str, Any]:
    """Arguments for a replica with `share` of a GPU of `memory_bytes`; above 1 it has several whole GPUs.

    gpu_memory_utilization: leaves 2.4 GB for the CUDA context, other libraries and fragmentation. That is 10 % of 24 GB
    and 5 % of 48 GB. Larger cards leave 5 % too, because there memory no longer limits the rate.

    max_num_batched_tokens: an image prompt has at most 1,408 tokens, and a step of a few of them keeps a GPU's
    arithmetic busy. 4,096 on small cards, 8,192 on others.

    max_num_seqs: as many of the longest sequences as fit beside the rest, 127 MB each, so that vLLM never has to evict
    one and compute it again. With the recipe's defaults:

        GPU      may use   weights   computing   left      sequences
        24 GB    21.6 GB   7.5 GB    2.7 GB      11.4 GB    80  (89 fit, in steps of 16)
        48 GB    45.6 GB   7.5 GB    4.0 GB      34.1 GB   256  (268)
        80 GB    76.0 GB   7.5 GB    4.0 GB      64.5 GB   496  (506)
        151 GB   143 GB    7.5 GB    4.0 GB      132 GB    512  (1,034: MOST_SEQUENCES)

    MOST_SEQUENCES: by arithmetic, an H200 could reach 36 images/s. A caption of 500 tokens would take 10 to 15 s, so
    360 to 540 would be in flight. Measured, it reached 19.7 images/s with 512 places and 18.6 with 256, limited by the
    engine core's Python thread. For a larger model the number is too high, and vLLM runs as many as fit into memory.

    The last line is an H200; vLLM reported as much memory left there (benchmarks/results.md, On a GPU). Other cards
    have not been measured.

    max_model_len is not set here: which prompts are too long must not depend on the node.
    """
    own = memory_bytes * share
    batched_tokens = 8192 if own >= LARGE_FROM_BYTES else 4096
    utilization = 0.95 if memory_bytes >= LARGE_FROM_BYTES else 0.9
    left = own * utilization - WEIGHT_BYTES - FIXED_BYTES - batched_tokens * STEP_TOKEN_BYTES
    fitting = int(left / (SEQUENCE_TOKENS * TOKEN_BYTES)) // SEQUENCES_STEP * SEQUENCES_STEP
    return {
        "gpu_memory_utilization": round(utilization * min(share, 1), 4),
        "max_num_batched_tokens": batched_tokens,
        "max_num_seqs": max(FEWEST_SEQUENCES, min(MOST_SEQUENCES, fitting)),
    }


def memory_bytes() -> int:
    """The memory of this process's first GPU; SMALL_BYTES, the safe choice, if it is unknown."""
    return internals.gpu_memory() or SMALL_BYTES
