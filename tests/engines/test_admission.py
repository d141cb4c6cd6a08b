"""Suspected requests run apart from all others, and no request waits for ever."""

import asyncio

from hypothesis import given, settings
from hypothesis import strategies as st

from caprl_ray.engines.admission import Admission

COMPANY = (None, None, 3, 1)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 4), st.integers(1, 4)), max_size=40), st.integers(0, 40))
def test_only_requests_that_may_run_together_do(visits: list[tuple[int, int, int]], cancelled: int) -> None:
    inside: list[int] = []

    async def visit(room: Admission, deaths: int, delay: int, stay: int) -> None:
        for _ in range(delay):
            await asyncio.sleep(0)
        async with room.admitted(deaths):
            inside.append(deaths)
            try:
                most = COMPANY[deaths]
                assert len(inside) <= (most or len(visits))
                assert all(COMPANY[other] is None if most is None else other == deaths for other in inside)
                for _ in range(stay):
                    await asyncio.sleep(0)
            finally:
                inside.remove(deaths)

    async def scenario() -> None:
        room = Admission(COMPANY)
        tasks = [asyncio.ensure_future(visit(room, *each)) for each in visits]
        for _ in range(cancelled % 3):
            await asyncio.sleep(0)
        for task in tasks[cancelled : cancelled + 2]:
            task.cancel()
        await asyncio.wait_for(asyncio.gather(*tasks, return_exceptions=True), 10)
        assert all(task.cancelled() or not task.exception() for task in tasks)
        async with asyncio.timeout(5), room.admitted(3):
            pass

    asyncio.run(scenario())


def test_any_number_of_unsuspected_requests_run_together() -> None:
    async def scenario() -> None:
        room = Admission(COMPANY)
        async with room.admitted(0), room.admitted(1), room.admitted(0), asyncio.timeout(5), room.admitted(1):
            pass

    asyncio.run(scenario())


def test_a_request_that_gives_up_waiting_takes_no_place_and_leaves_none() -> None:
    async def scenario() -> None:
        room, waiting = Admission(COMPANY), asyncio.Event()

        async def wait() -> None:
            async with room.admitted(0):
                waiting.set()

        async with room.admitted(3):
            given_up, other = asyncio.ensure_future(wait()), asyncio.ensure_future(wait())
            await asyncio.sleep(0)
            given_up.cancel()
            for _ in range(5):
                await asyncio.sleep(0)
            assert given_up.cancelled() and not waiting.is_set()
        await asyncio.wait_for(other, 5)

    asyncio.run(scenario())
