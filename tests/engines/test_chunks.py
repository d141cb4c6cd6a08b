"""Tokens that the engine core holds back all arrive, in order, and never later than a request's end."""

import random
from functools import cache
from typing import Any

import pytest

from caprl_ray.engines.chunks import Chunks


@cache
def engine() -> Any:
    return pytest.importorskip("vllm.v1.engine")


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def output(name: str, *tokens: int, **more: Any) -> Any:
    return engine().EngineCoreOutput(request_id=name, new_token_ids=list(tokens), **more)


def last(name: str, *tokens: int) -> Any:
    return output(name, *tokens, finish_reason=engine().FinishReason.LENGTH)


def step(*outputs: Any, **more: Any) -> dict[int, Any]:
    return {0: engine().EngineCoreOutputs(outputs=list(outputs), **more)}


def seen(sent: dict[int, Any]) -> dict[str, list[int]]:
    return {one.request_id: one.new_token_ids for outputs in sent.values() for one in outputs.outputs}


def test_tokens_wait_for_the_end_of_their_request() -> None:
    chunks = Chunks(clock=Clock())
    assert chunks.pass_on(step(output("a", 1), output("b", 2))) == {}
    assert chunks.pass_on(step(output("a", 3), output("b", 4))) == {}
    sent = chunks.pass_on(step(last("a", 5), output("b", 6)))
    assert seen(sent) == {"a": [1, 3, 5]} and sent[0].outputs[0].finished
    assert seen(chunks.pass_on(step(last("b")))) == {"b": [2, 4, 6]}


def test_nothing_waits_longer_than_it_may_not_even_what_is_in_no_step() -> None:
    clock = Clock()
    chunks = Chunks(held_s=0.5, clock=clock)
    chunks.pass_on(step(output("a", 1), output("gone", 2)))
    clock.now += 0.6
    assert seen(chunks.pass_on(step(output("a", 3)))) == {"a": [1, 3], "gone": [2]}
    assert chunks.pass_on(step(output("a", 4))) == {}


def test_messages_with_more_than_tokens_go_out_at_once() -> None:
    chunks = Chunks(clock=Clock())
    sent = chunks.pass_on(step(output("a", 1, num_nans_in_logits=3), output("b", 2)))
    assert seen(sent) == {"a": [1]}
    sent = chunks.pass_on(step(output("b", 3), finished_requests={"c"}))
    assert seen(sent) == {} and sent[0].finished_requests == {"c"}


def test_every_token_of_any_course_arrives_once_in_order_and_in_few_messages() -> None:
    chance, clock = random.Random(1), Clock()
    chunks = Chunks(held_s=1.0, clock=clock)
    left = {f"r{number}": chance.randrange(1, 60) for number in range(200)}
    made: dict[str, list[int]] = {name: [] for name in left}
    arrived: dict[str, list[int]] = {name: [] for name in left}
    ended, messages = set(), 0
    while left:
        clock.now += 0.05
        outputs = []
        for name in chance.sample(sorted(left), min(16, len(left))):  # others are preempted
            made[name].append(chance.randrange(1000))
            left[name] -= 1
            outputs.append((output if left[name] else last)(name, made[name][-1]))
            if not left[name]:
                del left[name]
        for sent in chunks.pass_on(step(*outputs)).values():
            for one in sent.outputs:
                assert one.request_id not in ended
                arrived[one.request_id] += one.new_token_ids
                messages += 1
                if one.finished:
                    ended.add(one.request_id)
    assert arrived == made and ended == made.keys()
    assert messages < sum(map(len, made.values())) / 2
