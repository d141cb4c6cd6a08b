"""Decide whether a sick replica is replaced, or the run itself is at fault and ends.

A broken GPU writes "!!!!" for every third caption (QwenLM/Qwen3-VL issue 1673), and its neighbours write none. A broken
model, prompt or recipe does so everywhere.
"""

import collections

# How often sick replicas of one node are replaced. A restart repairs a fault of the driver or of the memory; a broken
# GPU stays broken.
REPLACED_ON_NODE = 3


class Sick:
    """Keeps the replicas' reports about their captions, and decides. The counter actor has one."""

    def __init__(self) -> None:
        self._healthy = False
        self._nodes: collections.Counter[str] = collections.Counter()
        self.fault: str | None = None

    def healthy(self) -> None:
        """A replica has written a whole window of captions within its limits: model and recipe are not at fault."""
        self._healthy = True

    def report(self, node: str, sentence: str, replicas: int) -> bool:
        """A replica on this node is sick; `replicas` are alive. Returns whether it is to be replaced.

        If not, `fault` says why the run ends: replicas of this node were replaced often enough, or each replica was
        replaced once and none has ever been healthy.
        """
        self._nodes[node] += 1
        hopeless = not self._healthy and self._nodes.total() > max(1, replicas)
        if self._nodes[node] > REPLACED_ON_NODE or hopeless:
            self.fault = self.fault or sentence
            return False
        return True
