"""Pages that users copy from: every recipe is valid, every command is one, every block is checked or says why not."""

import re
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

import caprl_ray
from caprl_ray import pipeline
from caprl_ray.caption.columns import CODES
from caprl_ray.caption.job import caption_job
from caprl_ray.cli import main, parsed
from caprl_ray.commands.demo import demo_recipe, render_dataset
from caprl_ray.recipe.curate import CurateRecipe
from caprl_ray.recipe.judge import as_judge
from caprl_ray.recipe.load import parse, parse_as
from caprl_ray.recipe.score_recipe import ScoreRecipe
from caprl_ray.recipe.sections import Recipe
from docs.draw_view import PICTURE, picture
from docs.generate import PAGES, SIGNATURE, on_page_markdown
from tests.checkout import ROOT
from tests.docs import joining

NOT_RUN = re.compile(r"<!-- not run(?: here)?: \S.*? -->\n\Z")
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```", re.MULTILINE | re.DOTALL)
EXPORT = ROOT / "docs" / "export.md"
WRITTEN = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


def blocks() -> list[Any]:
    """Every block that has no word on why it is not run: its page, its language and its text."""
    found = []
    for page in WRITTEN:
        text = page.read_text(encoding="utf-8")
        for number, match in enumerate(BLOCK.finditer(text)):
            if match[1] != "text" and not NOT_RUN.search(text[: match.start()]):
                name = f"{page.relative_to(ROOT)}-{number}"
                found.append(pytest.param(match[1], match[2], id=name))
    return found


@dataclass(frozen=True, kw_only=True)
class Run:
    """A small run over every kind of input, and a value for each name in capitals."""

    recipe: Recipe
    names: dict[str, Path]
    lists: dict[str, Path]

    def filled(self, text: str) -> str:
        """A block with paths for the names in it."""
        names = self.names | (self.lists if "LISTS" in text else {})
        return re.sub(r"\b[A-Z]+\b", lambda word: str(names.get(word[0], word[0])), text)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, ray_cluster: None) -> Run:
    folder = tmp_path_factory.mktemp("pages")
    inputs, out = joining.make_inputs(folder / "images"), folder / "out"
    paths = [inputs["PHOTOS"], inputs["SHARD"], inputs["TABLES"], inputs["NAMED"]]
    recipe = parse(demo_recipe(paths, out) | {"model": {"source": "stub"}})
    assert pipeline.run(caption_job(recipe)).balanced
    return Run(recipe=recipe, names=inputs | {"OUT": out}, lists=joining.make_lists(folder / "lists"))


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory, ray_cluster: None) -> Path:
    """The output of a small run over photos, with the exports of docs/export.md beside it."""
    folder = tmp_path_factory.mktemp("exported")
    render_dataset(folder / "images", 24)
    document = demo_recipe([folder / "images" / "files"], folder / "out") | {"model": {"source": "stub"}}
    assert pipeline.run(caption_job(parse(document))).balanced
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for line in re.findall(r"^caprl-ray ((?:export|duplicates) OUT .*)$", EXPORT.read_text(), re.MULTILINE):
            if "--form dpo" in line:  # needs an output with scores (tests/export/test_pairs.py)
                continue
            assert main(shlex.split(line.replace("OUT", str(folder / "out")))) == 0
    return folder / "out"


def check_shell(text: str, out: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """`make` targets are there, `caprl-ray` commands parse, and `verify` of an output runs."""
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for line in filter(None, text.splitlines()):
        command = shlex.split(line, comments=True)
        if command[0] == "make":
            assert re.search(rf"^{command[1]}:", makefile, re.MULTILINE), line
        else:
            assert command[0] == "caprl-ray", f"say why this is not run: {line}"
            arguments = [word.replace("OUT", str(out)) for word in command[1:]]
            parsed(arguments)
            if arguments[0] == "verify" and str(out) in arguments[1]:
                assert main(arguments) == 0
                assert "captioned" in capsys.readouterr().out


def is_judge(document: dict[str, Any]) -> bool:
    """Whether a recipe is that of an evaluation's judge: its section `score` has no questions."""
    return "score" in document and "questions" not in document["score"]


def check_recipe(document: dict[str, Any]) -> None:
    """Raise RecipeError for what is no recipe of its kind."""
    if is_judge(document):
        found = as_judge(document)
        found.questioner("-", "-")
        found.reader("-", "-", "-")
    else:
        parse_as(kind_of(document), document)


def kind_of(document: dict[str, Any]) -> type[Recipe]:
    """A recipe for curating, for scoring, or one that captions and may name its readers in `score`."""
    if "curate" in document:
        return CurateRecipe
    return ScoreRecipe if "score" in document and "model" not in document["score"] else Recipe


@pytest.mark.parametrize(("language", "text"), blocks())
def test_a_block_is_what_it_says(
    language: str,
    text: str,
    made: Run,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    request: pytest.FixtureRequest,
) -> None:
    if language == "yaml":
        document = yaml.safe_load(text)
        more = {} if is_judge(document) else {"input": {"paths": ["-"]}, "output": {"path": "-"}}
        check_recipe(more | document)
    elif language == "sh":
        check_shell(text, made.names["OUT"], monkeypatch, capsys)
    else:
        assert language == "python"
        if text in EXPORT.read_text(encoding="utf-8"):
            out = request.getfixturevalue("exported")
            monkeypatch.chdir(out.parent)
            exec(text.replace("OUT", str(out)), {})
            return
        found: dict[str, Any] = {}
        exec(made.filled(text), found)
        if "joined" in found:
            joining.check_joined(found["joined"], made.recipe, made.names)
        if "SAVED" in text:
            joining.check_saved(made.names["SAVED"])


def test_every_block_says_its_language() -> None:
    for page in WRITTEN:
        fences = re.findall(r"^```(.*)$", page.read_text(encoding="utf-8"), re.MULTILINE)
        assert all(fences[::2]) and not any(fences[1::2]), page


def test_a_recipe_in_the_readme_is_whole() -> None:
    (recipe,) = (text for language, text in BLOCK.findall((ROOT / "README.md").read_text()) if language == "yaml")
    parse(yaml.safe_load(recipe))


def test_every_recipe_that_is_shipped_is_one() -> None:
    for path in (ROOT / "recipes").glob("*.yaml"):
        check_recipe(yaml.safe_load(path.read_text(encoding="utf-8")))


def test_the_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 150


def test_the_picture_of_the_view_is_up_to_date_and_loads_nothing_from_elsewhere() -> None:
    assert PICTURE.read_text(encoding="utf-8") == picture(), "run python docs/draw_view.py"
    assert not re.search(r"url\((?!#)|href=", picture())


def test_the_page_of_the_python_api_has_all_names_with_their_signatures() -> None:
    page = (ROOT / "docs" / "python.md").read_text(encoding="utf-8")
    assert set(caprl_ray.__all__) <= set(re.findall(r"\w+", page)) and set(dir(caprl_ray)) == set(caprl_ray.__all__)
    filled = on_page_markdown(page)
    assert 'image_column: str = "image") -> Dataset\n```\n' in filled and "\n- `gpus`: the number of GPUs" in filled
    assert "class Reward(*, mode: str = 'sampled'" in filled and not SIGNATURE.search(filled)


def test_generated_pages_hold_every_field_code_and_command() -> None:
    recipe, codes, commands = (PAGES[f"reference/{name}.md"]() for name in ("recipe", "failure-codes", "commands"))
    for name, section in Recipe.model_fields.items():
        own = recipe.partition(f"\n## {name}\n")[2].partition("\n## ")[0]
        assert all(f"\n| `{field}` |" in own for field in getattr(section.annotation, "model_fields", ()))
        assert own.strip()
    assert all(f"`{code}`" in codes for code in CODES)
    assert all(f"## caprl-ray {name}" in commands for name in ("caption", "plan", "status", "verify", "demo"))
    assert "`caption_tokens`" in PAGES["reference/output.md"]()
