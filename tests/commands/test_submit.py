"""Jobs that are submitted, watched and restarted, by a client with a few jobs of Ray's protocol."""

from dataclasses import dataclass, field
from itertools import count
from typing import Any

import pytest

from caprl_ray.commands import submit
from caprl_ray.commands.submit import LONG_S, MOST_RESTARTS, PAUSE_S, Order, Submission
from caprl_ray.errors import CaprlError, RecipeError, StoppedByTerm, SystemFailure, TooManyFailures


@dataclass
class Job:
    submission_id: str
    entrypoint: str
    metadata: dict[str, str]
    runtime_env: dict[str, Any]
    status: str = "RUNNING"
    driver_exit_code: int | None = None
    message: str = ""


@dataclass
class Cluster:
    """In place of Ray's client: jobs by their ids."""

    jobs: dict[str, Job] = field(default_factory=dict)
    down: bool = False
    mute: bool = False  # takes a job, and its answer is lost

    def submit_job(self, submission_id: str, **asked: Any) -> str:
        self._answer()
        if submission_id in self.jobs:
            raise RuntimeError(f"Request failed with status code 400: {submission_id} already exists.")
        self.jobs[submission_id] = Job(submission_id, **asked)
        if self.mute:
            raise ConnectionError("no answer")
        return submission_id

    def get_job_info(self, job_id: str) -> Job:
        self._answer()
        if job_id not in self.jobs:
            raise RuntimeError(f"Request failed with status code 404: Job {job_id} does not exist.")
        return self.jobs[job_id]

    def list_jobs(self) -> list[Job]:
        self._answer()
        return list(self.jobs.values())

    def stop_job(self, job_id: str) -> bool:
        self.jobs[job_id].status = "STOPPED"
        return True

    def _answer(self) -> None:
        if self.down:
            raise ConnectionError("no route")

    def ends(self, job: str, status: str, code: int | None = None) -> None:
        self.jobs[job].status, self.jobs[job].driver_exit_code = status, code


@dataclass
class Watched:
    """A submission with its lines and a clock."""

    clusters: list[Cluster]
    parts: int
    lines: list[str] = field(default_factory=list)
    now: float = 0.0

    def __post_init__(self) -> None:
        order = Order(output="s3://b/out", command=["r e.yaml", "replicas.max=8"], parts=self.parts)
        names = (f"job-{number}" for number in count())
        self.submission = Submission(order, self.clusters, self.lines.append, lambda: self.now, lambda _: next(names))

    def later(self, seconds: float = 5.0) -> None:
        self.now += seconds
        self.submission.look()


def test_each_part_is_a_job_and_clusters_take_turns() -> None:
    first, second = Cluster(), Cluster()
    watched = Watched([first, second], 3)
    watched.submission.begin()
    asked = [job.entrypoint for job in (*first.jobs.values(), *second.jobs.values())]
    command = "python jobs/caption.py 'r e.yaml' replicas.max=8 --part"
    assert asked == [f"{command} 1/3", f"{command} 3/3", f"{command} 2/3"]
    assert all(job.runtime_env == {"working_dir": "."} for job in first.jobs.values())
    one = Watched([Cluster()], 1)
    one.submission.begin()
    assert one.clusters[0].jobs["job-0"].entrypoint.endswith("replicas.max=8"), "a whole output has no part"


def test_a_lost_job_is_restarted_after_its_lease_and_one_line_tells_each_change() -> None:
    cluster = Cluster()
    watched = Watched([cluster], 2)
    watched.submission.begin()
    for _ in range(3):
        watched.later()
    cluster.ends("job-0", "FAILED")  # the driver died, without a code
    cluster.ends("job-1", "SUCCEEDED", 0)
    watched.later()
    watched.later(PAUSE_S - 1)
    assert len(cluster.jobs) == 2
    watched.later(1)
    assert cluster.jobs["job-2"].entrypoint.endswith("--part 1/2")
    cluster.ends("job-2", "SUCCEEDED", 0)
    watched.later()
    assert all(part.over for part in watched.submission.parts) and watched.submission.failure() is None
    assert watched.lines == [
        "part 1/2: submitted as job-0",
        "part 2/2: submitted as job-1",
        "part 1/2: running (job-0)",
        "part 2/2: running (job-1)",
        "part 1/2: failed (job-0), its driver or its cluster was lost; restart 1 of 5 in 130 s",
        "part 2/2: succeeded (job-1)",
        "part 1/2: submitted as job-2",
        "part 1/2: succeeded (job-2)",
    ]


@pytest.mark.parametrize(
    ("status", "code", "error"),
    [("FAILED", 2, RecipeError), ("STOPPED", None, StoppedByTerm)],
)
def test_what_would_end_the_same_way_again_is_not_restarted(
    status: str, code: int | None, error: type[CaprlError]
) -> None:
    cluster = Cluster()
    watched = Watched([cluster], 2)
    watched.submission.begin()
    cluster.ends("job-0", status, code)
    cluster.ends("job-1", "SUCCEEDED", 0)
    watched.later()
    failure = watched.submission.failure()
    assert isinstance(failure, error) and "job-0" in str(failure) and len(cluster.jobs) == 2
    assert failure.exit_code == (code or 143)


def test_what_may_have_passed_is_tried_again() -> None:
    """A recipe is refused at the first job; later another run holds the output. Code 3 has two meanings."""
    cluster = Cluster()
    watched = Watched([cluster], 1)
    watched.submission.begin()
    for number, code in enumerate((3, 2, 2, 3, 3)):
        assert not watched.submission.parts[0].over
        cluster.ends(f"job-{number}", "FAILED", code)
        watched.later()
        watched.later(PAUSE_S)
    failure = watched.submission.failure()
    assert isinstance(failure, TooManyFailures) and "job-4" in str(failure) and len(cluster.jobs) == 5


def test_a_lost_answer_starts_no_second_job_and_a_job_that_never_began_says_why() -> None:
    cluster = Cluster()
    watched = Watched([cluster], 1)
    watched.submission.begin()
    cluster.jobs["job-0"].message = "runtime_env setup failed: no space\nleft on the device."
    cluster.ends("job-0", "FAILED")
    watched.later()
    said = "part 1/1: failed (job-0), runtime_env setup failed: no space left on the device; restart 1 of 5 in 130 s"
    assert watched.lines[-1] == said
    cluster.mute = True
    watched.later(PAUSE_S)
    cluster.mute = False
    for _ in range(3):
        watched.later(PAUSE_S)
    assert list(cluster.jobs) == ["job-0", "job-1"] and watched.lines[-1] == "part 1/1: running (job-1)"


def test_restarts_are_bounded_and_a_job_that_ran_long_counts_anew() -> None:
    cluster = Cluster()
    watched = Watched([cluster], 1)
    watched.submission.begin()
    for number in range(MOST_RESTARTS + 1):
        cluster.ends(f"job-{number}", "FAILED", 1)
        watched.later(LONG_S + 1 if number == 2 else 5)
        watched.later(PAUSE_S)
    assert len(cluster.jobs) == MOST_RESTARTS + 2
    for number in range(MOST_RESTARTS + 1, MOST_RESTARTS + 3):
        cluster.ends(f"job-{number}", "FAILED", 1)
        watched.later()
        watched.later(PAUSE_S)
    assert watched.lines[-1] == "part 1/1: failed (job-7), exit code 1; it was restarted 5 times"
    failure = watched.submission.failure()
    assert isinstance(failure, SystemFailure) and len(cluster.jobs) == MOST_RESTARTS + 3


def test_a_cluster_that_is_silent_is_asked_again_and_one_that_forgot_its_jobs_gets_them_again() -> None:
    cluster = Cluster()
    watched = Watched([cluster], 1)
    watched.submission.begin()
    cluster.down = True
    for _ in range(100):
        watched.later()
    cluster.down = False
    cluster.jobs.clear()  # another head at the same address
    watched.later()
    cluster.down = True
    watched.later(PAUSE_S)
    cluster.down = False
    watched.later(PAUSE_S)
    assert list(cluster.jobs) == ["job-1"] and watched.submission.parts[0].state == submit.RUNNING
    assert [line for line in watched.lines if "does not answer" in line] == 2 * [
        "part 1/1: the cluster does not answer; asking again"
    ]


def test_the_same_command_watches_what_runs_and_stops_it() -> None:
    cluster = Cluster()
    Watched([cluster], 2).submission.begin()
    again = Watched([cluster], 2)
    again.submission.begin()
    again.later()
    assert len(cluster.jobs) == 2 and [part.job for part in again.submission.parts] == ["job-0", "job-1"]
    with pytest.raises(RecipeError, match="--parts: a job for part 1/2 of"):
        Watched([cluster], 3).submission.begin()
    cluster.jobs["other"] = Job("other", "x", {submit.OUTPUT: "s3://b/another"}, {})
    assert again.submission.stop() == 2
    assert {job.status for name, job in cluster.jobs.items() if name != "other"} == {"STOPPED"}
    assert cluster.jobs["other"].status == "RUNNING"
