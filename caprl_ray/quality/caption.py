"""A caption as the input of checks, with facts about its row."""

import re
from dataclasses import dataclass
from functools import cached_property

# Fenced and inline code. If a truncated caption does not close a fence, the code goes on to the end.
CODE = re.compile(r"```.*?(?:```|\Z)|`[^`\n]+`", re.DOTALL)
# Quoted text within a paragraph. Its length is limited, because quotation marks that are never closed would otherwise
# take quadratic time. A straight single quote counts only at the edge of a word; elsewhere it is an apostrophe. Every
# alternative begins with its mark, so that `re` can search for the marks, which takes a tenth of the time.
QUOTED = re.compile(
    r'"[^"\n]*"|“[^”\n]{,200}”|„[^“”\n]{,200}[“”]|«[^»\n]{,200}»|‹[^›\n]{,200}›|「[^」\n]{,200}」|『[^』\n]{,200}』'
    r"|《[^》\n]{,200}》|‘(?:[^’\n]|(?<=\w)’(?=\w)){,200}’|'(?<!\w')(?:[^'\n]|(?<=\w)'(?=\w)){1,200}'(?!\w)"
)
CITED = re.compile(r"^[ \t]*>.*$", re.MULTILINE)
_TABLE_ROW = re.compile(r"^[ \t]*\|.*$|^[^\n\t]*\t[^\n\t]*\t.*$", re.MULTILINE)
_EDGES = {'"': '"', "“": "”", "'": "'", "«": "»", "「": "」"}


def outside_quotes(text: str) -> str:
    """The text without quotations and code. If the whole text is one quotation, only its marks are removed."""
    text = text.strip()
    if text and _EDGES.get(text[0]) == text[-1] and text[0] not in text[1:-1] and text[-1] not in text[1:-1]:
        text = text[1:-1]
    if "`" in text:
        text = CODE.sub(" ", text)
    if ">" in text:
        text = CITED.sub(" ", text)
    return QUOTED.sub(" ", text)


def outside_tables(text: str) -> str:
    """The text without the rows of tables in markdown or with tabs."""
    return _TABLE_ROW.sub(" ", text) if "|" in text or "\t" in text else text


@dataclass(frozen=True, kw_only=True)
class Caption:
    """A caption to be checked.

    Attributes:
        text: the caption.
        finish_reason: why decoding ended: stop, length or repetition; None if unknown.
        prompt: the instruction that the model was given; empty if unknown.
        alt_text: the image's alt text in the source; empty if it has none.
        caption_tokens: the caption's length in tokens; None if unknown.
    """

    text: str
    finish_reason: str | None = None
    prompt: str = ""
    alt_text: str = ""
    caption_tokens: int | None = None

    @cached_property
    def words(self) -> list[str]:
        """The text, split at white space."""
        return self.text.split()
