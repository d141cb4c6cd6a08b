"""The ways that plan.py measures. Each runs in its own process and prints the number of objects that it listed."""

import os
import sys
from collections.abc import Callable

from listing_server import BUCKET


def boto3(endpoint: str, folder: str, out: str) -> int:
    """List with boto3's paginator. The answers are not used."""
    from boto3 import client
    from botocore.config import Config

    s3 = client("s3", endpoint_url=endpoint, region_name="us-east-1", config=Config(s3={"addressing_style": "path"}))
    pages = s3.get_paginator("list_objects_v2").paginate(Bucket=BUCKET, Prefix=folder)
    return sum(len(page["Contents"]) for page in pages)


def listed(endpoint: str, folder: str, out: str) -> int:
    """List as planning does."""
    from caprl_ray.recipe.storage import Storage as StorageSettings
    from caprl_ray.storage import Storage

    storage = Storage(StorageSettings(endpoint=endpoint, region="us-east-1"))
    return sum(1 for _ in storage.walk(f"s3://{BUCKET}/{folder}"))


def planned(endpoint: str, folder: str, out: str) -> int:
    """List, cut into units, store and load, as the first run over a dataset does."""
    from caprl_ray import plan, sources
    from caprl_ray.recipe.input import Input
    from caprl_ray.recipe.storage import Storage as StorageSettings
    from caprl_ray.sources.source import Access
    from caprl_ray.storage import Storage

    storage = Storage(StorageSettings(endpoint=endpoint, region="us-east-1"))
    access = Access(storage=storage, input=Input(paths=[f"s3://{BUCKET}/{folder}"]), max_bytes=2**26)
    plan.store(storage, out, sources.plan_units(access))
    return sum(unit.rows or 1 for unit in plan.load(storage, out).units)


WAYS: dict[str, Callable[[str, str, str], int]] = {"boto3": boto3, "listed": listed, "planned": planned}

if __name__ == "__main__":
    os.environ |= {"AWS_ACCESS_KEY_ID": "loopback", "AWS_SECRET_ACCESS_KEY": "loopback"}
    print(WAYS[sys.argv[1]](*sys.argv[2:]))
