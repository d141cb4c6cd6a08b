"""The check for captions that refuse the task in the first person, near the start and outside quotes."""

import re
from dataclasses import dataclass
from typing import ClassVar

from caprl_ray.quality.caption import Caption, outside_quotes
from caprl_ray.quality.check import Check, threshold
from caprl_ray.quality.refusal_words import ANYWHERE, AT_START

# The beginning of a sentence. No sentence begins after a colon: "The sign reads: I'm sorry, we are closed".
_SENTENCE = re.compile(
    r"(?:\A(?:(?:hello|hi|hey|thank you|thanks|您好|你好|こんにちは|안녕하세요)[^.!?,，。！？\n]{0,40}[,，])?"
    r"|[.!?。！？\n]|[,;，] ?(?:so|therefore|thus|hence|but|however|因此|所以|但是?))[\s*_#>\"“«「'‘-]*",
    re.IGNORECASE,
)
_REFUSAL = re.compile("|".join(ANYWHERE), re.IGNORECASE)
_REFUSAL_AT_START = re.compile(
    rf"[\s*_#>\"“«「'‘-]*(?:(?:note|answer|response|caption|description|error)\W+)?(?:{'|'.join(AT_START)})",
    re.IGNORECASE,
)


@dataclass(frozen=True, kw_only=True)
class Refusal(Check):
    """The model declines to describe the image, or says that it sees none."""

    name: ClassVar = "refusal"
    severe: ClassVar = True
    spares: ClassVar = (
        'Quotations of a sign or a chat with "I\'m sorry"; honest words such as "unable to read the small text".'
    )
    causes: ClassVar = (
        "The picture shows people, text or scenes that the model was taught to decline, or no picture reached it."
    )
    remedy: ClassVar = (
        "Read some. If many say that there is no image, check the chat template. Otherwise mark the check `fail`, or "
        "use another prompt."
    )

    opening: int = threshold(
        120,
        20,
        2000,
        "A refusal must begin within this many characters.",
        "tools that search for substrings anywhere also flag signs and honest doubts",
    )

    def found(self, caption: Caption) -> bool:
        opening = caption.text[: 4 * self.opening]
        return self._refuses(opening) and self._refuses(outside_quotes(opening))

    def _refuses(self, text: str) -> bool:
        text = text.replace("’", "'").replace("*", "")
        return bool(_REFUSAL_AT_START.match(text.strip())) or any(
            _REFUSAL.match(text, start.end())
            for start in _SENTENCE.finditer(text, 0, self.opening)
            if start.end() <= self.opening
        )
