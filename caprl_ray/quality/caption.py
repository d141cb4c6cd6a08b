"""A caption as checks see it, with the facts about its row."""

import re
from dataclasses import dataclass
from functools import cached_property

# Fenced and inline code. A fence that a truncated caption leaves open goes on to the end.
CODE = re.compile(r"```.*?(?:```|\Z)|`[^`\n]+`", re.DOTALL)
# Quoted text, within a paragraph. It has a longest length, so that marks that are never closed do not cost time by the
# square. A straight single quote counts only at the edge of a word, so that it is no apostrophe. Every alternative
# begins with its mark: `re` then looks for marks only, which takes a tenth of the time.
QUOTED = re.compile(
    r'"[^"\n]*"|“[^”\n]{,200}”|„[^“”\n]{,200}[“”]|«[^»\n]{,200}»|‹[^›\n]{,200}›|「[^」\n]{,200}」|『[^』\n]{,200}』'
    r"|《[^》\n]{,200}》|‘(?:[^’\n]|(?<=\w)’(?=\w)){,200}’|'(?<!\w')(?:[^'\n]|(?<=\w)'(?=\w)){1,200}'(?!\w)"
)
CITED = re.compile(r"^[ \t]*>.*$", re.MULTILINE)
_TABLE_ROW = re.compile(r"^[ \t]*\|.*$|^[^\n\t]*\t[^\n\t]*\t.*$", re.MULTILINE)
_EDGES = {'"': '"', "“": "”", "'": "'", "«": "»", "「": "」"}


def outside_quotes(text: str) -> str:
    """The text without what it quotes and without code. A text that is one quotation as a whole is taken out of it."""
    text = text.strip()
    if text and _EDGES.get(text[0]) == text[-1] and text[0] not in text[1:-1] and text[-1] not in text[1:-1]:
        text = text[1:-1]
    if "`" in text:
        text = CODE.sub(" ", text)
    if ">" in text:
        text = CITED.sub(" ", text)
    return QUOTED.sub(" ", text)


def outside_tables(text: str) -> str:
    """The text without the rows of tables, in markdown or set out with tabs."""
    return _TABLE_ROW.sub(" ", text) if "|" in text or "\t" in text else text


@dataclass(frozen=True, kw_only=True)
class Caption:
    """A caption to be checked.

    Attributes:
        text: the caption.
        finish_reason: why decoding ended: stop, length or repetition; None if that is not known.
        prompt: the instruction that the model was given; empty if that is not known.
        alt_text: the text that the source has for the image; empty if it has none.
        caption_tokens: the caption's length in tokens; None if that is not known.
    """

    text: str
    finish_reason: str | None = None
    prompt: str = ""
    alt_text: str = ""
    caption_tokens: int | None = None

    @cached_property
    def words(self) -> list[str]:
        """The parts of the text between spaces."""
        return self.text.split()
