"""The figures of docs/nodes.md follow from the code, and Ray's object store is in memory where the pages say so."""

import math
import re

import pytest
import ray._common.utils
import ray._private.utils
from ray._private.services import determine_plasma_store_config

from caprl_ray.cluster.resources import QUEUED_OVER_TAKEN
from caprl_ray.engines.gpu import gpu_defaults
from caprl_ray.recipe.load import parse
from caprl_ray.recipe.prepare import Prepare
from caprl_ray.recipe.sections import Recipe
from caprl_ray.replica import pool
from tests.checkout import ROOT

PAGE = (ROOT / "docs" / "nodes.md").read_text(encoding="utf-8")
INSTALL = (ROOT / "docs" / "install.md").read_text(encoding="utf-8")
SIZES = [int(size) * 2**30 for size in re.findall(r"--shm-size (\d+)g", INSTALL)]


def recipe(**sections: object) -> Recipe:
    return parse({"input": {"paths": ["-"]}, "output": {"path": "-"}, **sections})


STORES = {
    "endpoint": recipe(model={"endpoint": "http://host/v1"}),
    "vLLM on a CPU": recipe(replicas={"gpus": 0}),
    "GPU with `max_num_seqs: 256`": recipe(model={"engine": {"max_num_seqs": 256}}),
    "GPU, default": recipe(),
    "GPU, default, with `replicas.max` of 48 or more": recipe(replicas={"max": 48}),
}


@pytest.mark.parametrize("engine", STORES)
def test_the_object_store_of_a_replica(engine: str) -> None:
    rows = pool.batch_rows(STORES[engine], Prepare().max_pixels)
    batches = math.ceil(QUEUED_OVER_TAKEN * pool.in_flight(STORES[engine], rows))
    size = batches * rows * 3 * Prepare().max_pixels / 1e9
    assert re.search(rf"^\| {re.escape(engine)} \| \d+ \| {size:.1f} GB \|$", PAGE, re.MULTILINE), size


def test_the_requests_of_a_gpu() -> None:
    (line,) = re.findall(r"`max_num_seqs` follows from what is left: ([^(]*)", PAGE)
    found = {int(memory): int(places) for places, memory in re.findall(r"(\d+) on\s+(\d+) GB", line)}
    assert found == {memory: gpu_defaults(memory * 10**9, 1)["max_num_seqs"] for memory in (16, 24, 48, 80)}


@pytest.mark.parametrize("memory", [16, 64, 256, 2048])
@pytest.mark.parametrize("shared", [11 * 10**9, *SIZES])
def test_ray_keeps_its_objects_in_memory(monkeypatch: pytest.MonkeyPatch, memory: int, shared: int) -> None:
    monkeypatch.setattr(ray._private.utils, "get_shared_memory_bytes", lambda: shared)
    monkeypatch.setattr(ray._common.utils, "get_system_memory", lambda: memory * 2**30)
    size = ray._private.utils.resolve_object_store_memory(memory * 2**30)
    assert SIZES and determine_plasma_store_config(size, "/tmp")[0] == "/dev/shm"
