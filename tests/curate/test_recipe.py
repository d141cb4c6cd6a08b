"""Recipes for questions: their refusals, the fields that are kept, and the arguments of the answering model."""

from typing import Any

import pytest

from caprl_ray.curate.fingerprint import fingerprint
from caprl_ray.curate.job import curate_job
from caprl_ray.engines.vllm_engine import engine_arguments
from caprl_ray.errors import RecipeError
from caprl_ray.models.resolve import resolve
from caprl_ray.output.fingerprint import outdated
from caprl_ray.recipe.curate import CurateRecipe
from caprl_ray.recipe.engine_arguments import NOT_SHOWN, recorded
from caprl_ray.recipe.load import apply_override, parse, parse_as

MODEL = {"source": "embedded"}


def recipe(*overrides: str) -> CurateRecipe:
    document: dict[str, Any] = {
        "input": {"paths": ["a"]},
        "model": dict(MODEL),
        "curate": {"model": dict(MODEL), "replicas": {"gpus": 0}},
        "output": {"path": "o"},
    }
    for override in overrides:
        apply_override(document, override, CurateRecipe)
    return parse_as(CurateRecipe, document)


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        ("curate.replicas.gpus=2", r"^curate\.replicas\.gpus is 2, but "),
        ("score.questions=[q]", "^score is for captioning; a recipe for questions cannot have it"),
        ("curate.least_with_image=1", r"^curate\.least_with_image: 1 is not allowed; it should be less than 1"),
        ("curate.most_without_image=0", r"^curate\.most_without_image: 0 is not allowed; it should be greater than 0"),
        ("curate.model.engine=private", r"^curate\.model\.engine: \(not shown\) is not allowed"),
    ],
)
def test_what_makes_no_questions_is_refused_in_one_sentence(override: str, sentence: str) -> None:
    with pytest.raises(RecipeError, match=sentence):
        curate_job(recipe(override))


def test_the_engine_arguments_of_every_model_are_kept_without_what_may_be_private() -> None:
    found = recipe(
        "model.engine={model_loader_extra_config: {a: b}}",
        "curate.model.engine={dtype: float16, model_loader_extra_config: {a: b}}",
        "curate.model.engine_by_accelerator={H100: {model_loader_extra_config: {a: b}}}",
        "input.rename={model: engine}",
    )
    kept = recorded(found.model_dump())
    private = {"model_loader_extra_config": NOT_SHOWN}
    assert kept["model"]["engine"] == private and kept["curate"]["model"]["engine"] == private | {"dtype": "float16"}
    assert kept["curate"]["model"]["engine_by_accelerator"] == {"H100": private}
    assert kept["input"]["rename"] == {"model": "engine"}


def test_runs_agree_in_the_sizes_of_images_and_in_engine_arguments_that_change_answers() -> None:
    here = recipe("curate.model.engine={dtype: float16, max_num_seqs: 3}")
    there = recipe("model.endpoint=http://127.0.0.1:1/v1")
    model = resolve(here)
    fields = fingerprint(here, model, model)
    assert fields["curate.model.engine.dtype"] == "float16" and "curate.model.engine.max_num_seqs" not in fields
    assert outdated("curate.model.engine.max_num_seqs") and not outdated("curate.model.engine.dtype")
    assert fingerprint(there, model, model)["model.size_rule.max_pixels"] == model.size_rule.max_pixels


def test_the_answering_engine_encodes_an_image_once_for_all_of_its_questions() -> None:
    found = recipe("replicas.gpus=0")
    assert not engine_arguments(found, resolve(found))["enable_prefix_caching"]
    assert engine_arguments(found.answering, resolve(found.answering))["enable_prefix_caching"]


def test_a_text_with_a_colon_is_the_system_turn_of_the_answering_model() -> None:
    assert recipe("curate.system=Answer: a letter.").curate.system == "Answer: a letter."


def test_a_recipe_for_questions_that_another_command_gets_is_sent_to_its_own() -> None:
    with pytest.raises(RecipeError, match=r"^curate: this section is only for caprl-ray curate; give the recipe to "):
        parse({"input": {"paths": ["a"]}, "output": {"path": "o"}, "curate": {}})
