"""Draw view.svg, the picture of a run's live view: python docs/draw_view.py"""

import io
import re
from pathlib import Path

from rich.console import CONSOLE_SVG_FORMAT, Console
from rich.terminal_theme import MONOKAI

from caprl_ray.watch.batch import Last
from caprl_ray.watch.rates import Rates
from caprl_ray.watch.record import Record, Replicas, Requests
from caprl_ray.watch.status import Run, Status
from caprl_ray.watch.view import view

PICTURE = Path(__file__).with_name("view.svg")
WIDTH = 100

# The numbers of a run as docs/clusters.md estimates it, not of one that was.
EXAMPLE = Status(
    run=Run(output="s3://bucket/captions", gpus=1.0, price=1.12),
    at="2026-11-29T21:08:15+00:00",
    phase="running",
    before=0,
    failed_before=0,
    rates=Rates(
        now=57.9, overall=56.2, tokens=28_900, tokens_overall=28_100, planned=2_000_000, exact=False, eta_s=23_900
    ),
    record=Record(
        seconds=11_200,
        first=(410.0, 16),
        rows=606_272,
        failed={"image_corrupt": 1_204, "source_missing": 38, "image_format": 7},
        sums={
            "flags": {"truncated": 2_310, "boilerplate": 655},
            "repaired": {"loop": 4_127},
            "decodes": {"rows": 605_023, "decodes": 620_900},
            "self_checks": {"passed": 296},
            "stopped_loops": {"loops": 4_980, "tokens": 7_610_000},
        },
        replicas=Replicas(running=7, starting=1, lost=2, seconds=84_600),
        requests=Requests(running=1_780, waiting=241, places=1_792, batches=140),
        last=Last(
            key="00417/004170023.jpg",
            text="The image shows a wooden rowing boat on a pebble beach at low tide, its red paint peeling. Behind it",
        ),
    ),
)


def picture() -> str:
    """The picture. It loads no font from elsewhere, as rich's own would."""
    console = Console(file=io.StringIO(), record=True, width=WIDTH, force_terminal=True, color_system="truecolor")
    console.print(view(EXAMPLE, WIDTH))
    frame = re.sub(r"@font-face \{\{.*?\}\}\s*", "", CONSOLE_SVG_FORMAT, flags=re.DOTALL)
    return console.export_svg(title="caprl-ray caption recipe.yaml", theme=MONOKAI, code_format=frame, unique_id="view")


if __name__ == "__main__":
    PICTURE.write_text(picture(), encoding="utf-8")
