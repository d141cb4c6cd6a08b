"""The connection to S3: one client per process, its errors as OSErrors, and the names of objects."""

import errno
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import datetime
from functools import cache, partial
from typing import Any, cast

from caprl_ray.errors import RecipeError
from caprl_ray.recipe.storage import Storage
from caprl_ray.storage.stored import Archived, NotGranted, SourceChanged

CONNECTIONS = 32  # per process: twice as many as a listing uses
# Attempts of a call, unless AWS_MAX_ATTEMPTS or the profile sets a number. Botocore's "legacy" backoff with jitter then
# waits half a minute at most. Its newer modes allow all threads of a process 35 retries together (each takes 14 of a
# quota of 500), which an unreachable store uses up within a second.
ATTEMPTS = 6
# A store may refuse everything for a minute, for instance while it spreads a prefix over more machines. A call is
# retried until this many seconds after its first attempt. No pause is longer than 2^(ATTEMPTS - 2) seconds, so that
# reading resumes soon after the store does.
OUTAGE_S = 180.0
SLOWED = frozenset({429, 500, 502, 503, 504})  # HTTP statuses after which another attempt may help

# S3 refused the request because of its sender, not because of its object. It would refuse every other request too.
DENIED_SENDERS = frozenset(
    {"ExpiredToken", "InvalidAccessKeyId", "InvalidToken", "RequestTimeTooSkewed", "SignatureDoesNotMatch"}
)


class Patient:
    """boto3's client, with calls that outlast an outage of the store. The user's own number of attempts is kept."""

    def __init__(self, client: Any) -> None:
        self._client = client
        self._patient = client.meta.config.retries["total_max_attempts"] == ATTEMPTS

    def __getattr__(self, name: str) -> Any:
        call = getattr(self._client, name)
        return partial(_repeated, call) if self._patient and name in REPEATED else call


# Calls whose arguments can be sent again.
REPEATED = frozenset({"list_objects_v2", "head_object", "get_object", "put_object", "delete_object"})


def _repeated(call: Callable[..., Any], **arguments: Any) -> Any:
    from tenacity import Retrying, retry_if_exception, stop_after_delay, wait_random

    out = Retrying(
        retry=retry_if_exception(_passes), stop=stop_after_delay(OUTAGE_S), wait=wait_random(0, 1), reraise=True
    )
    return out(call, **arguments)


def _passes(error: BaseException) -> bool:
    """Whether an error is due to the store's state, not to the request, so that it may pass."""
    from botocore.exceptions import ClientError, ConnectionError, HTTPClientError, SSLError

    if isinstance(error, ClientError):
        return error.response["ResponseMetadata"].get("HTTPStatusCode") in SLOWED
    return isinstance(error, HTTPClientError | ConnectionError) and not isinstance(error, SSLError)


@cache
def client(settings: Storage) -> Patient:
    """One client per process; threads may share boto3's clients. Credentials: boto3's usual chain."""
    import boto3
    from botocore import UNSIGNED
    from botocore.config import Config
    from botocore.session import Session

    path_style = settings.endpoint is not None if settings.path_style is None else settings.path_style
    # Stores other than Amazon's may refuse the optional checksums of botocore.
    checksums = "when_required" if settings.endpoint else "when_supported"
    session = Session(profile=settings.profile)
    with faults("storage"):
        attempts = session.get_config_variable("max_attempts") or ATTEMPTS
    config = Config(
        retries={"mode": "legacy", "total_max_attempts": attempts},
        connect_timeout=min(10, settings.timeout_s),
        read_timeout=settings.timeout_s,
        max_pool_connections=CONNECTIONS,
        s3={"addressing_style": "path" if path_style else "auto"},
        signature_version=UNSIGNED if settings.anonymous else None,
        request_checksum_calculation=checksums,
        response_checksum_validation=checksums,
    )
    with faults("storage"):
        session.get_component("response_parser_factory").set_parser_defaults(timestamp_parser=_moment)
        connected = boto3.Session(botocore_session=session, region_name=settings.region)
        return Patient(connected.client("s3", endpoint_url=settings.endpoint, config=config))


def _moment(value: Any) -> datetime:
    """Parse a time of S3. botocore's own parser takes two thirds of the time of a listing."""
    from botocore.utils import parse_timestamp

    with suppress(TypeError, ValueError):
        moment = datetime.fromisoformat(value)
        if moment.tzinfo:
            return moment
    return cast("datetime", parse_timestamp(value))


@contextmanager
def faults(path: str) -> Iterator[None]:
    """Convert botocore's exceptions to OSErrors. Drops their texts, which may hold signed URLs."""
    from botocore.exceptions import (
        BotoCoreError,
        ClientError,
        NoCredentialsError,
        ParamValidationError,
        ProfileNotFound,
    )

    try:
        yield
    except ClientError as error:
        raise _answer(error, path) from None
    except NoCredentialsError:
        reason = "no S3 credentials were found; give them in the usual ways, or set storage.anonymous"
        raise NotGranted(errno.EIO, reason, path) from None
    except ProfileNotFound:
        raise NotGranted(errno.EIO, "storage.profile names no profile of this machine", path) from None
    except ParamValidationError as error:
        if "bucket name" in str(error).lower():
            raise NotGranted(errno.EIO, "S3 has no buckets of such a name", path) from None
        raise OSError(errno.EIO, "S3's client refuses a parameter; its version may not fit", path) from None
    except BotoCoreError as error:
        raise OSError(errno.EIO, f"S3 gave no answer: {type(error).__name__}", path) from None


def _answer(error: Any, path: str) -> OSError:
    """The OSError for S3's refusal."""
    code, status = str(error.response["Error"].get("Code")), error.response["ResponseMetadata"]["HTTPStatusCode"]
    if status in (409, 412):  # 409: another conditional write of the same object is running
        return changed(path)
    if code == "NoSuchBucket":
        return NotGranted(errno.EIO, "the bucket does not exist", path)
    if status == 404:
        return FileNotFoundError(errno.ENOENT, "no such object", path)
    if code == "InvalidObjectState":
        return Archived(errno.EACCES, "archived in Glacier: restore it", path)
    if status == 403 and code not in DENIED_SENDERS:
        return PermissionError(errno.EACCES, "S3 denies access", path)
    kind = NotGranted if code in DENIED_SENDERS else OSError
    return kind(errno.EIO, f"S3 answers {code}", path)


def changed(path: str) -> SourceChanged:
    """The exception for an object of another version than the planned one."""
    return SourceChanged(errno.ESTALE, "changed since it was planned", path)


def version_of(answer: Mapping[str, Any]) -> str:
    """The version of an object for the plan. Raises OSError if the store gives none."""
    if not answer.get("ETag"):
        raise lacking("ETag, which tells whether an object has changed")
    return f"etag:{answer['ETag']}"


def lacking(what: str) -> OSError:
    """The exception for a store whose answers lack required fields."""
    return OSError(errno.EOPNOTSUPP, f"the store's answer lacks {what}")


def bucket_and_key(path: str) -> tuple[str, str]:
    """Split a path into bucket and key. Raises RecipeError for a path without a bucket."""
    bucket, _, key = path.removeprefix("s3://").partition("/")
    if not bucket:
        raise RecipeError(f"{path} names no bucket; give s3://bucket/path.")
    return bucket, key


def path_of(bucket: str, key: str) -> str:
    """The path of an object."""
    return f"s3://{bucket}/{key}"
