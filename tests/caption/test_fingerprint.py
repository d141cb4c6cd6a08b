"""The fingerprint holds everything that changes captions, and nothing else."""

from typing import Any

from caprl_ray.caption.job import caption_job
from caprl_ray.recipe.load import parse


def fields(**sections: Any) -> dict[str, Any]:
    model = {"model": {"source": "embedded"}, "replicas": {"gpus": 0}}
    document = {"input": {"paths": ["in"]}, "output": {"path": "out"}} | model | sections
    return dict(caption_job(parse(document)).fingerprint)


def test_the_order_of_prompts_counts() -> None:
    """It decides what `{caption}` means, and which of equal captions is the best."""
    one = fields(prompts={"a": "A.", "b": "B."})
    assert one != fields(prompts={"b": "B.", "a": "A."})
    assert one == fields(prompts={"a": "A.", "b": "B."})


def test_the_watch_over_replicas_does_not_count_and_checks_do() -> None:
    plain = fields()
    assert fields(quality={"self_check": 0, "window": 50, "limits": {}}) == plain
    for quality in ({"checks": {"url": "fail"}}, {"thresholds": {"loop.ratio": 9}}, {"retries": []}):
        assert fields(quality=quality) != plain
