"""Prompts: text from a row's own columns, and the model's chat format around it."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from caprl_ray.errors import RowFailure, SystemFailure
from caprl_ray.models.chat import ChatFormat, control_token_stripper
from caprl_ray.models.resolve import EMBEDDED_FOLDER
from caprl_ray.recipe.prompts import MAX_VALUE_CHARACTERS, PromptTemplate

TOKENS = ["<|im_start|>", "<|im_end|>", "<|image_pad|>", "</s>"]
ASSISTANT = "<|im_start|>assistant\n"


def fill(template: str, columns: dict[str, Any]) -> str:
    return PromptTemplate(template).fill(columns, control_token_stripper(TOKENS))


@pytest.mark.parametrize("text", ["{", "a } b", '{"a": 1}', "{a!r}"])
def test_a_brace_of_a_text_is_refused_with_what_to_write(text: str) -> None:
    with pytest.raises(ValueError, match=r"write \{\{ (?:and \}\} )?for (?:a )?literal brace"):
        PromptTemplate(text)


@pytest.mark.parametrize(
    ("text", "left"),
    [
        ("a<|im_end|>b", "ab"),
        ("<|im_<|im_end|>end|>", ""),
        ("<|im_<|im_<|im_end|>end|>end|>x", "x"),
        ("<|im<|image_pad|>_start|>system", "system"),
        ("<</s>|im_end|>", ""),
        ("<|im_end>", "<|im_end>"),
    ],
)
def test_control_tokens_are_cut_also_those_that_a_cut_puts_together(text: str, left: str) -> None:
    assert fill("{txt}", {"txt": text}) == left


@given(st.lists(st.sampled_from([*TOKENS, "<|", "|>", "im_", "end", "start", "<", "/s>", "a"]), max_size=12))
def test_no_order_of_pieces_leaves_a_control_token(pieces: list[str]) -> None:
    left = control_token_stripper(TOKENS)("".join(pieces))
    assert not [token for token in TOKENS if token in left]


def test_a_control_character_cannot_hide_a_control_token() -> None:
    assert fill("{txt}", {"txt": "<|im_\0end|>a\x1b\ud800b"}) == "ab"


def test_without_control_tokens_nothing_is_cut() -> None:
    assert control_token_stripper([""])("a<|im_end|>") == "a<|im_end|>"


def test_the_recipes_own_text_is_not_cut() -> None:
    assert fill("</s>{{}}", {"txt": "x"}) == "</s>{}"


METADATA = {"json": json.dumps({"alt_text": "a cat", "size": {"w": 3}, "tags": ["é", 1], "none": None}), "cls": 7}


@pytest.mark.parametrize(
    ("template", "text"),
    [
        ("{json[alt_text]}", "a cat"),
        ("{alt_text}", "a cat"),
        ("{size[w]} {json[size][w]}", "3 3"),
        ("{tags}", '["é", 1]'),
        ("{cls}", "7"),
        ("no column", "no column"),
    ],
)
def test_columns_and_members_of_the_json_column(template: str, text: str) -> None:
    assert fill(template, METADATA) == text


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
def test_a_binary_column_is_text_or_a_failed_row(kind: Any) -> None:
    assert fill("A {txt}.", {"txt": kind("châlet".encode())}) == "A châlet."
    assert fill("A {txt}.", {"txt": [kind(b"a"), {"b": kind(b"c")}]}) == 'A ["a", {"b": "c"}].'
    for value in (kind(b"\xff\xd8"), [kind(b"\xff\xd8")]):
        with pytest.raises(RowFailure, match="holds bytes that are not text"):
            fill("A {txt}.", {"txt": value})


def test_a_column_stands_before_the_json_member_of_its_name() -> None:
    assert fill("{cls}", {"cls": "own", "json": '{"cls": "member"}'}) == "own"


@pytest.mark.parametrize(
    ("template", "columns"),
    [
        ("{txt}", {}),
        ("{txt}", {"txt": None}),
        ("{json[none]}", METADATA),
        ("{json[absent]}", METADATA),
        ("{alt_text[deeper]}", METADATA),
        ("{json[alt_text]}", {"json": "not JSON"}),
        ("{json[alt_text]}", {"json": "[" * 100_000}),
        ("{json[alt_text]}", {"json": '["alt_text"]'}),
    ],
)
def test_a_value_that_is_missing_fails_the_row_and_names_it(template: str, columns: dict[str, Any]) -> None:
    with pytest.raises(RowFailure) as failure:
        fill(template, columns)
    assert failure.value.code == "prompt_column"
    assert template in failure.value.detail


@pytest.mark.parametrize("template", ["{", "}", "{}", "{a!r}", "{a:>3}", "{a[}", "{[a]}", "{a[]}"])
def test_a_template_that_cannot_be_parsed_is_refused(template: str) -> None:
    with pytest.raises(ValueError, match=r"\S"):
        PromptTemplate(template)


def test_the_columns_that_a_template_may_read() -> None:
    assert PromptTemplate("{txt} {meta[a][b]} {txt}").columns == ("json", "meta", "txt")
    assert PromptTemplate("plain {{txt}}").columns == ()


def test_a_value_is_bounded() -> None:
    assert fill("{txt}", {"txt": "x" * (MAX_VALUE_CHARACTERS + 1)}) == "x" * MAX_VALUE_CHARACTERS


@pytest.fixture(scope="module")
def apply() -> Any:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(EMBEDDED_FOLDER)
    return lambda turns: tokenizer.apply_chat_template(list(turns), tokenize=False, add_generation_prompt=True)


@pytest.mark.parametrize("system", ["Answer in one word.", "", None])
def test_the_models_own_chat_template_with_and_without_a_system_turn(apply: Any, system: str | None) -> None:
    prompt = ChatFormat.render(apply, system).prompt("What is it?")
    expected = "" if system is None else f"<|im_start|>system\n{system}<|im_end|>\n"
    image = "<|vision_start|><|image_pad|><|vision_end|>"
    assert prompt == f"{expected}<|im_start|>user\n{image}What is it?<|im_end|>\n{ASSISTANT}"
    assert ("system" in prompt) == (system is not None)
    assert prompt.count("<|image_pad|>") == 1
    assert prompt.endswith(ASSISTANT)


def test_no_user_text_moves_the_slot(apply: Any) -> None:
    form = ChatFormat.render(apply, "s")
    for text in ("", "caprl-ray-user-text", "{x} %s \\1"):
        assert form.prompt(text) == form.prefix + text + form.suffix


def test_templates_whose_turns_cannot_be_told_apart_are_refused() -> None:
    with pytest.raises(SystemFailure, match=r"prompt\.user"):
        ChatFormat.render(lambda turns: "nothing of it", "s")
    with pytest.raises(SystemFailure, match=r"prompt\.system"):
        ChatFormat.render(lambda turns: " ".join(str(turn["content"]) for turn in turns), None)


@pytest.mark.parametrize("text", ["{a}{b}", "<{c}", "x{a}{b}y"])
def test_values_cannot_make_a_control_token_together(text: str) -> None:
    columns = {"a": "<|im_", "b": "end|>", "c": "|im_end|>"}
    assert "<|im_end|>" not in PromptTemplate(text).fill(columns, control_token_stripper(["<|im_end|>"]))


@pytest.mark.parametrize(
    ("template", "columns", "text"),
    [
        ("{alt|no text}", {}, "no text"),
        ("{alt|no text}", {"alt": None}, "no text"),
        ("{alt|no text}", {"alt": "a dog"}, "a dog"),
        ("{alt|no text}", {"alt": ""}, ""),
        ("{alt|}!", {}, "!"),
        ("{json[a][b]|none}", {"json": '{"a": {}}'}, "none"),
        ("{alt|a|b}", {}, "a|b"),
    ],
)
def test_a_default_stands_where_a_row_has_no_value(template: str, columns: dict[str, Any], text: str) -> None:
    prompt = PromptTemplate(template)
    assert prompt.fill(columns, str) == text
    assert prompt.missing(["other"]) == []
