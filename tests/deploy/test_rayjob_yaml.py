"""rayjob.yaml has only fields that KubeRay and Kubernetes know, where they know them, and the shape of cluster.yaml.

The schema is that of the fields in use, by hand from KubeRay 1.7's reference of ray.io/v1 and Kubernetes' core/v1: what
is misspelt or stands one level off, an API server would drop or refuse.
"""

import json
import re
import subprocess
from collections.abc import Callable, Iterator
from typing import Any

import jsonschema
import pytest
import yaml

from caprl_ray.recipe.sections import Recipe
from caprl_ray.version import __version__
from tests.checkout import ROOT
from tests.deploy.machines import (
    GUIDE,
    LOCK,
    MACHINES,
    PROJECT,
    PURCHASES,
    RAY_VERSION,
    bought,
    foreign,
    recipe_of,
    submitted,
)

DOCKERFILE = (ROOT / "Dockerfile").read_text(encoding="utf-8")

Document = dict[str, Any]
Schema = dict[str, Any]

TEXT, COUNT, SWITCH = {"type": "string"}, {"type": "integer", "minimum": 0}, {"type": "boolean"}
TEXTS = {"type": "object", "additionalProperties": TEXT}
QUANTITY = {"type": ["string", "integer"], "pattern": r"^\d+(\.\d+)?(m|[kMGT]i?)?$"}


def only(*required: str, **fields: Schema) -> Schema:
    """An object of these fields and no others."""
    return {"type": "object", "additionalProperties": False, "required": list(required), "properties": fields}


def several(item: Schema) -> Schema:
    return {"type": "array", "minItems": 1, "items": item}


QUANTITIES = only("cpu", "memory", cpu=QUANTITY, memory=QUANTITY, **{"nvidia.com/gpu": QUANTITY})
RESOURCES = only("limits", "requests", limits=QUANTITIES, requests=QUANTITIES)
CONFINED = only(allowPrivilegeEscalation=SWITCH, capabilities=only(drop=several(TEXT)))
CONTAINER = only(
    *("name", "image", "resources", "securityContext"),
    name=TEXT,
    image=TEXT,
    securityContext=CONFINED,
    env=several(only("name", "value", name=TEXT, value=TEXT)),
    volumeMounts=several(only("name", "mountPath", name=TEXT, mountPath=TEXT)),
    resources=RESOURCES,
)
POD = only(
    *("containers", "serviceAccountName", "restartPolicy", "securityContext", "nodeSelector"),
    serviceAccountName=TEXT,
    restartPolicy={"enum": ["Always", "OnFailure", "Never"]},
    securityContext=only(
        runAsNonRoot=SWITCH,
        runAsUser=COUNT,
        fsGroup=COUNT,
        seccompProfile=only("type", type={"enum": ["RuntimeDefault", "Unconfined", "Localhost"]}),
    ),
    nodeSelector=TEXTS,
    tolerations=several(
        only(
            key=TEXT,
            operator={"enum": ["Exists", "Equal"]},
            effect={"enum": ["NoSchedule", "PreferNoSchedule", "NoExecute"]},
        )
    ),
    volumes=several(only("name", "emptyDir", name=TEXT, emptyDir=only())),
    containers=several(CONTAINER) | {"maxItems": 1},
)
TEMPLATE = only("spec", metadata=only(annotations=TEXTS), spec=POD)
HEAD = only(
    *("rayStartParams", "template"),
    serviceType={"enum": ["ClusterIP", "NodePort", "LoadBalancer"]},
    rayStartParams=TEXTS,
    template=TEMPLATE,
)
WORKERS = only(
    *("groupName", "minReplicas", "maxReplicas", "rayStartParams", "template"),
    groupName=TEXT,
    replicas=COUNT,
    minReplicas=COUNT,
    maxReplicas=COUNT,
    idleTimeoutSeconds=COUNT,
    rayStartParams=TEXTS,
    template=TEMPLATE,
)
AUTOSCALER = only(
    version={"enum": ["v1", "v2"]},
    upscalingMode={"enum": ["Default", "Aggressive", "Conservative"]},
    idleTimeoutSeconds=COUNT,
    securityContext=CONFINED,
    resources=RESOURCES,
)
CLUSTER = only(
    *("headGroupSpec", "workerGroupSpecs", "rayVersion"),
    rayVersion=TEXT,
    authOptions=only(mode={"enum": ["disabled", "token"]}, secretName=TEXT),
    enableInTreeAutoscaling=SWITCH,
    autoscalerOptions=AUTOSCALER,
    headGroupSpec=HEAD,
    workerGroupSpecs=several(WORKERS),
)
RAYJOB = only(
    *("apiVersion", "kind", "metadata", "spec"),
    apiVersion={"const": "ray.io/v1"},
    kind={"const": "RayJob"},
    metadata=only("name", name=TEXT | {"pattern": "^[a-z][a-z0-9-]{0,46}$"}),
    spec=only(
        *("entrypoint", "rayClusterSpec"),
        entrypoint=TEXT,
        runtimeEnvYAML=TEXT,
        shutdownAfterJobFinishes=SWITCH,
        ttlSecondsAfterFinished=COUNT,
        backoffLimit=COUNT,
        activeDeadlineSeconds=COUNT | {"minimum": 1},
        rayClusterSpec=CLUSTER,
    ),
)


def read() -> Document:
    """The manifest as plain data, with nothing shared between its parts."""
    document: Document = json.loads(json.dumps(yaml.safe_load((ROOT / "rayjob.yaml").read_text())))
    return document


def faults(job: Document, recipe: Recipe) -> list[str]:
    jsonschema.validate(job, RAYJOB)
    spec, cluster = job["spec"], job["spec"]["rayClusterSpec"]
    pods = [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]
    return [
        *foreign(job),
        *_run(spec),
        *_access(cluster),
        *_scaling(cluster, recipe),
        *(fault for group in pods for fault in _pod(group.get("groupName", "head"), group["template"]["spec"])),
        *_like_cluster_yaml(cluster),
    ]


def _run(spec: Document) -> Iterator[str]:
    if spec["entrypoint"] != submitted():
        yield "entrypoint: not what docs/clusters.md submits to cluster.yaml's cluster"
    environment = yaml.safe_load(spec["runtimeEnvYAML"])
    if not re.fullmatch(rf"s3://[\w.-]+/caprl_ray/{re.escape(__version__)}/job\.zip", environment.pop("working_dir")):
        yield "runtimeEnvYAML: code of another version"
    if environment:
        yield "runtimeEnvYAML: only the working directory, packages are the image's"
    if not spec.get("shutdownAfterJobFinishes") or "activeDeadlineSeconds" not in spec:
        yield "the cluster would outlive its job"


def _access(cluster: Document) -> Iterator[str]:
    if cluster.get("authOptions", {}).get("mode") != "token":
        yield "authOptions: no token authentication"
    if cluster["headGroupSpec"].get("serviceType") != "ClusterIP":
        yield "serviceType: reached from outside of the cluster"
    if cluster["rayVersion"] != RAY_VERSION:
        yield "rayVersion: not the one that is installed"


def _scaling(cluster: Document, recipe: Recipe) -> Iterator[str]:
    if cluster["headGroupSpec"]["rayStartParams"].get("num-cpus") != "0":
        yield "head: it must offer no CPU, so that no task runs there"
    if not cluster.get("enableInTreeAutoscaling") or "idleTimeoutSeconds" not in cluster["autoscalerOptions"]:
        yield "idle nodes would stay, or go after Ray's own minute"
    for group in cluster["workerGroupSpecs"]:
        if group["minReplicas"] or group.get("replicas"):
            yield f"{group['groupName']}: it must start from none"
    gpus = sum(group["maxReplicas"] * _gpus(group) for group in cluster["workerGroupSpecs"])
    if recipe.replicas.most * recipe.replicas.gpus > gpus:
        yield f"replicas.max: {recipe.replicas.most}, and the cluster has {gpus} GPUs"


def _gpus(group: Document) -> int:
    return int(group["template"]["spec"]["containers"][0]["resources"]["limits"].get("nvidia.com/gpu", 0))


def _pod(name: str, pod: Document) -> Iterator[str]:
    (container,) = pod["containers"]
    if not container["image"].endswith(f"/caprl_ray:{__version__}"):
        yield f"{name}: an image of another version"
    if pod["nodeSelector"].get("karpenter.sh/capacity-type") != ("on-demand" if name == "head" else "spot"):
        yield f"{name}: the head on demand, everything else on spot"
    if not pod["securityContext"].get("runAsNonRoot") or container["securityContext"] != {
        "allowPrivilegeEscalation": False,
        "capabilities": {"drop": ["ALL"]},
    }:
        yield f"{name}: more rights than it needs"
    if pod["restartPolicy"] != "Never":
        yield f"{name}: autoscaler v2 would take a restarted pod for the same Ray node"
    asked, machine = container["resources"]["limits"], MACHINES[pod["nodeSelector"]["node.kubernetes.io/instance-type"]]
    if container["resources"]["requests"] != asked:
        yield f"{name}: requests are not limits"
    if int(asked.get("nvidia.com/gpu", 0)) != machine.gpus:
        yield f"{name}: a pod is a whole node, with all its GPUs"
    share = int(asked["cpu"]) / machine.cpus, int(asked["memory"].removesuffix("Gi")) / machine.memory
    if not all(0.7 <= part < 0.99 for part in share):
        yield f"{name}: a pod is a whole node, less what Kubernetes keeps"
    if machine.gpus and not any(t["key"] == "nvidia.com/gpu" for t in pod.get("tolerations", ())):
        yield f"{name}: GPU nodes are tainted"
    cached = {mount["mountPath"] for mount in container.get("volumeMounts", ())}
    if machine.gpus and {e["value"] for e in container["env"] if e["name"] == "CAPRL_RAY_CACHE"} != cached:
        yield f"{name}: the model would not lie on the node's disk"


def derived(cluster: Document) -> Document:
    """The configuration that Ray's autoscaler derives from the manifest in the head's pod."""
    from ray.autoscaler._private.kuberay.autoscaling_config import _derive_autoscaling_config_from_ray_cr

    resource = {"metadata": {"name": "x", "namespace": "y"}, "spec": cluster}
    config: Document = _derive_autoscaling_config_from_ray_cr(resource)
    return config


def _like_cluster_yaml(cluster: Document) -> Iterator[str]:
    """The differences between the autoscaler's views of both clusters."""
    here = derived(cluster)
    there = yaml.safe_load((ROOT / "cluster.yaml").read_text())
    if here["idle_timeout_minutes"] != there["idle_timeout_minutes"]:
        yield "another idle timeout than cluster.yaml's"
    ours, theirs = here["available_node_types"], there["available_node_types"]
    for name in (ours.keys() | theirs.keys()) - {"head", here["head_node_type"]}:
        if name not in ours or name not in theirs:
            yield f"{name}: only in one of the manifests"
            continue
        for field in ("min_workers", "max_workers", "idle_timeout_s"):
            if ours[name].get(field) != theirs[name].get(field):
                yield f"{name}: another {field} than cluster.yaml's"
        if ours[name]["resources"].get("GPU") != theirs[name]["resources"].get("GPU"):
            yield f"{name}: other GPUs than cluster.yaml's"
    for group in cluster["workerGroupSpecs"]:
        machine = theirs.get(group["groupName"], {}).get("node_config", {}).get("InstanceType")
        if machine != group["template"]["spec"]["nodeSelector"]["node.kubernetes.io/instance-type"]:
            yield f"{group['groupName']}: another machine than cluster.yaml's"


@pytest.fixture(scope="module")
def recipe() -> Recipe:
    return recipe_of(read()["spec"]["entrypoint"])


def test_the_manifest_has_no_fault(recipe: Recipe) -> None:
    assert faults(read(), recipe) == []


@pytest.mark.parametrize("what", PURCHASES)
def test_rays_autoscaler_buys_what_the_pipeline_needs(what: str) -> None:
    demand, nodes = PURCHASES[what]
    assert bought(derived(cluster(read())), demand) == nodes


def places(value: object, path: tuple[str | int, ...] = ()) -> Iterator[tuple[str | int, ...]]:
    """Every object of a document, except those that hold names of the user's own."""
    if isinstance(value, dict):
        if path and path[-1] in ("annotations", "nodeSelector", "rayStartParams"):
            return
        yield path
        for name, inner in value.items():
            yield from places(inner, (*path, name))
    elif isinstance(value, list):
        for index, inner in enumerate(value):
            yield from places(inner, (*path, index))


def at(document: Document, path: tuple[str | int, ...]) -> Document:
    inner: Any = document
    for part in path:
        inner = inner[part]
    found: Document = inner
    return found


def test_an_unknown_field_at_any_level_is_refused() -> None:
    job, validator = read(), jsonschema.validators.validator_for(RAYJOB)(RAYJOB)
    everywhere = list(places(job))
    assert len(everywhere) > 80
    for path in everywhere:
        at(job, path)["misspelt"] = "x"
        assert any("misspelt" in error.message for error in validator.iter_errors(job)), path
        del at(job, path)["misspelt"]
    assert validator.is_valid(job)


def cluster(job: Document) -> Document:
    return at(job, ("spec", "rayClusterSpec"))


def group(job: Document, name: str) -> Document:
    found: Document = next(group for group in cluster(job)["workerGroupSpecs"] if group["groupName"] == name)
    return found


def pod(job: Document, name: str) -> Document:
    return at(group(job, name), ("template", "spec"))


def ray(job: Document, name: str) -> Document:
    return at(pod(job, name), ("containers", 0))


BREAKS: dict[str, tuple[Callable[[Document], object], str]] = {
    "another recipe": (
        lambda j: j["spec"].update(entrypoint="python jobs/caption.py recipes/other.yaml"),
        "entrypoint",
    ),
    "another override": (lambda j: j["spec"].update(entrypoint=submitted() + " replicas.max=2"), "entrypoint"),
    "another code": (lambda j: j["spec"].update(runtimeEnvYAML="working_dir: s3://b/caprl_ray/0/job.zip"), "version"),
    "packages at the start": (
        lambda j: j["spec"].update(runtimeEnvYAML=j["spec"]["runtimeEnvYAML"] + "pip: [vllm]"),
        "the image's",
    ),
    "another image": (lambda j: ray(j, "h100").update(image="REGISTRY/caprl_ray:latest"), "another version"),
    "another Ray": (lambda j: cluster(j).update(rayVersion="2.59.0"), "rayVersion"),
    "a cluster that stays": (lambda j: j["spec"].pop("shutdownAfterJobFinishes"), "outlive"),
    "no deadline": (lambda j: j["spec"].pop("activeDeadlineSeconds"), "outlive"),
    "no authentication": (lambda j: cluster(j).pop("authOptions"), "no token"),
    "authentication off": (lambda j: cluster(j)["authOptions"].update(mode="disabled"), "no token"),
    "a public head": (lambda j: cluster(j)["headGroupSpec"].update(serviceType="LoadBalancer"), "from outside"),
    "head with CPUs": (lambda j: cluster(j)["headGroupSpec"]["rayStartParams"].clear(), "no CPU"),
    "nodes that stay": (lambda j: group(j, "l40s").update(minReplicas=1), "start from none"),
    "nodes at first": (lambda j: group(j, "l40s").update(replicas=2), "start from none"),
    "no autoscaler": (lambda j: cluster(j).pop("enableInTreeAutoscaling"), "would stay"),
    "no idle timeout": (lambda j: cluster(j)["autoscalerOptions"].pop("idleTimeoutSeconds"), "own minute"),
    "another idle timeout": (lambda j: cluster(j)["autoscalerOptions"].update(idleTimeoutSeconds=60), "another idle"),
    "more replicas than GPUs": (lambda j: group(j, "l40s").update(maxReplicas=7), "the cluster has 7"),
    "another most": (lambda j: group(j, "cpu").update(maxReplicas=3), "cpu: another max_workers"),
    "on demand": (
        lambda j: pod(j, "h200")["nodeSelector"].update({"karpenter.sh/capacity-type": "on-demand"}),
        "on spot",
    ),
    "any capacity": (lambda j: pod(j, "l40s")["nodeSelector"].pop("karpenter.sh/capacity-type"), "on spot"),
    "another machine": (
        lambda j: pod(j, "l40s")["nodeSelector"].update({"node.kubernetes.io/instance-type": "p5.4xlarge"}),
        "another machine",
    ),
    "too few GPUs": (
        lambda j: [ray(j, "h200")["resources"][kind].update({"nvidia.com/gpu": 1}) for kind in ("limits", "requests")],
        "all its GPUs",
    ),
    "too much memory": (
        lambda j: [ray(j, "cpu")["resources"][kind].update(memory="64Gi") for kind in ("limits", "requests")],
        "less what",
    ),
    "too few CPUs": (
        lambda j: [ray(j, "l40s")["resources"][kind].update(cpu="4") for kind in ("limits", "requests")],
        "a whole node",
    ),
    "requests below limits": (lambda j: ray(j, "cpu")["resources"]["requests"].update(cpu="1"), "not limits"),
    "a privileged pod": (lambda j: ray(j, "l40s")["securityContext"].update(allowPrivilegeEscalation=True), "rights"),
    "a pod of root's": (lambda j: pod(j, "cpu")["securityContext"].update(runAsNonRoot=False), "rights"),
    "pods that restart": (lambda j: pod(j, "h100").update(restartPolicy="Always"), "restarted"),
    "no toleration": (lambda j: pod(j, "l40s").pop("tolerations"), "tainted"),
    "a cache elsewhere": (lambda j: ray(j, "l40s")["env"][0].update(value="/tmp"), "node's disk"),
    "a key": (
        lambda j: ray(j, "l40s")["env"].append({"name": "AWS_SECRET_ACCESS_KEY", "value": "x"}),
        "a secret: AWS_SECRET_ACCESS_KEY=x",
    ),
    "a registry of one account": (
        lambda j: ray(j, "cpu").update(image="210987654321.dkr.ecr.us-east-1.amazonaws.com/caprl_ray:0.6.0"),
        "an account",
    ),
}


@pytest.mark.parametrize("name", BREAKS)
def test_each_fault_is_found(name: str, recipe: Recipe) -> None:
    broken = read()
    change, said = BREAKS[name]
    change(broken)
    assert any(said in fault for fault in faults(broken, recipe))


def test_the_image_has_the_versions_of_the_lock() -> None:
    (base,) = re.findall(r"^FROM rayproject/ray:([\d.]+)-py(\d)(\d+)-cu(\d\d)(\d)$", DOCKERFILE, re.MULTILINE)
    assert base[0] == RAY_VERSION and PROJECT["requires-python"].startswith(f">={base[1]}.{base[2]}.")
    assert any(line.startswith(f"nvidia-cuda-runtime=={base[3]}.{base[4]}.") for line in LOCK)
    assert set(re.findall(r"caprl_ray(?:==|:|/)(\d[\d.]*\d)", DOCKERFILE + GUIDE)) == {__version__}


def test_the_image_installs_what_the_release_holds_from_nowhere_else() -> None:
    """Its commands are a shell's, and every file that they name is made by the guide."""
    runs = re.findall(r"^RUN (.*)$", DOCKERFILE.replace("\\\n", ""), re.MULTILINE)
    for run in runs:
        subprocess.run(["bash", "-n", "-c", re.sub(r"--mount=\S+", "", run)], check=True)
    installs = [part.strip() for run in runs for part in run.split("&&") if "pip install" in part]
    assert len(installs) == 2 and all("--no-index --find-links /release --no-deps" in part for part in installs)
    assert "--require-hashes -r /release/gpu.lock" in installs[0]
    assert "cp requirements/gpu.lock release" in GUIDE and "pip wheel --no-deps -w release ." in GUIDE
    assert (
        f"docker build -t REGISTRY/caprl_ray:{__version__} -f Dockerfile release" in GUIDE and "COPY" not in DOCKERFILE
    )


def test_the_arithmetic_of_costs_adds_up() -> None:
    cells = dict(
        re.findall(r"^\| ([^|]+?) \| (\S.*?) \|$", GUIDE.split("## What two million images cost")[1], re.MULTILINE)
    )
    table = {name: [float(x) for x in row.split(" | ")] for name, row in cells.items() if re.match(r"[\d.]+ \|", row)}
    rate, hours, price, demand, spot, eight = table.values()
    for card in range(3):
        assert hours[card] == round(2e6 / (0.8 * rate[card] * 3600))
        exact = 2e6 / (0.8 * rate[card] * 3600)
        assert demand[card] == round(exact * price[card])
        assert spot[card] == round(exact * price[card] / 2 * 1.1)
        assert eight[card] == round(exact / 8, 1)
