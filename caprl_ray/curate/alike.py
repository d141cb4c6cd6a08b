"""Near duplicates among the questions about an image: compare content words and right options.

Edit distance does not work here: "What is the color of the cat?" is closer to the same question about the dog than to
"Which color has the cat?".
"""

import re

from caprl_ray.score.metrics import folded

LEAST_SHARED = 0.75  # of the words in either question
_WORDLESS = re.compile(r"[^\w\s]")
# Function words of questions.
_FUNCTION_WORDS = frozenset(
    re.findall(
        r"\w+",
        """a an and any are as at be been being can could did do does exactly following for from had has have how
        in into is it its of on one or picture image photo photograph scene shown seen visible depicted appear appears
        might most likely that the their them there these they this those to type kind was were what when where which
        who whose will with would you""",
    )
)
_SAME = {"colour": "color", "colours": "color", "colors": "color", "grey": "gray"}
# Scripts without spaces: two characters side by side stand for a word.
_SPACELESS = re.compile(r"[\u3040-\u30ff\u3400-\u9fff\u0e00-\u0e7f]+")


def alike(question: str, answer: str, other: str, other_answer: str) -> bool:
    """Whether two questions with these right options ask nearly the same.

    The words of the right option count like those of the question.
    """
    ours, theirs = _words(f"{question} {answer}"), _words(f"{other} {other_answer}")
    both = len(ours & theirs)
    return bool(ours) and both >= LEAST_SHARED * len(ours | theirs)


def _words(text: str) -> frozenset[str]:
    text = folded(_WORDLESS.sub(" ", text))
    pairs = {run[place : place + 2] for run in _SPACELESS.findall(text) for place in range(max(1, len(run) - 1))}
    words = {_SAME.get(word, word) for word in _SPACELESS.sub(" ", text).split()} - _FUNCTION_WORDS
    return frozenset(pairs | words)
