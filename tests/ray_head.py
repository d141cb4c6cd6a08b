"""A cluster made by `ray start`, as users make one, for the tests of jobs and of several nodes."""

import os
import secrets
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from urllib.error import URLError

import psutil

from tests.checkout import ROOT

RAY = Path(sys.executable).with_name("ray")
LOOPBACK = "127.0.0.1"
OWN_PORTS = range(12_000, 32_000)  # below those that Linux gives to whoever asks for any port
# Ray notices a lost node after three seconds.
NOTICED_SOON = {"RAY_health_check_period_ms": "1000", "RAY_health_check_failure_threshold": "3"}


@dataclass(kw_only=True)
class Head:
    """A cluster of child processes that `ray start` makes, with token authentication."""

    folder: Path
    cpus: int
    gpus: int
    settings: dict[str, str] = field(default_factory=dict)
    cwd: Path | None = None
    processes: list[subprocess.Popen[bytes]] = field(default_factory=list)
    started: int = 0
    workers: dict[int, tuple[int, int]] = field(default_factory=dict)

    def __enter__(self) -> "Head":
        """Start the head node and wait until its dashboard answers."""
        self.port, dashboard, client, metrics = free_ports(4)
        self.metrics = f"http://{LOOPBACK}:{metrics}/metrics"
        self.dashboard = f"http://{LOOPBACK}:{dashboard}"
        self.token_file.parent.mkdir(parents=True)
        self.token_file.write_text(secrets.token_hex(32))
        self.node(
            self.environment | {"RAY_AUTH_MODE": "token"},  # the default from Ray 2.60 on
            *("--head", f"--port={self.port}", f"--num-cpus={self.cpus}", f"--num-gpus={self.gpus}", *self.options()),
            *(f"--dashboard-host={LOOPBACK}", f"--dashboard-port={dashboard}", f"--ray-client-server-port={client}"),
            f"--metrics-export-port={metrics}",
        )
        try:
            self.wait(self.answers)
        except BaseException:
            self.end()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.end()

    def options(self) -> list[str]:
        """More options for the head's `ray start`."""
        return []

    @property
    def address(self) -> str:
        return f"{LOOPBACK}:{self.port}"

    @property
    def token_file(self) -> Path:
        """The place where Ray looks for the token: below the home of this cluster's processes, not of the user's."""
        return self.folder / "home" / ".ray" / "auth_token"

    @property
    def environment(self) -> dict[str, str]:
        """The environment of the cluster's own processes: an image with the package, without this session's Ray."""
        outer = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
        path = f"{RAY.parent}{os.pathsep}{outer.get('PATH', '')}"
        return outer | self.settings | {"HOME": str(self.folder / "home"), "PATH": path, "PYTHONPATH": str(ROOT)}

    @property
    def client(self) -> dict[str, str]:
        """The environment of clients. Ray looks for a token only if RAY_AUTH_MODE says so."""
        return self.environment | {"RAY_API_SERVER_ADDRESS": self.dashboard, "RAY_AUTH_MODE": "token"}

    def join(self, *, cpus: int, gpus: int, accelerator: str | None = None, **environment: str) -> None:
        """Add a worker node, if given with GPUs of a type that Ray knows. It joins some seconds later."""
        typed = [f'--resources={{"accelerator_type:{accelerator}": 1}}'] if accelerator else []
        self.node(
            self.client | environment, f"--address={self.address}", f"--num-cpus={cpus}", f"--num-gpus={gpus}", *typed
        )
        self.workers[self.processes[-1].pid] = (cpus, gpus)

    def drain(self, node: str) -> None:
        """Announce that a node will be taken away in a minute, as after a cloud's notice."""
        command = [RAY, "drain-node", f"--address={self.address}", f"--node-id={node}"]
        command += ["--reason=DRAIN_NODE_REASON_PREEMPTION", "--reason-message=test", "--deadline-remaining-seconds=60"]
        subprocess.run(command, env=self.client, check=True, stdout=subprocess.DEVNULL, timeout=60)

    def replace(self, pid: int) -> None:
        """Lose a worker node, and add another."""
        cpus, gpus = self.workers[pid]
        self.lose(pid)
        self.join(cpus=cpus, gpus=gpus)

    def lose(self, pid: int) -> None:
        """Kill a worker node's raylet, and wait until the rest of the node has ended."""
        node = next(process for process in self.processes if process.pid == pid)
        self.processes.remove(node)
        family = psutil.Process(node.pid).children(recursive=True)
        next(process for process in family if process.name() == "raylet").kill()
        node.wait(timeout=30)
        end_all(family, patience=10)
        del self.workers[pid]

    def node(self, environment: dict[str, str], *arguments: str) -> None:
        number, self.started = self.started, self.started + 1
        command = [RAY, "start", "--block", *arguments, f"--node-ip-address={LOOPBACK}", "--disable-usage-stats"]
        # Own ports and a short folder (a socket's path has at most 107 characters) keep two clusters apart.
        command += [f"--temp-dir={self.folder}/{number}", "--min-worker-port=0", "--max-worker-port=0"]
        command += ["--object-store-memory=2000000000", "--dashboard-agent-listen-port=0"]
        with open(self.folder / f"{number}.log", "wb") as log:
            process = subprocess.Popen(
                command, env=environment, stdout=log, stderr=log, cwd=self.cwd, start_new_session=True
            )
        self.processes.append(process)

    def settled(self) -> bool:
        """Whether all nodes have joined. Of two nodes that start at once on one machine, one may fail over a socket."""
        logs = (self.folder / f"{number}.log" for number in range(self.started))
        return all("Ray runtime started." in log.read_text() for log in logs)

    def answers(self) -> bool:
        request = urllib.request.Request(f"{self.dashboard}/api/version", headers=self.authorization)
        with suppress(URLError, OSError), urllib.request.urlopen(request, timeout=5) as answer:
            return bool(answer.status == 200)
        return False

    @property
    def authorization(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.token_file.read_text()}"}

    def wait(self, condition: Callable[[], object], seconds: float = 120) -> None:
        """Wait for a condition, while the cluster's processes live."""
        until = time.monotonic() + seconds
        while not condition():
            logs = "\n".join(path.read_text() for path in self.folder.glob("*.log"))
            assert all(process.poll() is None for process in self.processes), logs
            assert time.monotonic() < until, f"not within {seconds} s: {condition}\n{logs}"
            time.sleep(0.1)

    def end(self) -> None:
        """End these processes and their children, by their ids."""
        family = [psutil.Process(process.pid) for process in self.processes if process.poll() is None]
        family += [child for process in family for child in process.children(recursive=True)]
        for process in family:
            with suppress(psutil.NoSuchProcess):
                process.terminate()
        end_all(family, patience=2)
        for started in self.processes:
            started.wait(timeout=10)


def end_all(processes: list[psutil.Process], *, patience: float) -> None:
    """Wait so many seconds for processes to end, and kill the rest."""
    _, left = psutil.wait_procs(processes, timeout=patience)
    for process in left:
        with suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(left, timeout=2)


def free_ports(count: int) -> list[int]:
    """Ports that the kernel gives to no other process before they are used."""
    found: list[int] = []
    with ExitStack() as stack:
        while len(found) < count:
            one = stack.enter_context(socket.socket())
            with suppress(OSError):  # it is taken
                one.bind(("", secrets.choice(OWN_PORTS)))
                found.append(int(one.getsockname()[1]))
    return found


@contextmanager
def new_head(
    *, cpus: int, gpus: int = 0, settings: dict[str, str] | None = None, cwd: Path | None = None
) -> Iterator[Head]:
    """A head of its own, in a short folder, that ends with the block. `cwd` is the working folder of its processes."""
    with (
        tempfile.TemporaryDirectory(prefix="ray-", ignore_cleanup_errors=True) as folder,
        Head(folder=Path(folder), cpus=cpus, gpus=gpus, settings=settings or {}, cwd=cwd) as head,
    ):
        yield head
