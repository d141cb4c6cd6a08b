"""Measure questions/s of scoring, beside `vllm.LLM.chat` on the same prompts.

    python benchmarks/score.py [--captions 200] [--tokens 500] [--questions 5] [--repeat 2] [--json FILE]

A tiny Qwen2 with random weights answers on this machine's CPU: captions of about --tokens tokens, --questions
questions about each, every question in all rotations of its four options, one letter for an answer. All ways have
prefix caching, and get the same prompts in the same order: those about one caption follow each other. Each way runs in
a process of its own, one after another, and counts from the moment that its engine has answered a first call:

    chat       vllm.LLM.chat, one call with all prompts, which are made before
    reward     caprl_ray's engine in the process, as a trainer's reward asks it
    caprl_ray  caprl-ray score, to the last batch that is answered

The machine may be busy with other things, so the CPU time of all processes of a way is measured, too.

Keys of the JSON, medians over the rounds: chat, reward, caprl_ray (questions/s), chat_cpu_ms, reward_cpu_ms,
caprl_ray_cpu_ms (CPU time of a question), reward_over_chat, over_chat (ratios of questions/s), reward_cpu_gain and
cpu_gain (ratios of CPU time, chat's over ours); and equal (the least share of answers that are those of chat), prompts,
prompt_tokens (their mean).
"""

import argparse
import json
import random
import tempfile
from pathlib import Path
from statistics import mean

import pyarrow as pa
import pyarrow.parquet as pq
import text_model
from alone import medians, run_alone, steady
from score_ways import ANSWERS, CAPTIONS, CPU, MODEL, QUESTIONS, WAYS, prompts, recipe

from caprl_ray.embedded import scenes

OPTIONS = 4


def write(folder: Path, captions: int, tokens: int, questions: int) -> None:
    """Write model, captions and questions."""
    folder.mkdir()
    text_model.write(folder / MODEL)
    rng, words = random.Random(1), text_model.tokenizer()
    keys = [f"{number:05d}.jpg" for number in range(captions)]
    texts = [_caption(rng, words, tokens) for _ in keys]
    pq.write_table(pa.table({"key": keys, "caption": texts}), folder / CAPTIONS)
    asked = [_question(rng, key, number) for key in keys for number in range(questions)]
    (folder / QUESTIONS).write_text(json.dumps(asked))


def _caption(rng: random.Random, words: object, tokens: int) -> str:
    """Sentences about scenes until there are as many tokens."""
    text = ""
    while len(words.encode(text)) < tokens:  # type: ignore[attr-defined]
        text += scenes.caption(scenes.sample_scene(rng)) + " "
    return text.strip()


def _question(rng: random.Random, key: str, number: int) -> dict[str, object]:
    place = rng.choice([place for row in scenes.POSITIONS for place in row])
    choices = [f"a {rng.choice(list(scenes.SIZES))} {one} shape" for one in rng.sample(list(scenes.COLOURS), OPTIONS)]
    text = f"What is at the {place} of part {number + 1} of the image?"
    return {"key": key, "question": text, "choices": choices, "answer": rng.choice(choices)}


def measured(folder: Path, work: Path) -> tuple[dict[str, float], dict[str, dict[str, str]]]:
    """One round: questions/s and CPU time of each way and the ratios, and the answers of each way."""
    found, answers = {}, {}
    for way in WAYS:
        _, finished, _ = run_alone("score_ways.py", way, folder, work / way)
        answers[way] = json.loads((work / way / ANSWERS).read_text())
        found[way] = steady(work / way, finished)
        found[f"{way}_cpu_ms"] = 1000 * float((work / way / CPU).read_text()) / len(answers[way])
        print(f"{way:<12}{found[way]:>12.1f}{found[f'{way}_cpu_ms']:>10.2f} ms", flush=True)
    for way, rate, cpu in (("reward", "reward_over_chat", "reward_cpu_gain"), ("caprl_ray", "over_chat", "cpu_gain")):
        found[rate] = found[way] / found["chat"]
        found[cpu] = found["chat_cpu_ms"] / found[f"{way}_cpu_ms"]
    return found, answers


def main() -> None:
    """Measure all ways in turns and print one table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--captions", type=int, default=200, help="number of captions")
    parser.add_argument("--tokens", type=int, default=500, help="tokens of a caption, at least")
    parser.add_argument("--questions", type=int, default=5, help="questions about each caption")
    parser.add_argument("--repeat", type=int, default=2, metavar="N", help="rounds; figures are medians over them")
    parser.add_argument("--json", type=Path, help="also write the figures as one flat JSON object")
    args = parser.parse_args()
    rounds, equal = [], []
    with tempfile.TemporaryDirectory(prefix="score-") as temporary:
        folder = Path(temporary) / "in"
        write(folder, args.captions, args.tokens, args.questions)
        for number in range(args.repeat):
            (work := Path(temporary) / str(number)).mkdir()
            found, answers = measured(folder, work)
            rounds.append(found)
            equal += [_equal(answers["chat"], answers[way]) for way in WAYS]
        figures = medians(rounds) | sizes(folder) | {"equal": min(equal)}
    print(f"{'':<12}{'questions/s':>12}{'x chat':>8}{'CPU':>12}{'x chat':>8}")
    for way in WAYS:
        rate, cpu = figures[way], figures[f"{way}_cpu_ms"]
        gain = figures["chat_cpu_ms"] / cpu
        print(f"{way:<12}{rate:>12.1f}{rate / figures['chat']:>8.2f}{cpu:>9.2f} ms{gain:>8.2f}")
    print(f"{figures['equal']:.2%} of the answers are those of chat; {figures['prompts']:,.0f} prompts of ", end="")
    print(f"{figures['prompt_tokens']:.0f} tokens")
    if args.json:
        args.json.write_text(json.dumps(figures, indent=1) + "\n")


def sizes(folder: Path) -> dict[str, float]:
    """How many prompts there are, and their mean length."""
    words = text_model.tokenizer()
    counts = [
        len(words.encode(one.turns.user)) for _, asks in prompts(recipe(folder, folder), folder, str) for one in asks
    ]
    return {"prompts": len(counts), "prompt_tokens": mean(counts)}


def _equal(these: dict[str, str], others: dict[str, str]) -> float:
    """The share of answers that are equal. Exits if one side has other prompts."""
    if these.keys() != others.keys():
        raise SystemExit(f"{len(these.keys() ^ others.keys())} prompts have an answer on one side only.")
    return mean(these[prompt] == others[prompt] for prompt in these)


if __name__ == "__main__":
    main()
