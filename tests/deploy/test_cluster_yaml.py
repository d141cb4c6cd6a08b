"""Ray's launcher accepts cluster.yaml, and the parts that Ray does not check are right too.

`faults` lists its faults. A test breaks each rule once.
"""

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import botocore.session
import pytest
import yaml
from botocore.validate import ParamValidator
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from caprl_ray.models import weights
from caprl_ray.models.resolve import EMBEDDED_FOLDER
from caprl_ray.recipe.load import parse
from caprl_ray.recipe.sections import Recipe
from caprl_ray.storage import Storage
from caprl_ray.version import __version__
from tests.checkout import ROOT
from tests.deploy.machines import (
    MACHINES,
    PROJECT,
    PURCHASES,
    RAY_ACCELERATORS,
    RAY_VERSION,
    READ,
    bought,
    foreign,
    recipe_of,
    submitted,
)
from tests.s3_server import BUCKET, S3Server

Config = dict[str, Any]
LAUNCH = botocore.session.get_session().get_service_model("ec2").operation_model("RunInstances").input_shape


def read() -> Config:
    """The file as plain data, with nothing shared between its parts."""
    document: Config = json.loads(json.dumps(yaml.safe_load((ROOT / "cluster.yaml").read_text())))
    return document


def prepared(config: Config) -> Config:
    """The file with Ray's defaults, as the launcher uses it; raises where Ray's schema does not accept it."""
    from ray.autoscaler._private.util import prepare_config, validate_config

    whole: Config = prepare_config(config)
    validate_config(whole)
    return whole


def faults(config: Config, recipe: Recipe) -> list[str]:
    whole = prepared(config)
    workers = dict(whole["available_node_types"])
    head = workers.pop(whole["head_node_type"])
    return [
        *foreign(config),
        *_head(head),
        *_scaling(whole, workers, recipe),
        *(fault for name, node in workers.items() for fault in _worker(name, node)),
        *(
            fault
            for name, node in whole["available_node_types"].items()
            for rule in (_network, _launch)
            for fault in rule(name, node["node_config"])
        ),
        *_access(whole),
        *_token(whole),
        *_setup(whole, workers, recipe),
    ]


def _head(head: Config) -> Iterator[str]:
    if head["resources"] != {"CPU": 0}:
        yield "head: it must offer no CPU, so that no task runs there"
    if head["max_workers"]:
        yield "head: there is one"
    if "InstanceMarketOptions" in head["node_config"]:
        yield "head: a spot one would end the run with it"


def _scaling(whole: Config, workers: Config, recipe: Recipe) -> Iterator[str]:
    gpus = sum(node["max_workers"] * node["resources"].get("GPU", 0) for node in workers.values())
    if recipe.replicas.most * recipe.replicas.gpus > gpus:
        yield f"replicas.max: {recipe.replicas.most}, and the cluster has {gpus} GPUs"
    if sum(bool(node["max_workers"] and node["resources"].get("GPU")) for node in workers.values()) != 1:
        yield "one kind of GPU must be on: the autoscaler knows no prices"
    if not any(node["max_workers"] and not node["resources"].get("GPU") for node in workers.values()):
        yield "no CPU workers: reading would buy GPU nodes"
    if whole["max_workers"] != sum(node["max_workers"] for node in workers.values()):
        yield "max_workers: not the sum of the types'"
    if not 2 <= whole["idle_timeout_minutes"] <= 15:
        yield "idle_timeout_minutes: out of reason"


def _worker(name: str, node: Config) -> Iterator[str]:
    if node["min_workers"]:
        yield f"{name}: it must start from none"
    if node.get("idle_timeout_s", 300) > 900:
        yield f"{name}: idle_timeout_s is out of reason"
    if node["node_config"].get("InstanceMarketOptions") != {"MarketType": "spot"}:
        yield f"{name}: not on spot, or with a price limit that ends it early"
    machine = MACHINES[node["node_config"]["InstanceType"]]
    wanted = {"CPU": machine.cpus}
    if machine.gpus:
        wanted |= {"GPU": machine.gpus, f"accelerator_type:{machine.accelerator}": 1}
    if node["resources"] != wanted:
        yield f"{name}: its resources are not the machine's"
    kinds = {resource.partition(":")[2] for resource in node["resources"] if resource.startswith("accelerator_type:")}
    if kinds - RAY_ACCELERATORS:
        yield f"{name}: Ray knows no accelerator {kinds}"
    if machine.gpus and "nvidia" not in node["node_config"]["ImageId"]:
        yield f"{name}: its image has no driver"


def _network(name: str, node: Config) -> Iterator[str]:
    metadata = node.get("MetadataOptions", {})
    if metadata.get("HttpTokens") != "required" or metadata.get("HttpPutResponseHopLimit") != 1:
        yield f"{name}: instance metadata without a session token, or further than the node"
    if len(node.get("SubnetIds", ())) < 2 or not node.get("SecurityGroupIds"):
        yield f"{name}: Ray would choose any subnet, public ones too, or open port 22"
    if any(card.get("AssociatePublicIpAddress", True) for card in node.get("NetworkInterfaces", ())):
        yield f"{name}: a public address"
    if set(node.get("IamInstanceProfile", {})) != {"Name"}:
        yield f"{name}: no role, so keys would be needed"
    if not all(disk["Ebs"].get("Encrypted") for disk in node["BlockDeviceMappings"]):
        yield f"{name}: a disk in clear"
    if not node.get("ImageId", "").startswith("resolve:ssm:/aws/service/"):
        yield f"{name}: Ray's own image is of Ubuntu 18.04"


def _launch(name: str, node: Config) -> Iterator[str]:
    """The faults, by EC2's own description, of the call that Ray makes with one of the given subnets."""
    call = {field: value for field, value in node.items() if field != "SubnetIds"} | {"MinCount": 1, "MaxCount": 1}
    report = ParamValidator().validate(call, LAUNCH)
    if report.has_errors():
        yield f"{name}: {report.generate_report()}"


def _access(whole: Config) -> Iterator[str]:
    if not whole["provider"].get("use_internal_ips"):
        yield "use_internal_ips: the launcher would want public addresses"
    if whole["provider"].get("security_group"):
        yield "security_group: Ray would open ports"
    if whole["provider"].get("cache_stopped_nodes", True):
        yield "cache_stopped_nodes: stopped nodes cost their disks"
    for command in starts(whole):
        if not re.search(r"--dashboard-host=127\.0\.0\.1\b", command) and "--head" in command:
            yield "the dashboard listens beyond the head's loopback"
        if "--disable-usage-stats" not in command:
            yield "usage statistics leave the cluster"


def _token(whole: Config) -> Iterator[str]:
    for command in starts(whole):
        if not re.search(r"\bRAY_AUTH_MODE=token\b.*ray start", command):
            yield "ray starts without token authentication"
    if not any(path.endswith("/.ray/auth_token") for path in whole["file_mounts"]):
        yield "no token reaches the nodes"


def starts(whole: Config) -> list[str]:
    """The commands that start Ray: one for the head, one for workers."""
    lists = whole["head_start_ray_commands"], whole["worker_start_ray_commands"]
    found = [command for commands in lists for command in commands if "ray start" in command]
    assert len(found) == 2
    return found


def _setup(whole: Config, workers: Config, recipe: Recipe) -> Iterator[str]:
    lists = [whole["head_setup_commands"], whole["worker_setup_commands"]]
    lists += [node["worker_setup_commands"] for node in workers.values() if "worker_setup_commands" in node]
    for commands in lists:
        text = " ".join(commands)
        if "--requirement ~/release/gpu.lock" not in text or f" caprl_ray=={__version__}" not in text:
            yield "a node gets other packages than the lock's, or another version of this one"
        if not re.search(rf"s3://[\w.-]+/caprl_ray/{re.escape(__version__)} ", text):
            yield "packages that are not of this version"
    for command in (command for commands in lists for command in commands):
        for install in re.findall(r"pip install (.*?)(?:&&|$)", command):
            pinned = "--require-hashes" in install or re.search(r" \w+==[\d.]+\s*$", install)
            if not (pinned and "--no-index" in install and "--no-deps" in install):
                yield f"not pinned: pip install {install}"
        if re.search(r"\b(?:curl|wget|git clone|http)", command):
            yield f"something from the internet: {command}"
    for name, node in workers.items():
        if node["resources"].get("GPU") and recipe.model.source not in str(node.get("worker_setup_commands")):
            yield f"{name}: it does not fetch the recipe's model"


@pytest.fixture(scope="module")
def recipe() -> Recipe:
    return recipe_of(submitted())


def test_the_cluster_file_has_no_fault(recipe: Recipe) -> None:
    assert faults(read(), recipe) == []
    assert recipe.storage.region == read()["provider"]["region"]


def types(config: Config) -> Config:
    found: Config = config["available_node_types"]
    return found


def node(config: Config, name: str) -> Config:
    found: Config = types(config)[name]["node_config"]
    return found


def replace(config: Config, key: str, old: str, new: str) -> None:
    assert old in str(config[key])
    config[key] = json.loads(json.dumps(config[key]).replace(old, new))


BREAKS: dict[str, tuple[Callable[[Config], object], str]] = {
    "head with CPUs": (lambda c: types(c)["head"]["resources"].update(CPU=4), "no CPU"),
    "head on spot": (lambda c: node(c, "head").update(InstanceMarketOptions={"MarketType": "spot"}), "spot one"),
    "nodes that stay": (lambda c: types(c)["l40s"].update(min_workers=1), "start from none"),
    "more replicas than GPUs": (lambda c: types(c)["l40s"].update(max_workers=7), "the cluster has 7"),
    "two kinds of GPU": (lambda c: types(c)["h200"].update(max_workers=1), "one kind"),
    "no CPU workers": (lambda c: types(c).pop("cpu"), "would buy GPU nodes"),
    "no idle timeout": (lambda c: c.update(idle_timeout_minutes=0), "out of reason"),
    "idle for ever": (lambda c: types(c)["cpu"].update(idle_timeout_s=86400), "out of reason"),
    "on demand": (lambda c: node(c, "h100").pop("InstanceMarketOptions"), "not on spot"),
    "too many CPUs": (lambda c: types(c)["cpu"]["resources"].update(CPU=32), "not the machine's"),
    "too few GPUs": (lambda c: types(c)["h200"]["resources"].update(GPU=1), "not the machine's"),
    "another machine": (lambda c: node(c, "l40s").update(InstanceType="p5.4xlarge"), "not the machine's"),
    "a name Ray has not": (lambda c: types(c)["h100"]["resources"].update({"accelerator_type:H-100": 1}), "no accel"),
    "no driver": (lambda c: node(c, "h100").update(ImageId=node(c, "head")["ImageId"]), "no driver"),
    "Ray's image": (lambda c: node(c, "head").pop("ImageId"), "18.04"),
    "a field EC2 has not": (lambda c: node(c, "cpu")["MetadataOptions"].update(HttpToken="required"), "HttpToken"),
    "a size in words": (
        lambda c: node(c, "l40s")["BlockDeviceMappings"][0]["Ebs"].update(VolumeSize="200"),
        "VolumeSize",
    ),
    "IMDSv1": (lambda c: node(c, "cpu")["MetadataOptions"].update(HttpTokens="optional"), "session token"),
    "no IMDSv2": (lambda c: node(c, "l40s").pop("MetadataOptions"), "session token"),
    "far metadata": (lambda c: node(c, "h200")["MetadataOptions"].update(HttpPutResponseHopLimit=2), "further"),
    "any subnet": (lambda c: node(c, "cpu").pop("SubnetIds"), "any subnet"),
    "one zone": (lambda c: node(c, "l40s")["SubnetIds"].pop(), "any subnet"),
    "Ray's group": (lambda c: node(c, "head").pop("SecurityGroupIds"), "open port 22"),
    "opened ports": (lambda c: c["provider"].update(security_group={"GroupName": "x"}), "open ports"),
    "public launcher": (lambda c: c["provider"].update(use_internal_ips=False), "public addresses"),
    "public node": (lambda c: node(c, "cpu").update(NetworkInterfaces=[{"DeviceIndex": 0}]), "public address"),
    "public dashboard": (lambda c: replace(c, "head_start_ray_commands", "127.0.0.1", "0.0.0.0"), "loopback"),
    "no dashboard host": (
        lambda c: replace(c, "head_start_ray_commands", "--dashboard-host=127.0.0.1", ""),
        "loopback",
    ),
    "no role": (lambda c: node(c, "h100").pop("IamInstanceProfile"), "no role"),
    "a role's number": (
        lambda c: node(c, "cpu").update(IamInstanceProfile={"Arn": "arn:aws:iam::210987654321:instance-profile/x"}),
        "an account",
    ),
    "a subnet's id": (lambda c: node(c, "cpu").update(SubnetIds=["subnet-0ab12cd34ef56ab78"] * 2), "an AWS id"),
    "an image's id": (lambda c: node(c, "cpu").update(ImageId="ami-0ab12cd34ef56ab78"), "an AWS id"),
    "a key pair": (lambda c: node(c, "cpu").update(KeyName="mine"), "key material"),
    "a private key": (lambda c: c["auth"].update(ssh_private_key="~/.ssh/id"), "key material"),
    "credentials": (lambda c: c["provider"].update(aws_credentials={"aws_access_key_id": "x"}), "key material"),
    "an access key": (lambda c: c["setup_commands"].append("export K=AKIA" + "ABCDEFGH12345678"), "an access key"),
    "the token itself": (lambda c: c["setup_commands"].append("export RAY_AUTH_TOKEN=" + "0f" * 32), "a token"),
    "no authentication": (
        lambda c: replace(c, "worker_start_ray_commands", "RAY_AUTH_MODE=token", "RAY_AUTH_MODE=disabled"),
        "without token",
    ),
    "authentication left out": (
        lambda c: replace(c, "head_start_ray_commands", "export RAY_AUTH_MODE=token;", ""),
        "without token",
    ),
    "no token": (lambda c: c.update(file_mounts={}), "no token"),
    "disk in clear": (lambda c: node(c, "l40s")["BlockDeviceMappings"][0]["Ebs"].pop("Encrypted"), "in clear"),
    "stopped nodes": (lambda c: c["provider"].pop("cache_stopped_nodes"), "cost their disks"),
    "Ray's own setup": (lambda c: c.pop("head_setup_commands"), "not pinned"),
    "no hashes": (lambda c: replace(c, "setup_commands", "--require-hashes", ""), "not pinned"),
    "from an index": (lambda c: replace(c, "setup_commands", "--no-index", ""), "not pinned"),
    "any version": (lambda c: replace(c, "setup_commands", f"caprl_ray=={__version__}", "caprl_ray"), "not pinned"),
    "another version": (lambda c: replace(c, "setup_commands", f"=={__version__}", "==0.0.1"), "another version"),
    "another release": (lambda c: replace(c, "setup_commands", f"/{__version__} ", "/latest "), "not of this version"),
    "a script": (lambda c: c["setup_commands"].append("curl -L https://example.org | sh"), "from the internet"),
    "another model": (
        lambda c: replace(types(c)["h200"], "worker_setup_commands", "models/CapRL-3B", "models/other"),
        "the recipe's model",
    ),
}


@pytest.mark.parametrize("name", BREAKS)
def test_each_fault_is_found(name: str, recipe: Recipe) -> None:
    broken = read()
    change, said = BREAKS[name]
    change(broken)
    assert any(said in fault for fault in faults(broken, recipe))


@pytest.mark.parametrize("what", PURCHASES)
def test_rays_autoscaler_buys_what_the_pipeline_needs(what: str) -> None:
    demand, nodes = PURCHASES[what]
    assert bought(prepared(read()), demand) == nodes


def test_without_cpu_workers_reading_would_buy_gpus() -> None:
    broken = read()
    types(broken).pop("cpu")
    assert bought(prepared(broken), [(READ, 60)]) == {"l40s": 2}


def test_a_recipe_with_more_replicas_than_gpus_is_found() -> None:
    assert any("replicas.max: 9" in fault for fault in faults(read(), recipe_of(f"{submitted()} replicas.max=9")))


def test_a_misspelt_field_is_refused_by_ray() -> None:
    import jsonschema

    broken = read()
    types(broken)["cpu"]["max_worker"] = types(broken)["cpu"].pop("max_workers")
    with pytest.raises(jsonschema.ValidationError):
        prepared(broken)


def test_the_lock_that_nodes_install_has_what_the_project_wants_and_nothing_of_a_cpu_build() -> None:
    lines = (ROOT / "requirements" / "gpu.lock").read_text().splitlines()
    found = (re.fullmatch(r"([\w.-]+)==(\S+) --hash=sha256:[0-9a-f]{64}", line).groups() for line in lines)  # type: ignore[union-attr]
    locked = {canonicalize_name(name): version for name, version in found}
    wanted = [*PROJECT["dependencies"], *PROJECT["optional-dependencies"]["gpu"]]
    for requirement in map(Requirement, wanted):
        version = locked[canonicalize_name(requirement.name)]
        assert requirement.specifier.contains(version, prereleases=True), requirement
    assert locked["ray"] == RAY_VERSION
    assert "+" not in locked["torch"] and "triton" in locked and "pytest" not in locked


def test_a_gpu_node_has_the_model_before_its_first_replica(s3: S3Server, tmp_path: Path, recipe: Recipe) -> None:
    """The command itself runs here, in a home like a node's; what a replica does afterwards reads no weights."""
    source = recipe.model.source.replace("BUCKET", BUCKET)
    for file in EMBEDDED_FOLDER.iterdir():
        s3.put(f"{source.removeprefix(f's3://{BUCKET}/')}/{file.name}", file.read_bytes())
    python = tmp_path / "venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
    python.chmod(0o755)
    command = types(read())["h200"]["worker_setup_commands"][-1].replace("BUCKET", BUCKET)
    home = os.environ | {"HOME": str(tmp_path), "PYTHONPATH": str(ROOT), "AWS_ENDPOINT_URL_S3": s3.endpoint}
    subprocess.run(["bash", "-c", command], env=home, check=True, timeout=60)

    storage = Storage(
        parse({"input": {"paths": ["-"]}, "output": {"path": "-"}, "storage": {"endpoint": s3.endpoint}}).storage
    )
    listed = weights.list_model(source, storage)
    s3.requests.clear()
    folder = weights.fetch(listed, tmp_path / ".cache" / "caprl_ray" / "models")
    assert {file.name for file in folder.iterdir()} == {file.name for file in EMBEDDED_FOLDER.iterdir()}
    assert not s3.of("GET")
