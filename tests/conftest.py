"""One Ray cluster and one S3 server per test session, on this machine, with the stub engine allowed."""

import os
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.s3_server import S3Server

os.environ["CAPRL_RAY_ALLOW_STUB"] = "1"
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
os.environ.pop("RAY_ADDRESS", None)
# Otherwise each of hundreds of processes would compile the package.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
# For the S3 server on loopback. Set here, before Ray starts, so that Ray's workers have them too.
os.environ |= {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "AWS_EC2_METADATA_DISABLED": "true"}
os.environ.pop("AWS_PROFILE", None)
os.environ["AWS_MAX_ATTEMPTS"] = "3"  # a lasting fault costs seconds instead of a minute


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[None]:
    import ray
    from ray import cloudpickle

    from caprl_ray.cluster import local

    for name, module in list(sys.modules.items()):
        if name.startswith(("tests.", "test_")):
            cloudpickle.register_pickle_by_value(module)
    local.start(num_cpus=2)
    yield
    ray.shutdown()


@pytest.fixture(scope="session")
def s3_server() -> Iterator["S3Server"]:
    from tests.s3_server import S3Server

    server = S3Server()
    yield server
    server.stop()


@pytest.fixture
def s3(s3_server: "S3Server") -> "S3Server":
    s3_server.reset()
    return s3_server
