"""A CPU worker starts fast and small: it imports neither torch nor vLLM."""

import subprocess
import sys
from pathlib import Path

from ray import cloudpickle

from caprl_ray import plan, sources
from caprl_ray.caption.job import caption_job
from caprl_ray.commands.demo import demo_recipe, render_dataset
from caprl_ray.models.resolve import resolve
from caprl_ray.output.folder import Output
from caprl_ray.prepare.stage import Prepare
from caprl_ray.read.datasource import PlannedRows, remaining
from caprl_ray.recipe.load import parse
from caprl_ray.rows.schema import row_schema
from caprl_ray.storage import Storage

IMAGES = 4
# A worker gets what Ray would send: a read task, and the stage that its rows pass.
WORKER = """
import sys
from ray import cloudpickle
task, prepare = cloudpickle.load(sys.stdin.buffer)
rows = [prepare(table).num_rows for table in task()]
print(sum(rows), *sorted({name.partition(".")[0] for name in sys.modules}))
"""


def test_reading_and_preparing_import_neither_torch_nor_vllm(tmp_path: Path) -> None:
    render_dataset(tmp_path, 2 * IMAGES)
    recipe = parse(demo_recipe([tmp_path / "files"], tmp_path / "out"))
    model = resolve(recipe)
    access = Output.open(caption_job(recipe)).access
    plan.store(Storage(), recipe.output.path, sources.plan_units(access))
    loaded = plan.load(Storage(), recipe.output.path)
    (task,) = PlannedRows(remaining(loaded.units, {}), row_schema(loaded.columns), access).get_read_tasks(1)
    sent = cloudpickle.dumps((task, Prepare(model.size_rule, recipe.prepare)))
    worker = subprocess.run([sys.executable, "-c", WORKER], input=sent, stdout=subprocess.PIPE, timeout=60, check=True)
    rows, *imported = worker.stdout.decode().split()
    assert int(rows) == IMAGES
    assert {"PIL", "pyarrow"} <= set(imported) and not {"torch", "vllm", "transformers"} & set(imported)
