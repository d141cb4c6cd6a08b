"""The recipe: wrong fields are refused in one sentence, and overrides change fields."""

import json
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel, ValidationError

from caprl_ray import plan
from caprl_ray.caption.job import caption_job
from caprl_ray.cli import parsed
from caprl_ray.engines import internals
from caprl_ray.engines.concurrency import max_num_seqs
from caprl_ray.errors import RecipeError
from caprl_ray.output.fingerprint import fingerprint
from caprl_ray.output.folder import Output
from caprl_ray.recipe import sampling_fields, vllm_names
from caprl_ray.recipe.engine_arguments import recorded
from caprl_ray.recipe.load import apply_override, load, parse
from caprl_ray.recipe.sections import Recipe
from caprl_ray.storage import Storage

MINIMAL: dict[str, Any] = {"input": {"paths": ["images"]}, "output": {"path": "out"}}


def recipe_file(folder: Path, text: str = "input: {paths: [images]}\noutput: {path: out}\n") -> Path:
    path = folder / "recipe.yaml"
    path.write_text(text, encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("sections", "field", "value"),
    [
        ({"input": {"paths": []}}, "input.paths", "[]"),
        ({"input": {"paths": ["a", 3]}}, "input.paths.1", "3"),
        ({"input": {"paths": ["a"], "kind": "zip"}}, "input.kind", "'zip'"),
        ({"prepare": {"min_pixels": "7"}}, "prepare.min_pixels", "'7'"),
        ({"prepare": {"max_bytes": 0}}, "prepare.max_bytes", "0"),
        ({"prepare": {"max_source_pixels": 178_956_971}}, "prepare.max_source_pixels", "178956971"),
        ({"prepare": {"min_pixels": 50, "max_pixels": 49}}, "min_pixels", "50"),
        ({"model": 3}, "model", "3"),
        ({"model": {"source": ["a"]}}, "model.source", "['a']"),
        ({"replicas": {"min": True}}, "replicas.min", "True"),
        ({"replicas": {"min": 9, "max": 2}}, "max", "2"),
        ({"replicas": {"gpus": -1}}, "replicas.gpus", "-1"),
        ({"replicas": {"gpus": 1.5}}, "gpus", "1.5"),
        ({"replicas": {"gpus": 2}}, "replicas.gpus", "2"),
        ({"prompt": {"system": 5}}, "prompt.system", "5"),
        ({"prompt": {"user": "{txt!r}"}}, "prompt.user", "{txt}"),
        ({"sampling": {"temperature": 2.5}}, "sampling.temperature", "2.5"),
        ({"sampling": {"top_p": 0}}, "sampling.top_p", "0"),
        ({"sampling": {"max_tokens": 1.0}}, "sampling.max_tokens", "1.0"),
        ({"output": {"path": ""}}, "output.path", "''"),
        ({"output": {"path": "o", "rows_per_object": None}}, "output.rows_per_object", "None"),
    ],
)
def test_a_wrong_type_or_range_is_one_sentence_with_field_and_value(
    sections: dict[str, Any], field: str, value: str
) -> None:
    with pytest.raises(RecipeError) as error:
        parse(MINIMAL | sections)
    message = str(error.value)
    assert field in message and value in message
    assert message.endswith(".") and "\n" not in message and "pydantic" not in message


HASH = "0123456789abcdef" * 4


def placeholders(value: Any) -> dict[str, Any]:
    return MINIMAL | {"input": {"paths": ["a"], "placeholders": value}}


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ([HASH, HASH[1:]], f"entry 2 is '{HASH[1:]}', which is not a SHA-256; it should be 64 hex digits."),
        ([HASH[1:] + "g"], "entry 1 is"),
        ([7], "entry 1 is 7, which is not a SHA-256"),
        (["a" * 500], "entry 1 is"),
        ("", "it should be a list of SHA-256 in hex, or the path of a file that lists them."),
        ([HASH] * 1001, "it has 1,001 entries; write more than 1,000 into a text file"),
        (7, "not allowed"),
    ],
)
def test_a_wrong_placeholder_is_named(value: Any, said: str) -> None:
    with pytest.raises(RecipeError) as error:
        parse(placeholders(value))
    message = str(error.value)
    assert message.startswith("input.placeholders") and said in message and len(message) < 300
    assert message.endswith(".") and "\n" not in message


def test_placeholders_are_kept_in_lower_case_and_a_path_is_that_of_this_process() -> None:
    assert parse(placeholders([HASH.upper(), HASH])).input.placeholders == [HASH, HASH]
    assert parse(placeholders(HASH.upper())).input.placeholders == [HASH]
    assert parse(placeholders("gone.txt")).input.placeholders == str(Path("gone.txt").resolve())
    assert parse(placeholders("s3://bucket/gone.txt")).input.placeholders == "s3://bucket/gone.txt"


@pytest.mark.parametrize(
    ("sections", "field", "known"),
    [
        ({"replica": {}}, "replica", "replicas"),
        ({"replicas": {"gpu": 1}}, "replicas.gpu", "gpus"),
        ({"prompt": {"text": "x"}}, "prompt.text", "user"),
        ({"input": {"paths": ["a"], "path": "b"}}, "input.path", "paths"),
    ],
)
def test_an_unknown_field_is_named_beside_those_of_its_section(
    sections: dict[str, Any], field: str, known: str
) -> None:
    with pytest.raises(RecipeError) as error:
        parse(MINIMAL | sections)
    assert str(error.value).startswith(f"{field}: unknown field; ")
    assert known in str(error.value).partition(" has ")[2].rstrip(".").split(", ")


def test_a_key_that_stands_twice_is_refused_with_its_line(tmp_path: Path) -> None:
    twice = "model: {engine: {seed: 1}}\nreplicas: {gpus: 0}\nmodel: {engine: {dtype: half}}\n"
    (tmp_path / "more.yaml").write_text(twice)
    with pytest.raises(RecipeError) as error:
        load(recipe_file(tmp_path), [str(tmp_path / "more.yaml")])
    said = "the recipe is not valid YAML (the key model appears twice in line 3, column 1)."
    assert str(error.value) == f"{tmp_path}/more.yaml: {said}"
    with pytest.raises(RecipeError, match="the key seed appears twice in line 1"):
        load(recipe_file(tmp_path), ["model.engine={seed: 1, seed: 2}"])
    merged = "input: {paths: [x]}\noutput: &o {path: a}\nquality: {checks: {<<: {loop: keep}, loop: fail}}\n"
    assert load(recipe_file(tmp_path, merged)).quality.checks == {"loop": "fail"}, "what << brings may be given again"


@pytest.mark.parametrize("missing", ["input", "output"])
def test_fields_without_a_default_must_be_given(missing: str) -> None:
    with pytest.raises(RecipeError, match=f"^{missing}: missing"):
        parse({name: section for name, section in MINIMAL.items() if name != missing})


@pytest.mark.parametrize(
    ("sections", "section", "name", "near"),
    [
        ({"model": {"engine": {"max_modle_len": 64}}}, "model.engine", "max_modle_len", "max_model_len"),
        ({"sampling": {"min_p": 0.5}}, "sampling", "min_p", ""),
    ],
)
def test_a_name_that_vllm_does_not_know_is_refused_with_the_nearest(
    monkeypatch: pytest.MonkeyPatch, sections: dict[str, Any], section: str, name: str, near: str
) -> None:
    monkeypatch.setattr(vllm_names, "engine_arguments", lambda: frozenset({"max_model_len", "dtype"}))
    monkeypatch.setattr(vllm_names, "sampling_parameters", lambda: frozenset({"top_k", "seed"}))
    with pytest.raises(RecipeError) as error:
        parse(MINIMAL | sections)
    assert f"{name} is not a name that vLLM knows for {section}" in str(error.value)
    assert near in str(error.value)


def test_names_are_those_of_the_installed_vllm() -> None:
    if not vllm_names.engine_arguments():
        pytest.skip("vLLM is not installed, so no name is known")
    accepted = parse(MINIMAL | {"model": {"engine": {"max_model_len": 4096}}, "sampling": {"top_k": 5}})
    assert accepted.model.engine == {"max_model_len": 4096}
    assert accepted.sampling.model_extra == {"top_k": 5}
    for sections in ({"model": {"engine": {"bogus": 1}}}, {"sampling": {"bogus": 1}}):
        with pytest.raises(RecipeError, match="bogus"):
            parse(MINIMAL | sections)


@pytest.mark.parametrize("name", ["model", "revision", "tokenizer", "trust_remote_code"])
def test_the_model_cannot_be_replaced_through_its_engine_arguments(name: str) -> None:
    with pytest.raises(RecipeError, match=f"{name} cannot be given here"):
        parse(MINIMAL | {"model": {"engine": {name: "x"}}})


def test_engine_arguments_by_type_of_gpu_go_before_the_others() -> None:
    engine, by_type = {"max_num_seqs": 5, "seed": 1}, {"H100": {"max_num_seqs": 9}, "NEW-GPU": {"max_num_seqs": 3}}
    recipe = parse(MINIMAL | {"model": {"engine": engine, "engine_by_accelerator": by_type}})
    assert recipe.model.landed({"A100", "A100-80G"}).engine == engine
    assert recipe.model.landed({"H100"}).engine == engine | {"max_num_seqs": 9}
    assert max_num_seqs(recipe) == 9


@pytest.mark.parametrize(
    ("sections", "sentence"),
    [
        ({"model": {"engine_by_accelerator": {"h100": {}}}}, "h100 is not how Ray spells this type of GPU; give H100"),
        ({"replicas": {"accelerator_type": "NVIDIA A100-80G"}}, "replicas.accelerator_type: .* give A100-80G"),
        ({"replicas": {"accelerator_type": "L40S", "gpus": 0}}, "accelerator_type is L40S, but gpus is 0"),
        ({"model": {"engine_by_accelerator": {"H100": {"bogus": 1}}}}, "bogus is not a name that vLLM knows"),
        ({"model": {"engine_by_accelerator": {"H100": {"revision": 1}}}}, "revision cannot be given here"),
        (
            {"model": {"engine_by_accelerator": {"H100": {"tensor_parallel_size": 2}}}},
            "tensor_parallel_size cannot differ for H100",
        ),
        (
            {"model": {"endpoint": "http://host:1/v1", "engine_by_accelerator": {"H100": {"seed": 1}}}},
            "engine cannot be given together with endpoint",
        ),
    ],
)
def test_types_of_gpu_are_checked(sections: dict[str, Any], sentence: str) -> None:
    with pytest.raises(RecipeError, match=sentence):
        parse(MINIMAL | sections)


def test_arguments_that_change_captions_on_one_type_of_gpu_are_in_the_fingerprint() -> None:
    by_type = {"H100": {"quantization": "fp8", "max_num_seqs": 9}}
    recipe = parse(MINIMAL | {"model": {"source": "embedded", "engine_by_accelerator": by_type}})
    fields = [field for field in fingerprint(caption_job(recipe)) if "engine" in field]
    assert fields == ["model.engine_by_accelerator.H100.quantization"]


def test_parallel_sizes_must_multiply_to_the_gpus_of_a_replica() -> None:
    engine = {"tensor_parallel_size": 2, "pipeline_parallel_size": 2}
    assert parse(MINIMAL | {"model": {"engine": engine}, "replicas": {"gpus": 4}}).replicas.gpus == 4
    with pytest.raises(RecipeError, match=r"replicas.gpus is 2, .* multiply to 4"):
        parse(MINIMAL | {"model": {"engine": engine}, "replicas": {"gpus": 2}})


@pytest.mark.parametrize(
    ("replicas", "most"),
    [({}, 8), ({"gpus": 0}, 1), ({"gpus": 0, "min": 3}, 3), ({"min": 12}, 12), ({"max": 5}, 5)],
)
def test_the_default_of_the_most_replicas(replicas: dict[str, Any], most: int) -> None:
    assert parse(MINIMAL | {"replicas": replicas}).replicas.most == most


def test_overrides_are_yaml_reach_nested_and_absent_sections_and_the_last_one_wins(tmp_path: Path) -> None:
    recipe = load(
        recipe_file(tmp_path),
        [
            "replicas.gpus=0",
            "model.engine.max_model_len=2048",
            "model.engine.limit_mm_per_prompt.image=1",
            "prompt.system=null",
            "input.paths=[a, b]",
            "output.path=first",
            "output.path=key=value",
            "prompt.user=Hi: there",
        ],
    )
    assert recipe.replicas.gpus == 0
    assert recipe.model.engine == {"max_model_len": 2048, "limit_mm_per_prompt": {"image": 1}}
    assert recipe.prompt.system is None and recipe.prompt.user == "Hi: there"
    assert recipe.input.paths == ["a", "b"]
    assert recipe.output.path == str(Path("key=value").absolute())


def test_a_file_of_fields_goes_over_the_recipe_and_may_stand_among_overrides(tmp_path: Path) -> None:
    tuned = tmp_path / "tuned.yaml"
    tuned.write_text("model: {engine: {max_num_seqs: 64, compilation_config: {mode: 3}}}\nreplicas: {gpus: 0.5}\n")
    over = [
        "model.engine.max_model_len=2048",
        "model.engine.compilation_config.compile_mm_encoder=true",
        "model.engine.max_num_seqs=8",
        str(tuned),
        "replicas.max=4",
    ]
    args = parsed(["plan", str(recipe_file(tmp_path)), *over[:1], "--json", *over[1:]])
    assert args.overrides == over, "wherever it stands on the command line"
    recipe = load(args.recipe, args.overrides)
    joined = {"mode": 3, "compile_mm_encoder": True}
    assert recipe.model.engine == {"max_model_len": 2048, "max_num_seqs": 64, "compilation_config": joined}
    assert recipe.replicas.gpus == 0.5 and recipe.replicas.most == 4
    assert recipe.model.source == "internlm/CapRL-3B", "the rest is the recipe's"


@pytest.mark.parametrize(
    "override",
    [
        *("replicas.gpus", "gpus=0", "replicas.=0", ".gpus=0", "output.path.x=1", "replicas.gpus=[", "prepare.x=1"),
        "absent/tuned.yaml",
    ],
)
def test_a_wrong_override_is_named(tmp_path: Path, override: str) -> None:
    with pytest.raises(RecipeError) as error:
        load(recipe_file(tmp_path), [override])
    assert override.partition("=")[0] in str(error.value)


def test_a_file_that_is_no_recipe_is_named(tmp_path: Path) -> None:
    absent = tmp_path / "absent.yaml"
    with pytest.raises(RecipeError, match=r"absent\.yaml: the recipe cannot be read"):
        load(absent)
    for text in ("input: [", "- a list", "", "\tinput: x"):
        with pytest.raises(RecipeError, match=r"recipe\.yaml: "):
            load(recipe_file(tmp_path, text))


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("input: {paths: [café]}".encode("latin-1"), r"the recipe is not UTF-8 in line 1; save it as UTF-8\.$"),
        (b"prompt: {user: Describe: this}", r"\(expected ',' or '}', but got ':' in line 1, column \d+\)"),
        (b"prompt: {user: *secret-words}", r"\(found undefined alias \(not shown\) in line 1, column \d+\)"),
        (b"model: {revision: 2024-13-01}", "a value looks like a date or a number but is neither; write it in quotes"),
        (b"a: !!timestamp x", "write it in quotes"),
        (b"input: \x01", r"\(it has the character U\+0001, which is not allowed, after 7 others\)"),
    ],
)
def test_a_fault_of_yaml_is_told_with_its_place_and_without_the_recipes_words(
    tmp_path: Path, content: bytes, says: str
) -> None:
    (tmp_path / "recipe.yaml").write_bytes(content)
    with pytest.raises(RecipeError, match=says):
        load(tmp_path / "recipe.yaml")


def test_one_path_may_stand_without_a_list() -> None:
    assert parse({"input": {"paths": "images"}, "output": {"path": "out"}}).input.paths == ["images"]


def test_every_section_and_every_field_of_the_json_schema_is_described() -> None:
    schema = Recipe.model_json_schema()
    assert set(schema["properties"]) == set(Recipe.model_fields)
    assert schema["properties"].pop("prompts")["description"].endswith(".")
    for given in schema["properties"].values():
        (reference, *_) = given.get("anyOf", [given])  # a section that may be left out
        section = schema["$defs"][reference["$ref"].rpartition("/")[2]]
        assert section["description"]
        for name, field in section["properties"].items():
            assert field.get("description", "").endswith("."), f"{section['title']}.{name}"


def test_a_recipe_and_its_sections_are_frozen() -> None:
    recipe = parse(MINIMAL)
    for holder, name in [(recipe, "output"), *((getattr(recipe, name), None) for name in Recipe.model_fields)]:
        if not isinstance(holder, BaseModel):
            continue
        field = name or next(iter(type(holder).model_fields))
        with pytest.raises(ValidationError, match="frozen"):
            setattr(holder, field, getattr(holder, field))


@pytest.mark.parametrize("size", [None, "2", {}, True, 0])
def test_a_parallel_size_of_the_wrong_type_is_refused_by_name(size: object) -> None:
    document = {"input": {"paths": "a"}, "output": {"path": "o"}, "model": {"engine": {"tensor_parallel_size": size}}}
    with pytest.raises(RecipeError, match=r"model\.engine\.tensor_parallel_size: .* is not allowed"):
        parse(document)


@pytest.mark.parametrize("text", ["a: 2026-13-45", "a: " * 1 + "{a: " * 3000])
def test_yaml_that_breaks_its_parser_is_a_recipe_error(text: str, tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text(text)
    with pytest.raises(RecipeError):
        load(tmp_path / "recipe.yaml")


CANARY = "canary-77aa"


@pytest.mark.parametrize(
    ("engine", "place"),
    [
        ({"hf_token": CANARY}, "hf_token"),
        ({"model_loader_extra_config": {"s3_secret_access_key": CANARY}}, "model_loader_extra_config.s3_secret_access"),
        ({"kv_transfer_config": {"a": [{"b": {"API-Key": CANARY}}]}}, "kv_transfer_config.a.0.b.API-Key"),
        ({"kv_transfer_config": {"tokens": {"eu": [CANARY]}}}, "kv_transfer_config.tokens.eu.0"),
        ({"hf_overrides": {"password": 5521}}, "hf_overrides.password"),
        ({"hf_overrides": {"service": f"http://me:{CANARY}@host/"}}, "hf_overrides.service"),
        ({"additional_config": {"credentials": CANARY}}, "additional_config.credentials"),
    ],
)
def test_an_engine_argument_that_may_hold_a_secret_is_refused_and_not_repeated(
    engine: dict[str, Any], place: str
) -> None:
    for model in ({"engine": engine}, {"engine_by_accelerator": {"H100": engine}}):
        with pytest.raises(RecipeError, match=rf"model\.engine\.{place}") as error:
            parse(MINIMAL | {"model": model})
        assert CANARY not in str(error.value) and "5521" not in str(error.value)


def test_counts_of_tokens_and_names_of_tokenizers_are_no_secrets() -> None:
    engine = {
        "max_num_batched_tokens": 4096,
        "long_prefill_token_threshold": 4,
        "tokenizer_mode": "slow",
        "hf_overrides": {"eos_token_id": [1, 2], "num_key_value_heads": 2, "use_token_types": True},
    }
    assert parse(MINIMAL | {"model": {"engine": engine}}).model.engine == engine


def test_a_recipe_that_refers_to_itself_is_refused() -> None:
    endless: dict[str, Any] = {}
    endless["again"] = endless
    with pytest.raises(RecipeError, match=r"model\.engine\.hf_overrides\.again.* nested too deeply"):
        parse(MINIMAL | {"model": {"engine": {"hf_overrides": endless}}})


@pytest.mark.parametrize(
    ("text", "overrides"),
    [
        (f"model: {{engine: 'hf_token={CANARY}'}}", []),
        (f"model: [{{hf_token: {CANARY}}}]", []),
        (f"model: 'hf_token: {CANARY}'", []),
        (f"model: {{engine: {{hf_token: {CANARY}: x}}}}", []),
        (f"model: {{engine: {{hf_token: *{CANARY}}}}}", []),
        (f"model: {{engine: {{hf_token: !{CANARY} x}}}}", []),
        ("", [f"model.engine.hf_token={CANARY}: ["]),
        ("", [f"hf_token={CANARY}"]),
        ("model: 3", [f"model.engine.hf_token={CANARY}"]),
    ],
)
def test_no_message_about_a_recipe_repeats_a_secret(tmp_path: Path, text: str, overrides: list[str]) -> None:
    path = recipe_file(tmp_path, f"input: {{paths: [images]}}\noutput: {{path: out}}\n{text}\n")
    with pytest.raises(RecipeError) as error:
        load(path, overrides)
    assert CANARY not in str(error.value) and len(str(error.value)) > 30, error.value


def test_the_fingerprint_takes_engine_arguments_of_a_list_and_no_others() -> None:
    engine = {"dtype": "float16", "seed": 3, "max_num_seqs": 9, "model_loader_extra_config": {"a": "b"}}
    recipe = parse(MINIMAL | {"model": {"source": "embedded", "engine": engine}})
    fields = {name: value for name, value in fingerprint(caption_job(recipe)).items() if "engine" in name}
    assert fields == {"model.engine.dtype": "float16", "model.engine.seed": 3}
    assert recorded(recipe.model_dump())["model"]["engine"] == engine | {"model_loader_extra_config": "(not shown)"}


def test_an_output_whose_fingerprint_holds_other_engine_arguments_is_still_resumed(tmp_path: Path) -> None:
    document = {"input": {"paths": "a"}, "output": {"path": str(tmp_path)}, "model": {"source": "embedded"}}
    job = caption_job(parse(document))
    plan.store(Storage(job.recipe.storage), str(tmp_path), [])
    older = {"model.engine.hf_token": CANARY, "model.engine_by_accelerator.H100.block_size": 16}

    def stored(**more: Any) -> None:
        content = {"fingerprint": fingerprint(job) | older | more}
        (tmp_path / "run.json").write_text(json.dumps(content))

    stored()
    assert Output.open(job).planned
    stored(**{"model.engine.dtype": "float16"})
    with pytest.raises(RecipeError, match=r"model\.engine\.dtype was 'float16' and is None\. ") as error:
        Output.open(job)
    assert CANARY not in str(error.value)


SAMPLING: dict[str, Any] = {
    "top_k": 5,
    "min_p": 0.1,
    "seed": 3,
    "presence_penalty": -1,
    "frequency_penalty": 0.5,
    "stop": ["\n\n", "END"],
    "stop_token_ids": [7],
    "include_stop_str_in_output": True,
    "ignore_eos": False,
    "min_tokens": 4,
    "skip_special_tokens": False,
    "spaces_between_special_tokens": False,
    "logit_bias": {12: -3},
    "allowed_token_ids": [1, 2],
    "bad_words": ["image"],
    "structured_outputs": {"regex": "a+"},
}


def test_sampling_takes_the_fields_of_its_list_and_the_fingerprint_holds_what_is_given() -> None:
    assert SAMPLING.keys() == sampling_fields.FIELDS.keys()
    harmless = {"n": 1, "detokenize": True, "logprobs": None}  # older recipes may say so
    recipe = parse(MINIMAL | {"model": {"source": "embedded"}, "sampling": SAMPLING | harmless})
    fields = fingerprint(caption_job(recipe))
    given = {f"sampling.{name}": value for name, value in (SAMPLING | harmless).items()}
    assert given.items() <= fields.items() and parse(recipe.model_dump()) == recipe


def test_vllm_takes_every_sampling_field_of_the_list() -> None:
    vllm = pytest.importorskip("vllm")
    fields = internals.sampling_classes(parse(MINIMAL | {"sampling": SAMPLING}).sampling.model_dump(exclude={"n"}))
    params = vllm.SamplingParams(**fields)
    plain = {name: value for name, value in SAMPLING.items() if name != "structured_outputs"}
    assert all(getattr(params, name) == value for name, value in plain.items())
    assert params.structured_outputs.regex == "a+"
    assert params.repetition_detection.max_pattern_size == 64


@pytest.mark.parametrize(
    ("sampling", "sentence"),
    [
        ({"detokenize": False}, "detokenize is False, but a caption is text"),
        ({"logprobs": 0}, "logprobs is 0, but no column holds probabilities"),
        ({"prompt_logprobs": 2}, "prompt_logprobs is 2, but no column"),
        ({"output_kind": 2}, "output_kind is not a sampling field that a recipe can have; use one of "),
        ({"structured_outputs": {}}, "structured_outputs is {}; it "),
        ({"structured_outputs": {"jsn": {}}}, "structured_outputs is {'jsn': {}}; it should have one of json, regex, "),
        (
            {"structured_outputs": {"regex": "a", "choice": ["b"]}},
            "structured_outputs is .*; it should have one of json, regex, choice, grammar",
        ),
        ({"structured_outputs": {"grammar": 5}}, "structured_outputs is {'grammar': 5}; it should have a grammar as "),
        ({"structured_outputs": {"choice": [5]}}, "structured_outputs is .*; it should have a list of texts as choice"),
        ({"topk": 5}, "topk is not a sampling field that a recipe can have; use one of top_k"),
        ({"temprature": 0}, "temprature is not a sampling field that a recipe can have; use one of temperature"),
        ({"top_k": "5"}, "top_k is '5'; it should be a valid integer"),
        ({"seed": 1.5}, "seed is 1.5; it should be a valid integer"),
        ({"stop": []}, r"stop is \[\]; it should"),
        ({"min_p": 2}, "min_p is 2; it should be less than or equal to 1"),
        ({"bad_words": "image"}, "bad_words is 'image'; it should be a valid list"),
    ],
)
def test_a_sampling_field_that_cannot_be_kept_is_refused_at_load(sampling: dict[str, Any], sentence: str) -> None:
    with pytest.raises(RecipeError, match=rf"^sampling: {sentence}") as error:
        parse(MINIMAL | {"sampling": sampling})
    assert str(error.value).endswith(".") and "\n" not in str(error.value)


def test_a_prompt_that_begins_with_a_column_is_a_text_and_a_mapping_stays_one() -> None:
    document: dict[str, Any] = {}
    for override in ("prompt.user={label|no text}", "prompts.short={alt} in short", "model.engine={max_num_seqs: 4}"):
        apply_override(document, override)
    assert document["prompt"] == {"user": "{label|no text}"} and document["prompts"] == {"short": "{alt} in short"}
    assert document["model"] == {"engine": {"max_num_seqs": 4}}
    with pytest.raises(RecipeError, match=r"the recipe's path comes first"):
        load("model.source=stub")
