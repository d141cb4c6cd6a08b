"""The connection to Ray, in a process that has none."""

import subprocess
import sys

# Runs in a process of its own: the others of this session share one cluster.
SCRIPT = """
import ray
from caprl_ray import cluster
connect, asked = cluster._connect, []
cluster._connect = lambda debug: (asked.append(debug), connect(debug))
with cluster.lasting(False):
    assert not ray.is_initialized()
    with cluster.connected():
        node = ray.get_runtime_context().get_node_id()
    with cluster.connected():
        assert ray.get_runtime_context().get_node_id() == node
assert asked == [False] and not ray.is_initialized()
with cluster.connected():
    assert ray.get_runtime_context().get_node_id() != node
assert not ray.is_initialized()
"""


def test_ray_is_started_when_it_is_needed_and_once_in_what_lasts() -> None:
    run = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, timeout=200, check=False)
    assert run.returncode == 0, run.stderr
