"""Coverage-guided fuzzing of one target: `python -m tests.fuzz tar -max_total_time=300` (options are libFuzzer's).

Begins from tests/fuzz/corpus and writes what it finds to a folder of its own, so that the corpus stays as it is:
`-merge=1 tests/fuzz/corpus/tar FOLDER` adds what covers more. An input that breaks a property is left as crash-* in the
working directory: mend its cause and keep it in the corpus.
"""

import sys
import tempfile
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["caprl_ray.prepare", "caprl_ray.read", "caprl_ray.sources", "PIL"]):
    from tests.fuzz.targets import TARGETS, mended

CORPUS = Path(__file__).parent / "corpus"
# Seconds that one input may take, and MiB that the process may grow to.
LIMITS = ["-timeout=10", "-rss_limit_mb=2048", "-max_len=65536"]


def main() -> None:
    """Fuzz until libFuzzer ends the process: with 0, or another code where a property broke."""
    target, *options = sys.argv[1:]
    folders = [] if any(not option.startswith("-") for option in options) else [found(), str(CORPUS / target)]
    mutator = {"custom_mutator": mutated_tar} if target == "tar" else {}
    atheris.Setup([sys.argv[0], *LIMITS, *options, *folders], TARGETS[target], **mutator)
    atheris.Fuzz()


def mutated_tar(data: bytes, most: int, seed: int) -> bytes:
    """libFuzzer's own mutation, mostly with right checksums."""
    mutated = atheris.Mutate(data, most)
    return mutated if seed % 8 == 0 else mended(mutated)


def found() -> str:
    """A new folder for what is found."""
    return tempfile.mkdtemp(prefix="fuzz-")


if __name__ == "__main__":
    main()
