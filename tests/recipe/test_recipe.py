"""The recipe: what is refused, in which words, and what overrides do."""

from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from caprl_ray.caption.job import caption_job
from caprl_ray.engines.concurrency import max_num_seqs
from caprl_ray.errors import RecipeError
from caprl_ray.output.fingerprint import fingerprint
from caprl_ray.recipe import vllm_names
from caprl_ray.recipe.load import load, parse
from caprl_ray.recipe.sections import Recipe

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


@pytest.mark.parametrize("missing", ["input", "output"])
def test_what_has_no_default_must_be_given(missing: str) -> None:
    with pytest.raises(RecipeError, match=f"^{missing}: missing"):
        parse({name: section for name, section in MINIMAL.items() if name != missing})


@pytest.mark.parametrize(
    ("sections", "section", "name", "near"),
    [
        ({"model": {"engine": {"max_modle_len": 64}}}, "model.engine", "max_modle_len", "max_model_len"),
        ({"sampling": {"topk": 5}}, "sampling", "topk", "top_k"),
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


def test_what_changes_captions_on_one_type_of_gpu_is_in_the_fingerprint() -> None:
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
        ],
    )
    assert recipe.replicas.gpus == 0
    assert recipe.model.engine == {"max_model_len": 2048, "limit_mm_per_prompt": {"image": 1}}
    assert recipe.prompt.system is None
    assert recipe.input.paths == ["a", "b"]
    assert recipe.output.path == str(Path("key=value").absolute())


@pytest.mark.parametrize(
    "override",
    ["replicas.gpus", "gpus=0", "replicas.=0", ".gpus=0", "output.path.x=1", "replicas.gpus=[", "prepare.x=1"],
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


def test_one_path_may_stand_without_a_list() -> None:
    assert parse({"input": {"paths": "images"}, "output": {"path": "out"}}).input.paths == ["images"]


def test_every_section_and_every_field_of_the_json_schema_is_described() -> None:
    schema = Recipe.model_json_schema()
    assert set(schema["properties"]) == set(Recipe.model_fields)
    for reference in schema["properties"].values():
        section = schema["$defs"][reference["$ref"].rpartition("/")[2]]
        assert section["description"]
        for name, field in section["properties"].items():
            assert field.get("description", "").endswith("."), f"{section['title']}.{name}"


def test_a_recipe_and_its_sections_are_frozen() -> None:
    recipe = parse(MINIMAL)
    for holder, name in [(recipe, "output"), *((getattr(recipe, name), None) for name in Recipe.model_fields)]:
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
