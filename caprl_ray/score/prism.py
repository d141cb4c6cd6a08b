"""The evaluation of the CapRL paper (Prism): a question with its own prompt, answered from the caption.

CapRL's evaluation files hold whole prompts in ChatML. The image's placeholder is replaced by a sentence with the
caption. The reader thinks, and gives its answer as \\boxed{...} between <answer> and </answer>.
"""

import re

from caprl_ray.recipe.turns import Turns

PLACEHOLDER = "<|vision_start|><|image_pad|><|vision_end|>"
# As CapRL's evaluation has it: without this sentence a score is not comparable with the paper's.
INSTEAD = "Here is a detailed caption of an image: {caption}. Please answer the question based on the caption."
BLIND = "Please answer the question."  # ours: the same question without a caption
NAME = "prism"

_TURN = re.compile(r"<\|im_start\|>(\w+)\n(.*?)(?:<\|im_end\|>\s*|\Z)", re.DOTALL)
_ANSWER = re.compile(r"<answer>(.*?)</answer>", re.DOTALL)
_BOXED = "\\boxed{"


def turns(prompt: str) -> Turns:
    """The turns of a raw prompt in ChatML: system or none, user with the image first, and the assistant's beginning.

    The user's turn is without the image. Raises ValueError for any other prompt, in words that follow its place.
    """
    found = [(match[1], match[2]) for match in _TURN.finditer(prompt)]
    roles = [role for role, _ in found]
    if _TURN.sub("", prompt).strip() or roles not in (["system", "user", "assistant"], ["user", "assistant"]):
        raise ValueError("its prompt is no ChatML of system, user and assistant")
    (user, begin), system = (text for _, text in found[-2:]), found[0][1] if roles[0] == "system" else None
    if not user.startswith(PLACEHOLDER) or user.count(PLACEHOLDER) != 1:
        raise ValueError(f"its prompt does not begin the user's turn with one image, {PLACEHOLDER}")
    return Turns(user=user.removeprefix(PLACEHOLDER), system=system, begin=begin)


def user_turn(question: str, caption: str | None) -> str:
    """The user's turn of a question, with a caption in the image's place, or blind."""
    if caption is None:
        return BLIND + question
    before, after = INSTEAD.split("{caption}")
    return before + caption + after + question


def answer(text: str) -> str | None:
    """The answer in a completion: the last \\boxed{...} between <answer> and </answer>; None if there is none."""
    found = _ANSWER.findall(text)
    start = found[-1].rfind(_BOXED) if found else -1
    return _braced(found[-1][start + len(_BOXED) :]) if start >= 0 else None


def _braced(text: str) -> str | None:
    """The text up to the brace that closes one before it."""
    depth = 1
    for place, letter in enumerate(text):
        depth += (letter == "{") - (letter == "}")
        if not depth:
            return text[:place].strip() or None
    return None
