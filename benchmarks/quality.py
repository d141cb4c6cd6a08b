"""Measure the checks on captions: precision, recall and false alarms by length, and microseconds a caption.

    python benchmarks/quality.py [--half held_out] [--wrong] [--runs 3] [--json FILE]

The captions are those of captions/captions.jsonl: written for this purpose, half of them good but of kinds that look
faulty, the others spoilt as models and engines do (captions/build.py). Thresholds were chosen on the half `tuning`, so
`held_out` is the one that counts. --wrong prints the captions that a check judges wrong.

The cost is the best of several rounds over a caption of 500 tokens, each check alone with nothing cached, and over one
of 10,000 tokens. Plain prose costs least; `mixed` is the mean over good captions of 1,500 to 4,000 characters, most
with tables, charts, code or quotes, for 2,200 characters of each (500 tokens).

With --runs the pipeline also runs with all checks and with none, so many rounds (checked.py, which names the figures).

Keys of the JSON, where <check> is the name of a check:

    <check>_faulty, <check>_found, <check>_false_alarms     captions with the fault, of which found, and others flagged
    <check>_precision, <check>_recall                       null where nothing was flagged or nothing is faulty
    <check>_false_<length>                                  false alarms among captions of a length, as 600_1500
    <check>_us, <check>_long_us                             cost of a caption of 500 and of 10,000 tokens
    <check>_mixed_us, all_mixed_us                          mean cost of 500 tokens of mixed captions
    language_<code>_us                                      the same of `language`, in the language that is wanted
    language_other_us, language_asked_us                    of English where Chinese is wanted, and where Romanian is,
                                                            so that the model is asked once
    all_us, all_long_us                                     the same for all standard checks together
    captions, good                                          how many captions, and how many without a fault
"""

import argparse
import json
import re
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from statistics import mean
from typing import Any

from caprl_ray.quality.caption import Caption
from caprl_ray.quality.checks import Checks, Settings
from caprl_ray.quality.registry import CHECKS

CAPTIONS = Path(__file__).parent / "captions" / "captions.jsonl"
LENGTHS = (0, 600, 1500, 3000, 10**9)
UNLABELLED = ("opener",)
DENSE = ("zh", "ja", "ko")
OTHERS = {"other": "zh", "asked": "ro"}
ROUNDS = 300
MIXED = 1500, 4000  # characters
Item = dict[str, Any]
Figures = dict[str, Any]


def items(half: str) -> list[Item]:
    """The labelled captions of a half."""
    lines = CAPTIONS.read_text(encoding="utf-8").splitlines()
    return [item for item in map(json.loads, lines) if item["split"] == half]


def caption(item: Item) -> Caption:
    """A labelled caption as the checks see it."""
    return Caption(
        text=item["text"],
        finish_reason=item.get("finish_reason"),
        prompt=item.get("prompt", "Please describe this image in detail."),
        alt_text=item.get("alt_text", ""),
    )


def flags(item: Item) -> set[str]:
    """The flags of a labelled caption, checked with its own language and schema."""
    settings = Settings(language=item.get("language"), json_schema=item.get("json_schema"))
    key = json.dumps([settings.language, settings.json_schema])
    checks = _CHECKS.setdefault(key, Checks.of(settings))
    return set(checks.flags(caption(item)))


_CHECKS: dict[str, Checks] = {}


def figures_of(found: list[tuple[Item, set[str]]]) -> Figures:
    """Precision, recall and false alarms of every check."""
    figures: Figures = {"captions": len(found), "good": sum(not item["labels"] for item, _ in found)}
    for name in CHECKS:
        if name in UNLABELLED:
            continue
        faulty = [name in flagged for item, flagged in found if name in item["labels"]]
        alarms = [item for item, flagged in found if name in flagged and name not in item["labels"]]
        right = sum(faulty)
        figures |= {f"{name}_faulty": len(faulty), f"{name}_found": right, f"{name}_false_alarms": len(alarms)}
        figures[f"{name}_precision"] = right / (right + len(alarms)) if right + len(alarms) else None
        figures[f"{name}_recall"] = right / len(faulty) if faulty else None
        for low, high in pairwise(LENGTHS):
            figures[f"{name}_false_{low}_{high if high < LENGTHS[-1] else 'up'}"] = sum(
                low <= len(item["text"]) < high for item in alarms
            )
    return figures


def best(function: Callable[[], object], rounds: int) -> float:
    """The shortest CPU time of a call, in microseconds."""
    times = []
    for _ in range(rounds):
        began = time.thread_time()
        function()
        times.append(time.thread_time() - began)
    return min(times) * 1e6


def costs(text: str, suffix: str, rounds: int, share: float = 1) -> Figures:
    """Microseconds of every check, and of all standard ones, on a share of one caption."""
    schema = {"type": "object", "required": ["subject"], "properties": {"subject": {"type": "string"}}}
    given = {"prompt": "Please describe this image in detail.", "alt_text": text[:200], "finish_reason": "stop"}
    figures: Figures = {}
    for name in CHECKS:
        language, of_json = name == "language", name == "json"
        checks = Checks.of(
            Settings(checks=[name], language="en" if language else None, json_schema=schema if of_json else None)
        )
        body = json.dumps({"subject": text}) if of_json else text
        figures[f"{name}_{suffix}"] = best(lambda c=checks, b=body: c.flags(Caption(text=b, **given)), rounds)
    standard = Checks.of()
    figures[f"all_{suffix}"] = best(lambda: standard.flags(Caption(text=text, **given)), rounds)
    return {key: value * share for key, value in figures.items()}


def language_costs(half: str) -> Figures:
    """Microseconds of `language` by the language that is wanted and written; and of captions in another one."""
    texts: defaultdict[str, list[str]] = defaultdict(list)
    for item in items(half):
        if not item["labels"] and item["kind"] in ("scene", f"script_{item.get('language')}"):
            texts[item["language"]].append(item["text"])
    pieces = {code: "\n\n".join(some * 9)[: 700 if code in DENSE else 2200] for code, some in texts.items()}
    figures = {f"language_{code}_us": language_cost(code, text) for code, text in sorted(pieces.items())}
    asked = {f"language_{name}_us": language_cost(wanted, pieces["en"]) for name, wanted in OTHERS.items()}
    return figures | asked


def language_cost(wanted: str, text: str) -> float:
    """Microseconds of the check `language`."""
    checks = Checks.of(Settings(checks=["language"], language=wanted))
    return best(lambda: checks.flags(Caption(text=text)), ROUNDS)


def measured(half: str) -> Figures:
    """All costs. The texts are good captions in a row: about 4.4 characters a token."""
    good = [item for item in items(half) if not item["labels"] and item.get("language") == "en"]
    scenes = " ".join(item["text"] for item in good if item["kind"] == "scene")
    everything = "\n\n".join(item["text"] for item in good)
    short, long = costs(scenes[:2200], "us", ROUNDS), costs(everything[:44_000], "long_us", ROUNDS // 10)
    mixed = [item["text"] for item in good if MIXED[0] <= len(item["text"]) <= MIXED[1]]
    parts = [costs(text, "mixed_us", ROUNDS // 20, 2200 / len(text)) for text in mixed]
    return short | long | {key: mean(part[key] for part in parts) for key in parts[0]} | language_costs(half)


def rows(figures: Figures) -> Iterator[str]:
    """The table, in markdown."""
    yield "| check | faulty | found | false alarms, by length | precision | recall | µs | µs, mixed |"
    yield "|---|---|---|---|---|---|---|---|"
    for name in CHECKS:
        if f"{name}_faulty" not in figures:
            yield f"| `{name}` | | | | | | {figures[f'{name}_us']:.0f} | {figures[f'{name}_mixed_us']:.0f} |"
            continue
        alarms = ", ".join(str(v) for k, v in figures.items() if k.startswith(f"{name}_false_") and k[-6:] != "alarms")
        shares = [figures[f"{name}_{key}"] for key in ("precision", "recall")]
        cells = ["" if share is None else f"{share:.3f}" for share in shares]
        yield (
            f"| `{name}` | {figures[f'{name}_faulty']} | {figures[f'{name}_found']} | {alarms} | {' | '.join(cells)} "
            f"| {figures[f'{name}_us']:.0f} | {figures[f'{name}_mixed_us']:.0f} |"
        )


def main() -> None:
    """Measure and print one table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--half", choices=["tuning", "held_out"], default="held_out", help="which captions")
    parser.add_argument("--wrong", action="store_true", help="print the captions that are judged wrong")
    parser.add_argument("--runs", type=int, metavar="N", help="also run the pipeline with checks and without, N rounds")
    parser.add_argument("--json", type=Path, help="also write the figures as one flat JSON object")
    args = parser.parse_args()
    found = [(item, flags(item)) for item in items(args.half)]
    figures = figures_of(found) | measured(args.half)
    print("\n".join(rows(figures)))
    print("\nFalse alarms among captions of less than 600, 1,500 and 3,000 characters, and of more.")
    print(
        f"\n{figures['captions']} captions, {figures['good']} good. All standard checks of a caption of 500 tokens: "
        f"{figures['all_us']:.0f} µs, mixed {figures['all_mixed_us']:.0f}; of 10,000: {figures['all_long_us']:.0f} µs."
    )
    asked = [(key.split("_")[1], value) for key, value in figures.items() if re.fullmatch("language_[a-z]+_us", key)]
    cells = (f"{code} {value:.0f}" for code, value in asked if code not in ("long", "mixed"))
    print(f"`language`, µs: {', '.join(cells)}.")
    if args.wrong:
        for item, flagged in found:
            wrong = (flagged - set(UNLABELLED)) ^ set(item["labels"])
            if wrong:
                text = item["text"]
                shown = text if len(text) < 400 else f"{text[:150]} [...] {text[-250:]}"
                print(
                    f"\n--- {item['kind']}: {sorted(wrong)}, {len(text)} characters, labels {item['labels']}\n{shown!r}"
                )
    if args.runs:
        import checked

        figures |= checked.measured(checked.ROWS, checked.SCENES, args.runs)
    if args.json:
        args.json.write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()
