"""How long a run that is stopped has for committing what is finished."""

import os
import signal

from caprl_ray.recipe.sections import Recipe

SUBMITTED = "RAY_JOB_CONFIG_JSON_ENV_VAR"  # Ray sets it in the processes of submitted jobs
STOP_WAIT, STOP_WAIT_S = "RAY_JOB_STOP_WAIT_TIME_S", 3.0  # Ray's own variable and its default


def seconds(recipe: Recipe, number: int | None) -> float:
    """The recipe's `output.stop_s`; less where Ray kills a submitted job sooner after its SIGTERM."""
    if number != signal.SIGTERM or SUBMITTED not in os.environ:
        return recipe.output.stop_s
    try:
        return min(recipe.output.stop_s, float(os.environ.get(STOP_WAIT, STOP_WAIT_S)))
    except ValueError:
        return min(recipe.output.stop_s, STOP_WAIT_S)
