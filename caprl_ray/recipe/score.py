"""The section `score` of a recipe: how captions are scored, in a job of its own or while they are written."""

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
    """A file in parquet, as a JSON list or as JSON lines, local or s3://: CapRL-QA-75K, one of CapRL's evaluation
    files, or a table with the columns id, question, choices, answer and metric. Or the output folder of `caprl-ray
    curate`."""
    benchmark: Annotated[str, Field(min_length=1)] | None = None
    """The name of the results. If left out, the file's name. For a benchmark of the CapRL paper, such as ChartQA, the
    paper's results are shown beside yours."""
    metric: Metric | None = None
    """How answers are compared: choice, relaxed (within 5 % of a number), anls (similar texts), exact, or math (equal
    formulas). If left out, the metric of the paper's benchmark or the one that the row names; questions with options
    have choice."""


def _files(value: Any) -> Any:
    """Accept a path in place of a list, and in place of a file's section."""
    values = value if isinstance(value, list) else [value]
    return [{"path": one} if isinstance(one, str) else one for one in values]


class Score(Section):
    """How captions are scored.

    A language model, the reader, answers questions about the image from the caption alone.
    """

    questions: Annotated[list[QuestionFile], Field(min_length=1), BeforeValidator(_files)]
    """The question files: paths, or {path, benchmark, metric}."""
    join: Literal["id", "key", "path", "sha256"] = "id"
    """The value by which captions and questions are joined. `path` compares only the names of the files."""
    column: str | None = None
    """The column of the captions that holds this value, under its name in the input. If left out, the column has the
    name that `join` has; with `path` and the output of a captioning run, it is `key`."""
    caption: Annotated[str, Field(min_length=1)] = "caption"
    """The column that holds the captions."""
    mode: Literal["deterministic", "sampled", "prism"] = "deterministic"
    """How the reader answers. `deterministic`: it decodes one letter greedily, in every rotation of the options, and
    the letter's probability is kept. `sampled`: as in CapRL's reward, it answers `draws` questions with shuffled
    options at temperature 0.6. `prism`: as in CapRL's evaluation, with the prompts of its files and at temperature
    1."""
    rotations: Annotated[int, Field(ge=1)] | None = None
    """In the mode deterministic, the number of rotations of its options in which each question is asked. If left out,
    the number of its options."""
    draws: Annotated[int, Field(ge=1, le=64)] = 8
    """In the mode sampled, the number of questions that are drawn for each caption, with replacement."""
    samples: Annotated[int, Field(ge=1, le=64)] = 1
    """In the mode prism, how often each question is answered."""
    blind: Share = 1.0
    """The share of questions that are also asked without the caption, to measure guessing. 0 saves this time."""
    twice: Share = 0.01
    """The share of questions that are asked twice, to measure whether the reader repeats its answer."""
    seed: int = 0
    """The seed for rotations, for draws, and for the choice of questions that are asked blind or twice."""
    system: str | None = None
    """In the modes deterministic and sampled, the system turn of the prompts. null means none, as in CapRL's reward.
    With an endpoint it must be a text."""
    instruction: str | None = None
    """In the modes deterministic and sampled, the instruction in place of the default one. It must contain {caption}
    and {question}, each once."""

    @model_validator(mode="after")
    def _check(self) -> "Score":
        if self.instruction is not None:
            for name in ("{caption}", "{question}"):
                if self.instruction.count(name) != 1:
                    raise ValueError(f"instruction must contain {name} exactly once")
        if self.instruction is not None and self.mode == "prism":
            raise ValueError("instruction is not for the mode prism, because its files have their own prompts")
        return self


class ReaderModel(Model):
    """The model that reads captions and answers questions."""

    source: Annotated[str, Field(min_length=1)] = ANSWERER
    """The reader: a hub id, a folder that every node has, or an `s3://` prefix. Any language model; it sees no
    images."""


class Scoring(Score):
    """How a second pool of replicas scores captions while they are written (docs: Scoring captions).

    A language model, the reader, answers questions about the image from the caption alone.
    """

    model: ReaderModel = ReaderModel()
    """The reader, with the fields of the section model."""
    engine: Engine = Engine()
    """How the reader's engines are kept alive, with the fields of the section engine."""
    replicas: Replicas = Replicas()
    """How many readers answer in parallel, and what each of them needs, with the fields of the section replicas.
    Readers take GPUs of their own: divide the GPUs so that readers and captioners are equally fast."""


def check_system(model: Model, score: Score, section: str = "") -> None:
    """Raise ValueError for a reader at an endpoint without a system turn: the endpoint's chat template may add one."""
    if model.endpoint and score.system is None and score.mode != "prism":
        raise ValueError(
            f"score.system: null is not possible with {section}model.endpoint, because the service's own chat template "
            "may add a system turn; give it a text"
        )
