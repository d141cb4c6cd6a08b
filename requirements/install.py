"""Install the environment on a CPU into this interpreter: cpu.lock, or its versions if the Python is another one.

The lock's hashes are those of wheels for Python 3.11. A later Python gets the same versions without hashes. Its CPU
build of torch comes from PyTorch's own package index, too; if pip does not know that index, PyPI's build for CUDA
serves, with 3 GB of libraries that are not used.
"""

import subprocess
import sys
from pathlib import Path

LOCK = Path(__file__).with_name("cpu.lock")
LOCKED_FOR = (3, 11)
UNPINNED = ("atheris",)  # each release has wheels for some Pythons only


def main() -> None:
    if sys.version_info[:2] == LOCKED_FOR:
        pip("--no-deps", "--require-hashes", "--requirement", str(LOCK))
        return
    pinned = dict(line.split()[0].split("==") for line in LOCK.read_text().splitlines())
    torch = pinned.pop("torch").partition("+")[0]
    wanted = [name if name in UNPINNED else f"{name}=={version}" for name, version in pinned.items()]
    pip("--no-deps", "--only-binary", ":all:", *wanted)
    pip("--only-binary", ":all:", f"torch=={torch}")  # also takes torch's CPU build, and prefers it


def pip(*arguments: str) -> None:
    subprocess.run([sys.executable, "-m", "pip", "install", "--quiet", *arguments], check=True)


if __name__ == "__main__":
    main()
