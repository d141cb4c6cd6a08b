"""Checks for words that do not describe the image: to the user, about the caption itself, formulas, and links."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

from caprl_ray.quality.caption import Caption, outside_quotes
from caprl_ray.quality.check import Check, threshold

_NOUN = r"(?:descriptions?|captions?|breakdown|summary|overview|analysis|answer|response)"
# Words to the user, or about the task, before the description begins.
_OF = r"\b(?=\s*(?:[:.]|(?:of|for) (?:the|this|your) (?:given |provided |attached )?(?:image|picture|photo)))"
_OPENER = re.compile(
    r"\A[\s*_#>]*(?:(?:sure|certainly|of course|absolutely|okay|ok|great|got it)(?: thing| here)?\s*[,.!:—]"
    rf"|(?:here(?: is|'s| are)|below is|the following is|this is) (?:an? |the |my "
    rf"|your )?(?:[\w-]+ ){{0,4}}{_NOUN}{_OF}"
    r"|(?:i will|i'll|let me|i'd be happy to|i would be happy to|i can) (?:now )?(?:describe|provide|give|help|write)\b"
    rf"|(?:the )?(?:image |detailed )?{_NOUN}\s*:|:\s*{_NOUN})"
    r"|\A(?:当然|好的|以下是|下面是)[^。\n]{0,30}(?:描述|说明|介绍)",
    re.IGNORECASE,
)
# Praise of the caption itself, anywhere. Models that were trained with a judge's reward write this.
_PRAISE = re.compile(
    rf"\bthis {_NOUN} (?:is|was|provides?|offers?|captures?|covers?|gives?|aims?|includes?|accurately|fully"
    rf"|thoroughly)\b"
    rf"|\b(?:the|my|above) {_NOUN} (?:above )?(?:is|provides?|captures?|covers?) (?:\w+ ){{0,3}}"
    r"(?:accurate|comprehensive|complete|thorough|detailed|every|all)\b"
    r"|\b(?:accurately|faithfully|comprehensively|thoroughly) (?:captures?|describes?|represents?|reflects?) "
    r"(?:every|all|the (?:image|picture|photo|content|scene))\b"
    r"|\bno (?:important )?details? (?:has|have) been (?:left out|omitted|missed)\b",
    re.IGNORECASE,
)
_CLOSER = re.compile(
    r"\b(?:let me know if|feel free to ask|i hope this helps|hope this helps|would you like me to|if you (?:have|need) "
    r"(?:any )?(?:more|further|other|additional) (?:questions|details|information|help)|is there anything else)",
    re.IGNORECASE,
)
# ":description" in place of a caption.
_COLLAPSED = re.compile(
    r"\A\W*(?:image |the )?(?:description|caption)\W*(?:(?:description|caption)\W*)*\Z", re.IGNORECASE
)
_FORMULA = re.compile(
    r"\A[\s*_#>]*(?:(?:in )?(?:the|this) (?:given |provided |attached )?(?:image|picture|photo|photograph)\b[\s,:]*"
    r"(?:depicts|shows|showcases|features|displays|presents|portrays|captures|contains|illustrates|is|we see|we can see"
    r"|you can see|there (?:is|are))\b)",
    re.IGNORECASE,
)
_END = 200
# Each match of _PRAISE contains one of these words, begins at most _BEFORE characters before it, and ends at most
# _AFTER characters after its first one. Searching only there is thirty times as fast.
_PRAISE_SIGNS = (
    *("description", "caption", "breakdown", "summary", "overview", "analysis", "answer", "response", "details ha"),
    *("detail ha", "accurately", "faithfully", "comprehensively", "thoroughly"),
)
_BEFORE, _AFTER = 40, 120


@dataclass(frozen=True, kw_only=True)
class Boilerplate(Check):
    """The caption talks to the user, praises itself, or is only ":description"."""

    name: ClassVar = "boilerplate"
    spares: ClassVar = (
        'Such words in quotes, as on a poster; "The image shows" at the start (the check `opener` flags that).'
    )
    causes: ClassVar = "The model answers a person instead of describing, as chat models often do."
    remedy: ClassVar = "Say in the prompt to write the description only; mark the check `retry`."

    def found(self, caption: Caption) -> bool:
        text = caption.text.replace("’", "'")
        if _OPENER.search(text[:200]) or _CLOSER.search(text[-_END:]) or (len(text) < 60 and _COLLAPSED.search(text)):
            return _outside(text)
        lowered = text.lower()
        return any(map(_PRAISE.search, _around_signs(lowered))) and bool(_PRAISE.search(outside_quotes(text)))


def _around_signs(text: str) -> Iterator[str]:
    """The parts of a text in which it may praise itself."""
    for sign in _PRAISE_SIGNS:
        place = text.find(sign)
        while place >= 0:
            yield text[max(0, place - _BEFORE) : place + _AFTER]
            place = text.find(sign, place + _AFTER)


def _outside(text: str) -> bool:
    if len(text) < 60 and _COLLAPSED.search(text):
        return True
    return bool(_OPENER.search(outside_quotes(text[:400])[:200]) or _CLOSER.search(outside_quotes(text[-2 * _END :])))


@dataclass(frozen=True, kw_only=True)
class Opener(Check):
    """The caption begins with a formula such as "The image depicts"."""

    name: ClassVar = "opener"
    standard: ClassVar = False
    spares: ClassVar = 'The same words later, and "The image" as the subject of a real sentence.'
    causes: ClassVar = "Captioners often begin like this."
    remedy: ClassVar = "Nothing for most uses; ask in the prompt to begin with the subject."

    def found(self, caption: Caption) -> bool:
        return bool(_FORMULA.match(caption.text[:100]))


@dataclass(frozen=True, kw_only=True)
class Url(Check):
    """The caption has a link: a markdown link or image, or a web address that it does not read from the image."""

    name: ClassVar = "url"
    spares: ClassVar = (
        "Addresses in quotes, code or tables, and addresses after a word such as `reads` or `shows`, because the image "
        "shows them."
    )
    causes: ClassVar = "The model learned from web pages and makes up links."
    remedy: ClassVar = "Mark the check `retry` or `fail`: such addresses are rarely real."

    read_within: int = threshold(
        60,
        0,
        1000,
        "A word such as `reads` or `shows` counts if it is within this many characters before the address.",
        "set by hand",
    )

    def found(self, caption: Caption) -> bool:
        text = caption.text
        if "://" not in text and "](" not in text:
            return False
        if _LINK.search(text) and _LINK.search(outside_quotes(text)):
            return True
        text = outside_quotes(text)
        return any(
            not _READ.search(text[max(0, match.start() - self.read_within) : match.start()])
            for match in _ADDRESS.finditer(text)
        )


_LINK = re.compile(r"!?\[[^\]\n]{0,200}\]\((?:https?://|www\.)[^)\s]+\)?", re.IGNORECASE)
_ADDRESS = re.compile(r"https?://[^\s|]+", re.IGNORECASE)
_READ = re.compile(
    r"\b(?:reads?|reading|shows?|showing|displays?|displaying|says?|saying|address|addresses|url|urls|website|site|web"
    r"|links?|printed|written|text|label(?:l?ed)?|caption(?:ed)?|bar|code)\b",
    re.IGNORECASE,
)
