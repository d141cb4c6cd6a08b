"""One Ray and one S3 server for each process of tests, on this machine, with the stub engine allowed."""

import os
import sys
from collections.abc import Iterator
from pathlib import Path
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


# Tests in these places start Ray clusters of their own, or kill processes.
APART = ("chaos", "cluster", "faults", "test_end_to_end.py", "test_jobs.py", "test_second_job.py", "test_secrets.py")

# These files begin first, so that no process is left with a long one at the end (see the Makefile).
LONGEST = [
    *("test_chaos.py", "test_process_deaths.py", "test_end_to_end.py", "test_pipeline.py", "test_driver_deaths.py"),
    *("test_engine_deaths.py", "test_jobs.py", "test_scoring.py", "test_prepare_deaths.py", "test_tune.py"),
    *("test_second_job.py", "test_curating.py", "test_demo.py", "test_pipeline_s3.py", "test_preflight.py"),
    *("test_storage_faults.py", "test_while_planning.py", "test_shared.py", "test_resolve.py", "test_parts.py"),
    *("test_hostile.py", "test_s3.py", "test_sandbox.py", "test_endpoint.py", "test_webdataset.py", "test_lease.py"),
]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark tests that start Ray or an engine as `cluster`, and put the longest files first."""
    items.sort(key=lambda item: LONGEST.index(item.path.name) if item.path.name in LONGEST else len(LONGEST))
    for item in items:
        place = item.path.relative_to(Path(__file__).parent).parts[0]
        if place in APART or "ray_cluster" in getattr(item, "fixturenames", ()) or item.get_closest_marker("engine"):
            item.add_marker(pytest.mark.cluster)


@pytest.fixture(scope="session")
def ray_cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    import ray
    from filelock import FileLock
    from ray import cloudpickle

    from caprl_ray.cluster import local

    for name, module in list(sys.modules.items()):
        if name.startswith(("tests.", "test_")):
            cloudpickle.register_pickle_by_value(module)
    with FileLock(tmp_path_factory.getbasetemp().parent / "ray.lock"):  # two that start at once may take too long
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
