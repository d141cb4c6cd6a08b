"""cluster.yaml is one that Ray's cluster launcher accepts."""

from pathlib import Path

import yaml

ROOT = Path(__file__).parent.parent


def test_the_cluster_file_is_valid_and_starts_from_zero_gpu_nodes() -> None:
    from ray.autoscaler._private.util import prepare_config, validate_config

    config = prepare_config(yaml.safe_load((ROOT / "cluster.yaml").read_text()))
    validate_config(config)
    types = config["available_node_types"]
    assert types[config["head_node_type"]]["resources"]["CPU"] == 0
    assert all(types[name]["min_workers"] == 0 for name in types if name != config["head_node_type"])
