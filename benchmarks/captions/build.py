"""Write captions.jsonl: captions with the faults that they have. The same every time.

    python benchmarks/captions/build.py

The texts were written for this purpose (tuning/, held_out/, read_out.py) and spoilt as models and engines spoil them (spoilt.py).
Each caption belongs to one half, `tuning` or `held_out`. The halves share no text and no repeated part. The checks were
made on the first half; the second was written afterwards and only measures.

Fields: text, labels (the checks that should flag it), kind, split, and where they matter finish_reason, prompt,
alt_text, language, json_schema.
"""

import json
import random
import re
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from read_out import READ_OUT
from spoilt import LONGEST, OTHER_SCRIPTS, beginning, garbage, repeated, units

HERE = Path(__file__).parent
SPLITS = ("tuning", "held_out")
PROMPT = "Please describe this image in detail."
# From where in a caption a loop begins.
PLACES = (0.0, 0.3, 0.6, 0.9, 0.1, 1.0)
FINISHED = ("length", "length", "stop", "length", None, "length")
SCHEMA = {
    "type": "object",
    "required": ["subject", "colours", "people"],
    "additionalProperties": False,
    "properties": {
        "subject": {"type": "string", "minLength": 3},
        "colours": {"type": "array", "items": {"type": "string"}},
        "people": {"type": "integer", "minimum": 0},
    },
}
Item = dict[str, Any]


def pieces(name: str, split: str) -> dict[str, list[str]]:
    """The texts of a file of a half, by kind."""
    found: defaultdict[str, list[str]] = defaultdict(list)
    for part in re.split(r"^=== ", (HERE / split / f"{name}.txt").read_text(encoding="utf-8"), flags=re.MULTILINE)[1:]:
        kind, _, text = part.partition("\n")
        found[kind.strip()].append(text.strip())
    return dict(found)


def item(kind: str, text: str, *labels: str, **more: Any) -> Item:
    """One caption with the faults that it has."""
    return {"kind": kind, "text": text, "labels": sorted(labels), **more}


class Half:
    """The captions of one half."""

    def __init__(self, split: str) -> None:
        self.split, self.number = split, SPLITS.index(split)
        self.random = random.Random(f"captions {split}")
        self.scenes = pieces("scenes", split)["scene"]
        self.hard, self.scripts, self.faults = (pieces(name, split) for name in ("hard", "scripts", "faults"))
        self.languages = pieces("languages", split)
        self.read_out = [(make.__name__, make(self.random)) for _ in range(7) for make in READ_OUT]
        self.latin = [*self.scenes, *(text for _, text in self.read_out[: len(READ_OUT)]), *self.long(4)]

    def items(self) -> Iterator[Item]:
        """All captions of this half."""
        for make in (self.good, self.loops, self.loops_elsewhere, self.garbage, self.written, self.made, self.context):
            yield from make()
        yield from self.in_languages()
        for wanted, texts in pieces("near", self.split).items():
            for text in texts:
                yield item("near_language", text, "language", language=wanted)

    def good(self) -> Iterator[Item]:
        """Captions without a fault, half of them of kinds that simple rules take for faulty."""
        for text in self.scenes:
            yield item("scene", text, language="en")
        for kind, texts in self.hard.items():
            for text in texts:
                yield item(kind, text, **({"language": "en"} if text[:1].isascii() or text[:1] == "“" else {}))
        for kind, texts in self.scripts.items():
            for text in texts:
                yield item(f"script_{kind}", text, language=kind)
        for kind, text in self.read_out:
            yield item(kind, text, language="en")
        for text in self.long(24):
            yield item("long", text, language="en")

    def long(self, count: int) -> Iterator[str]:
        """Long captions of pages with several pictures, in markdown."""
        quiet = [*self.scenes, *(text for texts in self.hard.values() for text in texts if text.isascii())]
        for _ in range(count):
            parts = self.random.sample(quiet, self.random.randint(2, 6))
            if self.random.random() < 0.6:
                parts.insert(1, self.random.choice(self.read_out)[1])
            heads = self.random.choice(
                [("Upper left", "Upper right", "Centre", "Lower left", "Lower right", "Margin", "Foot")]
            )
            body = "\n\n".join(f"### {head}\n\n{part}" for head, part in zip(heads, parts, strict=False))
            text = f"The image is a page of a portfolio that combines {len(parts)} pictures.\n\n{body}"
            yield text[: text.rfind("\n\n", 0, LONGEST)] if len(text) > LONGEST else text

    def loops(self) -> Iterator[Item]:
        """Loops of every level in English captions, begun at every place."""
        for turn in range(2):
            for number, (level, unit, within, least) in enumerate(units(self.random, self.number)):
                yield self.loop(f"loop_{level}", level, unit, within, least, self.latin, number + 2 * turn)

    def loops_elsewhere(self) -> Iterator[Item]:
        """Loops in other scripts, of paragraphs, in the middle, and those that an engine stopped."""
        for number, (language, parts) in enumerate(OTHER_SCRIPTS[self.number].items()):
            for turn, part in enumerate(parts):
                least = max(4, -(-160 // len(part)))
                yield self.loop(
                    f"loop_{language}",
                    "phrase",
                    lambda n, p=part: p,
                    False,
                    least,
                    self.scripts[language],
                    number + turn,
                )
        for number, text in enumerate(self.random.sample(self.scenes, 6)):
            end = text[len(beginning(text, 0.5, within=False)) :]
            finished = ("stop", "length", None)[number % 3]
            yield self.looped("loop_paragraph", repeated(text, lambda n, e=end: f"\n\n{e.strip()}", 0, 3), finished)
        for text in self.random.sample(self.scenes, 6):
            # Rows and counters that stop by themselves cannot be told from a table or an axis.
            levels = ("sentence", "two sentences", "phrase", "line")
            _, unit, within, _ = self.random.choice([u for u in units(self.random, self.number) if u[0] in levels])
            start = beginning(text, 0.5, within=within)
            middle = repeated("", unit, int(len(text) * self.random.uniform(1.5, 1.8)), 3)
            yield self.looped("loop_middle", f"{start}{middle}.\n\n{text[len(start) :].strip()}", "stop")
        for text in self.random.sample(self.scenes, 3):
            yield self.looped("loop_stopped", text + " and a tree" * 6, "repetition")

    def loop(
        self, kind: str, level: str, unit: Callable[[int], str], within: bool, least: int, texts: list[str], number: int
    ) -> Item:
        """One caption that ends in a loop."""
        share, finished = PLACES[number % len(PLACES)], FINISHED[(number // 2) % len(FINISHED)]
        if level == "counter":
            finished = "length"  # one that stops by itself cannot be told from a table or an axis
        one_token = level in ("word", "character", "number", "row")
        if one_token and share == 0.1:
            share = 0.4
        text = self.random.choice(texts)
        start = text if share == 1 else beginning(text, share, within=within)
        length = self.random.choice([0, len(start) + 700, 2500, LONGEST])
        least = max(least, -(-200 // len(unit(0).encode())))  # less is no loop yet
        said = unit(0).strip().strip("،,")
        one_token = one_token or (
            kind[5:] in OTHER_SCRIPTS[0] and (len(said) <= 4 or (" " in unit(0) and " " not in said))
        )
        if one_token and start:
            length = min(length, 2 * len(start))  # more would be garbage as well
        if kind[5:] in OTHER_SCRIPTS[0]:
            length = min(length, 2500)  # about 2,000 tokens
        spoilt = repeated(start, unit, length, least)
        bare = level in ("row", "counter") and len(re.findall(r"[^\s\w]", said)) > 3 * len(re.findall(r"\w", said))
        only_marks = bare and len(spoilt) > 3 * len(start)
        one_thing = not start and one_token and (" " not in said or not re.search(r"\w", said))
        return self.looped(kind, spoilt, finished, *(["garbage"] if only_marks or one_thing else []))

    def looped(self, kind: str, text: str, finished: str | None, *labels: str) -> Item:
        """A caption with a loop, and how decoding ended."""
        cut = ["truncated"] if finished == "length" else []
        return item(kind, text, "loop", *cut, *labels, finish_reason=finished)

    def garbage(self) -> Iterator[Item]:
        """What is no language. Long runs of one character or word are loops, too."""
        texts = [t for t in self.random.sample(self.latin * 3, 36) if "```" not in t and "http" not in t]
        for text in garbage(self.random, texts, self.number):
            words = text.split()
            run = len(text) >= 60 and (len(set(text)) <= 2 or len(set(words)) == 1 < len(words))
            yield item("garbage", text, "garbage", *(["loop"] if run else []))

    def written(self) -> Iterator[Item]:
        """Faults that were written by hand."""
        for kind, texts in self.faults.items():
            for text in texts:
                if kind in ("other_language", "drifts_language"):
                    yield item(kind, text, "language", language="en")
                else:
                    yield item(kind.split()[0], text, *kind.split())

    def made(self) -> Iterator[Item]:
        """Captions that were cut, are empty or endless, or are in another language than wanted."""
        kinds = [(f"cut_{kind}", text) for kind, text in self.read_out[:17:2]]
        kinds += [("cut_scene", text) for text in self.scenes[:4]] + [("cut_poem", self.hard["poem"][0])]
        for kind, text in kinds:
            cut = int(len(text) * self.random.uniform(0.5, 0.9))
            yield item(kind, text[:cut], "truncated", finish_reason="length")
        for text in (("", "...", '""', " \n\n "), ("\n", "\u200b", "—", "**"))[self.number]:
            yield item("empty", text, "empty")
        yield item("too_long", "\n\n".join([*self.scenes, *(t for _, t in self.read_out[:8])]), "too_long")
        for wanted, text in zip(("zh", "de", "fr", "ja"), self.scenes, strict=False):
            yield item("other_language", text, "language", language=wanted)
        for wanted, kind in (("es", "fr"), ("fr", "es"), ("zh", "ja"), ("ja", "zh"), ("ru", "ar"), ("de", "ru")):
            yield item("other_language", self.scripts[kind][0], "language", language=wanted)

    def in_languages(self) -> Iterator[Item]:
        """Captions in many languages, wanted or not; those that quote another one, and those that go on in one."""
        texts: defaultdict[str, list[str]] = defaultdict(list)
        for kind, some in [*self.scripts.items(), *self.languages.items()]:
            texts[kind] += some
        for kind, some in self.languages.items():
            wanted, _, quotes = kind.partition("_")
            for text in some:
                yield item(kind if quotes else f"script_{kind}", text, language=wanted)
        own = sorted(kind for kind in texts if "_" not in kind)
        for number, kind in enumerate(own):
            text, scene = texts[kind][-1], self.scenes[number % len(self.scenes)]
            if len(texts[kind]) > 1:
                yield item(f"long_{kind}", "\n\n".join(texts[kind]), language=kind)
            for wanted in ("en", own[(number + 3) % len(own)], own[(number + 8) % len(own)]):
                yield item("other_language", text, "language", language=wanted)
            yield item("drifts_language", f"{scene} {text}", "language", language="en")
            yield item("drifts_language", f"{text}\n\n{scene}", "language", language=kind)
            if number % 4 == 0:
                pages = "\n\n".join(self.scenes[number % 3 : number % 3 + 6])
                yield item("drifts_language", f"{pages}\n\n{text}", "language", language="en")

    def context(self) -> Iterator[Item]:
        """Faults that depend on what the model was given."""
        a, b, c, d, *rest = self.scenes
        yield item("prompt_echo", f"{PROMPT} {a}", "prompt_echo", prompt=PROMPT)
        long = (
            "Describe the image for a blind person. Mention every colour. Do not guess names.",
            "Write one dense paragraph about the picture. Name objects from left to right, and read out all text.",
        )[self.number]
        yield item(
            "prompt_echo",
            f"{b}\n\nDo not guess names."
            if not self.number
            else f"{b}\n\nName objects from left to right, and read out all text.",
            "prompt_echo",
            prompt=long,
        )
        yield item("prompt_echo", f"**please describe this image in detail**\n\n{c}", "prompt_echo", prompt=PROMPT)
        zh = ("请详细描述这张图片的内容。", "请用中文描述图片中的所有文字和物体。")[self.number]
        yield item("prompt_echo", f"{zh}{self.scripts['zh'][0]}", "prompt_echo", prompt=zh)
        for text in rest[:4]:
            yield item("prompt_given", text, prompt=PROMPT)
            yield item("prompt_given", text, prompt=f"{long} {PROMPT}")
        alts = (
            (
                "Red double-decker bus crossing Westminster Bridge in the rain",
                "Stock photo of a grey cat asleep on a radiator",
                "Map of the hiking trails around Lake Vänern",
            ),
            (
                "Handmade ceramic teapot with bamboo handle, blue glaze",
                "Graph showing unemployment by region, 2010 to 2020",
                "A child in a dinosaur costume on a swing",
            ),
        )[self.number]
        for alt in alts:
            yield item("copies_alt_text", alt + ".", "copies_alt_text", alt_text=alt)
            yield item("copies_alt_text", f"{alt}, photo", "copies_alt_text", alt_text=alt.lower())
            yield item("uses_alt_text", f"{alt}. {d}", alt_text=alt)
        yield item("names_alt_text", a, alt_text="IMG_2041.JPG")
        good = {"subject": "a lighthouse on a cliff", "colours": ["red", "white", "grey"], "people": self.number}
        yield item("json_good", json.dumps(good), json_schema=SCHEMA)
        yield item("json_good", json.dumps(good, indent=2) + "\n", json_schema=SCHEMA)
        yield item("json", json.dumps(good | {"people": "two"}), "json", json_schema=SCHEMA)
        yield item("json", json.dumps({"subject": "a dog in the snow"}), "json", json_schema=SCHEMA)
        yield item("json", f"```json\n{json.dumps(good)}\n```", "json", json_schema=SCHEMA)
        yield item(
            "json", json.dumps(good, indent=1)[:-12], "json", "truncated", json_schema=SCHEMA, finish_reason="length"
        )
        yield item("json", d, "json", json_schema=SCHEMA)


def lines() -> Iterator[str]:
    """captions.jsonl, line by line."""
    for split in SPLITS:
        for made in Half(split).items():
            yield json.dumps({"split": split} | made, ensure_ascii=False)


if __name__ == "__main__":
    (HERE / "captions.jsonl").write_text("\n".join(lines()) + "\n", encoding="utf-8")
