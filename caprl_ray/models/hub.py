"""The Hugging Face hub: the commit of a branch or tag, and a model's small files at that commit.

The hub's client caches what it has seen, and uses the cache if the hub does not answer.
"""

import re

from caprl_ray.errors import RecipeError, SystemFailure

MAIN = "main"
COMMIT = re.compile("[0-9a-f]{40}")


def commit_of(repository: str, revision: str) -> str:
    """The commit of a branch or tag, or its last known commit if the hub does not answer now.

    Raises RecipeError and SystemFailure as `file` does.
    """
    found = file(repository, revision, "config.json")
    if found is None:
        raise RecipeError(f"model.source: {repository} has no config.json, so it is not a model folder.")
    return found.split("/")[-2]  # the cache's layout: …/snapshots/COMMIT/config.json


def file(repository: str, revision: str, name: str) -> str | None:
    """The local path of one of a model's files; None if the model has no such file.

    Raises RecipeError for a model or revision that the hub does not give, SystemFailure if neither hub nor cache has an
    answer. No text of the client is passed on: it may hold signed addresses.
    """
    from httpx import HTTPError
    from huggingface_hub import errors, hf_hub_download

    try:
        return str(hf_hub_download(repository, name, revision=revision))
    except errors.RemoteEntryNotFoundError:
        return None
    except errors.GatedRepoError:
        raise RecipeError(
            f"model.source: {repository} is gated; accept its terms on the hub and set HF_TOKEN."
        ) from None
    except errors.RepositoryNotFoundError:
        reason = "the hub gives no such model; check the name, and HF_TOKEN where it is a private one"
        raise RecipeError(f"model.source: {repository}: {reason}.") from None
    except errors.RevisionNotFoundError:
        raise RecipeError(f"model.revision: {repository} has no branch, tag or commit {revision}.") from None
    except (OSError, HTTPError):
        if _absent(repository, revision, name):
            return None
        raise SystemFailure(
            f"model.source: {repository} is no local folder and the hub did not give {name} at revision {revision}; "
            "check the name and the network, or give the path of a downloaded copy."
        ) from None


def _absent(repository: str, revision: str, name: str) -> bool:
    """Whether a model lacks a file: by the cache's own note, or offline by a cached model without it."""
    from huggingface_hub import _CACHED_NO_EXIST, constants, try_to_load_from_cache

    if try_to_load_from_cache(repository, name, revision=revision) is _CACHED_NO_EXIST:
        return True
    cached = try_to_load_from_cache(repository, "config.json", revision=revision)
    return bool(constants.HF_HUB_OFFLINE) and isinstance(cached, str)
