"""One Ray cluster of this test session's own, on this machine, with the stub engine allowed."""

import os
import sys
from collections.abc import Iterator

import pytest

os.environ["CAPRL_RAY_ALLOW_STUB"] = "1"
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
os.environ.pop("RAY_ADDRESS", None)


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[None]:
    import ray
    from ray import cloudpickle

    for name, module in list(sys.modules.items()):
        if name.startswith(("tests.", "test_")):
            cloudpickle.register_pickle_by_value(module)
    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()
