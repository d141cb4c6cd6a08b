"""A model in a local folder: a name for exactly its contents, without reading all of its weights."""

import hashlib
import json
import struct
from pathlib import Path

from caprl_ray.errors import RecipeError
from caprl_ray.models.weights import SAFETENSORS

# Files besides weights that an engine reads: configurations, tokenizer, chat template.
READ_WHOLE = frozenset({".json", ".jinja", ".model", ".tiktoken", ".txt"})
# Read from the middle of each tensor: another training run changes nearly all numbers of each tensor that it trains. A
# model of some gigabytes has a thousand tensors.
SAMPLE_BYTES = 1024


def digest(folder: Path) -> str:
    """A name for the folder's contents, in hex. A copy of the folder has the same one.

    The weights must be whole (`weights.fault_of`). Raises RecipeError if a file cannot be read.
    """
    seen = hashlib.sha256()
    try:
        for file in sorted(folder.iterdir()):
            if file.suffix == SAFETENSORS or file.suffix in READ_WHOLE:
                content = _sampled(file) if file.suffix == SAFETENSORS else hashlib.sha256(file.read_bytes()).digest()
                seen.update(file.name.encode() + b"\0" + content)
    except OSError as error:
        raise RecipeError(f"model.source: {error.filename or folder} cannot be read ({error.strerror}).") from None
    return seen.hexdigest()


def _sampled(file: Path) -> bytes:
    """A hash of the names, types, shapes and some numbers of all tensors."""
    seen = hashlib.sha256()
    with open(file, "rb") as stream:
        (length,) = struct.unpack("<Q", stream.read(8))
        header = stream.read(length)
        seen.update(header)
        tensors = json.loads(header)
        for start, end in sorted(t["data_offsets"] for name, t in tensors.items() if name != "__metadata__"):
            stream.seek(8 + length + start + max(0, (end - start - SAMPLE_BYTES) // 2))
            seen.update(stream.read(min(SAMPLE_BYTES, end - start)))
    return seen.digest()
