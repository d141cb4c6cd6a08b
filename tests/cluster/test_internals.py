"""Ray's internals: found in the locked Ray, named in one module, and not needed for any promise."""

import ast
import inspect
import itertools
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from ray.data import DataContext
from ray.data._internal.execution import streaming_executor
from ray.data._internal.execution.interfaces import execution_options
from ray.data._internal.execution.interfaces.physical_operator import PhysicalOperator
from ray.data._internal.execution.operators import map_operator
from ray.data._internal.execution.operators.actor_pool_map_operator import ActorPoolMapOperator, _ActorPool
from ray.data._internal.planner import plan_udf_map_op
from ray.exceptions import ActorDiedError

from caprl_ray.cluster import internals, optional, resources, session, turns
from caprl_ray.cluster.ahead import policy_class
from caprl_ray.cluster.demand import demand_class
from caprl_ray.cluster.turns import AT_ONCE, FRESH_S, calm, completed_soon, finished_soon, once, rounded, several
from tests.checkout import ROOT

HOME = ROOT / "caprl_ray" / "cluster" / "internals.py"
MODULES = sorted((ROOT / "caprl_ray").rglob("*.py"))


def private_names(path: Path) -> Iterator[str]:
    """Ray's private modules that a file imports or names."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Attribute):
            names = [ast.unparse(node)]
        else:
            continue
        yield from (name for name in names if name.startswith("ray.") and "._" in name)


def test_private_names_of_ray_stand_in_one_module() -> None:
    assert not {str(path): names for path in MODULES if path != HOME and (names := list(private_names(path)))}
    assert list(private_names(HOME)), "the test sees none where there are some"


def test_no_private_module_of_ray_is_imported_with_our_own() -> None:
    top = ast.parse(HOME.read_text(encoding="utf-8")).body
    assert not [node for node in top if isinstance(node, ast.ImportFrom) and str(node.module).startswith("ray")]


def patches() -> Iterator[internals.Patch]:
    yield internals.without_statistics()
    yield internals.batches_as_they_come()
    yield internals.fed()
    yield internals.not_far_ahead()
    yield internals.several_at_each_turn()
    yield internals.usage_once()
    yield internals.calm_waiting()
    yield internals.blocks_without_leave()
    yield internals.replicas_replaced(1)
    yield internals.replicas_demand([{"GPU": 1}], 1.0)
    yield internals.lean_start(debug=False)
    yield internals.lean_data()
    yield internals.messages_to(print)


def test_the_locked_ray_has_all_of_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a new Ray that moves one of them, runs would only be slower. This test fails then."""
    monkeypatch.setattr(optional, "_missing", {})
    monkeypatch.delenv(optional.PLAIN, raising=False)
    internals.more_blocks_ready(DataContext.get_current().copy())
    internals.metadata_at_once()
    with ExitStack() as stack:
        for patch in patches():
            stack.enter_context(patch)
    internals.no_worker_logs()
    assert not optional._missing


@pytest.mark.usefixtures("ray_cluster")
def test_the_locked_ray_tells_a_tasks_attempts() -> None:
    import ray

    assert ray.get(ray.remote(internals.attempt_number).remote()) == 0


def test_a_ray_of_this_machine_says_nothing_about_its_workers(ray_cluster: None) -> None:
    from ray._private import worker

    assert worker._worker_logs_enabled is False


def test_a_ray_without_the_names_that_are_used_later_keeps_its_own_requests() -> None:
    sent = []

    class Base:
        def _send_resource_request(self, request: list[dict[str, float]]) -> None:
            sent.append(request)

    demand_class(Base, [{"GPU": 1}], 1.0)()._send_resource_request([{"GPU": 3}])
    assert sent == [[{"GPU": 3}]]


def test_a_pool_waits_while_many_of_its_rows_wait_for_the_next_pool() -> None:
    def operator(pools: int, after: Any, **metrics: int) -> Any:
        return SimpleNamespace(
            get_autoscaling_actor_pools=lambda: [SimpleNamespace(current_size=lambda: 5)] * pools,
            output_dependencies=[after] if after else [],
            metrics=SimpleNamespace(**metrics),
        )

    readers = operator(1, operator(0, None), rows_inputs_of_submitted_tasks=100)
    policy = policy_class(object)()
    for rows, allowed in ((100 + 5 * 512 - 1, True), (100 + 5 * 512, False)):
        captioners = operator(1, operator(0, readers), row_outputs_taken=rows)
        assert policy.can_add_input(captioners) == allowed
        assert policy.can_add_input(operator(0, captioners)) and policy.can_add_input(readers)
    assert policy.can_add_input(operator(1, operator(0, readers))), "another Ray counts by other names"


def test_replicas_that_do_not_start_are_replaced_until_too_many_in_a_row_fail(monkeypatch: pytest.MonkeyPatch) -> None:
    """The locked Ray does so itself. Ray 2.57 and earlier end the run at the first one."""

    def started(pool: Any, ref: Any) -> Any:
        if isinstance(ref, Exception):
            raise ref
        return ref

    monkeypatch.setattr(_ActorPool, "pending_to_running", started)
    dead, of_ours = ActorDiedError(), ValueError("not an actor's death")
    with internals.replicas_replaced(2):
        join = partial(_ActorPool.pending_to_running, None)
        assert [join(ref) for ref in (dead, dead, "actor", dead, dead)] == [None, None, "actor", None, None]
        with pytest.raises(ActorDiedError):
            join(dead)
        with pytest.raises(ValueError, match="not an actor's death"):
            join(of_ours)
    assert _ActorPool.pending_to_running is started


def test_where_ray_ends_the_run_with_a_replica_the_constructor_is_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    context = SimpleNamespace(actor_init_max_retries=3)  # Ray 2.57 and earlier
    monkeypatch.setattr(optional, "_missing", {})
    monkeypatch.delenv(optional.PLAIN, raising=False)
    monkeypatch.setattr(DataContext, "get_current", lambda: context)
    with session._replaced_replicas(context):  # type: ignore[arg-type]
        assert resources.replaces_actors()
    monkeypatch.setenv(optional.PLAIN, "1")
    with session._replaced_replicas(context):  # type: ignore[arg-type]
        assert not resources.replaces_actors()


class Operator:
    """An operator of Ray Data that collects `each` blocks for a task, as its own state with a queue of `blocks`."""

    def __init__(self, blocks: int, each: int = 1, pool: bool = False, room: int = 1000, limit: int = 1000) -> None:
        self.blocks, self.taken, self._each, self._pool, self._room, self._limit = blocks, 0, each, pool, room, limit
        self.op = self

    def dispatch(self) -> None:
        assert self.has_pending_bundles() and self.can_add_input() and not self.has_completed()
        self.blocks, self.taken = self.blocks - 1, self.taken + 1

    def num_active_tasks(self) -> int:
        return self.taken // self._each

    def get_autoscaling_actor_pools(self) -> list[str]:
        return ["pool"] * self._pool

    def has_pending_bundles(self) -> bool:
        return self.blocks > 0

    def can_add_input(self) -> bool:
        return self.taken < self._room

    def has_completed(self) -> bool:
        return self.taken == self._limit


@pytest.mark.parametrize(
    ("operator", "taken"),
    [
        (Operator(100), 1),  # each block starts a task that needs a CPU
        (Operator(100, each=8), 8),  # the eighth starts one
        (Operator(100, each=64), AT_ONCE),
        (Operator(100, pool=True), AT_ONCE),
        (Operator(3, pool=True), 3),
        (Operator(100, pool=True, room=5), 5),  # the replicas are full
        (Operator(100, each=1000, limit=7), 7),  # --limit is reached
    ],
)
def test_blocks_that_need_nothing_of_a_budget_are_handed_over_together(operator: Operator, taken: int) -> None:
    several(Operator.dispatch)(operator)
    assert operator.taken == taken


class Manager:
    """Ray Data's manager of resources."""

    def __init__(self, *operators: Any) -> None:
        self._topology, self.computed = operators, 0

    def update_usages(self) -> None:
        self.computed += 1


def test_budgets_are_computed_once_a_turn_and_after_all_that_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(optional, "_missing", {})
    clock = SimpleNamespace(now=100.0)
    monkeypatch.setattr(turns, "time", SimpleNamespace(monotonic=lambda: clock.now))
    counts = ("num_tasks_submitted", "num_task_outputs_generated", "num_tasks_finished")
    prepare, replicas = (
        SimpleNamespace(
            get_autoscaling_actor_pools=lambda pools=pools: ["pool"] * pools,
            _metrics=SimpleNamespace(**dict.fromkeys(counts, 0)),
        )
        for pools in (0, 1)
    )
    manager, update = Manager(prepare, replicas), once(Manager.update_usages)

    def computed() -> int:
        before = manager.computed
        update(manager)
        return manager.computed - before

    assert [computed(), computed()] == [1, 0]
    for operator, name in [(prepare, counts[0]), (prepare, counts[1]), (replicas, counts[1]), (replicas, counts[2])]:
        setattr(operator._metrics, name, 1)
        assert [computed(), computed()] == [1, 0], name
    replicas._metrics.num_tasks_submitted = AT_ONCE - 1
    assert computed() == 0, "a batch for a replica takes nothing of a budget"
    replicas._metrics.num_tasks_submitted = AT_ONCE
    assert [computed(), computed()] == [1, 0]
    clock.now += 2 * FRESH_S
    assert [computed(), computed()] == [1, 0]
    del prepare._metrics
    assert [computed(), computed()] == [1, 1], "another Ray counts by other names"


@pytest.mark.parametrize(
    ("ends", "looks"), [({"_finished": True}, 3), ({"_exception": ValueError()}, 3), ({"output": 1}, 3), ({}, 0)]
)
def test_the_main_thread_looks_for_output_and_for_the_end(
    monkeypatch: pytest.MonkeyPatch, ends: dict[str, Any], looks: int
) -> None:
    monkeypatch.setattr(optional, "_missing", {})
    state = SimpleNamespace(_finished=False, _exception=None, output=0)
    if looks:  # without it another Ray has other names
        state.output_queue = SimpleNamespace(has_next=lambda split: state.output)
    slept: list[float] = []

    def sleep(seconds: float) -> None:
        slept.append(seconds)
        if len(slept) == looks:
            vars(state).update(ends)

    monkeypatch.setattr(turns, "time", SimpleNamespace(sleep=sleep))
    calmly = calm(lambda state, split: (state, split))
    with ThreadPoolExecutor(1) as another:
        assert another.submit(calmly, state, None).result() == (state, None)
    assert not slept, "Ray must see that the consumer of another dataset waits"
    assert calmly(state, None) == (state, None)
    assert len(slept) == looks


@pytest.mark.parametrize("digits", [None, 0, 5])
@pytest.mark.parametrize("value", [None, 0.0, -0.0, 2.0, 1e300, 0.25, 1 / 3, 1e9 + 0.5, float("inf"), 3, True])
def test_numbers_are_rounded_as_by_ray(value: float | None, digits: int | None) -> None:
    quickly = rounded(execution_options.safe_round)(value, digits)
    assert repr(quickly) == repr(execution_options.safe_round(value, digits))


@pytest.mark.parametrize("state", list(itertools.product([False, True], [False, True], [0, 1], [False, True])))
def test_an_operator_has_finished_and_completed_when_ray_says_so(state: tuple[bool, bool, int, bool]) -> None:
    marked, inputs, tasks, output = state
    finished, completed = PhysicalOperator.has_execution_finished, PhysicalOperator.has_completed
    operator = SimpleNamespace(
        _is_execution_marked_finished=marked,
        _inputs_complete=inputs,
        num_active_tasks=lambda: tasks,
        has_next=lambda: output,
        has_execution_finished=lambda: finished(operator),
    )
    assert finished_soon(finished)(operator) == finished(operator)
    assert completed_soon(completed)(operator) == completed(operator)


@pytest.mark.parametrize("own", [lambda operator: True, lambda operator: operator.other_name])
def test_a_ray_that_decides_by_something_else_is_left_as_it_is(own: Callable[[Any], bool]) -> None:
    for soon in (finished_soon, completed_soon):
        with pytest.raises(AttributeError):
            soon(own)
    with pytest.raises(AttributeError):
        finished_soon(lambda operator: operator._inputs_complete)  # it has no mark


def test_a_replica_does_not_wait_until_its_block_is_taken_and_ray_is_left_as_it_was() -> None:
    waits = "_generator_backpressure_num_objects"
    method = inspect.getattr_static(ActorPoolMapOperator, "_apply_default_actor_task_remote_args")
    operator, context = object.__new__(ActorPoolMapOperator), DataContext.get_current().copy()
    arguments = {"num_cpus": 1}
    with internals.blocks_without_leave():
        assert operator._apply_default_actor_task_remote_args(arguments, context)[waits] == -1
        with ThreadPoolExecutor(1) as another:
            theirs = another.submit(operator._apply_default_actor_task_remote_args, arguments, context).result()
        assert theirs[waits] > 0, "a task of another dataset may have many blocks"
    assert operator._apply_default_actor_task_remote_args(arguments, context)[waits] > 0
    assert inspect.getattr_static(ActorPoolMapOperator, "_apply_default_actor_task_remote_args") is method


def test_batches_are_larger_for_many_replicas_if_ray_leaves_them_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(optional, "_missing", {})
    pools, small, large = (1, 8, 31, 32, 48, 1000), 200 * 200, 1_003_520
    assert [resources.batch_rows(small, pool) for pool in pools] == [32, 32, 32, 64, 96, 96]
    assert [resources.batch_rows(large, pool) for pool in pools] == [11, 11, 11, 22, 33, 33]
    monkeypatch.setenv(optional.PLAIN, "1")
    assert resources.batch_rows(small, 1000) == 32, "Ray would cut it"


def test_without_them_nothing_is_replaced_and_it_is_said_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(optional, "_missing", {})
    monkeypatch.setattr(optional, "_said", set())
    monkeypatch.setenv(optional.PLAIN, "1")
    before = map_operator.to_stats, plan_udf_map_op.BatchMapTransformFn, streaming_executor._StatsManager
    with ExitStack() as stack:
        for patch in [*patches(), *patches()]:
            stack.enter_context(patch)
        assert before == (map_operator.to_stats, plan_udf_map_op.BatchMapTransformFn, streaming_executor._StatsManager)
    assert "steady flow through a small object store" in str(optional.missed())
    assert optional.missed() is None


PLAIN_RUN = """
import sys
from functools import partial
from pathlib import Path
from caprl_ray import pipeline
from caprl_ray.caption import job
from caprl_ray.cluster import local
from caprl_ray.commands.demo import demo_recipe, render_dataset
from caprl_ray.prepare.stage import Prepare
from caprl_ray.recipe.load import parse
from tests import poison

class Poisoned(Prepare):
    def __init__(self, *arguments):
        super().__init__(*arguments)
        self._decode = partial(poison.prepare, **self._decode.keywords)

folder = Path(sys.argv[1])
render_dataset(folder, 160)
first = sorted((folder / "files").iterdir())[40]
first.write_bytes(first.read_bytes() + b"<exit>")
job.Prepare = Poisoned
recipe = demo_recipe([folder / "files", folder / "shards"], folder / "out") | {"model": {"source": "stub"}}
local.start(num_cpus=2)
balance = pipeline.run(job.caption_job(parse(recipe | {"prepare": {"max_pixels": 20_000}})))
print(balance.balanced, balance.finished, balance.failed)
"""


@pytest.mark.slow
def test_a_run_without_them_captions_everything_and_ends_a_deadly_image(tmp_path: Path) -> None:
    command = [sys.executable, "-c", PLAIN_RUN, str(tmp_path)]
    environment = os.environ | {optional.PLAIN: "1", "PYTHONPATH": str(ROOT)}
    run = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert run.stdout.split()[-3:] == ["True", "159", "1"], run.stderr
    assert run.stderr.count(f"{optional.PLAIN}=1 switches them off") == 1
