"""Whether two formulas are equal, by math-verify, in a child process with limits of time and memory.

math-verify's own time limits use SIGALRM, which works in the main thread only; a replica has several threads. A formula
such as 9^{9^{9^9}} takes for ever or all memory. So a child compares, and is killed when it takes too long.
"""

import resource
import threading
from collections.abc import Callable
from contextlib import suppress
from multiprocessing.connection import Connection
from typing import Any

from caprl_ray.child import GONE, Child, main
from caprl_ray.errors import SystemFailure

COMPARE_S = 5.0
START_S, STARTS = 120.0, 3  # SymPy takes seconds to import, more on a busy machine
MOST_MEMORY = 2 * 2**30
MISSING = (
    "score: the metric math needs math-verify, which is not installed on this node; install it with pip install "
    "'caprl_ray[score]'."
)


def equal(gold: str, answer: str) -> bool | None:
    """Whether an answer equals the right formula; None if comparing them takes too long or too much memory."""
    return _comparer.ask(("equal", gold, answer))


def parses(gold: str) -> bool:
    """Whether a right answer can be read as a formula."""
    return bool(_comparer.ask(("parses", gold, "")))


class _Comparer:
    """The child of this process, which starts with the first question. Threads take turns."""

    def __init__(self) -> None:
        self._child: Child | None = None
        self._turn = threading.Lock()

    def ask(self, question: tuple[str, str, str]) -> bool | None:
        """The child's answer; None if it died of the question. Raises SystemFailure if no child starts."""
        with self._turn:
            child = self._child = self._child or _started()
            try:
                with child.ended_after(COMPARE_S):
                    child.connection.send(question)
                    answer: bool | None = child.connection.recv()
                    return answer
            except GONE:
                child.end()
                self._child = None
                return None


_comparer = _Comparer()


def _started() -> Child:
    for _ in range(STARTS):
        child = Child(__name__)
        with suppress(*GONE), child.ended_after(START_S):
            if child.connection.recv():
                return child
            child.end()
            raise SystemFailure(MISSING)
        child.end()
    raise SystemFailure("score: the process that compares formulas does not start; see the worker's log.")


def _serve(connection: Connection) -> None:
    """The child's side."""
    resource.setrlimit(resource.RLIMIT_AS, (MOST_MEMORY, MOST_MEMORY))
    try:
        answers = _answers()
    except ImportError:
        connection.send(False)
        return
    connection.send(True)
    while True:
        connection.send(answers(*connection.recv()))


def _answers() -> Callable[[str, str, str], bool | None]:
    import logging

    from math_verify import parse, verify

    logging.disable()  # it quotes formulas, and warns of timeouts that are kept here

    def formula(text: str) -> Any:
        return parse(f"${text.strip().strip('$')}$", parsing_timeout=None)

    def answer(what: str, gold: str, text: str) -> bool | None:
        try:
            if what == "parses":
                return any(not isinstance(part, str) for part in formula(gold))
            return bool(verify(formula(gold), formula(text), timeout_seconds=None))
        except (MemoryError, RecursionError):
            return None

    return answer


if __name__ == "__main__":
    main(_serve)
