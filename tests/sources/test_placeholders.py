"""Hashes of placeholder images are read from a file, and exactly their digests are found."""

import pickle
from hashlib import sha256
from pathlib import Path

import pytest

from caprl_ray.errors import RecipeError
from caprl_ray.recipe.input import Input
from caprl_ray.recipe.storage import Storage as StorageSettings
from caprl_ray.sources import placeholders
from caprl_ray.sources.placeholders import Placeholders, load
from caprl_ray.storage import Storage
from tests.s3_server import BUCKET, S3Server

DIGESTS = [sha256(b"%d" % number).digest() for number in range(2000)]
ENDS_IN_ZEROS = bytes(range(1, 31)) + bytes(2)


def listed(given: str | list[str], storage: Storage | None = None) -> Placeholders:
    return load(storage or Storage(), Input(paths=["-"], placeholders=given))


def test_exactly_the_listed_digests_are_found_also_those_that_end_in_zeros() -> None:
    wanted = [*DIGESTS[::2], ENDS_IN_ZEROS, bytes(32)]
    found = Placeholders([digest.hex() for digest in wanted] * 2)
    assert len(found) == len(wanted)
    assert all(digest in found for digest in wanted)
    assert not any(digest in found for digest in (*DIGESTS[1::2], ENDS_IN_ZEROS[:-1] + b"\1", bytes(31) + b"\1"))
    assert DIGESTS[0] not in Placeholders()
    assert len(pickle.dumps(found)) < 33 * len(wanted) + 1000


def test_a_file_may_have_comments_empty_lines_either_case_and_the_form_of_sha256sum(tmp_path: Path) -> None:
    first, second, third, fourth = (digest.hex() for digest in DIGESTS[:4])
    lines = ["\ufeff# not available", "", first, f"  {second.upper()}  # flickr", f"{third}  a b.jpg", f"{fourth} *c"]
    (tmp_path / "gone.txt").write_bytes("\r\n".join(lines).encode())
    found = listed(str(tmp_path / "gone.txt"))
    assert len(found) == 4 and all(digest in found for digest in DIGESTS[:4])


def test_a_file_in_a_bucket(s3: S3Server) -> None:
    s3.put("gone.txt", DIGESTS[0].hex().encode())
    storage = Storage(StorageSettings(endpoint=s3.endpoint, region="us-east-1"))
    assert DIGESTS[0] in listed(f"s3://{BUCKET}/gone.txt", storage)
    with pytest.raises(RecipeError, match=f"s3://{BUCKET}/none.txt does not exist"):
        listed(f"s3://{BUCKET}/none.txt", storage)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"0" * 64 + b"\nabc # short\n", "line 2 is 'abc', which is not a SHA-256; it should be 64 hex digits."),
        (b"0" * 64 + b" 1" * 64, "line 1 is"),
        (b"\xff\xd8\xff\xe0", "is not a text file"),
    ],
)
def test_a_wrong_line_is_one_sentence(tmp_path: Path, content: bytes, said: str) -> None:
    path = tmp_path / "gone.txt"
    path.write_bytes(content)
    with pytest.raises(RecipeError) as error:
        listed(str(path))
    message = str(error.value)
    assert message.startswith(f"input.placeholders: {path}") and said in message
    assert message.endswith(".") and "\n" not in message


def test_a_missing_file_a_folder_and_too_many_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(RecipeError, match=r"none\.txt does not exist; give a list"):
        listed(str(tmp_path / "none.txt"))
    with pytest.raises(RecipeError, match="is a folder"):
        listed(str(tmp_path))
    (tmp_path / "many.txt").write_text("\n".join(digest.hex() for digest in DIGESTS[:4]))
    monkeypatch.setattr(placeholders, "MOST", 3)
    with pytest.raises(RecipeError, match=r"many\.txt has 4 hashes; at most 3 are allowed"):
        listed(str(tmp_path / "many.txt"))
