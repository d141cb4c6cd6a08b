"""A unit that would keep the replicas waiting is named with the time, and one that would not is not."""

from pathlib import Path

import pytest

from caprl_ray import plan, sources
from caprl_ray.commands.demo import demo_recipe
from caprl_ray.commands.large_units import Largest, waiting, warning
from caprl_ray.commands.plan import overview
from caprl_ray.recipe.load import parse
from caprl_ray.recipe.replicas import Replicas
from caprl_ray.sources.source import Access

GB = 10**9


def largest(size: int, of: int, images: int | None = None, kind: str = "webdataset") -> Largest:
    return Largest(kind=kind, bytes=size, all_bytes=of, images=images)


def test_a_tar_of_50_gb_holds_64_replicas_and_eight_have_enough_to_do() -> None:
    """64 replicas caption 557 MB a second, of which a stream brings 85; eight caption 70."""
    waits, whole = waiting(largest(50 * GB, 1000 * GB), Replicas(max=64))
    assert waits == pytest.approx(50e9 / 85e6 - 50e9 / (64 * 29 * 300e3)) and whole == pytest.approx(
        1796 + waits, abs=1
    )
    said = warning("s3://bucket/all.tar", largest(50 * GB, 1000 * GB), Replicas(max=64))
    assert said == (
        "s3://bucket/all.tar: 50.0 GB are one unit, which one stream reads in 0:09:48 at 85 MB/s; 64 replicas may wait "
        "for it for 0:08:18 of 0:38:14; pack its samples into shards of about 1 GB"
    )
    assert warning("s3://bucket/all.tar", largest(50 * GB, 1000 * GB), Replicas(max=8)) is None


def test_a_row_group_counts_by_the_size_of_its_images_and_a_share_of_the_whole() -> None:
    small = largest(20 * GB, 40 * GB, images=4_000_000, kind="parquet")  # 10 kB each: a stream feeds 293 replicas
    assert warning("a.parquet", small, Replicas(max=256)) is None
    large = largest(20 * GB, 40 * GB, images=13_333, kind="parquet")  # 3 MB each
    assert "write it again with row groups" in (warning("a.parquet", large, Replicas(max=8)) or "")
    part = largest(20 * GB, 4_000_000 * GB, kind="parquet")  # minutes of hours
    assert warning("a.parquet", part, Replicas(max=64)) is None


def test_shards_of_some_gigabytes_are_no_word_worth() -> None:
    assert warning("a.tar", largest(5 * GB, 10 * GB), Replicas(max=512)) is None
    assert warning("a.jpg", largest(0, 0, images=0), Replicas(max=512)) is None


def test_plan_names_the_tar_before_and_after_it_is_stored(tmp_path: Path) -> None:
    for name, size in (("a", GB), ("b", 50 * GB), ("c", GB)):
        with open(tmp_path / f"{name}.tar", "wb") as tar:
            tar.truncate(size)  # sparse
    document = demo_recipe([tmp_path / f"{name}.tar" for name in "abc"], tmp_path / "out") | {
        "model": {"source": "stub"},
        "replicas": {"gpus": 0, "max": 64},
    }
    recipe = parse(document)
    before = overview(recipe)
    (said,) = before.warnings
    assert said.startswith(f"{tmp_path}/b.tar: 50.0 GB are one unit") and f"  warning: {said}." in before.summary()
    access = Access.of(recipe)
    plan.store(access.storage, recipe.output.path, sources.plan_units(access))
    after = overview(recipe)
    assert after.stored and after.report()["warnings"] == [said]
