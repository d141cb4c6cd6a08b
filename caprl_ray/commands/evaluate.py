"""Evaluate outputs, write the result into the first of them, and print it."""

import json
from collections.abc import Iterator
from contextlib import ExitStack

from caprl_ray.cluster import session
from caprl_ray.engines.launch import computes_on_cpu
from caprl_ray.evaluate.figures import evaluated
from caprl_ray.evaluate.page import page
from caprl_ray.evaluate.run import evaluate
from caprl_ray.evaluate.table import table
from caprl_ray.evaluate.told import Request
from caprl_ray.job import Job
from caprl_ray.output.ledger import Ledger
from caprl_ray.pipeline import run
from caprl_ray.report.evaluation import EVALUATION, PLACE
from caprl_ray.report.svg import check_matplotlib
from caprl_ray.storage import Storage, join
from caprl_ray.watch.steps import Steps


def evaluation(request: Request, *, debug: bool = False) -> Iterator[str]:
    """Evaluate, and yield the lines for people. Raises RecipeError and whatever a job raises."""
    check_matplotlib()  # which the page needs at the end
    with ExitStack() as ray:

        def finish(job: Job) -> Ledger:
            if not ray_used:  # both jobs use one Ray, which is started only if there is something to do
                on_cpu = job.engine_on_cpu or computes_on_cpu(request.judge.reader("-", "-", "-"))
                ray.enter_context(session.lasting(debug, on_cpu))
                ray.enter_context(session.connected(debug))
                ray_used.append(job.name)
            return run(job, retry=frozenset(job.codes), debug=debug)

        ray_used: list[str] = []
        found = evaluate(request, finish, Steps())
    figures = evaluated(found.evaluation) | {"evaluation": found.told}
    storage, place = Storage(request.judge.storage), request.work or request.outputs[0]
    storage.put(join(place, EVALUATION), json.dumps(figures, indent=1, ensure_ascii=False).encode() + b"\n")
    storage.put(join(place, *PLACE), page(found.evaluation, figures).encode())
    yield from table(figures).splitlines()
    yield from found.told["notes"]
    yield f"{join(place, *PLACE)}, {join(place, EVALUATION)}"
