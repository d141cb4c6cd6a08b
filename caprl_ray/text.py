"""Text that nobody vouches for, what a dataset says or a model writes, made fit to be stored, shown and sent on."""

import re

# C0 and C1 control characters (Unicode category Cc) but for tab and newline, and halves of surrogate pairs (Cs), which
# JSON can spell and UTF-8 cannot. All else is text, what turns its direction too.
_UNFIT = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]")
_LINE_END = re.compile("\r\n?")


def plain(text: str) -> str:
    """The text without control characters; every line ends in a newline alone."""
    return _UNFIT.sub("", _LINE_END.sub("\n", text))
