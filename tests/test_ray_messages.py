"""What Ray says of its cluster comes to a few lines, however many replicas it says it of."""

import io

from caprl_ray.ray_messages import EachKindOnce

RETRIED = (
    "Task MapWorker(MapBatches(Captioner)).submit failed. There are infinite retries remaining, so the task will be "
    "retried. Error: The actor {} is temporarily unavailable: ipv4:10.0.{}.7:39631: connection refused"
)
DEAD = (
    "The node with node id: {:056x} and address: 10.0.{}.7 and node name: 10.0.{}.7 has been marked dead\n\t(1) raylet"
)


def test_a_thousand_lost_replicas_are_two_lines() -> None:
    stream, of_workers = io.StringIO(), []
    say = EachKindOnce(lambda data, _: of_workers.append(data["pid"]), stream)
    for number in range(1000):
        for message in (RETRIED.format(f"{number:032x}", number), DEAD.format(number, number, number)):
            say({"lines": [message], "pid": "raylet", "is_err": False}, ignore_prefix=False)
    say({"lines": ["mine"], "pid": 7, "is_err": False}, ignore_prefix=False)
    first, second = stream.getvalue().splitlines()
    assert first == "Ray: Task MapWorker(MapBatches(Captioner)).submit failed"
    assert second.startswith("Ray: The node with node id: 000") and second.endswith("has been marked dead")
    assert of_workers == [7]
