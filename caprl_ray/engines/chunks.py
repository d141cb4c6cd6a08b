"""Send a caption's tokens from the engine core in chunks, not one by one.

vLLM's core sends each sampled token of each request to the replica's process, which decodes, counts and detokenizes it:
500 times for a caption of 500 tokens. Only whole captions are needed here, so the core holds tokens back. The first
token, every finished request, and outputs other than tokens are sent at once.

Captions do not depend on chunks. Stop strings are the exception, because the replica's process looks for them in the
text, so runs with stop strings use no chunks.
"""

import time
from collections import defaultdict
from collections.abc import Callable
from functools import cache
from operator import attrgetter
from typing import Any

# The longest time that a token is held. The replica takes what arrives for a sign of life (revival.py).
HELD_S = 0.5

Steps = dict[int, Any]


class Chunks:
    """Joins the outputs of one core's steps. Use it on the thread that computes the steps."""

    def __init__(self, held_s: float = HELD_S, clock: Callable[[], float] = time.monotonic) -> None:
        self._held_s, self._clock = held_s, clock
        self._due = clock() + held_s
        self._held: dict[int, dict[str, Any]] = defaultdict(dict)  # by client and request

    def pass_on(self, steps: Steps) -> Steps:
        """The part of a step's `EngineCoreOutputs` to send now, by client. Held outputs go out when they are due."""
        now = self._clock()
        due = now >= self._due
        if due:
            self._due = now + self._held_s
        for client, sent in steps.items():
            sent.outputs = self._of_client(self._held[client], sent.outputs, due)
        return {client: sent for client, sent in steps.items() if not _empty(sent)}

    def _of_client(self, held: dict[str, Any], outputs: list[Any], due: bool) -> list[Any]:
        """Hold tokens, or put them in front of those that go out now. This is computed for every token."""
        sent = []
        for output in outputs:
            kind: Any = type(output)
            more, none = _more(kind)
            before = held.get(output.request_id)
            if not due and more(output) == none:
                if before is None:
                    held[output.request_id] = output
                else:
                    before.new_token_ids += output.new_token_ids
                continue
            if before is not None:
                output.new_token_ids = before.new_token_ids + output.new_token_ids
                del held[output.request_id]
            sent.append(output)
        if due:  # also what is in no step: of a request that waits, or was aborted (vLLM ignores its tokens)
            sent += held.values()
            held.clear()
        return sent


@cache
def _more(outputs: Any) -> tuple[Callable[[Any], Any], tuple[Any, ...]]:
    """How to read what an output may say beside its tokens, and its values if it says nothing."""
    bare = outputs(request_id="", new_token_ids=[])
    names = [name for name in outputs.__struct_fields__ if name not in {"request_id", "new_token_ids"}]
    more = attrgetter(*names)
    return more, more(bare)


def _empty(sent: Any) -> bool:
    return bool(sent == type(sent)(engine_index=sent.engine_index, outputs=[], timestamp=sent.timestamp))
