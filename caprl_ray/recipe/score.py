"""The section `score` of a recipe: how captions are scored, by a job of its own or while they are written."""

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from caprl_ray.recipe.fields import Section, absolute
from caprl_ray.recipe.model import Model
from caprl_ray.recipe.replicas import Engine, Replicas

Metric = Literal["choice", "relaxed", "anls", "exact", "math"]
Share = Annotated[float, Field(ge=0, le=1)]
ANSWERER = "internlm/CapRL-Eval-3B"


class QuestionFile(Section):
    """One file of questions."""

    path: Annotated[str, Field(min_length=1), AfterValidator(absolute)]
    """Parquet, a JSON list or JSON lines, local or s3://: CapRL-QA-75K, one of CapRL's evaluation files, or a table
    with the columns id, question, choices, answer and metric. Or the output folder of `caprl-ray curate`."""
    benchmark: Annotated[str, Field(min_length=1)] | None = None
    """The name of the results. If left out, the file's name. One of the paper's benchmarks, such as ChartQA, is shown
    beside the paper's results."""
    metric: Metric | None = None
    """How answers are compared: choice, relaxed (within 5 % of a number), anls (similar texts), exact, or math (equal
    formulas). If left out, that of the paper's benchmark, or the one that the row names; questions with options have
    choice."""


def _files(value: Any) -> Any:
    """A path alone is a file."""
    values = value if isinstance(value, list) else [value]
    return [{"path": one} if isinstance(one, str) else one for one in values]


class Score(Section):
    """How captions are scored: by the questions that a language model can answer from them without the image."""

    questions: Annotated[list[QuestionFile], Field(min_length=1), BeforeValidator(_files)]
    """The question files: paths, or {path, benchmark, metric}."""
    join: Literal["id", "key", "path", "sha256"] = "id"
    """The value by which captions and questions are joined. `path` compares only the names of the files."""
    column: str | None = None
    """The column of the captions that holds it, under its name in the input. If left out, the column of the name of
    `join`; for `path` of a caption run's output, its column `key`."""
    caption: Annotated[str, Field(min_length=1)] = "caption"
    """The column of the captions' texts."""
    mode: Literal["deterministic", "sampled", "prism"] = "deterministic"
    """How the reader answers. deterministic: one letter, greedily, with its probability, in every rotation of the
    options. sampled: as CapRL's reward, `draws` questions with shuffled options at temperature 0.6. prism: as CapRL's
    evaluation, with the prompts of its files, at temperature 1."""
    rotations: Annotated[int, Field(ge=1)] | None = None
    """In how many rotations of its options each question is asked, in the mode deterministic. If left out, as many as
    it has options."""
    draws: Annotated[int, Field(ge=1, le=64)] = 8
    """How many questions are drawn for each caption, with replacement, in the mode sampled."""
    samples: Annotated[int, Field(ge=1, le=64)] = 1
    """How often each question is answered, in the mode prism."""
    blind: Share = 1.0
    """The share of questions that are also asked without the caption, to measure guessing. 0 saves the time."""
    twice: Share = 0.01
    """The share of questions that are asked twice, to measure whether the reader repeats its answer."""
    seed: int = 0
    """Decides rotations, draws, and which questions are asked blind or twice."""
    system: str | None = None
    """The system turn of the prompts, in the modes deterministic and sampled. null means none, as in CapRL's reward.
    With an endpoint it must be a text."""
    instruction: str | None = None
    """Replaces the instruction in the modes deterministic and sampled. It must have {caption} and {question}."""

    @model_validator(mode="after")
    def _check(self) -> "Score":
        if self.instruction is not None:
            for name in ("{caption}", "{question}"):
                if self.instruction.count(name) != 1:
                    raise ValueError(f"instruction must have {name} once, where it stands in the prompt")
        if self.instruction is not None and self.mode == "prism":
            raise ValueError("instruction is not for the mode prism, whose files have their own prompts")
        return self


class ReaderModel(Model):
    """The model that reads captions and answers questions."""

    source: Annotated[str, Field(min_length=1)] = ANSWERER
    """The reader: a hub id, a folder that every node has, or an `s3://` prefix. Any language model; it sees no
    images."""


class Scoring(Score):
    """Score captions while they are written, with a second pool of replicas (docs: Scoring captions)."""

    model: ReaderModel = ReaderModel()
    """The reader, with the fields of the section model."""
    engine: Engine = Engine()
    """How its engines are kept alive, with the fields of the section engine."""
    replicas: Replicas = Replicas()
    """How many readers answer in parallel and what each of them needs, with the fields of the section replicas. Each
    takes GPUs of its own: give both pools as many as answer in the time in which the others caption."""


def check_system(model: Model, score: Score, section: str = "") -> None:
    """Raise ValueError for a reader at an endpoint whose chat template may add a system turn."""
    if model.endpoint and score.system is None and score.mode != "prism":
        raise ValueError(
            f"score.system: null cannot be kept with {section}model.endpoint, because the service's own chat template "
            "may add a system turn; give it a text"
        )
