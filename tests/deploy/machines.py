"""Facts for checking both cluster manifests: EC2's machines, this checkout's versions, and forbidden texts."""

import re
import tomllib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from ray.util.accelerators import accelerators

from caprl_ray.cluster.resources import READ_CPUS
from caprl_ray.recipe.load import load
from caprl_ray.recipe.sections import Recipe
from tests.checkout import ROOT

GUIDE = (ROOT / "docs" / "clusters.md").read_text(encoding="utf-8")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
LOCK = (ROOT / "requirements" / "gpu.lock").read_text(encoding="utf-8").splitlines()
RAY_VERSION = next(line.split()[0].removeprefix("ray==") for line in LOCK if line.startswith("ray=="))
RAY_ACCELERATORS = {value for name, value in vars(accelerators).items() if name.isupper()}


@dataclass(frozen=True)
class Machine:
    """An EC2 instance type as EC2 describes it; GiB of memory."""

    cpus: int
    memory: int
    gpus: int = 0
    accelerator: str | None = None


MACHINES = {
    "m7i.xlarge": Machine(4, 16),
    "m7i.4xlarge": Machine(16, 64),
    "g6e.2xlarge": Machine(8, 64, 1, "L40S"),
    "p5.4xlarge": Machine(16, 256, 1, "H100"),
    "p5en.48xlarge": Machine(192, 2048, 8, "H200"),
}

OWN = {
    "an AWS id": r"\b(?:subnet|sg|ami|vpc|lt|eni|key|snap)-[0-9a-f]{8,17}\b",
    "an account": r"(?<!\d)\d{12}(?!\d)",
    "an access key": r"\b(?:AKIA|ASIA)[0-9A-Z]{16}\b",
    "key material": r"-----BEGIN|\.pem\b|(?i:aws_credentials|ssh_private_key|keyname)",
    "a secret": r"(?i)(?:secret_access_key|auth_token|password|hf_token|access_key_id)\s*[=:]\s*[\w$]",
    "a token": r"\bhf_[A-Za-z]{20,}|\b[0-9a-f]{64}\b",
    "an address": r"\b(?!127\.0\.0\.1\b)\d{1,3}(?:\.\d{1,3}){3}\b",
}


def foreign(manifest: object) -> list[str]:
    """The texts of a manifest that belong to one account or are secret."""
    return [f"{what}: {text}" for text in texts(manifest) for what, form in OWN.items() if re.search(form, text)]


def texts(value: object) -> Iterator[str]:
    """Every name and value of a document, each `name: value`, and each `name=value` of an environment."""
    if isinstance(value, dict):
        for name, inner in value.items():
            yield from (str(name), *texts(inner))
            if not isinstance(inner, dict | list):
                yield f"{name}: {inner}"
        if value.keys() >= {"name", "value"}:
            yield f"{value['name']}={value['value']}"
    elif isinstance(value, list):
        for inner in value:
            yield from texts(inner)
    else:
        yield str(value)


def submitted() -> str:
    """The command that docs/clusters.md submits to the cluster of cluster.yaml."""
    (command,) = re.findall(
        r"^ray job submit .*-- (python jobs/caption\.py recipes/.*?)(?: *#.*)?$", GUIDE, re.MULTILINE
    )
    return str(command)


def recipe_of(command: str) -> Recipe:
    """The recipe that a job's command names, with the overrides that it gives."""
    path, *overrides = command.removeprefix("python jobs/caption.py ").split()
    return load(ROOT / path, overrides)


# The pipeline's requests, and how many nodes of each type Ray starts for them where there are none yet.
READ, PREPARE, REPLICA = {"CPU": READ_CPUS}, {"CPU": 1}, {"GPU": 1}
PURCHASES = {
    "nothing": ([], {}),
    "reading, which must not buy GPUs": ([(READ, 60)], {"cpu": 1}),
    "the first replica": ([(READ, 60), (REPLICA, 1)], {"cpu": 1, "l40s": 1}),
    "a pool whose own cores prepare": ([(REPLICA, 8), (PREPARE, 40)], {"l40s": 8}),
    "more preparing than their cores hold": ([(REPLICA, 8), (PREPARE, 90)], {"l40s": 8, "cpu": 2}),
    "more replicas than there may be": ([(REPLICA, 20)], {"l40s": 8}),
}


def bought(config: dict[str, Any], demand: list[tuple[dict[str, float], int]]) -> dict[str, int]:
    """The nodes that Ray's autoscaler would start for so many requests each, on a cluster with only a head."""
    from ray.autoscaler.v2.instance_manager.config import AutoscalingConfig
    from ray.autoscaler.v2.scheduler import ResourceDemandScheduler, SchedulingRequest
    from ray.autoscaler.v2.utils import ResourceRequestUtil
    from ray.core.generated.autoscaler_pb2 import ResourceRequestByCount

    cluster = AutoscalingConfig(config)
    asked = [ResourceRequestByCount(request=ResourceRequestUtil.make(one), count=count) for one, count in demand]
    answer = ResourceDemandScheduler().schedule(
        SchedulingRequest(
            node_type_configs=cluster.get_node_type_configs(),
            resource_requests=asked,
            max_num_nodes=cluster.get_max_num_nodes(),
            disable_launch_config_check=True,
        )
    )
    launches: Counter[str] = Counter()
    for launch in answer.to_launch:
        launches[launch.instance_type] += launch.count
    return dict(launches)
