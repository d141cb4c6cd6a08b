"""curated.json: the totals of a curation output, written at the end of every run."""

import json
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pyarrow.parquet as pq

from caprl_ray.curate.columns import REASONS
from caprl_ray.errors import SystemFailure
from caprl_ray.output.fence import committed_objects
from caprl_ray.output.objects import DATA
from caprl_ray.storage import Storage, join

CURATED = "curated.json"
SCHEMA = 1
ROWS_AT_ONCE = 1024
READ = ("kept", "unusable", "tried", "questioner", "answerer", "question_prompt")


def summed(storage: Storage, path: str) -> dict[str, Any]:
    """The sums of an output's rows. Raises SystemFailure if storage fails."""
    images = with_questions = 0
    counts, reasons, names = Counter[str](), Counter[str](), {name: set[str]() for name in READ[3:]}
    for row in _rows(storage, path):
        images += 1
        with_questions += row["kept"] > 0
        counts["kept"] += row["kept"]
        counts["usable"] += len(row["tried"])
        counts["written"] += len(row["tried"]) + len(row["unusable"])
        reasons.update(row["unusable"])
        reasons.update(one["dropped"] for one in row["tried"] if one["dropped"])
        for name, seen in names.items():
            seen.add(row[name])
    return {
        "schema": SCHEMA,
        **{f"{name}s": sorted(seen) for name, seen in names.items()},
        "images": images,
        "images_with_questions": with_questions,
        "questions": {name: counts[name] for name in ("written", "usable", "kept")},
        "dropped": {reason: reasons[reason] for reason in REASONS if reasons[reason]},
    }


def write(storage: Storage, path: str, found: dict[str, Any]) -> None:
    """Store the sums beside the rows."""
    name = join(path, CURATED)
    try:
        storage.put(name, json.dumps(found, indent=1, ensure_ascii=False).encode() + b"\n")
    except OSError as error:
        raise SystemFailure(f"output.path: {name} cannot be written ({error.strerror}).") from None


def sentences(found: dict[str, Any]) -> Iterator[str]:
    """The totals in sentences."""
    asked, images = found["questions"], found["images"]
    if not images:
        return
    yield (
        f"{asked['kept']:,} of {asked['written']:,} questions were kept, {asked['kept'] / images:.2f} an image; "
        f"{found['images_with_questions']:,} of {images:,} images have one"
    )
    for reason, count in sorted(found["dropped"].items(), key=lambda item: -item[1]):
        yield f"  {count:>9,} {reason}: {REASONS[reason]}"


def _rows(storage: Storage, path: str) -> Iterator[dict[str, Any]]:
    try:
        for stored in committed_objects(storage, path, (DATA,))[DATA]:
            with storage.open(stored) as stream:
                for batch in pq.ParquetFile(stream).iter_batches(ROWS_AT_ONCE, columns=list(READ)):
                    yield from batch.to_pylist()
    except OSError as error:
        raise SystemFailure(f"{path}: cannot be read ({error.strerror}).") from None
