"""The ways that score.py measures. Each runs in its own process; captioning.py describes what it writes.

All ways get the same model, captions, questions and engine arguments. They ask the same prompts in the same order:
those of the mode `deterministic`, without blind ones.
"""

import asyncio
import json
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pyarrow.parquet as pq
from alone import moments
from captioning import FINISHED, READY, note, substitute, wait_for

from caprl_ray.answer import job
from caprl_ray.answer.job import score_job
from caprl_ray.answer.reader import start_reader, stop_reader
from caprl_ray.answer.stage import Answerer
from caprl_ray.engines import choices, internals
from caprl_ray.engines.protocol import Engine
from caprl_ray.engines.vllm_engine import engine_arguments
from caprl_ray.models.chat import control_token_stripper
from caprl_ray.models.resolve import resolve
from caprl_ray.recipe.load import parse_as
from caprl_ray.recipe.score_recipe import ScoreRecipe
from caprl_ray.score import ask
from caprl_ray.score.ask import Ask, Asking
from caprl_ray.score.read import read
from caprl_ray.score.reward import on_loop
from caprl_ray.storage import Storage

ANSWERS, CPU = "answers.json", "cpu.txt"
CAPTIONS, QUESTIONS, MODEL = "captions.parquet", "questions.json", "model"
SYSTEM = "You are a helpful assistant."
FIRST_CALL = 32  # prompts of an engine's first call, which bears the one-time costs
WARM = "On a red background, at the center a small blue circle."


def recipe(folder: Path, out: Path) -> ScoreRecipe:
    """The recipe of all ways: `folder` has the captions, the questions and the model."""
    document = {
        "input": {"paths": [str(folder / CAPTIONS)]},
        "score": {
            "questions": [str(folder / QUESTIONS)],
            "join": "key",
            "system": SYSTEM,
            "blind": 0.0,
            "twice": 0.0,
        },
        "model": {"source": str(folder / MODEL)},
        "replicas": {"gpus": 0},
        "output": {"path": str(out)},
    }
    return parse_as(ScoreRecipe, document)


def prompts(asked: ScoreRecipe, folder: Path, strip: Callable[[str], str]) -> Iterator[tuple[str, list[Ask]]]:
    """Each caption's key, and all that is asked about it."""
    asking, questions = Asking(asked.score, strip), read(Storage(asked.storage), asked.score)
    for row in pq.read_table(folder / CAPTIONS).to_pylist():
        yield row["key"], asking.asks(questions.about(row["key"]), row["caption"])


def chat(folder: Path, out: Path) -> None:
    """Run `vllm.LLM.chat`: a first call with a few prompts, then one call with all. The prompts are made before."""
    from vllm import LLM, SamplingParams

    asked = recipe(folder, out)
    llm = LLM(**engine_arguments(asked, resolve(asked)))
    tokenizer = llm.get_tokenizer()
    strip = control_token_stripper(tokenizer.get_added_vocab())
    made = [(key, one) for key, asks in prompts(asked, folder, strip) for one in asks]
    warm = warm_up(asked)
    letters = {one.turns.choices: choices.as_tokens(one.turns, tokenizer)[1] for one in warm}  # all have as many

    def ask_all(asks: Sequence[Ask]) -> list[Any]:
        sampling = [{**one.sampling, **choices.sampling(letters[one.turns.choices])} for one in asks]
        return llm.chat(
            [_messages(one) for one in asks],
            [SamplingParams(**internals.sampling_classes(fields)) for fields in sampling],
            use_tqdm=False,
            add_generation_prompt=False,
            continue_final_message=True,
        )

    ask_all(warm)
    measuring = measure_cpu(out, len(made))
    note(out / READY, 0)
    outputs = ask_all([one for _, one in made])
    note(out / FINISHED, len(made))
    measuring.join()
    texts = [output.outputs[0].text for output in outputs]
    keep(out, [(key, one.struct(text)) for (key, one), text in zip(made, texts, strict=True)])


def reward(folder: Path, out: Path) -> None:
    """Ask through our engine in this process, as a trainer's reward does."""
    reader = start_reader({"source": str(folder / MODEL)})
    on_loop(_reward(reader, folder, out))
    stop_reader(reader)


async def _reward(engine: Engine, folder: Path, out: Path) -> None:
    asked = recipe(folder, out)
    made = list(prompts(asked, folder, control_token_stripper(engine.control_tokens)))
    await ask.answers(engine, warm_up(asked))
    measuring = measure_cpu(out, sum(len(asks) for _, asks in made))
    note(out / READY, 0)
    answers = await asyncio.gather(*(ask.answers(engine, asks) for _, asks in made))
    note(out / FINISHED, sum(map(len, answers)))
    measuring.join()
    keep(out, [(key, answer) for (key, _), said in zip(made, answers, strict=True) for answer in said])


def caprl_ray(folder: Path, out: Path) -> None:
    """Run `caprl-ray score`: Ray, rows, resume, commit and all. Its counter notes when each batch is answered."""
    from caprl_ray import pipeline
    from caprl_ray.watch import around
    from caprl_ray.watch.batch import Batch
    from caprl_ray.watch.counter import Counter

    asked = recipe(folder, out / "scores")
    counts = [len(asks) for _, asks in prompts(asked, folder, str)]
    each = counts[0]

    class TimedCounter(Counter):
        def add(self, batch: Batch) -> None:
            note(out / FINISHED, batch.rows * each)
            super().add(batch)

    class ReadyAnswerer(Answerer):
        def __init__(self, *args: Any, **named: Any) -> None:
            super().__init__(*args, **named)
            self._run(ask.answers(self._engine, warm_up(asked)))
            note(out / READY, 0)

    substitute(around, "Counter", TimedCounter)
    substitute(job, "Answerer", ReadyAnswerer)
    scoring, _ = score_job(asked)
    measuring = measure_cpu(out, sum(counts))
    pipeline.run(scoring)
    measuring.join()
    rows = pq.read_table(out / "scores" / "data", columns=["image_questions", "answers"]).to_pylist()
    keep(out, [(row["image_questions"], answer) for row in rows for answer in row["answers"]])


def measure_cpu(out: Path, prompts: int) -> threading.Thread:
    """Write, in the background, the CPU seconds of all processes of this way from READY to the last answer."""

    def spent() -> dict[int, float]:
        seconds = {}
        for process in (psutil.Process(), *psutil.Process().children(recursive=True)):
            with suppress(psutil.Error):
                seconds[process.pid] = sum(process.cpu_times()[:2])
        return seconds

    def watch() -> None:
        wait_for(out / READY)
        before = spent()
        last = dict(before)  # of each process as it was last seen: replicas end with the last answer
        while sum(rows for _, rows in moments(out / FINISHED)) < prompts:
            time.sleep(0.2)
            last |= spent()
        (out / CPU).write_text(f"{sum(last.values()) - sum(before.values()):.3f}")

    watching = threading.Thread(target=watch, name="cpu", daemon=True)
    watching.start()
    return watching


def warm_up(asked: ScoreRecipe) -> list[Ask]:
    """The prompts of an engine's first call, about a caption that is not scored."""
    questions = read(Storage(asked.storage), asked.score)
    image = next(iter(questions.images()))
    asks = Asking(asked.score).asks(questions.about(image), WARM)
    return (asks * FIRST_CALL)[:FIRST_CALL]


def keep(out: Path, answers: Sequence[tuple[str, dict[str, Any]]]) -> None:
    """Write each prompt's answer, in whatever order."""
    said = {"|".join([key, one["question"], *one["options"]]): one["parsed"] for key, one in answers}
    (out / ANSWERS).write_text(json.dumps(said))


def _messages(one: Ask) -> list[dict[str, str]]:
    turns = one.turns
    spoken = (("system", turns.system), ("user", turns.user), ("assistant", turns.begin))
    return [{"role": role, "content": content} for role, content in spoken if content is not None]


WAYS: dict[str, Callable[[Path, Path], None]] = {"chat": chat, "reward": reward, "caprl_ray": caprl_ray}


if __name__ == "__main__":
    WAYS[sys.argv[1]](Path(sys.argv[2]), Path(sys.argv[3]))
