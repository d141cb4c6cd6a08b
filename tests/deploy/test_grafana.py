"""The dashboard and the alerts use only metrics that a run emits, and the stored files are up to date."""

import importlib.util
import json
import re
from collections.abc import Iterator
from types import ModuleType

import pytest
import yaml

from caprl_ray.quality.registry import CHECKS
from caprl_ray.watch.metrics import DRIVER, NAMES, REPLICA
from tests.checkout import ROOT

GRAFANA = ROOT / "grafana"
TAGS = {metric.name: set(metric.tags) for metric in DRIVER} | {name: set(tags) for name, (_, tags) in REPLICA.items()}


@pytest.fixture(scope="module")
def generate() -> ModuleType:
    spec = importlib.util.spec_from_file_location("generate", GRAFANA / "generate.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def queries() -> Iterator[str]:
    board = json.loads((GRAFANA / "caprl_ray.json").read_text())
    yield from (target["expr"] for panel in board["panels"] for target in panel["targets"])
    rules = yaml.safe_load((GRAFANA / "alerts.yaml").read_text())["groups"][0]["rules"]
    yield from (rule["expr"] for rule in rules)


def test_the_files_are_those_that_the_tables_make(generate: ModuleType) -> None:
    for name, content in generate.files().items():
        assert (GRAFANA / name).read_text() == content, "run python grafana/generate.py"


def test_every_query_uses_metrics_and_tags_that_are_emitted() -> None:
    used = set()
    for query in queries():
        for name, tags in re.findall(r"ray_(caprl_ray_\w+)(?:\{([^}]*)\})?", query):
            used.add(name)
            assert name in NAMES, query
            assert {tag for tag, _ in re.findall(r"(\w+)(!?=~?)", tags)} <= TAGS[name], query
        grouped = {tag for by in re.findall(r"by \(([^)]*)\)", query) for tag in by.split(", ")}
        assert all(grouped <= TAGS[name] for name in re.findall(r"ray_(caprl_ray_\w+)", query)), query
    assert used == NAMES, "what is emitted is drawn"
    flags = {flag for query in queries() for names in re.findall('flag=~"([^"]*)"', query) for flag in names.split("|")}
    assert flags <= CHECKS.keys()


def test_there_are_four_alerts() -> None:
    rules = yaml.safe_load((GRAFANA / "alerts.yaml").read_text())["groups"][0]["rules"]
    assert len(rules) == 4 and all(rule["annotations"]["summary"].endswith(".") for rule in rules)


def test_names_follow_the_rules_of_prometheus() -> None:
    for metric in DRIVER:
        assert re.fullmatch(r"caprl_ray(_[a-z]+)+", metric.name)
        assert metric.name.endswith("_total") == metric.counts and metric.help.endswith(".")
