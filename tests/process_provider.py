"""A cloud for Ray's autoscaler: its machines are nodes of Ray, started as processes.

The head's monitor imports it by name and is the parent of the nodes. `provider.log` beside the nodes' own logs has a
line for each node that was launched, ended or lost: what happened, the node's type and its id.
"""

import itertools
import json
import os
import subprocess
import sys
import threading
import time
import uuid
from pathlib import Path
from typing import Any

from ray.autoscaler.node_provider import NodeProvider
from ray.autoscaler.tags import (
    NODE_KIND_HEAD,
    STATUS_UP_TO_DATE,
    TAG_RAY_NODE_KIND,
    TAG_RAY_NODE_NAME,
    TAG_RAY_NODE_STATUS,
    TAG_RAY_USER_NODE_TYPE,
)

HEAD_TYPE = "head"
HEAD_ID = "f" * 51 + "00000"
APART_S = 5.0  # two nodes that start at once on one machine race for a socket
LOG = "provider.log"


class ProcessProvider(NodeProvider):  # type: ignore[misc]
    """Launches and ends nodes; a node whose process has ended is gone."""

    def __init__(self, provider_config: dict[str, Any], cluster_name: str) -> None:
        super().__init__(provider_config, cluster_name)
        self._folder = Path(provider_config["folder"])
        self._lock = threading.RLock()
        self._numbers = itertools.count()
        self._next_start = 0.0
        self._processes: dict[str, subprocess.Popen[bytes] | None] = {HEAD_ID: None}
        self._tags = {
            HEAD_ID: {
                TAG_RAY_NODE_KIND: NODE_KIND_HEAD,
                TAG_RAY_NODE_NAME: HEAD_ID,
                TAG_RAY_USER_NODE_TYPE: HEAD_TYPE,
                TAG_RAY_NODE_STATUS: STATUS_UP_TO_DATE,
            }
        }

    @staticmethod
    def bootstrap_config(cluster_config: dict[str, Any]) -> dict[str, Any]:
        return cluster_config

    def non_terminated_nodes(self, tag_filters: dict[str, str]) -> list[str]:
        with self._lock:
            for node in [node for node in self._processes if not self.is_running(node)]:
                del self._processes[node]
                self._note("lost", node)
            return [n for n in self._processes if tag_filters.items() <= self._tags[n].items()]

    def is_running(self, node_id: str) -> bool:
        process = self._processes.get(node_id)
        return node_id in self._processes and (process is None or process.poll() is None)

    def is_terminated(self, node_id: str) -> bool:
        return not self.is_running(node_id)

    def node_tags(self, node_id: str) -> dict[str, str]:
        return dict(self._tags[node_id])

    def set_node_tags(self, node_id: str, tags: dict[str, str]) -> None:
        self._tags[node_id] |= tags

    def internal_ip(self, node_id: str) -> str:
        return node_id  # use_node_id_as_ip

    external_ip = internal_ip

    def create_node(self, node_config: dict[str, Any], tags: dict[str, str], count: int) -> dict[str, Any]:
        raise NotImplementedError("the autoscaler says with which resources")

    def create_node_with_resources_and_labels(
        self,
        node_config: dict[str, Any],
        tags: dict[str, str],
        count: int,
        resources: dict[str, float],
        labels: dict[str, str],
    ) -> dict[str, Any]:
        with self._lock:
            return {node: node for node in (self._launch(tags, resources) for _ in range(count))}

    def terminate_node(self, node_id: str) -> None:
        with self._lock:
            process = self._processes.pop(node_id, None)
        if process:
            self._note("ended", node_id)
            process.terminate()  # `ray start --block` ends the node's other processes

    def _launch(self, tags: dict[str, str], resources: dict[str, float]) -> str:
        node = uuid.uuid4().hex + uuid.uuid4().hex[:24]
        number = next(self._numbers)
        own = {name: value for name, value in resources.items() if name not in ("CPU", "GPU", "memory")}
        start = max(time.monotonic(), self._next_start)
        self._next_start = start + APART_S
        command = [
            *(sys.executable, "-m", "ray.scripts.scripts", "start", "--block", "--disable-usage-stats"),
            *(f"--address={self.provider_config['address']}", "--node-ip-address=127.0.0.1"),
            *(f"--num-cpus={resources['CPU']:g}", f"--num-gpus={resources.get('GPU', 0):g}"),
            f"--memory={resources['memory']:.0f}",
            *(f"--temp-dir={self._folder}/n{number}", "--min-worker-port=0", "--max-worker-port=0"),
            *("--object-store-memory=300000000", "--dashboard-agent-listen-port=0", f"--resources={json.dumps(own)}"),
        ]
        settings = {
            "RAY_OVERRIDE_NODE_ID_FOR_TESTING": node,
            "RAY_CLOUD_INSTANCE_ID": node,
            "RAY_NODE_TYPE_NAME": tags[TAG_RAY_USER_NODE_TYPE],
            "RAY_AUTH_MODE": "token",
        }
        wait = ["sh", "-c", f'sleep {max(0, start - time.monotonic()):.2f}; exec "$@"', "sh"]
        with open(self._folder / f"n{number}.log", "wb") as log:
            self._processes[node] = subprocess.Popen(
                [*wait, *command], env=os.environ | settings, stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )
        self._tags[node] = tags | {TAG_RAY_NODE_STATUS: STATUS_UP_TO_DATE}
        self._note("launched", node)
        return node

    def _note(self, event: str, node: str) -> None:
        with open(self._folder / LOG, "a", encoding="ascii") as log:
            log.write(f"{event} {self._tags[node][TAG_RAY_USER_NODE_TYPE]} {node}\n")
