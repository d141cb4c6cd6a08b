"""The ways that plan.py measures, each run alone in a process of its own; prints how many objects it has listed."""

import os
import sys
from collections.abc import Callable

from listing_server import BUCKET


def boto3(endpoint: str, folder: str, out: str) -> int:
    """A bare listing by boto3's paginator, of whose answers nothing is used."""
    from boto3 import client
    from botocore.config import Config

    s3 = client("s3", endpoint_url=endpoint, region_name="us-east-1", config=Config(s3={"addressing_style": "path"}))
    pages = s3.get_paginator("list_objects_v2").paginate(Bucket=BUCKET, Prefix=folder)
    return sum(len(page["Contents"]) for page in pages)


def listed(endpoint: str, folder: str, out: str) -> int:
    """The listing as planning asks for it."""
    from caprl_ray.recipe import sections
    from caprl_ray.storage import Storage

    storage = Storage(sections.Storage(endpoint=endpoint, region="us-east-1"))
    return sum(1 for _ in storage.walk(f"s3://{BUCKET}/{folder}"))


def planned(endpoint: str, folder: str, out: str) -> int:
    """Listed, cut into units, stored and loaded, as the first run of a dataset does."""
    from caprl_ray import plan, sources
    from caprl_ray.recipe import sections
    from caprl_ray.sources.source import Access
    from caprl_ray.storage import Storage

    storage = Storage(sections.Storage(endpoint=endpoint, region="us-east-1"))
    access = Access(storage=storage, input=sections.Input(paths=[f"s3://{BUCKET}/{folder}"]), max_bytes=2**26)
    plan.store(storage, out, sources.plan_units(access))
    return sum(unit.rows or 1 for unit in plan.load(storage, out).units)


WAYS: dict[str, Callable[[str, str, str], int]] = {"boto3": boto3, "listed": listed, "planned": planned}

if __name__ == "__main__":
    os.environ |= {"AWS_ACCESS_KEY_ID": "loopback", "AWS_SECRET_ACCESS_KEY": "loopback"}
    print(WAYS[sys.argv[1]](*sys.argv[2:]))
