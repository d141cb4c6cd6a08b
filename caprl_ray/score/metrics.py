"""How an answer is compared with the right one. Each metric gives 0 to 1, or None if the answer cannot be judged.

Where lmms-eval and VLMEvalKit differ from these, tests/score/test_metrics.py says how and why.
"""

import re
from collections.abc import Callable, Sequence

from caprl_ray.score import formula
from caprl_ray.score.quantity import Quantity

TOLERANCE = 0.05  # of the right number: relaxed accuracy (ChartQA, arXiv 2203.10244, 5.1)
# Floats such as 0.05 are not exact: 105 is within 5 % of 100.
ROUNDING = 1e-9
ANLS_THRESHOLD = 0.5  # the least similarity that counts (ST-VQA, arXiv 1905.13648, 5)
LONGEST = 2048  # characters of an answer; what is longer is no short answer, and is not judged
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"

_THE_LETTER = re.compile(r"[(\[{*]*([A-Z])[)\]}*]*[.:,]?")
_LABELLED = re.compile(r"[(\[]?([A-Z])[)\].:](?:\s.*)?", re.DOTALL)
_SAID = re.compile(r"\b(?:[Aa]nswer|[Oo]ption|[Cc]hoice)\s*(?:is|:)\s*[(\[*]*([A-Z])\b(?!')")
_WORD = re.compile(r"[^\s.,;:!?()\[\]{}*#]+")
_NEAR_END = 4  # words; a letter that stands alone earlier is part of the reasoning
_SHORT = 3  # words; in a longer answer a capital A is the article


def exact(answer: str, golds: Sequence[str]) -> float:
    """1 if the answer is one of the right ones, but for case and white space."""
    return float(folded(answer) in map(folded, golds))


def relaxed(answer: str, golds: Sequence[str]) -> float:
    """1 if the answer is within 5 % of a right number, in the same unit; texts are compared as by `exact`."""
    return float(any(_relaxed(answer, gold) for gold in golds))


def anls(answer: str, golds: Sequence[str]) -> float:
    """The highest similarity to a right answer, 1 - distance / length of the longer one; 0 below ANLS_THRESHOLD."""
    from rapidfuzz.distance import Levenshtein

    best = max(Levenshtein.normalized_similarity(folded(answer), folded(gold)) for gold in golds)
    return best if best >= ANLS_THRESHOLD else 0.0


def choice(answer: str, golds: Sequence[str]) -> float | None:
    """1 if the answer names the right letter. None if it names none, or several."""
    letter = option_letter(answer)
    return None if letter is None else float(letter in golds)


def math(answer: str, golds: Sequence[str]) -> float | None:
    """1 if the answer equals a right one as a formula. None if comparing them takes too long or too much memory."""
    if exact(answer, golds):
        return 1.0
    judged = [formula.equal(gold, answer) for gold in golds]
    if True in judged:
        return 1.0
    return None if None in judged else 0.0


METRICS: dict[str, Callable[[str, Sequence[str]], float | None]] = {
    "choice": choice,
    "relaxed": relaxed,
    "anls": anls,
    "exact": exact,
    "math": math,
}


def judge(metric: str, answer: str, golds: Sequence[str]) -> float | None:
    """The value of an answer by a metric, 0 to 1; None if it cannot be judged."""
    return METRICS[metric](answer, golds) if len(answer) <= LONGEST else None


def fault(metric: str, gold: str) -> str | None:
    """Why a metric cannot use a right answer, in words that follow its value; None if it can."""
    if not gold.strip():
        return "is empty"
    if len(gold) > LONGEST:
        return f"has more than {LONGEST:,} characters"
    if metric == "choice" and gold not in tuple(LETTERS):
        return "is no letter from A to Z"
    if metric == "math" and not formula.parses(gold):
        return "is no formula that can be read"
    return None


def folded(text: str) -> str:
    """A text without case, and with single spaces."""
    return " ".join(text.casefold().split())


def is_letter(answer: str) -> bool:
    """Whether an answer is a letter and nothing else, such as "B" or "(B)"."""
    return bool(_THE_LETTER.fullmatch(answer.strip()))


def option_letter(answer: str) -> str | None:
    """The letter of the option that an answer names; None if it names none, or several."""
    text = answer.strip()
    for pattern in (_THE_LETTER, _LABELLED):
        if found := pattern.fullmatch(text):
            return found[1]
    said = {match[1] for match in _SAID.finditer(text)}
    if said:
        return said.pop() if len(said) == 1 else None
    words = _WORD.findall(text)
    alone = {word for word in words if len(word) == 1 and word in LETTERS}
    if "A" in alone and len(words) > _SHORT:
        return None
    last = {word for word in words[-_NEAR_END:] if word in alone}
    return last.pop() if len(alone) == len(last) == 1 else None


def _relaxed(answer: str, gold: str) -> bool:
    said, right = Quantity.of(answer), Quantity.of(gold)
    if said is None or right is None:
        return folded(answer) == folded(gold)
    if said.unit == right.unit and said.scale == right.scale:
        return _near(said.number, right.number)
    if said.unit and right.unit and said.unit != right.unit:
        return False
    if said.scale != 1 and right.scale != 1:
        return _near(said.number * said.scale, right.number * right.scale)
    return any(_near(one, other) for one in said.readings for other in right.readings)


def _near(number: float, gold: float) -> bool:
    """Whether a number is within TOLERANCE of the right one; of zero, only zero is."""
    return abs(number - gold) <= TOLERANCE * abs(gold) * (1 + ROUNDING)
