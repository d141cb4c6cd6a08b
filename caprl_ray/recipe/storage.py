"""The section `storage`: how stores are accessed."""

from typing import Annotated

from pydantic import BeforeValidator, Field

from caprl_ray.recipe.fields import Section, service_url


class Storage(Section):
    """How stores are accessed. `timeout_s` is for all of them, `anonymous` for all but the hub, the rest for `s3://`.

    Credentials come from the environment of every node, for S3 by boto3's usual chain, never from the recipe.
    """

    endpoint: Annotated[str | None, BeforeValidator(service_url)] = None
    """The address of an S3-compatible store, such as https://storage.example.org. If left out, Amazon S3."""
    region: str | None = None
    """The region of the buckets. If left out, the environment's."""
    profile: str | None = None
    """The profile in the shared AWS credentials file. Every node must have that file."""
    anonymous: bool = False
    """Read public buckets without credentials, also of gs:// and az://."""
    path_style: bool | None = None
    """Put the bucket into the path of the URL, not into the host name. If left out: true with an endpoint, else boto3's
    default."""
    timeout_s: Annotated[float, Field(ge=0.1, le=3600)] = 60
    """The time without an answer, or without further data, after which a request is retried, in seconds. Raise it for
    slow stores. At the start, an `endpoint` that answers nothing is refused after this time if it is given, otherwise
    after 10 seconds."""
