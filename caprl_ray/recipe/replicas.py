"""The sections `engine` and `replicas`: how many engines run, on what, and how they are kept alive."""

from typing import Annotated

from pydantic import Field, model_validator

from caprl_ray.recipe.fields import Accelerator, Positive, Section


class Engine(Section):
    """How the engines of this job are kept alive."""

    stall_timeout_s: Annotated[float, Field(ge=1)] = 300
    """If rows wait and the engine makes no step for this many seconds, it is killed and restarted. An engine on a CPU
    may take longer for a step, as long as it computes."""


class Replicas(Section):
    """How many copies of the model caption in parallel, and what each of them needs."""

    min: Positive = 1
    """The number of replicas at the start of the run; the pool never shrinks below it. Raise it to request more GPUs
    from the start."""
    max: Positive | None = None
    """The largest number of replicas. The pool grows up to it while rows wait and GPUs are free. If left out: 8 on
    GPUs, 1 on a CPU, but at least `min`."""
    gpus: Annotated[float, Field(ge=0, le=64)] = 1
    """GPUs per replica: 0 runs on the CPU, a fraction shares a GPU with other replicas, a value above 1 must be a whole
    number. From 1 on, it must equal tensor_parallel_size x pipeline_parallel_size of model.engine. With an endpoint it
    is always 0. With a tiny model of the package it is 0 if left out."""
    accelerator_type: Accelerator | None = None
    """The type of GPU that replicas must have, by Ray's name for it, such as L40S. If left out, any type. Set it if
    only some of the cluster's types should be used."""
    wait_s: Annotated[float, Field(ge=1)] = 3600
    """How long a run waits while no replica has a GPU, in seconds: at the start, or after all GPU nodes were lost. Then
    the run ends with an error; it can be resumed. A run also ends if fewer than `min` replicas run for so long because
    the engine does not start on some nodes. Raise it if spot capacity is often missing for longer."""
    price: Annotated[float, Field(ge=0)] | None = None
    """The price of one GPU per hour, in dollars. If it is given, the progress shows what the run has cost so far."""

    @property
    def most(self) -> int:
        """The largest number of replicas: `max`, or its default."""
        return self.max or max(self.min, 8 if self.gpus else 1)

    @model_validator(mode="after")
    def _check(self) -> "Replicas":
        if self.max is not None and self.max < self.min:
            raise ValueError(f"max is {self.max}; it must be at least min, which is {self.min}")
        if self.gpus > 1 and self.gpus != int(self.gpus):
            raise ValueError(f"gpus is {self.gpus}; above 1 it must be a whole number")
        if self.accelerator_type and not self.gpus:
            raise ValueError(f"accelerator_type is {self.accelerator_type}, but gpus is 0; leave it out on the CPU")
        return self
