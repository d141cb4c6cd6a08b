"""A job on a cluster that Ray's own autoscaler grows from zero GPU nodes and shrinks again. One node is lost midway.

Run as a program, this file is the job's `caprl-ray caption`, with a captioner that notes where it captions what.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import psutil
import pyarrow as pa
import pytest
import yaml

from caprl_ray import cli
from caprl_ray.caption import job
from caprl_ray.cluster import demand
from caprl_ray.cluster.resources import ACCELERATOR
from caprl_ray.commands.demo import check, demo_recipe, render_dataset
from tests.cluster.test_elastic import IMAGES, Notes, RecordedCaptioner, check_ledger, check_output
from tests.process_provider import HEAD_ID, HEAD_TYPE, LOG
from tests.ray_head import NOTICED_SOON, RAY, Head

NODES = 3
MOST_LAUNCHES = NODES + 2  # one instead of the lost one, and one that Ray requests before it knows of the other
CPU = {"CPU": 2, "memory": 2**30}  # clouds add the memory by themselves; Ray Data asks for some
PINNED, OTHER = "H100", "L40S"  # of the two types of GPU that the stub's cluster may have
LAST = f"scene-{2 * IMAGES - 1:05d}"


class ScaledCaptioner(RecordedCaptioner):
    """A replica of a pool that grows, loses a node and shrinks while it captions.

    Ray's autoscaler requests nodes by the speed of replicas. So each replica takes two batches at once, then waits for
    the whole pool, two batches later for the replacement of the lost node, and with the last row for an idle node to
    go.
    """

    notes = Path(
        os.environ.get("NOTES", "")
    )  # a setting of the driver, not of the worker that imports RecordedCaptioner
    nodes = Path(os.environ.get("NODES", ""))
    batches = 0

    def __call__(self, table: pa.Table) -> pa.Table:
        self.batches += 1
        self.awaited = 0 if self.batches <= 2 else NODES if self.batches <= 4 else NODES + 1
        captioned = super().__call__(table)
        while LAST in str(table["source"]) and "ended gpu" not in self.nodes.read_text():
            assert time.monotonic() < self.until, self.nodes.read_text()
            time.sleep(0.1)
        return captioned


@dataclass(kw_only=True)
class ScaledHead(Head):
    """A head whose autoscaler launches GPU nodes as processes (process_provider.py), of two types if `typed`."""

    typed: bool

    def options(self) -> list[str]:
        gpu = CPU | {"GPU": 1} | ({ACCELERATOR + PINNED: 1} if self.typed else {})
        types = {
            HEAD_TYPE: {"resources": {"CPU": self.cpus}, "max_workers": 0},
            "cpu": {"resources": CPU, "max_workers": 1},
            "gpu": {"resources": gpu, "max_workers": NODES},
        }
        if self.typed:
            types["another"] = {"resources": CPU | {"GPU": 1, ACCELERATOR + OTHER: 1}, "max_workers": NODES}
        document = {
            "cluster_name": "scaled",
            "max_workers": NODES + 1,
            "idle_timeout_minutes": 0.1,
            "provider": {
                "type": "external",
                "module": "tests.process_provider.ProcessProvider",
                "address": self.address,
                "folder": str(self.folder),
                "head_node_id": HEAD_ID,
                "use_node_id_as_ip": True,
                "disable_node_updaters": True,
                "disable_launch_config_check": True,
                "launch_multiple": True,
            },
            "auth": {},
            **{name: [] for name in LISTS},
            "docker": {},
            "file_mounts": {},
            "file_mounts_sync_continuously": False,
            "upscaling_speed": 1.0,
            "head_node_type": HEAD_TYPE,
            "available_node_types": {
                name: {"node_config": {}, "min_workers": 0} | kind for name, kind in types.items()
            },
        }
        config = self.folder / "autoscaling.json"
        config.write_text(json.dumps(document))
        return [f"--autoscaling-config={config}"]

    def launches(self) -> Counter[str]:
        """How many GPU nodes were launched, ended and lost, none of them of another type."""
        log = self.folder / LOG
        lines = [line.split() for line in log.read_text().splitlines()] if log.exists() else []
        assert "another" not in {kind for _, kind, _ in lines}
        return Counter(event for event, kind, _ in lines if kind == "gpu")

    def kill(self, node: str) -> None:
        """End a node as a cloud does that takes it away: its raylet and the rest of it."""
        raylets = [
            process
            for process in psutil.Process(self.processes[0].pid).children(recursive=True)
            if process.name() == "raylet" and node in " ".join(process.cmdline())
        ]
        (raylet,) = raylets
        raylet.kill()


# Ray's defaults for a provider that it does not know have none of these.
LISTS = (
    *("cluster_synced_files", "rsync_exclude", "rsync_filter"),
    *("initialization_commands", "setup_commands", "head_setup_commands", "worker_setup_commands"),
    *("head_start_ray_commands", "worker_start_ray_commands"),
)
SETTINGS = {
    "AUTOSCALER_UPDATE_INTERVAL_S": "1",
    "RAY_FAKE_CLUSTER": "1",
    "RAY_enable_autoscaler_v2": "1",
    "RAY_CLOUD_INSTANCE_ID": HEAD_ID,
    "RAY_NODE_TYPE_NAME": HEAD_TYPE,
    "RAY_OVERRIDE_NODE_ID_FOR_TESTING": HEAD_ID,
    **NOTICED_SOON,
}


# The defaults for a GPU do not fit the real engine on the CPU of a node that only claims a GPU.
ON_CORES = {
    "dtype": "float32",
    "enforce_eager": True,
    "distributed_executor_backend": "uni",
    "gpu_memory_utilization": 0.1,
}
CORES = {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_ENABLE_V1_MULTIPROCESSING": "0", "OMP_NUM_THREADS": "1"}


@pytest.mark.timeout(900)
@pytest.mark.parametrize("model", ["stub", pytest.param("embedded", marks=pytest.mark.engine)])
@pytest.mark.slow
def test_nodes_come_for_a_job_are_replaced_and_go(tmp_path: Path, model: str) -> None:
    right = render_dataset(tmp_path / "images", 2 * IMAGES)
    recipe = demo_recipe([tmp_path / "images" / "files"], tmp_path / "out") | {
        "model": {"source": model, "engine": {"max_num_seqs": 16} | (ON_CORES if model == "embedded" else {})},
        "replicas": {"min": 1, "max": NODES + 1, "gpus": 1},  # one more than the cluster may have
    }
    if model == "stub":
        recipe["prepare"] = {"max_pixels": 20_000}
        recipe["replicas"]["accelerator_type"] = PINNED
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    notes = Notes(tmp_path / "notes")
    with (
        tempfile.TemporaryDirectory(prefix="ray-", ignore_cleanup_errors=True) as folder,
        ScaledHead(folder=Path(folder), cpus=0, gpus=0, settings=SETTINGS | CORES, typed=model == "stub") as head,
    ):
        command = [
            RAY,
            "job",
            "submit",
            "--",
            "env",
            f"NOTES={notes.path}",
            f"NODES={head.folder / LOG}",
            "CAPRL_RAY_ALLOW_STUB=1",
            "RAY_DATA_MIN_GAP_BETWEEN_AUTOSCALING_REQUESTS=4",
        ]
        command += [sys.executable, __file__, str(tmp_path / "recipe.yaml")]
        with open(tmp_path / "log", "wb") as log:
            job = subprocess.Popen(command, env=head.client, stdout=log, stderr=log)
        try:
            head.wait(lambda: job.poll() is not None or len(notes.rows()) == NODES, seconds=400)
            assert job.poll() is None and head.launches() == Counter(launched=NODES)
            head.kill(notes.replicas()[max(notes.replicas())])
            head.wait(lambda: job.poll() is not None, seconds=300)
        finally:
            job.kill()
        assert job.returncode == 0, (tmp_path / "log").read_text()
        head.wait(lambda: head.launches()["launched"] == head.launches()["ended"] + head.launches()["lost"])
        assert head.launches()["lost"] == 1 and head.launches()["launched"] <= MOST_LAUNCHES
    assert len(set(notes.replicas().values())) > NODES, "the lost node was not replaced"
    rows = [row for rows in notes.rows().values() for row in rows]
    assert len(rows) >= IMAGES
    if model == "stub":
        check_output(recipe, set(rows))
    else:
        check_ledger(recipe)
        assert check(tmp_path / "out", right)[0] >= 0.96 * IMAGES


if __name__ == "__main__":
    job.Captioner = ScaledCaptioner  # type: ignore[misc]
    demand.PATIENCE_S = 10.0
    sys.exit(cli.main(["caption", *sys.argv[1:]]))
