"""Rows of sick replicas are missing again, whatever ended the run that wrote them."""

from pathlib import Path

import pytest
from pyarrow import table
from pyroaring import BitMap

from caprl_ray.errors import SystemFailure
from caprl_ray.output import doubtful
from caprl_ray.output.objects import DATA, FAILED
from caprl_ray.plan import UnitRef
from caprl_ray.read.datasource import Work, only_retried
from caprl_ray.replica.suspects import Suspects
from caprl_ray.storage import Storage, Stored
from tests.output.test_repair import put, stand

NAME = "{:06d}-" + "0" * 32


def test_they_are_removed_from_the_objects_of_their_lease_and_once(tmp_path: Path) -> None:
    put(tmp_path, DATA, NAME.format(1), [{"unit": 0, "index": n, "attempts": 1} for n in range(4)])  # done again later
    put(tmp_path, DATA, NAME.format(2), [{"unit": 0, "index": n, "attempts": 2} for n in range(4)])
    put(tmp_path, FAILED, NAME.format(2), [{"unit": 3, "index": 7, "attempts": 1, "code": "caption_empty"}])
    doubtful.keep(Storage(), str(tmp_path), 2, [(0, 1), (0, 2), (3, 7), (9, 9)])
    (tmp_path / "_SUCCESS").touch()
    assert doubtful.settle(Storage(), str(tmp_path)) == {(0, 1), (0, 2), (3, 7), (9, 9)}
    rows = [(row["index"], row["attempts"]) for row in stand(tmp_path, DATA)]
    assert rows == [(0, 1), (1, 1), (2, 1), (3, 1), (0, 2), (3, 2)]
    assert not stand(tmp_path, FAILED) and not (tmp_path / "_SUCCESS").exists(), "rows are missing now"
    assert doubtful.settle(Storage(), str(tmp_path)) == set()
    assert not list((tmp_path / doubtful.FOLDER).iterdir())
    (tmp_path / doubtful.FOLDER / "000007.json").write_text("[1")
    with pytest.raises(SystemFailure, match=r"000007\.json: is no list of doubtful rows"):
        doubtful.settle(Storage(), str(tmp_path))


def test_of_retried_rows_only_those_are_tried_once_more() -> None:
    part = Stored(path="plan/00000.parquet", size=1, version="")
    ref = UnitRef(unit=4, kind="files", rows=6, bytes=1, object=part, row_group=0, offset=0)
    retry = {(1, "caption_empty"): BitMap([2, 3]), (2, "quality"): BitMap([4])}
    (left,) = only_retried([Work(ref=ref, done=BitMap([0, 1]), rows=6, retry=retry)], [(4, 3), (4, 0), (5, 2)])
    assert left.retry == {(1, "caption_empty"): BitMap([3])} and left.done == BitMap([0, 1, 2, 4])
    whole = Work(ref=ref, done=BitMap(range(5)), rows=6, retry={(1, "quality"): BitMap([5])})
    assert not only_retried([whole], [(4, 2)])


def test_nothing_is_handed_on_after_a_fault() -> None:
    suspects = Suspects(window=2)
    assert suspects.add(table({"unit": [0, 0, 0], "index": [1, 2, 3]}))
    suspects.passed()
    assert suspects.add(table({"unit": [1], "index": [1]}))
    assert suspects.close() == [(0, 2), (0, 3), (1, 1)]
    assert not suspects.add(table({"unit": [2], "index": [2]}))
