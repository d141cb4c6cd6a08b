"""Each check on captions as models write them: what it finds, and what looks like a fault and is none."""

import time
from typing import Any

import pytest

from caprl_ray.errors import RecipeError
from caprl_ray.quality.caption import Caption, outside_quotes
from caprl_ray.quality.checks import Checks, Settings
from caprl_ray.quality.registry import CHECKS

STREET = (
    "The image shows a narrow cobbled street after rain. Wet stones reflect the light of three lanterns on the"
    " left-hand "
    "facades. On the right, a bakery with a dark green awning has its door open; behind the glass, loaves are"
    " stacked on "
    "wooden shelves. Two cyclists push their bicycles uphill, and the nearer one wears a yellow raincoat with the"
    " hood up."
)
TABLE = "| Month | Rain (mm) | Days |\n|---|---|---|\n" + "".join(
    f"| {n} | {n * 37 % 90}.{n} | 0 |\n" for n in range(1, 25)
)
REFRAIN = (
    "Round and round and round it goes, round the wheel goes still,\nround and round it goes, down at the old mill.\n\n"
)
ZH = "照片中，一位穿蓝色围裙的老人正在把竹椅搬进茶馆，门口挂着四盏红灯笼，街道尽头是一座石拱桥。"
SCHEMA = {"type": "object", "required": ["people"], "properties": {"people": {"type": "integer"}}}
PROMPT = "Describe the image in detail. Read out all text."

FAULTY: list[tuple[str, str, dict[str, Any]]] = [
    ("truncated", STREET[:90], {"finish_reason": "length"}),
    ("empty", " \n\u200b", {}),
    ("empty", "...", {}),
    ("too_short", "A dog.", {}),
    ("too_short", "一只狗", {}),
    ("too_long", STREET, {"caption_tokens": 4000}),
    ("loop", STREET, {"finish_reason": "repetition"}),
    ("loop", STREET + " A red car is parked on the left side of the street." * 5, {}),
    ("loop", STREET + " and a tree" * 7, {"finish_reason": "length"}),
    ("loop", STREET + " very" * 60, {}),
    ("loop", "A dog. " * 12, {}),
    ("loop", STREET + "\n" * 300, {"finish_reason": "length"}),
    ("loop", STREET + "".join(f" The {n}th person wears a blue shirt." for n in range(12, 50)), {}),
    ("loop", STREET + "".join(f" {n}," for n in range(20, 300)), {"finish_reason": "length"}),
    ("loop", STREET + f"\n\n{STREET}" * 2, {}),
    ("loop", STREET + " The sky is clear with a few clouds." * 20 + "\n\nThe mood is calm. " + STREET[60:], {}),
    ("loop", ZH + "，旁边有一棵树" * 12, {}),
    ("loop", TABLE + "| 25 | 12 | 0 |\n" * 20, {"finish_reason": "length"}),
    ("garbage", "!" * 400, {}),
    ("garbage", "the " * 50, {}),
    ("garbage", "图像" * 60, {}),
    ("garbage", "}{)(;;::__//\\==++--**&&^^%%$$##@@!!~~``||<>" * 3, {}),
    ("garbage", STREET.replace("ö", "o") + " caf\ufffd", {}),
    ("garbage", STREET + "<|im_end|>\n<|im_start|>assistant", {}),
    ("garbage", STREET + "\nuser\nWhat else?\nassistant\nA dog.", {}),
    ("garbage", STREET.replace(" ", "Ġ"), {}),
    ("garbage", "ใน objزم _cfg 구조하는ing нов的lä ק在ingょう والlaก " * 5, {}),
    ("refusal", "I'm sorry, but I can't assist with that.", {}),
    ("refusal", "I’m unable to identify the individuals in this photograph.", {}),
    ("refusal", '"I cannot provide a description of this image."', {}),
    ("refusal", "Thank you for the image. Unfortunately, I cannot describe the people in it.", {}),
    ("refusal", "As an AI language model, I have no way to see pictures.", {}),
    ("refusal", "抱歉，我无法描述这张图片的内容。", {}),
    ("refusal", "Es tut mir leid, aber ich kann dieses Bild nicht beschreiben.", {}),
    ("language", STREET, {"language": "de"}),
    ("language", STREET + ZH * 3, {"language": "en"}),
    ("boilerplate", "Sure! Here is a detailed description of the image: " + STREET, {}),
    ("boilerplate", STREET + " This description captures every visible detail of the image.", {}),
    ("boilerplate", STREET + " Let me know if you need more details!", {}),
    ("boilerplate", ":description", {}),
    ("opener", "The image depicts a street.", {"checks": ["opener"]}),
    ("prompt_echo", f"Read out all text.\n\n{STREET}", {"prompt": PROMPT}),
    ("copies_alt_text", "Red bus crossing Westminster Bridge.", {"alt_text": "red bus crossing  Westminster Bridge"}),
    ("mojibake", 'The sign reads "cafÃ© crÃ¨me" in blue.', {}),
    ("mojibake", "It costs 4 â‚¬ and says â€œopenâ€.", {}),
    ("url", "![street](https://example.com/a.jpg) " + STREET, {}),
    ("url", STREET + " For more pictures see https://example.com/streets", {}),
    ("json", '{"people": "two"}', {"json_schema": SCHEMA}),
    ("json", '```json\n{"people": 2}\n```', {"json_schema": SCHEMA}),
    ("json", '{"people": NaN}', {"json_schema": SCHEMA}),
    ("json", STREET, {"json_schema": SCHEMA}),
]
GOOD: list[tuple[str, dict[str, Any]]] = [
    (STREET, {"finish_reason": "stop", "prompt": PROMPT, "alt_text": "A narrow street after rain", "language": "en"}),
    (f"The chart is read out as a table.\n\n{TABLE}", {"language": "en"}),
    (f"{TABLE}\nAll values are approximate.", {}),
    (
        f"A song sheet.\n\n{REFRAIN}The miller has a daughter, the daughter has a hen.\n\n{REFRAIN}\nThe paper is"
        f" stained.",
        {},
    ),
    ("The poster shows the numbers from 1 to 100: " + ", ".join(map(str, range(1, 101))) + ".", {}),
    ("A registration form.\n\n" + "Name: ______________________________\n" * 5 + "The stamp shows an eagle.", {}),
    ("Every panel has the labels 0, 2, 4, 6, 8. " * 3 + "The points are orange in the first row.", {}),
    ('A sign on the door reads "I\'m sorry, we are closed. I cannot help you today."', {}),
    ('"Sorry, I can\'t let you in," says the bouncer in the first panel of this comic strip.', {}),
    ("I'm sorry, we are closed", {}),
    ("This image cannot be described without its colours: a red sun sinks into a violet sea.", {}),
    ("My eye is drawn to the AI-generated poster on the left, which shows a policy maker at a desk.", {}),
    ("Of course there is a cat in the picture, too: it sits on the piano with its head tilted to one side.", {}),
    ("I see a corridor with doors on both sides. I cannot tell whether it is a school.", {}),
    ("I am unable to read the small text in the corner, but the title is legible. " + STREET, {}),
    ("Unfortunately, the left third of the picture is covered by a thumb. " + STREET, {}),
    ("A slide on tokenizers shows `<|im_start|>` and \"<|im_end|>\", and the word 'Ġcats' in a box.", {}),
    (
        "The terminal shows:\n\n```\n" + "test_parse.py::test_a PASSED   [ 10%]\n" * 4 + "```\n\nThe prompt is green.",
        {},
    ),
    (
        "Welcome, Willkommen, Добро пожаловать, 欢迎, ようこそ, 환영합니다, أهلا وسهلا and ยินดีต้อนรับ are written on it.",
        {},
    ),
    (ZH, {"language": "zh"}),
    ("À São Paulo, l'enseigne « CAFÉ » est écrite en bleu, à 38 °C ; on lit „MENÜ“ sur l'ardoise.", {}),
    ("The address bar contains https://maps.example.org/view and a closed padlock, beside three open tabs.", {}),
    ('{"people": 2, "subject": "two dogs in the snow"}', {"json_schema": SCHEMA}),
    ("A red bus crosses Westminster Bridge in the rain, and its lower deck is full.", {"alt_text": "Red bus"}),
    (STREET, {"alt_text": "IMG_2041.JPG"}),
    (
        "A dog runs through the snow in the park.",
        {"alt_text": STREET + " The park is far away, and a dog is in the snow."},
    ),
    (STREET + "\n\n" + STREET[:200].replace("three", "two"), {}),
]


def flags(text: str, given: dict[str, Any]) -> tuple[str, ...]:
    known = {key: given[key] for key in ("finish_reason", "prompt", "alt_text", "caption_tokens") if key in given}
    chosen = {key: given[key] for key in ("checks", "language", "json_schema") if key in given}
    return Checks.of(Settings(**chosen)).flags(Caption(text=text, **known))


@pytest.mark.parametrize(("check", "text", "given"), FAULTY)
def test_a_fault_is_found(check: str, text: str, given: dict[str, Any]) -> None:
    assert check in flags(text, given)


@pytest.mark.parametrize(("text", "given"), GOOD)
def test_captions_that_only_look_faulty_have_no_flag(text: str, given: dict[str, Any]) -> None:
    assert flags(text, given) == ()


def test_every_check_is_tried_and_described() -> None:
    assert {check for check, _, _ in FAULTY} == set(CHECKS)
    for name, check in CHECKS.items():
        assert check.name == name and check.__doc__ and check.spares
        assert all(t.source and t.meaning and t.least <= t.default <= t.most for t in check.thresholds().values())


def test_a_loop_is_found_wherever_it_begins() -> None:
    for start in range(0, len(STREET), 25):
        for unit in (
            " The overall mood is calm and peaceful.",
            " white flowers,",
            " 0,",
            "a",
            "\n- A small red button",
        ):
            text = STREET[:start] + unit * (240 // len(unit))
            assert "loop" in flags(text, {"finish_reason": "length"}), (start, unit)


def test_a_schema_that_is_wrong_or_refers_to_elsewhere_is_refused_and_nothing_is_fetched() -> None:
    with pytest.raises(RecipeError, match="the schema is not valid"):
        flags("{}", {"json_schema": {"type": "objekt"}})
    with pytest.raises(RecipeError, match=r"refers to http://192\.0\.2\.1/schema, which is not in it"):
        flags("{}", {"json_schema": {"properties": {"a": {"$ref": "http://192.0.2.1/schema"}}}})
    inner = {"$defs": {"count": {"type": "integer"}}, "properties": {"people": {"$ref": "#/$defs/count"}}}
    assert flags('{"people": 1, "dogs": "many of them here"}', {"json_schema": inner}) == ()


def test_quoted_text_is_set_aside() -> None:
    assert (
        outside_quotes("It says 'I'm sorry' twice, and don't forget “that”.") == "It says   twice, and don't forget  ."
    )
    assert outside_quotes('"All of it is quoted."') == "All of it is quoted."


@pytest.mark.parametrize(
    "text", ["“", " 'a", "`a", "<|a", "[a](", "> a\n", "éé", "12 ", "I'm sorry, but ", "http://a ", "的"]
)
def test_no_text_takes_long(text: str) -> None:
    long = text * (45_000 // len(text))  # 10,000 tokens
    began = time.process_time()
    flags(long, {"prompt": PROMPT, "alt_text": STREET, "language": "en"})
    assert time.process_time() - began < 2
