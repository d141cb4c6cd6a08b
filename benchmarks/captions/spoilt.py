"""Spoils good captions as models and engines do: loops at every level and place, and garbage."""

import random
from collections.abc import Callable, Iterator

COLOURS = "red blue green yellow white black grey brown orange purple".split()
LONGEST = 6000

SENTENCES = (
    "The background is slightly blurred, which draws the attention to the main subject.",
    "The overall mood of the image is calm and peaceful.",
    "A small red car is parked on the left side of the street.",
    "The text on the sign is not legible.",
    "There is also a person who is holding an umbrella.",
    "The sky is clear with a few scattered clouds, and the sun is shining brightly on the buildings below.",
)
ITEMS = (
    "- **Tree**: a tall tree with green leaves stands on the left.\n",
    "- A white cup with a handle\n",
    '* The label reads "Total revenue".\n',
    "- **Colour**: blue\n- **Shape**: rectangular\n",
)
PHRASES = (
    ", and a small tree",
    " next to the building",
    ", a chair, a table",
    " on the left side of the image",
    " of the wall of the house",
    " and the other one",
)
WORDS = (" very", " white", " flowers", " the", " blue,", " and")
CHARACTERS = ("a", "o", ".", "-", "!", "0", "ー", "哈", "=")
NUMBERS = (" 0,", " 100,", " 12, 12, 14,", " 0.0", " 2019", "1")
DRIFTING: tuple[Callable[[int, random.Random], str], ...] = (
    lambda n, r: f" The {n}th person from the left is wearing a blue shirt.",
    lambda n, r: f"\n{n}. A white car is parked in front of the building.",
    lambda n, r: f" {n},",
    lambda n, r: f"\n- Window {n}: closed, with white curtains",
    lambda n, r: f" In row {n} there is a chair, and in row {n + 1} there is a chair.",
    lambda n, r: f"\n| {n} | - | - | - |",
    lambda n, r: (
        f" The person in the {r.choice(COLOURS)} shirt is standing next to the person in the {r.choice(COLOURS)} shirt."
    ),
    lambda n, r: f" {r.choice(COLOURS)} flowers, {r.choice(COLOURS)} flowers,",
)
ROWS = ("| | | | | |\n", "| 2014 | 12 | 4 | 0.5 |\n", "|---|---|---|---|\n", "| Total | 0 | 0 |\n")
OTHER_SCRIPTS = {
    "zh": (
        "背景是一片模糊的绿色树林，给人以宁静的感觉。",
        "，旁边有一棵树",
        "，还有一个人",
        "的",
        "图中可以看到许多人在广场上行走，他们穿着不同颜色的衣服。",
    ),
    "ja": ("背景には青い空が広がっている。", "と白い花", "である", "手前には木の机があり、その上に本が置かれている。"),
    "ko": ("배경에는 나무가 여러 그루 서 있다.", " 그리고 작은 꽃이", "하얀 벽과 "),
    "ar": (" وفي الخلفية تظهر أشجار خضراء عالية.", " وبجانبه", " كتاب على الطاولة،"),
    "th": ("และมีต้นไม้อยู่ด้านหลัง", "ด้านซ้ายมีคนยืนอยู่หนึ่งคน ", "สีขาว"),
    "ru": (" На заднем плане видны деревья и голубое небо.", " и ещё один", " белый,"),
    "hi": (" पीछे एक हरा पेड़ है।", " और एक"),
}


def repeated(start: str, unit: Callable[[int], str], length: int, least: int) -> str:
    """`start`, then units up to a length, at least `least` of them. The last one may be cut."""
    parts, size, n = [start], len(start), 0
    while size < length or n < least:
        parts.append(unit(n))
        size, n = size + len(parts[-1]), n + 1
    text = "".join(parts)
    whole = len(start) + sum(map(len, parts[1 : least + 1]))
    return text[: max(length, whole)]


def beginning(text: str, share: float, *, within: bool) -> str:
    """A part of a text from its beginning, up to the end of a sentence, or cut within one."""
    cut = int(len(text) * share)
    if within or not cut:
        place = text.rfind(" ", 0, cut) if " " in text[:cut] else cut
        return text[: max(place, 0)]
    ends = [text.rfind(mark, 0, cut) for mark in (". ", ".\n", "。", "\n\n")]
    return text[: max(max(ends) + 1, 0)]


def units(r: random.Random) -> Iterator[tuple[str, Callable[[int], str], bool, int]]:
    """What is repeated, for English captions: level, unit by its number, whether it cuts into a sentence, copies."""
    for sentence in SENTENCES:
        yield "sentence", lambda n, s=sentence: f" {s}", False, 4  # type: ignore[misc]
    for first, second in zip(SENTENCES, SENTENCES[2:], strict=False):
        yield "two sentences", lambda n, s=f" {first} {second}": s, False, 3  # type: ignore[misc]
    for item in ITEMS:
        yield "line", lambda n, s=item: s if n else f"\n{s}", False, 8  # type: ignore[misc]
    for phrase in PHRASES:
        yield "phrase", lambda n, s=phrase: s, True, 14  # type: ignore[misc]
    for word in WORDS:
        yield "word", lambda n, s=word: s, True, 45  # type: ignore[misc]
    for character in CHARACTERS:
        yield "character", lambda n, s=character: s, True, 260  # type: ignore[misc]
    for number in NUMBERS:
        yield "number", lambda n, s=number: s, True, 60  # type: ignore[misc]
    for row in ROWS:
        yield "row", lambda n, s=row: s if n else f"\n\n{s}", False, 20  # type: ignore[misc]
    for drifting in DRIFTING:
        begun = r.randint(1, 30)
        yield "counter", lambda n, d=drifting, b=begun: d(b + n, r), False, 30  # type: ignore[misc]


def garbage(r: random.Random, good: list[str]) -> Iterator[str]:
    """Captions that are no language, or hold what no caption may hold."""
    yield from ("!" * n for n in (40, 512, 2048))
    yield from (mark * n for mark, n in (("0", 300), ("…", 200), ("的", 400), ("?", 64), ("\u3000.", 40)))
    yield from (f"{word} " * n for word, n in (("the", 200), ("addCriterion", 120), ("image", 60), ("و", 150)))
    soup = "ใน obj زم _cfg 구조 });\n Ünder 的ق เพื่อ ++; нов lä 【】 ##end ק ל ή ش_ptr 在 ing ょう".split(" ")
    for size in (60, 200, 400):
        yield "".join(r.choice(soup) + r.choice(["", "", " "]) for _ in range(size))
    marks = "}{)(;;::__//\\\\<>==++--**&&^^%%$$##@@!!~~``||"
    yield from ("".join(r.choice(marks) for _ in range(n)) for n in (80, 600))
    for text, leak in zip(
        good,
        (
            *(
                "<|im_end|>\n<|im_start|>assistant\n",
                "<|endoftext|>",
                "\nassistant\n",
                "<|vision_start|><|image_pad|><|vision_end|>",
            ),
            *(
                "[INST] Please describe this image [/INST]",
                "<end_of_turn>\n<start_of_turn>model\n",
                "</s>",
                "\nuser\nWhat else?\nassistant\n",
            ),
            *(
                "<think>\nThe user wants a description.\n</think>\n",
                "<|box_start|>(112,40),(380,260)<|box_end|>",
                "<unk> <unk>",
                "<|eot_id|>",
            ),
            *("\nHuman: describe it again\nAssistant: ", "<0xE2><0x80><0x99>", "[PAD][PAD][PAD]"),
        ),
        strict=False,
    ):
        cut = beginning(text, r.uniform(0.4, 0.95), within=False) or text
        yield cut + leak if leak in ("</s>", "<|endoftext|>") else cut + leak + text[len(cut) : len(cut) + 200]
    for text in good[15:22]:
        places = sorted(r.sample(range(20, len(text) - 20), r.choice([1, 2, 5])), reverse=True)
        for place in places:
            text = text[:place] + "\ufffd" * r.choice([1, 2, 3]) + text[place + 1 :]
        yield text
    yield from (text[:400].replace(" ", "Ġ") for text in good[22:24])
    yield from ("▁" + text[:300].replace(" ", "▁") for text in good[24:26])
