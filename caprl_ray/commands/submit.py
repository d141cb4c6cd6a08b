"""`caprl-ray submit`: run one Ray job for each part of an output, watch the jobs and restart lost ones.

The jobs do not depend on each other or on this command: the lease of a part keeps two drivers apart. So this command
stores no state. If it is started again, it finds running jobs by their metadata.
"""

import shlex
import textwrap
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from caprl_ray.cluster import jobs
from caprl_ray.cluster.jobs import Client
from caprl_ray.errors import CaprlError, RecipeError, StoppedByTerm, SystemFailure, TooManyFailures
from caprl_ray.output.lease import EXPIRY_S

SCRIPT = "jobs/caption.py"
OUTPUT, PART = "caprl_ray.output", "caprl_ray.part"  # metadata of a job
POLL_S = 5.0
# Restarts of one part in a row. After a job that ran for LONG_S the count starts again, because spot nodes are lost
# often.
MOST_RESTARTS, LONG_S = 5, 3600.0
# Before a restart: a new driver is refused until the lease of the dead driver has ended.
PAUSE_S = EXPIRY_S + 10
RUNNING, DONE, LOST, STOPPED, REFUSED, FAILED = "running", "done", "lost", "stopped", "refused", "failed"
SILENT, UNKNOWN = "the cluster does not answer; asking again", "status code 404"
SAID = 300  # characters of Ray's message about a job that never began
# Exit codes of caption after which a restart does not help, with exceptions (_may_pass).
FINAL: Mapping[int, str] = {RecipeError.exit_code: REFUSED, TooManyFailures.exit_code: FAILED}


@dataclass(frozen=True, kw_only=True)
class Order:
    """The request. `command` captions the whole output; `parts` is the number of jobs that share it."""

    output: str
    command: Sequence[str]
    parts: int = 1
    folder: str = "."

    def entrypoint(self, part: int) -> str:
        """The command of a part, from 1."""
        more = ["--part", self.name(part)] if self.parts > 1 else []
        return shlex.join(["python", SCRIPT, *self.command, *more])

    def name(self, part: int) -> str:
        """The part as `caption --part` takes it."""
        return f"{part}/{self.parts}"


@dataclass
class Part:
    """One part and the state of its job.

    Attributes:
        job: the id of its job.
        asked: the id of a job that was submitted without an answer; it may run.
        due: the time of the next start.
        codes: the exit codes of its lost jobs.
    """

    number: int
    client: Client
    job: str = ""
    asked: str = ""
    state: str = ""
    restarts: int = 0
    began: float = 0.0
    due: float = 0.0
    code: int | None = None
    codes: list[int | None] = field(default_factory=list)
    history: list[str] = field(default_factory=list)

    @property
    def over(self) -> bool:
        """Whether no job of it runs or will be started."""
        return self.state in (DONE, STOPPED, REFUSED, FAILED)


def verdict(status: str, code: int | None) -> str:
    """The state of a part by its job's status and its driver's exit code."""
    if status == "SUCCEEDED":
        return DONE
    if status == "STOPPED":
        return STOPPED
    if status != "FAILED":
        return RUNNING
    return FINAL.get(code or 0, LOST)


def new_id(part: str) -> str:
    """An id for a job of a part. It is known before the cluster answers, so that a lost answer starts no second job."""
    return f"caprl-{part.replace('/', 'of')}-{uuid.uuid4().hex[:12]}"


class Submission:
    """The jobs of an order, on one cluster or spread over several."""

    def __init__(
        self,
        order: Order,
        clients: Sequence[Client],
        say: Callable[[str], None] = lambda line: print(line, flush=True),
        clock: Callable[[], float] = time.monotonic,
        new_id: Callable[[str], str] = new_id,
    ) -> None:
        self._order, self._clients, self._say, self._clock, self._new_id = order, clients, say, clock, new_id
        self.parts = [Part(number, clients[(number - 1) % len(clients)]) for number in range(1, order.parts + 1)]

    def begin(self) -> None:
        """Find the jobs that run already, and submit the others.

        Raises RecipeError if jobs with another number of parts are running, SystemFailure if a cluster takes no job.
        """
        with jobs.refusals():
            found = {name: (client, job) for client, name, job in self._running()}
        names = {self._order.name(part.number) for part in self.parts}
        if other := next((name for name in found if name not in names), None):
            raise RecipeError(
                f"--parts: a job for part {other} of {self._order.output} is running; give --parts "
                f"{other.partition('/')[2]}, or stop it with --stop."
            )
        for part in self.parts:
            client, job = found.get(self._order.name(part.number), (part.client, None))
            part.client = client
            if job is None:
                with jobs.refusals():
                    self._submit(part)
            else:
                part.job, part.began = job.submission_id, self._clock()

    def watch(self, poll_s: float = POLL_S) -> None:
        """Check the jobs until all parts are over, and restart lost ones."""
        while not all(part.over for part in self.parts):
            self.look()
            if not all(part.over for part in self.parts):
                time.sleep(poll_s)

    def look(self) -> None:
        """Check each part once."""
        for part in self.parts:
            if part.state == LOST and self._clock() >= part.due:
                self._restart(part)
            elif not part.over and part.state != LOST:
                self._seen(part)

    def stop(self) -> int:
        """Stop all running jobs of this output. Returns their number."""
        with jobs.refusals():
            found = list(self._running())
            for client, name, job in found:
                client.stop_job(job.submission_id)
                self._say(f"part {name}: {job.submission_id} is told to stop")
        return len(found)

    def _running(self) -> Iterator[tuple[Client, str, Any]]:
        for client in self._clients:
            for job in client.list_jobs():
                about = job.metadata or {}
                if about.get(OUTPUT) == self._order.output and verdict(job.status, None) == RUNNING:
                    yield client, about.get(PART, "1/1"), job

    def _submit(self, part: Part) -> None:
        name = self._order.name(part.number)
        part.asked = part.asked or self._new_id(name)
        part.client.submit_job(
            submission_id=part.asked,
            entrypoint=self._order.entrypoint(part.number),
            runtime_env={"working_dir": self._order.folder},
            metadata={OUTPUT: self._order.output, PART: name},
        )
        self._submitted(part)

    def _submitted(self, part: Part) -> None:
        part.job, part.asked = part.asked, ""
        part.began, part.state = self._clock(), RUNNING
        self._tell(part, f"submitted as {part.job}")

    def _restart(self, part: Part) -> None:
        try:
            if part.asked and _found(part.client, part.asked):
                self._submitted(part)
            else:
                self._submit(part)
        except (OSError, RuntimeError):
            part.due = self._clock() + PAUSE_S
            self._tell(part, SILENT)

    def _seen(self, part: Part) -> None:
        try:
            info = _found(part.client, part.job)
        except (OSError, RuntimeError):
            self._tell(part, SILENT)
            return
        # A restarted head does not know the jobs of the old one.
        status, code = (str(info.status), info.driver_exit_code) if info else ("FAILED", None)
        part.code, state = code, verdict(status, code)
        if state != LOST and not _may_pass(part):
            part.state = state
            self._tell(part, f"{status.lower()} ({part.job}){f', exit code {code}' if code else ''}")
            return
        part.restarts = 0 if self._clock() - part.began > LONG_S else part.restarts
        part.codes.append(code)
        said = textwrap.shorten((info and info.message) or "its driver or its cluster was lost", SAID)
        why = f"exit code {code}" if code else said.rstrip(".")
        if part.restarts >= MOST_RESTARTS:
            part.state = FAILED
            self._tell(part, f"failed ({part.job}), {why}; it was restarted {MOST_RESTARTS} times")
            return
        part.state, part.restarts, part.due = LOST, part.restarts + 1, self._clock() + PAUSE_S
        self._tell(part, f"failed ({part.job}), {why}; restart {part.restarts} of {MOST_RESTARTS} in {PAUSE_S:.0f} s")

    def _tell(self, part: Part, text: str) -> None:
        """Print a line unless it repeats the last one about this part."""
        if part.history[-1:] != [text]:
            part.history.append(text)
            self._say(f"part {self._order.name(part.number)}: {text}")

    def failure(self) -> CaprlError | None:
        """The final error, with caption's exit code; None if all parts are done."""
        worst = {part.state: part for part in reversed(self.parts) if part.state != DONE}
        logs = "ray job logs " + next(iter(worst.values())).job if worst else ""
        if part := worst.get(REFUSED):
            return RecipeError(f"part {self._order.name(part.number)} was refused; ray job logs {part.job} says why.")
        if part := worst.get(FAILED):
            kind = TooManyFailures if part.code == TooManyFailures.exit_code else SystemFailure
            return kind(f"part {self._order.name(part.number)} has failed; ray job logs {part.job} says why.")
        if STOPPED in worst:
            return StoppedByTerm(f"jobs were stopped; run the same command again to resume, or see {logs}.")
        return None


def _found(client: Client, job: str) -> Any:
    """A job's details from a cluster; None if there is no such job."""
    try:
        return client.get_job_info(job)
    except RuntimeError as error:
        if UNKNOWN in str(error):
            return None
        raise


def _may_pass(part: Part) -> bool:
    """Whether a restart may help although the exit code is one of FINAL.

    A wrong recipe is refused by the first job. Later, the code may mean that another run holds the output. Missing rows
    have the exit code of too many failures, and the next job finishes them.
    """
    if part.code == RecipeError.exit_code:
        return bool(part.codes)
    return part.code == TooManyFailures.exit_code and part.code not in part.codes[-1:]


def check_folder(folder: str) -> None:
    """Raise RecipeError for a folder without the script that a job runs."""
    if not (Path(folder) / SCRIPT).is_file():
        raise RecipeError(f"--working-dir: {folder} has no {SCRIPT}; name a checkout of caprl_ray, which is uploaded.")
