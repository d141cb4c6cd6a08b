"""Check before an engine starts that the nodes have the disks of the driver: for the output, and for the input."""

import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from caprl_ray.cluster import local
from caprl_ray.errors import RecipeError, SystemFailure
from caprl_ray.recipe.sections import Recipe
from caprl_ray.storage import SourceChanged, Storage, join

# One name for all runs: what a killed run leaves, the next run removes.
PROBE = ".caprl-ray-probe"
READS = 5
WAIT_S = 60.0  # for nodes that must still install the job's environment


def check_paths(recipe: Recipe) -> None:
    """Raise RecipeError or SystemFailure if a node's `output.path` is not the folder or prefix that the driver sees, or
    if a local path of the input is not there.

    The driver writes a probe, every node with CPUs reads it, and one of them answers in it. So a node with another disk
    writes nothing. A Ray that was started on this machine needs no probe.
    """
    storage, output = Storage(recipe.storage), recipe.output.path
    _refuse_working_directory(output)
    nodes = [node for node in ray.nodes() if node["Alive"] and node["Resources"].get("CPU")]
    if nodes and not local.connected():
        with _probe(storage, join(output, PROBE)) as token:
            _ask(nodes, storage, output, token, _local_inputs(recipe.input.paths))


def _local_inputs(paths: list[str]) -> list[str]:
    """The local paths of the input that exist literally; patterns are resolved only by planning."""
    local_paths = (os.path.abspath(os.path.expanduser(path)) for path in paths if "://" not in path)
    return [path for path in local_paths if os.path.exists(path)]


def _refuse_working_directory(output: str) -> None:
    """Refuse an output in a job's working directory: it is a copy, and Ray removes it after the job."""
    inside = "://" not in output and Path(output).is_relative_to(os.getcwd())
    if inside and ray.get_runtime_context().runtime_env.get("working_dir"):
        raise RecipeError(
            f"output.path: {output} is in this job's working directory, which Ray removes after the job; give a path "
            "outside of it that every node shares."
        )


@contextmanager
def _probe(storage: Storage, path: str) -> Iterator[str]:
    """Write the probe, and remove it at the end. Gives the token that it holds."""
    token = uuid.uuid4().hex
    try:
        storage.put(path, token.encode())
    except OSError as error:
        raise SystemFailure(f"output.path: {path} cannot be written ({error.strerror}).") from error
    try:
        yield token
    finally:
        with suppress(OSError):
            storage.delete(path)


def _ask(nodes: list[dict[str, Any]], storage: Storage, output: str, token: str, inputs: list[str]) -> None:
    here = ray.get_runtime_context().get_node_id()
    nodes = sorted(nodes, key=lambda node: bool(node["NodeID"] == here))  # another node answers, if there is one
    path, answer = join(output, PROBE), f"{token} {nodes[0]['NodeID']}"
    answers = [answer, *[None] * (len(nodes) - 1)]
    said = {_on(node).remote(storage, path, token, a, inputs): node for node, a in zip(nodes, answers, strict=True)}
    ready, _ = ray.wait(list(said), num_returns=len(said), timeout=WAIT_S)
    faults = {said[ref]["NodeID"]: _result(ref) for ref in ready}
    now = _content(storage, path)
    if faults.get(nodes[0]["NodeID"]) == "" and now == token:
        faults[nodes[0]["NodeID"]] = OTHER  # it wrote, and the driver does not see it
    for node in nodes:
        fault = faults.get(node["NodeID"])
        if fault and now.startswith(token):  # otherwise a preflight has replaced the probe meanwhile
            raise SystemFailure(fault.replace("OUTPUT", output).replace("NODE", node["NodeManagerAddress"]))


def _content(storage: Storage, path: str) -> str:
    try:
        return storage.read(path).decode(errors="replace")
    except OSError:
        return ""


OTHER = (
    "output.path: OUTPUT on the node NODE is not the OUTPUT of this driver; give a path that every node shares, such "
    "as s3:// or a network file system."
)


def _on(node: dict[str, Any]) -> Any:
    there = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
    return ray.remote(num_cpus=0, max_retries=0, scheduling_strategy=there)(_seen)


def _seen(storage: Storage, path: str, token: str, answer: str | None, inputs: list[str]) -> str:
    """On a node: what is wrong with the paths there, empty if nothing is. Writes the answer into the probe."""
    try:
        if not _read(storage, path).startswith(token.encode()):
            return OTHER
        if answer:
            storage.put(path, answer.encode())
    except (FileNotFoundError, NotADirectoryError):
        return OTHER
    except OSError as error:
        return f"output.path: OUTPUT cannot be used on the node NODE ({error.strerror or type(error).__name__})."
    absent = next((path for path in inputs if not os.path.exists(path)), None)
    return f"input.paths: {absent} is not on the node NODE; give a path that every node shares." if absent else ""


def _read(storage: Storage, path: str) -> bytes:
    """The probe, also if another node answers in it while it is read."""
    for _ in range(READS - 1):
        with suppress(SourceChanged):
            return storage.read(path)
    return storage.read(path)


def _result(ref: ray.ObjectRef) -> str | None:
    """A node's answer; None if the node or its worker was lost."""
    try:
        return str(ray.get(ref))
    except ray.exceptions.RayError:
        return None
