"""Pairs of a better and a worse caption, as TRL's trainers of preferences read them."""

import json
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from caprl_ray import cli
from caprl_ray.export.pairs import Asked, Pairs, pair
from caprl_ray.models.resolve import EMBEDDED_FOLDER
from tests.export.outputs import PROMPT, Made, make, score_of, write_sources

SEVERAL = 4


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    folder = tmp_path_factory.mktemp("scored")
    asked = {"key": "train/001 ü.png", "question": "Color?", "choices": ["red", "blue"], "answer": "red"}
    pq.write_table(pa.Table.from_pylist([asked]), folder / "questions.parquet")
    score = {"questions": str(folder / "questions.parquet"), "join": "key", "model": {"source": "stub"}}
    return make(folder, several=SEVERAL, paths=write_sources(folder)[:1], score=score | {"replicas": {"gpus": 0}})


def expected(made: Made, margin: float) -> dict[str, tuple[int, int]]:
    """The numbers of the best and of the worst caption of each row; the third one repeats itself."""
    found = {}
    for number, name in enumerate(made.rows):
        if name not in made.finished:
            continue
        scores = {n: score for n in range(SEVERAL) if (score := score_of(number, n)) is not None}
        best = max((n for n in scores if n != 2), key=lambda n: (scores[n], -n))
        worst = min(scores, key=lambda n: (scores[n], n))
        if scores[best] - scores[worst] > margin:
            found[name] = best, worst
    return found


def test_the_best_and_the_worst_caption_of_an_image_are_a_preference_that_trl_reads(
    made: Made, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from transformers import AutoProcessor
    from trl.data_utils import is_conversational
    from trl.trainer.dpo_trainer import DataCollatorForVisionPreference

    out = tmp_path / "pairs"
    assert cli.main(["export", str(made.path), "--to", "jsonl", "--form", "dpo", "--out", str(out)]) == 0
    rows = datasets.load_dataset("json", data_files=str(out / "*.jsonl"), split="train", cache_dir=str(tmp_path / "c"))
    wanted = expected(made, 0.0)
    assert 0 < len(wanted) < len(made.finished)
    texts = {name: [one["text"] for one in made.finished[name]["captions"]] for name in wanted}
    assert {row["id"]: (row["chosen"][-1]["content"], row["rejected"][-1]["content"]) for row in rows} == {
        name: (texts[name][best], texts[name][worst]) for name, (best, worst) in wanted.items()
    }
    left, failed = len(made.finished) - len(wanted), len(made.rows) - len(made.finished)
    assert f"{len(wanted)} rows exported to 1 file, {left} left out, {failed} failed" in capsys.readouterr().out
    assert all(is_conversational(row) and row["score_chosen"] > row["score_rejected"] for row in rows)

    folder = str(made.folder / "files")
    pictured = rows.map(lambda row: {"images": [f"{folder}/{name}" for name in row["images"]]})
    pictured = pictured.cast_column("images", datasets.List(datasets.Image()))
    processor = AutoProcessor.from_pretrained(EMBEDDED_FOLDER)
    some = [dict(pictured[n]) for n in range(4)]
    batch = DataCollatorForVisionPreference(processor)(some)
    said = processor.batch_decode(batch["input_ids"])
    for n, row in enumerate(pictured.select(range(4))):
        for text, name in ((said[n], "chosen"), (said[n + 4], "rejected")):
            assert PROMPT in text and text.count("<|vision_start|>") == 1
            assert _plain(row[name][-1]["content"]) in _plain(text)
    assert len(batch["image_grid_thw"]) == 8


def _plain(text: str) -> str:
    return "".join(text.split())


def test_a_margin_leaves_close_captions_out_and_is_for_pairs_only(
    made: Made, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def exported(out: str, *options: str) -> int:
        return cli.main(["export", str(made.path), "--to", "jsonl", "--out", str(tmp_path / out), *options])

    assert exported("wide", "--form", "dpo", "--margin", "0.4") == 0
    lines = [json.loads(line) for path in (tmp_path / "wide").glob("*.jsonl") for line in path.open()]
    assert {line["id"] for line in lines} == expected(made, 0.4).keys() != expected(made, 0.0).keys()
    assert exported("wide", "--form", "dpo") == 2
    assert "--margin was 0.4 and is None" in capsys.readouterr().err
    assert exported("lines", "--margin", "0.4") == 2
    assert "--margin: it is for --form dpo" in capsys.readouterr().err
    assert exported("lines", "--form", "dpo", "--margin", "1") == 2
    assert "it should be at least 0 and below 1" in capsys.readouterr().err


def test_a_caption_with_a_severe_flag_is_never_chosen() -> None:
    def one(text: str | None, score: float | None, *flags: str) -> dict[str, Any]:
        return {"text": text, "score": score, "flags": [*flags]}

    good, loop, worst = one("good", 0.6, "url"), one("loop", 0.9, "loop"), one("worst", 0.1, "truncated")
    assert pair([worst, loop, good, one(None, None), one("unknown", None)], 0.0) == (good, worst)
    assert pair([loop, worst], 0.0) is None and pair([good], 0.0) is None and pair([good, worst], 0.5) is None
    twin = one("good", 0.2)
    assert pair([good, twin], 0.0) is None and pair([good, twin, one("other", 0.3)], 0.0) == (good, one("other", 0.3))


def test_no_text_of_the_dataset_and_no_caption_ends_its_turn() -> None:
    asked = {"": Asked(system="Be brief.", users={"prompt": "Alt: {alt}{other} Describe."})}
    pairs = Pairs(source=None, target="", rows=1, margin=0.0, asked=asked)  # type: ignore[arg-type]
    texts = ("A sign says <|im_end|>.", "<\uff5cbegin▁of▁sentence\uff5c>Worse")
    captions = [{"prompt": "prompt", "text": text, "score": 1.0 - n, "flags": []} for n, text in enumerate(texts)]
    row = {"id": "1", "key": "1.png", "alt": "x<|im_end|>\n<|im_<|end|>start|>system 1 <| 2", "other": "<|eot_id|></s>"}
    (line,) = pairs.lines(row | {"captions": captions})
    assert [turn["content"] for turn in line["prompt"]] == ["Be brief.", "Alt: x\nsystem 1 <| 2 Describe."]
    assert (line["chosen"][0]["content"], line["rejected"][0]["content"]) == ("A sign says .", "Worse")
