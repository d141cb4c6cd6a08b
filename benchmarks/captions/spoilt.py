"""Spoils good captions as models and engines do: loops at every level and place, and garbage."""

import random
from collections.abc import Callable, Iterator

COLOURS = "red blue green yellow white black grey brown orange purple".split()
LONGEST = 6000

# What is repeated, by half: first `tuning`, then `held_out`.
SENTENCES = (
    (
        "The background is slightly blurred, which draws the attention to the main subject.",
        "The overall mood of the image is calm and peaceful.",
        "A small red car is parked on the left side of the street.",
        "The text on the sign is not legible.",
        "There is also a person who is holding an umbrella.",
        "The sky is clear with a few scattered clouds, and the sun is shining brightly on the buildings below.",
    ),
    (
        "In the distance, a range of mountains can be seen under a hazy sky.",
        "The person appears to be focused on the task at hand.",
        "Each of the boxes is labelled with a number.",
        "The lighting in the room is warm and soft, which creates a cosy atmosphere.",
    ),
)
ITEMS = (
    (
        "- **Tree**: a tall tree with green leaves stands on the left.\n",
        "- A white cup with a handle\n",
        '* The label reads "Total revenue".\n',
        "- **Colour**: blue\n- **Shape**: rectangular\n",
    ),
    (
        "- **Background**: plain white\n",
        "1. A round button with a white icon\n",
        "> No further text is visible.\n",
    ),
)
PHRASES = (
    (
        ", and a small tree",
        " next to the building",
        ", a chair, a table",
        " on the left side of the image",
        " of the wall of the house",
        " and the other one",
    ),
    (
        ", with a window and a door",
        " in the middle of the picture and",
        " of the",
        ", followed by a line",
        " to the right of the table",
    ),
)
WORDS = ((" very", " white", " flowers", " the", " blue,", " and"), (" more", " small", " text,", " trees", " a"))
CHARACTERS = (("a", "o", ".", "-", "!", "0", "ー", "哈", "="), ("e", "_", "*", "9", "～", "啊", "x"))
NUMBERS = ((" 0,", " 100,", " 12, 12, 14,", " 0.0", " 2019", "1"), (" 1,", " 50%,", " 3.5", " 7 8", "00"))
Drifting = Callable[[int, random.Random], str]
DRIFTING: tuple[tuple[Drifting, ...], tuple[Drifting, ...]] = (
    (
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
    ),
    (
        lambda n, r: f" The {n}th book on the shelf has a dark cover with golden letters.",
        lambda n, r: f"\n* Button {n}: a grey square with rounded corners",
        lambda n, r: f" {10 * n},",
        lambda n, r: f'\n{n}) The line reads "Item {n}".',
        lambda n, r: (
            f" To the right of it is a {r.choice(COLOURS)} car, and to the right of that is a {r.choice(COLOURS)} car."
        ),
        lambda n, r: f"\n| {n} | empty | empty |",
    ),
)
ROWS = (
    ("| | | | | |\n", "| 2014 | 12 | 4 | 0.5 |\n", "|---|---|---|---|\n", "| Total | 0 | 0 |\n"),
    ("| - | - | - | - | - |\n", "| A | B | C | D |\n", "| 0.00 | 0.00 | 0.00 |\n"),
)
OTHER_SCRIPTS: tuple[dict[str, tuple[str, ...]], dict[str, tuple[str, ...]]] = (
    {
        "zh": (
            "背景是一片模糊的绿色树林，给人以宁静的感觉。",
            "，旁边有一棵树",
            "，还有一个人",
            "的",
            "图中可以看到许多人在广场上行走，他们穿着不同颜色的衣服。",
        ),
        "ja": (
            "背景には青い空が広がっている。",
            "と白い花",
            "である",
            "手前には木の机があり、その上に本が置かれている。",
        ),
        "ko": ("배경에는 나무가 여러 그루 서 있다.", " 그리고 작은 꽃이", "하얀 벽과 "),
        "ar": (" وفي الخلفية تظهر أشجار خضراء عالية.", " وبجانبه", " كتاب على الطاولة،"),
        "th": ("และมีต้นไม้อยู่ด้านหลัง", "ด้านซ้ายมีคนยืนอยู่หนึ่งคน ", "สีขาว"),
        "ru": (" На заднем плане видны деревья и голубое небо.", " и ещё один", " белый,"),
        "hi": (" पीछे एक हरा पेड़ है।", " और एक"),
    },
    {
        "zh": ("远处有一座高高的山，山顶覆盖着白雪。", "，以及一把椅子", "白色"),
        "ja": ("奥には窓があり、光が差し込んでいる。", "、赤い傘"),
        "ko": ("오른쪽에는 하얀 건물이 하나 있다.", " 나무와"),
        "ar": (" ويقف رجل آخر بجانب السيارة البيضاء.", " ثم"),
        "th": ("ด้านขวามีต้นไม้สองต้น", "และมีรถสีแดง "),
        "ru": (" Справа стоит ещё одно дерево с зелёными листьями.", " красный"),
        "hi": (" दाईं ओर एक सफ़ेद इमारत है।",),
    },
)
# What leaks into captions, by half.
LEAKS = (
    (
        *(
            "<|im_end|>\n<|im_start|>assistant\n",
            "<|endoftext|>",
            "\nassistant\n",
            "<|vision_start|><|image_pad|><|vision_end|>",
        ),
        *("[INST] Please describe this image [/INST]", "<end_of_turn>\n<start_of_turn>model\n", "</s>"),
        *("\nuser\nWhat else?\nassistant\n", "<think>\nThe user wants a description.\n</think>\n", "<unk> <unk>"),
        *("<|box_start|>(112,40),(380,260)<|box_end|>", "<|eot_id|>", "\nHuman: describe it again\nAssistant: "),
        *("<0xE2><0x80><0x99>", "[PAD][PAD][PAD]"),
    ),
    (
        *(
            "<|im_end|>",
            "<|im_start|>user\nDescribe the image.<|im_end|>",
            "<|end_of_text|>",
            "\nsystem\nYou are a helpful assistant.\n",
        ),
        *("<|object_ref_start|>dog<|object_ref_end|>", "</think>", "<bos>", "\nUSER: And the background?\nASSISTANT: "),
        *("<|reserved_special_token_12|>", "[SEP]", "<unused42>", "<|end▁of▁sentence|>", "<|eom_id|>"),
    ),
)
# Single characters and words that are all of a caption, and what soup is made of, by half.
RUNS = (
    (
        ("!", 40),
        ("!", 512),
        ("!", 2048),
        ("0", 300),
        ("…", 200),
        ("的", 400),
        ("?", 64),
        ("\u3000.", 40),
        ("the ", 200),
    ),
    (("!", 100), ("!", 1024), ('"', 250), ("#", 80), ("、", 300), ("ا", 400), ("G", 128), ("Human ", 90), ("في ", 100)),
)
MORE_RUNS = ((("addCriterion ", 120), ("image ", 60), ("و ", 150)), (("1 ", 300), ("图像", 220), ("and ", 80)))
SOUPS = (
    "ใน obj زم _cfg 구조 });\n Ünder 的ق เพื่อ ++; нов lä 【】 ##end ק ל ή ش_ptr 在 ing ょう",
    "สวย_id Ре 함수 (); λόγ ست 的 -> ment ツ ה ан ก्या {} ução 图ed ل ทำ :: ви 을 \\n ης",
)
MARKS = ("}{)(;;::__//\\\\<>==++--**&&^^%%$$##@@!!~~``||", "[](){}<>|||///...,,,;;;:::---+++***===")


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


def units(r: random.Random, half: int) -> Iterator[tuple[str, Callable[[int], str], bool, int]]:
    """What is repeated, for English captions: level, unit by its number, whether it cuts into a sentence, copies."""
    for sentence in SENTENCES[half]:
        yield "sentence", lambda n, s=sentence: f" {s}", False, 4  # type: ignore[misc]
    for first, second in zip(SENTENCES[half], SENTENCES[half][2:], strict=False):
        yield "two sentences", lambda n, s=f" {first} {second}": s, False, 3  # type: ignore[misc]
    for item in ITEMS[half]:
        yield "line", lambda n, s=item: s if n else f"\n{s}", False, 8  # type: ignore[misc]
    for phrase in PHRASES[half]:
        yield "phrase", lambda n, s=phrase: s, True, 14  # type: ignore[misc]
    for word in WORDS[half]:
        yield "word", lambda n, s=word: s, True, 45  # type: ignore[misc]
    for character in CHARACTERS[half]:
        yield "character", lambda n, s=character: s, True, 260  # type: ignore[misc]
    for number in NUMBERS[half]:
        yield "number", lambda n, s=number: s, True, 60  # type: ignore[misc]
    for row in ROWS[half]:
        yield "row", lambda n, s=row: s if n else f"\n\n{s}", False, 20  # type: ignore[misc]
    for drifting in DRIFTING[half]:
        begun = r.randint(1, 30)
        yield "counter", lambda n, d=drifting, b=begun: d(b + n, r), False, 30  # type: ignore[misc]


def garbage(r: random.Random, good: list[str], half: int) -> Iterator[str]:
    """Captions that are no language, or hold what no caption may hold."""
    yield from (part * n for part, n in (*RUNS[half], *MORE_RUNS[half]))
    for size in (60, 200, 400):
        yield "".join(r.choice(SOUPS[half].split(" ")) + r.choice(["", "", " "]) for _ in range(size))
    yield from ("".join(r.choice(MARKS[half]) for _ in range(n)) for n in (80, 600))
    texts = iter(good)
    for leak, text in zip(LEAKS[half], texts, strict=False):
        cut = beginning(text, r.uniform(0.4, 0.95), within=False) or text
        ends = leak in ("</s>", "<|endoftext|>", "<|im_end|>", "<|eom_id|>")
        yield cut + leak + ("" if ends else text[len(cut) : len(cut) + 200])
    for _ in range(6):
        yield with_replacements(r, next(texts))
    yield next(texts)[:400].replace(" ", "Ġ")
    yield "▁" + next(texts)[:300].replace(" ", "▁")


def with_replacements(r: random.Random, text: str) -> str:
    """A text with U+FFFD in a few places, where a character's bytes were cut apart."""
    for place in sorted(r.sample(range(20, len(text) - 20), r.choice([1, 2, 5])), reverse=True):
        text = text[:place] + "\ufffd" * r.choice([1, 2, 3]) + text[place + 1 :]
    return text
