"""The paper's results, and the metric of each of its benchmarks (arXiv 2509.22647; shared by its evaluation script).

Accuracy in per cent: captions by each model, answered by CapRL-Eval-3B, mean over samples.
"""

import re
from collections.abc import Mapping

METRICS: Mapping[str, str] = {
    "ChartQA": "relaxed",
    "ChartQAPro": "relaxed",
    "InfoVQA": "anls",
    "MMMUPro": "math",
    "MathVerse": "math",
    "CharXiv": "relaxed",
    "WeMath": "math",
    "MathVision": "math",
    "MMStar": "math",
    "SEED": "math",
    "MMMU": "math",
}
_MODELS = {
    "Qwen2.5-VL-3B": (65.6, 27.1, 40.2, 28.6, 32.8, 21.8, 54.4, 22.6, 46.4, 64.1, 35.1),
    "Qwen2.5-VL-7B": (74.9, 35.4, 56.4, 30.1, 36.4, 24.8, 57.0, 23.3, 50.7, 67.1, 37.9),
    "Qwen2.5-VL-72B": (80.2, 38.0, 60.8, 34.1, 39.9, 30.7, 60.2, 24.5, 55.0, 69.3, 39.4),
    "CapRL-3B": (80.5, 39.9, 64.8, 30.7, 36.4, 32.4, 60.1, 23.4, 55.0, 70.6, 38.1),
}
# Other spellings of the names, without case, white space and signs.
_ALIASES = {"infographicvqa": "InfoVQA", "seed2k": "SEED", "seedbench": "SEED", "mmmupro": "MMMUPro"}
_PLAIN = {re.sub(r"[\W_]", "", name.lower()): name for name in METRICS} | _ALIASES


def benchmark(name: str) -> str | None:
    """The paper's name of a benchmark, however it is spelt; None for another one."""
    return _PLAIN.get(re.sub(r"[\W_]", "", name.lower()))


def results(name: str) -> dict[str, float]:
    """The paper's accuracy of each model on a benchmark, in per cent; empty for another one."""
    known = benchmark(name)
    if known is None:
        return {}
    place = list(METRICS).index(known)
    return {model: row[place] for model, row in _MODELS.items()}
