"""The section `storage`: how object stores are accessed."""

from typing import Annotated

from pydantic import BeforeValidator, Field

from caprl_ray.recipe.fields import Section, service_url


class Storage(Section):
    """How stores are accessed: `timeout_s` is for all stores, `anonymous` for all but the hub, the rest for `s3://`.

    A recipe holds no credentials. They come from the environment of every node; for S3, boto3 looks for them in its
    usual places.
    """

    endpoint: Annotated[str | None, BeforeValidator(service_url)] = None
    """The address of an S3-compatible store, such as https://storage.example.org. If left out, Amazon S3."""
    region: str | None = None
    """The region of the buckets. If left out, the environment's region."""
    profile: str | None = None
    """The profile in the shared AWS credentials file. Every node must have that file."""
    anonymous: bool = False
    """Read public buckets without credentials, also of gs:// and az://."""
    path_style: bool | None = None
    """Put the bucket into the path of the URL, not into the host name. If left out: true with an endpoint, else boto3's
    default."""
    timeout_s: Annotated[float, Field(ge=0.1, le=3600)] = 60
    """A request that gets no answer, or no further data, for this many seconds is retried. Raise it for slow stores. At
    the start of a run, an `endpoint` that does not answer is refused after 10 seconds, or after `timeout_s` if the
    recipe sets it."""
