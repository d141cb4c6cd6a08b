"""The check for captions that are not language. The cause is mostly an engine or a tokenizer, rarely the image."""

import re
import string
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from caprl_ray.quality.caption import Caption, outside_quotes, outside_tables
from caprl_ray.quality.check import Check, threshold

REPLACEMENT = "\ufffd"
# Tokens of chat formats and of tokenizers, without those that may also be HTML (<s>, <image>).
_TOKEN = re.compile(
    r"<(?:\|[^\s<>|]{2,40}\|>|｜[^<>\n]{2,40}｜>|/?(?:start_of_turn|end_of_turn|unk|pad|bos|eos|think|IMG_CONTEXT)>"
    r"|s>(?=\s*\[INST\])|/s>\s*\Z|</?SYS>>|0x[0-9A-F]{2}>|unused\d+>)"
    r"|\[(?:/?INST|PAD|UNK|CLS|SEP|MASK|IMG)\]"
)
# A turn of a chat in the caption: a role alone on its line, as in Qwen's chat format. `User:` is left out, because
# captions of chats, forms and diagrams have it.
_ROLE = re.compile(r"^(?:assistant|user|system)[ \t]*$|\baddCriterion\b", re.MULTILINE)
_SIGNS = ("assistant", "user", "system", "addCriterion")
# The marks for spaces in byte-level BPE and in SentencePiece.
_SPACE_MARKS = re.compile("[Ġ▁Ċ]\\w")
_ALNUM = (string.ascii_letters + string.digits).encode() + bytes(range(0x80, 0x100))
_RULES = re.compile(rb"([-=_.+|:])\1{2,}")
_WHITE = string.whitespace.encode()
# The script of a character by its high byte in UTF-16. Latin letters, punctuation, symbols and emoji have none.
_SCRIPT = bytes.maketrans(
    bytes([*range(0x03, 0x0F), 0x10, *range(0x30, 0xA0), *range(0xAC, 0xD8)]),
    bytes([3, 4, 5, 6, 6, 6, *[9] * 6, 16, *[0x30] * 0x70, *[0xAC] * 0x2C]),
)
_NO_SCRIPT = bytes(sorted(set(range(256)) - {*range(0x03, 0x0F), 0x10, *range(0x30, 0xA0), *range(0xAC, 0xD8)}))
_SCRIPTS = (
    *("[A-Za-z\u00c0-\u024f\u1e00-\u1eff]", "[\u0370-\u03ff]", "[\u0400-\u04ff]", "[\u0590-\u05ff]", "[\u0600-\u06ff]"),
    *("[\u0900-\u0dff]", "[\u0e00-\u0eff]", "[\u3040-\u30ff\u3400-\u9fff]", "[\uac00-\ud7af]"),
)
# A letter directly before a letter of another script.
_MIXED = re.compile("|".join(f"{script}(?!{script})(?=[^\\W\\d_])" for script in _SCRIPTS))
_SAMPLES = 16


@dataclass(frozen=True, kw_only=True)
class Garbage(Check):
    """The caption is not language: almost only one character or word, symbols, or fragments of tokens."""

    name: ClassVar = "garbage"
    severe: ClassVar = True
    version: ClassVar = 2
    spares: ClassVar = (
        "Code, tables, formulas and other scripts; special tokens in quotes or code, as on a picture of a tokenizer; "
        "chats that are read out, with lines such as `User:`."
    )
    causes: ClassVar = "A broken GPU, damaged weights, overflowing half precision, or a tokenizer of another model."
    remedy: ClassVar = (
        "If one node writes most of it, remove the node from the cluster; otherwise set `model.engine.dtype` to "
        "bfloat16, and check that the model's files are complete."
    )

    one_character: float = threshold(
        0.9,
        0.3,
        1,
        "The share of the most frequent character, without spaces.",
        "vLLM with not-a-number logits writes only `!`",
    )
    one_word: float = threshold(
        0.8,
        0.3,
        1,
        "The share of the most frequent word, in captions of 8 words or more.",
        "cosmos-curator flags a share of 0.5, from 6 words on",
    )
    symbols: float = threshold(
        0.75,
        0.3,
        1,
        "The share of symbols, in captions of 40 characters or more.",
        "measured on benchmarks/captions: an empty form has 0.64",
    )
    replacement_characters: int = threshold(
        1, 1, 1000, "The number of U+FFFD, which replaces bytes that are not text.", "good captions have none"
    )
    mixed_scripts: int = threshold(
        4,
        2,
        1000,
        "How often the script changes within words, outside quotes.",
        "set by hand; good captions in two scripts or more have none",
    )

    def found(self, caption: Caption) -> bool:
        text = caption.text
        return bool(
            (REPLACEMENT in text and text.count(REPLACEMENT) >= self.replacement_characters)
            or self._one_character(text)
            or self._one_word(caption.words)
            or self._one_part(text)
            or self._symbols(text)
            or _debris(text)
            or self._mixed(text)
        )

    def _one_character(self, text: str) -> bool:
        text = text.strip()
        if len(text) < 12:
            return False
        common = _common(text[:: -(-len(text) // _SAMPLES)]) - {" ", "\n"}
        return any(
            text.count(character) >= self.one_character * (len(text) - text.count(" ") - text.count("\n"))
            for character in common
        )

    def _one_word(self, words: list[str]) -> bool:
        if len(words) < 8:
            return False
        common = _common(words[:: -(-len(words) // _SAMPLES)]) - {"|"}
        return any(words.count(word) >= self.one_word * len(words) for word in common)

    def _one_part(self, text: str) -> bool:
        """Whether two to four characters make up nearly the whole text, for scripts without spaces. Spares tables."""
        if len(text) < 40 or outside_tables(text) != text:
            return False
        middle = len(text) // 2
        return any(text.count(text[middle : middle + n]) * n >= self.one_character * len(text) for n in (2, 3, 4))

    def _symbols(self, text: str) -> bool:
        visible = text.encode(errors="replace").translate(None, _WHITE)
        if len(visible) < 40 or len(visible.translate(None, _ALNUM)) <= self.symbols * len(visible):
            return False
        visible = _RULES.sub(rb"\1", visible)  # without the ruled lines of tables
        return len(visible) >= 40 and len(visible.translate(None, _ALNUM)) > self.symbols * len(visible)

    def _mixed(self, text: str) -> bool:
        if text.isascii():
            return False
        scripts = text.encode("utf-16-le", "surrogatepass")[1::2].translate(_SCRIPT, _NO_SCRIPT)
        return bool(scripts) and len(set(scripts)) >= 2 and _scripts_touch(outside_quotes(text), self.mixed_scripts)


def _common(samples: Sequence[str]) -> set[str]:
    """The samples that are a third of all or more. The default thresholds are much higher than a third."""
    return {sample for sample in set(samples) if 3 * samples.count(sample) >= len(samples)}


def _debris(text: str) -> bool:
    """Special tokens outside quotes and code, or a tokenizer's marks for spaces."""
    if _special(text) and _special(outside_quotes(text)):
        return True
    if text.isascii() or len(_SPACE_MARKS.findall(text)) < 3:
        return False
    return len(_SPACE_MARKS.findall(outside_tables(outside_quotes(text)))) >= 3


def _special(text: str) -> bool:
    if ("<" in text or "[" in text) and _TOKEN.search(text):
        return True
    return any(sign in text for sign in _SIGNS) and bool(_ROLE.search(text))


def _scripts_touch(text: str, least: int) -> bool:
    """Whether letters of three scripts or more stand directly beside each other, in at least `least` places."""
    pairs = "".join(
        word[place.start() : place.start() + 2]
        for word in text.split()
        if not word.isascii()
        for place in _MIXED.finditer(word)
    )
    return len(pairs) >= 2 * least and sum(bool(re.search(script, pairs)) for script in _SCRIPTS) >= 3
