"""Rates and replicas over time: from the history in status.json, or else from the times at which the output's objects
were written."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from caprl_ray.report.objects import Footer
from caprl_ray.watch.history import Point

BINS = 60
# An object's rows were captioned since the previous object, or, after a pause, within this multiple of the usual
# interval.
PAUSE = 5
LEAST_S = 5.0  # shorter runs have no rate worth a plot
LEAST_STEPS = 3


@dataclass(frozen=True, kw_only=True)
class Timeline:
    """Rows by time. `start` is in seconds since 1970; `edges` are seconds from there, `rows` those of each interval.

    Intervals in which nothing was written, such as the hours between two runs, are there with no rows.
    """

    start: float
    edges: np.ndarray
    rows: np.ndarray

    @property
    def per_second(self) -> np.ndarray:
        """Rows a second in each interval."""
        rate: np.ndarray = self.rows / np.diff(self.edges)
        return rate


def timeline(footers: Sequence[Footer], total: int) -> Timeline | None:
    """The timeline of objects with `total` rows, of which `footers` are some; None if they do not tell their times, or
    all were written in a few seconds."""
    written = [(footer.written, footer.rows) for footer in footers if footer.written is not None]
    if len(written) < 2 or len(written) < len(footers):
        return None
    times, rows = (np.array(values, float) for values in zip(*sorted(written), strict=True))
    seconds = times[-1] - times[0]
    if seconds < LEAST_S:
        return None
    # The first object's rows were captioned before its own time, by a time that nobody knows: about its share.
    before = seconds * rows[0] / rows[1:].sum()
    ends = np.concatenate([[0], times - times[0] + before])
    starts = np.maximum(ends[:-1], ends[1:] - max(before, PAUSE * float(np.median(np.diff(times)))))
    done = np.concatenate([[0], np.cumsum(rows)]) * (total / rows.sum())
    knots, values = np.stack([starts, ends[1:]], axis=1).ravel(), np.stack([done[:-1], done[1:]], axis=1).ravel()
    edges = np.linspace(0, ends[-1], min(BINS, max(2, len(rows))) + 1)
    return Timeline(start=times[0] - before, edges=edges, rows=np.diff(np.interp(edges, knots, values)))


@dataclass(frozen=True, kw_only=True)
class Course:
    """How the runs of an output went. `edges` are seconds from the first point; between two of them lie rows a second
    and replicas, both zero between two runs. `runs` counts them."""

    edges: np.ndarray
    per_second: np.ndarray
    replicas: np.ndarray
    runs: int

    @property
    def mean_replicas(self) -> float:
        """Replicas on average, while there were any."""
        seconds = np.diff(self.edges)
        held = seconds[self.replicas > 0].sum()
        return float((self.replicas * seconds).sum() / held) if held else 0.0


def course(points: Sequence[Point]) -> Course | None:
    """The course of a history; None if it has too few points for a plot. Rows of a second try may be done again: a
    count that goes back is a rate of zero."""
    times = np.array([point.at for point in points], float)
    within = np.array([one.lease == two.lease for one, two in pairwise(points)], bool)
    if within.sum() < LEAST_STEPS:
        return None
    seconds, done = np.diff(times), np.diff([point.done for point in points])
    return Course(
        edges=times - times[0],
        per_second=np.where(within, np.maximum(done, 0) / seconds, 0),
        replicas=np.where(within, [point.replicas for point in points[1:]], 0),
        runs=1 + int((~within).sum()),
    )
