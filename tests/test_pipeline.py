"""The whole job with the stub engine. Its captions are computed from the pixels, so every mix-up shows."""

import gc
import io
import json
import os
import sys
import tarfile
import time
from hashlib import sha256
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from ray.data._internal.execution.operators.map_operator import MapOperator

from caprl_ray import pipeline, plan, sources
from caprl_ray.caption import job
from caprl_ray.caption.columns import AGAIN, CAPTION
from caprl_ray.caption.job import caption_job
from caprl_ray.cluster import internals, optional, resources, session
from caprl_ray.commands.demo import demo_recipe, render_dataset
from caprl_ray.errors import LedgerUnbalanced, RecipeError, RowFailure, SystemFailure, TooManyFailures
from caprl_ray.models.resolve import resolve
from caprl_ray.output import ledger
from caprl_ray.output.committed import read_committed
from caprl_ray.output.folder import Output
from caprl_ray.prepare.stage import Prepare
from caprl_ray.read.datasource import PlannedRows, remaining
from caprl_ray.recipe.load import parse
from caprl_ray.recipe.sections import Recipe
from caprl_ray.rows.schema import data_schema, failed_schema, row_schema
from caprl_ray.rows.stage import run_stage
from caprl_ray.sources.samples import METADATA
from caprl_ray.storage import Storage
from caprl_ray.watch.counter import Counter
from caprl_ray.watch.status import Status
from tests.expected import expected_caption, image_in_shard

pytestmark = pytest.mark.usefixtures("ray_cluster")
IMAGES = 120


def stub_recipe(paths: list[Path], out: Path, **sections: Any) -> Recipe:
    # A small pixel budget: batches of 32 rows, and few bytes for the stub to hash.
    document = demo_recipe(paths, out) | {"model": {"source": "stub"}, "prepare": {"max_pixels": 20_000}} | sections
    return parse(document)


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("images")
    render_dataset(folder, IMAGES)
    return folder


def rows_of(out: Path, part: str = "data") -> list[dict[str, Any]]:
    return pq.read_table(out / part).to_pylist() if (out / part).exists() else []


def source_bytes(row: dict[str, Any]) -> bytes:
    content = Path(row["source"]).read_bytes()
    return image_in_shard(content, row["key"]) if row["source"].endswith(".tar") else content


def noted_shard(images: Path, folder: Path) -> Path:
    """A plain tar named like a gzip, without an end marker, of a photo from the files with a text in Latin-1."""
    photo = next(path for path in sorted((images / "files").rglob("*.*")) if path.is_file()).read_bytes()
    (folder / "photo").write_bytes(photo)
    with tarfile.open(folder / "noted.tar.gz", "w") as tar:
        for name, content in (("._a.jpg", b"x"), ("a.jpg", photo), ("a.txt", b"K\xe4se")):
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
        end = tar.offset
    os.truncate(folder / "noted.tar.gz", end)
    return folder / "noted.tar.gz"


def test_every_image_of_both_kinds_gets_its_own_caption(images: Path, tmp_path: Path) -> None:
    recipe = stub_recipe([images / "files", images / "shards", noted_shard(images, tmp_path)], tmp_path / "out")
    balance = pipeline.run(caption_job(recipe))
    *rows, noted = sorted(rows_of(tmp_path / "out"), key=lambda row: row["id"])
    assert balance.balanced and balance.finished - 1 == len(rows) == IMAGES
    assert (noted["key"], noted["txt"], noted["flags"]) == ("a", None, ["metadata_undecoded:txt"])
    assert noted["caption"] == expected_caption((tmp_path / "photo").read_bytes(), recipe)
    assert json.loads(noted["unit_left_out"]).keys() == {"housekeeping", "no_end_marker"}
    assert not any(row["unit_left_out"] or row["flags"] for row in rows)
    assert (tmp_path / "out" / "_SUCCESS").exists()
    assert {row["unit"] for row in rows} == {0, 1}
    assert all(row["caption"] == expected_caption(source_bytes(row), recipe) for row in rows)
    assert len({(row["unit"], row["index"]) for row in rows}) == len({row["key"] for row in rows}) == IMAGES
    ends = [(row["unit"], row["index"] + 1, row["unit_rows"]) for row in rows if row["unit_rows"]]
    assert sorted(ends) == [(0, 60, 60), (1, 60, 60)]
    shard = [row for row in rows if row["unit"] == 1]
    assert all(f'"scene": {int(row["key"].removeprefix("scene-"))},' in row["json"] for row in shard)
    schema = pq.read_table(tmp_path / "out" / "data").schema
    assert schema.names == data_schema(METADATA, (*CAPTION, AGAIN)).names
    assert all(field.metadata[b"description"] for field in schema)


def test_the_same_command_again_captions_nothing(images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = stub_recipe([images / "files"], tmp_path / "out")
    pipeline.run(caption_job(recipe))
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*.parquet")}
    monkeypatch.setattr(job, "captioned", lambda *_, **__: pytest.fail("an engine would have been started"))
    assert pipeline.run(caption_job(recipe)).balanced
    assert before == {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*.parquet")}


def test_a_limited_run_goes_on_at_the_row_where_it_stopped(images: Path, tmp_path: Path) -> None:
    recipe = stub_recipe([images / "files", images / "shards"], tmp_path / "out")
    first = pipeline.run(caption_job(recipe), limit=37)
    assert first.finished == 37 and not first.balanced
    assert not (tmp_path / "out" / "_SUCCESS").exists()
    kept = {row["id"]: row for row in rows_of(tmp_path / "out")}
    second = pipeline.run(caption_job(recipe))
    history = json.loads((tmp_path / "out" / "status.json").read_text())["history"]
    assert len(set(history["lease"])) == 2 and history["at"] == sorted(history["at"]), "of both runs"
    assert history["done"][-1] == second.finished + second.failed and 37 in history["done"]
    rows = rows_of(tmp_path / "out")
    assert second.balanced and len(rows) == IMAGES
    assert {row["id"]: row for row in rows if row["id"] in kept} == kept
    assert all(row["caption"] == expected_caption(source_bytes(row), recipe) for row in rows)


def test_bad_images_are_failed_rows_and_their_neighbours_are_captioned(images: Path, tmp_path: Path) -> None:
    folder = tmp_path / "mixed"
    folder.mkdir()
    good = sorted((images / "files").glob("*.png"))[:5]
    for path in good:
        (folder / path.name).write_bytes(path.read_bytes())
    (folder / "empty.jpg").touch()
    (folder / "cut.png").write_bytes(good[0].read_bytes()[:-40])
    (folder / "page.jpg").write_text("<html>not found</html>")
    (folder / "huge.png").write_bytes(bytes(200_000))
    Image.new("RGB", (90, 60), "teal").save(folder / "teal.png")
    gone = b"GIF89a: not available"  # no image at all: it is not decoded
    for name in ("gone-1.gif", "gone-2.gif"):
        (folder / name).write_bytes(gone)
    (tmp_path / "unwanted.txt").write_text(f"# moved away\n{sha256(gone).hexdigest().upper()}\n")
    sections = {
        "input": {"paths": [str(folder)], "placeholders": str(tmp_path / "unwanted.txt")},
        "prepare": {"max_pixels": 20_000, "max_bytes": 100_000},
    }
    with pytest.raises(TooManyFailures, match=r"4 of 10 images failed, more than 0\.25 allows") as caught:
        pipeline.run(caption_job(stub_recipe([folder], tmp_path / "out", **sections)))
    assert caught.value.exit_code == 3 and f"{folder}/page.jpg: image_format" in str(caught.value)
    assert not (tmp_path / "out" / "_SUCCESS").exists()
    recipe = stub_recipe([folder], tmp_path / "out", **sections, failures={"max_fraction": 0.5})
    balance = pipeline.run(caption_job(recipe))
    assert (tmp_path / "out" / "_SUCCESS").exists()
    assert balance.balanced and (balance.finished, balance.failed) == (6, 6)
    assert {row["key"] for row in rows_of(tmp_path / "out") if "blank" in row["flags"]} == {"teal.png"}
    failed = {row["key"]: row for row in rows_of(tmp_path / "out", "failed")}
    assert failed["gone-1.gif"]["sha256"] == sha256(gone).hexdigest()
    codes = {row["key"]: (row["stage"], row["code"]) for row in rows_of(tmp_path / "out", "failed")}
    assert codes == {
        "empty.jpg": ("prepare", "image_empty"),
        "cut.png": ("prepare", "image_truncated"),
        "page.jpg": ("prepare", "image_format"),
        "huge.png": ("read", "image_too_large"),
        "gone-1.gif": ("read", "placeholder"),
        "gone-2.gif": ("read", "placeholder"),
    }
    assert pq.read_table(tmp_path / "out" / "failed").schema.names == failed_schema(pa.schema([])).names
    again = pipeline.run(caption_job(stub_recipe([folder], tmp_path / "out", **sections)))
    assert again.failed == 6  # failed rows are not tried again, and those that were accepted stay accepted


def test_failed_rows_are_tried_again_by_code_and_leave_no_pairs(images: Path, tmp_path: Path) -> None:
    folder = tmp_path / "mixed"
    folder.mkdir()
    good = sorted((images / "files").glob("*.png"))[:4]
    for path in good:
        (folder / path.name).write_bytes(path.read_bytes())
    (folder / "page.jpg").write_text("<html>not found</html>")
    (folder / "vanished.png").write_bytes(good[0].read_bytes())
    recipe = stub_recipe([folder], tmp_path / "out", failures={"max_fraction": 1})
    pipeline.run(caption_job(recipe), limit=1)  # the plan is stored now
    os.rename(folder / "vanished.png", tmp_path / "elsewhere")
    first = pipeline.run(caption_job(recipe))
    assert first.balanced and (first.finished, first.failed) == (4, 2)
    kept = {row["id"]: row for row in rows_of(tmp_path / "out")}
    os.rename(tmp_path / "elsewhere", folder / "vanished.png")
    assert pipeline.run(caption_job(recipe)).failed == 2
    second = pipeline.run(caption_job(recipe), retry=frozenset({"source_missing"}))
    assert second.balanced and (second.finished, second.failed, second.duplicate) == (5, 1, 0)
    third = pipeline.run(caption_job(recipe), retry=frozenset({"image_format", "source_missing"}))
    assert third.balanced and (third.finished, third.failed, third.duplicate) == (5, 1, 0)
    rows = {row["id"]: row for row in rows_of(tmp_path / "out")}
    assert {id_: rows[id_] for id_ in kept} == kept
    assert [row["attempts"] for row in rows.values() if row["id"] not in kept] == [2]
    assert [(row["code"], row["attempts"]) for row in rows_of(tmp_path / "out", "failed")] == [("image_format", 2)]


def test_chosen_rows_are_captioned_again_once_and_keep_their_old_captions(images: Path, tmp_path: Path) -> None:
    folder, out = tmp_path / "files", tmp_path / "out"
    folder.mkdir()
    for path in sorted((images / "files").glob("*.png"))[:12]:
        (folder / path.name).write_bytes(path.read_bytes())
    paths = [folder, images / "shards"]
    pipeline.run(caption_job(stub_recipe(paths, out)))
    old = {row["id"]: row for row in rows_of(out)}
    (gone,) = [row for row in old.values() if row["unit"] == 0 and row["index"] == 0]
    os.unlink(gone["source"])
    other = caption_job(stub_recipe(paths, out, prompt={"user": "Anew."}))
    condition = "index % 3 = 0 and flags = []"
    chosen = {id_ for id_, row in old.items() if row["index"] % 3 == 0}
    part = pipeline.run(other, again=condition, limit=8)
    assert part.balanced and (part.finished, part.failed) == (len(old), 0)  # the row that is gone keeps its caption
    anew = {row["id"] for row in rows_of(out) if row["previous"] is not None}
    assert anew < chosen and len(anew) in {7, 8}
    told = Status.parse((out / "status.json").read_bytes())
    assert (told.done, told.rates.planned) == (8, len(chosen)), "of the whole condition"
    with pytest.raises(RecipeError, match="is not yet done with --again 'index % 3"):
        pipeline.run(other, again="index = 1")
    whole = pipeline.run(other, again=condition)
    kept = f"{len(chosen) - 1} of {len(chosen)} rows done again, 1 failed and keep their old version"
    assert whole.balanced and any(kept in note for note in whole.notes)
    rows = {row["id"]: row for row in rows_of(out)}
    for id_, row in rows.items():
        if id_ in chosen - {gone["id"]}:
            assert (row["previous"], row["attempts"], asked(row["caption"])) == (old[id_]["caption"], 2, "Anew.")
            assert row["caption"].partition("|")[0] == old[id_]["caption"].partition("|")[0]  # of the same pixels
        else:
            assert row == old[id_]
    assert len(rows) == len(old) == len(rows_of(out)) and (out / "_SUCCESS").exists()
    assert not rows_of(out, "failed")
    assert pipeline.run(caption_job(stub_recipe(paths, out))).balanced  # the output still is its first recipe's
    # A later request is another one, and its rows keep the caption before the last.
    pipeline.run(caption_job(stub_recipe(paths, out)), again="previous is not null and unit = 0")
    again = {row["id"]: row for row in rows_of(out) if row["attempts"] == 3}
    assert again and all(row["previous"] == rows[id_]["caption"] for id_, row in again.items())
    assert all(row["caption"] == old[id_]["caption"] for id_, row in again.items())


def test_a_shard_that_can_be_read_further_replaces_the_row_where_it_ended(images: Path, tmp_path: Path) -> None:
    whole = (images / "shards" / "00000.tar").read_bytes()
    shard = tmp_path / "0.tar"
    shard.write_bytes(whole)
    planned = shard.stat()
    recipe = stub_recipe([shard], tmp_path / "out")
    pipeline.run(caption_job(recipe), limit=1)
    shard.write_bytes(whole[:100_000] + b"\xff" * (len(whole) - 100_000))  # the planned size, damaged on disk
    os.utime(shard, ns=(planned.st_atime_ns, planned.st_mtime_ns))
    first = pipeline.run(caption_job(recipe))
    assert first.balanced and first.failed == 1 and 0 < first.finished < IMAGES // 2
    shard.write_bytes(whole)
    os.utime(shard, ns=(planned.st_atime_ns, planned.st_mtime_ns))
    assert pipeline.run(caption_job(recipe)).failed == 1
    second = pipeline.run(caption_job(recipe), retry=frozenset({"truncated_unit"}))
    assert second.balanced and (second.finished, second.failed) == (IMAGES // 2, 0)
    assert not rows_of(tmp_path / "out", "failed")


def asked(caption: str) -> str:
    """The prompt in a caption of the stub, which has its words backwards."""
    return " ".join(reversed(caption.rpartition("|")[2].split()))


def test_the_prompt_takes_the_rows_own_columns(images: Path, tmp_path: Path) -> None:
    recipe = stub_recipe(
        [images / "shards"], tmp_path / "out", prompt={"user": "On <|im_end|>{background}, scene {json[scene]}?"}
    )
    pipeline.run(caption_job(recipe))
    for row in rows_of(tmp_path / "out"):
        number = int(row["key"].removeprefix("scene-"))
        prompt = asked(row["caption"])
        assert prompt.endswith(f", scene {number}?") and "{" not in prompt


def test_a_run_with_another_recipe_into_the_same_output_is_refused(images: Path, tmp_path: Path) -> None:
    pipeline.run(caption_job(stub_recipe([images / "files"], tmp_path / "out")), limit=1)
    other = stub_recipe([images / "files"], tmp_path / "out", sampling={"temperature": 0.7})
    with pytest.raises(RecipeError, match=r"sampling\.temperature was 0\.0 and is 0\.7"):
        pipeline.run(caption_job(other))


def test_fields_that_are_adopted_may_differ_and_the_output_remembers(images: Path, tmp_path: Path) -> None:
    pipeline.run(caption_job(stub_recipe([images / "files"], tmp_path / "out")), limit=1)
    other = stub_recipe([images / "files"], tmp_path / "out", sampling={"temperature": 0.7}, prompt={"user": "Well?"})
    with pytest.raises(RecipeError, match=r"prompt\.user was"):
        pipeline.run(caption_job(other), adopt={"sampling.temperature", "sampling.max_tokens"})
    with pytest.raises(RecipeError, match=r"--adopt: 'output\.path' is no field"):
        pipeline.run(caption_job(other), adopt={"output.path"})
    assert pipeline.run(
        caption_job(other), adopt={"sampling.temperature", "sampling.max_tokens", "prompt.user"}
    ).balanced
    remembered = json.loads((tmp_path / "out" / "run.json").read_text())
    wrote = {run["fingerprint"]["prompt.user"]: run["rows"] for run in remembered["runs"].values()}
    assert wrote == {"Well?": IMAGES // 2 - 1, "Please describe this image in detail.": 1}
    assert {row["run"]: asked(row["caption"]) for row in rows_of(tmp_path / "out")} == {
        name: run["fingerprint"]["prompt.user"] for name, run in remembered["runs"].items()
    }
    assert remembered["fingerprint"]["sampling.temperature"] == 0.7
    assert remembered["adopted"][0]["sampling.temperature"] == 0.0
    assert pipeline.run(caption_job(other)).balanced
    with pytest.raises(RecipeError, match=r"sampling\.temperature was 0\.7 and is 0\.0"):
        pipeline.run(caption_job(stub_recipe([images / "files"], tmp_path / "out")))


def test_new_input_is_captioned_only_on_demand_and_finished_rows_are_left_alone(images: Path, tmp_path: Path) -> None:
    folder = tmp_path / "growing"
    folder.mkdir()
    paths = sorted((images / "files").iterdir())
    for path in paths[:10]:
        (folder / path.name).write_bytes(path.read_bytes())
    recipe = stub_recipe([folder], tmp_path / "out")
    pipeline.run(caption_job(recipe))
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*.parquet")}
    for path in paths[10:25]:
        (folder / path.name).write_bytes(path.read_bytes())
    assert pipeline.run(caption_job(recipe)).finished == 10
    wider = stub_recipe([folder, images / "files"], tmp_path / "out")
    balance = pipeline.run(caption_job(wider), extend=True)
    assert balance.balanced and balance.finished == 25 + len(paths)  # the other folder's files are other files
    assert all(path.stat().st_mtime_ns == time for path, time in before.items())
    rows = rows_of(tmp_path / "out")
    assert len({(row["unit"], row["index"]) for row in rows}) == len({row["source"] for row in rows}) == len(rows)
    assert {row["unit"] for row in rows} == {0, 1, 2}
    assert pipeline.run(caption_job(wider), extend=True).finished == len(rows) and rows_of(tmp_path / "out") == rows


def test_an_extension_with_other_columns_is_refused(images: Path, tmp_path: Path) -> None:
    pipeline.run(caption_job(stub_recipe([images / "files"], tmp_path / "out")))
    with pytest.raises(RecipeError, match=r"add the column json \(string\), which the existing plan does not have"):
        pipeline.run(caption_job(stub_recipe([images / "files", images / "shards"], tmp_path / "out")), extend=True)
    assert pipeline.run(caption_job(stub_recipe([images / "files"], tmp_path / "out"))).balanced


def test_an_output_that_lost_rows_does_not_pass_for_complete(images: Path, tmp_path: Path) -> None:
    recipe = stub_recipe([images / "files"], tmp_path / "out")
    pipeline.run(caption_job(recipe))
    (lost,) = (tmp_path / "out" / "data").glob("*.parquet")
    table = pq.read_table(lost)
    pq.write_table(table.slice(0, table.num_rows - 1), lost)  # the last row of the unit
    balance = ledger.balance(
        plan.load(Storage(), recipe.output.path).units, read_committed(Storage(), recipe.output.path), "captioned"
    )
    assert not balance.balanced and balance.units[0].missing == 1
    assert pipeline.run(caption_job(recipe)).balanced
    assert len(rows_of(tmp_path / "out")) == IMAGES // 2


def test_an_output_that_cannot_be_written_is_one_sentence(images: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(RecipeError, match=r"output\.path: .*/file is in the way of the folder .*/file/out; "):
        pipeline.run(caption_job(stub_recipe([images / "files"], tmp_path / "file" / "out")))


def test_an_error_in_a_worker_reaches_the_driver_as_its_sentence(images: Path, tmp_path: Path) -> None:
    recipe = stub_recipe([images / "files"], tmp_path / "out")
    pipeline.run(caption_job(recipe), limit=1)
    (tmp_path / "out" / "failed").mkdir(exist_ok=True)
    data = tmp_path / "out" / "data"
    data.rename(tmp_path / "kept")
    data.touch()  # a file where the folder should be
    with pytest.raises(SystemFailure, match="cannot be written") as caught:
        pipeline.run(caption_job(recipe))
    assert len(str(caught.value).splitlines()) == 1


class RecordedPrepare(Prepare):
    """Prepare that leaves a note of its process and of each batch's rows."""

    def __call__(self, table: pa.Table) -> pa.Table:
        note("prepare", table.num_rows)
        return super().__call__(table)


class RecordedCaptioner(job.Captioner):
    """Captioner that does the same."""

    def __call__(self, table: pa.Table) -> pa.Table:
        note("caption", table.num_rows)
        return super().__call__(table)


def note(stage: str, rows: int) -> None:
    with open(NOTES, "a", encoding="utf-8") as file:
        file.write(f"{stage} {os.getpid()} {rows}\n")


NOTES = ""


def test_the_plan_has_the_promised_shape(images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Prepare and the captioner are separate operators and processes, and a block of pixels is a caption batch."""
    monkeypatch.setattr(sys.modules[__name__], "NOTES", str(tmp_path / "notes"))
    monkeypatch.setattr(job, "Prepare", RecordedPrepare)
    monkeypatch.setattr(job, "Captioner", RecordedCaptioner)
    if internals.whole_batches():
        monkeypatch.setattr(session, "TARGET_BLOCK_BYTES", 4096)  # Ray must cut no batch, however large (D4)
    recipe = stub_recipe([images / "files", images / "shards"], tmp_path / "out")
    model, access = resolve(recipe), Output.open(caption_job(recipe)).access
    plan.store(Storage(), recipe.output.path, sources.plan_units(access))
    work = remaining(plan.load(Storage(), recipe.output.path).units, {})
    with session.session(caption_job(recipe), debug=False):
        rows = pipeline.read(PlannedRows(work, row_schema(METADATA, CAPTION), access))
        counter = resources.beside_driver(Counter)
        captions = job.captioned(rows, counter, recipe=recipe, model=model).materialize()
        operators = [op for op in gc.get_objects() if isinstance(op, MapOperator)]
    if not optional.plain():  # the driver's memory must not grow with the images
        assert operators and not any(op.get_stats()[op.name] for op in operators)
    batch = resources.batch_rows(model.size_rule.max_pixels)
    notes = [line.split() for line in (tmp_path / "notes").read_text().splitlines()]
    processes = {stage: {pid for s, pid, _ in notes if s == stage} for stage in ("prepare", "caption")}
    assert processes["prepare"] and processes["caption"] and not processes["prepare"] & processes["caption"]
    assert str(os.getpid()) not in processes["prepare"] | processes["caption"]
    for stage in ("prepare", "caption"):
        sizes = sorted(int(count) for s, _, count in notes if s == stage)
        assert sum(sizes) == IMAGES and all(size == batch for size in sizes[1:])
    blocks = sorted(bundle.num_rows() for bundle in captions.iter_internal_ref_bundles())
    assert all(size == batch for size in blocks[1:])
    operators = [line.split()[2].rstrip(":") for line in captions.stats().splitlines() if line.startswith("Operator ")]
    assert [name.split("[")[0] for name in operators] == [
        "ReadRows",
        "MapBatches(RecordedPrepare)->StreamingRepartition",
        "MapBatches(RecordedCaptioner)",
    ]


class WaitingPrepare(RecordedPrepare):
    """Prepare that continues after two batches only when one has reached the captioner."""

    def __call__(self, table: pa.Table) -> pa.Table:
        until = time.monotonic() + 20
        while len(noted := Path(NOTES).read_text().splitlines()) >= 2 and time.monotonic() < until:
            if any(line.startswith("caption") for line in noted):
                break
            time.sleep(0.1)
        return super().__call__(table)


@pytest.mark.skipif(optional.plain(), reason="a block is then handed on as a whole")
def test_captions_begin_while_the_same_block_of_images_is_prepared(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    render_dataset(tmp_path / "images", 10 * resources.MOST_BATCH_ROWS)  # half of them as files
    (tmp_path / "notes").touch()
    monkeypatch.setattr(sys.modules[__name__], "NOTES", str(tmp_path / "notes"))
    monkeypatch.setattr(job, "Prepare", WaitingPrepare)
    monkeypatch.setattr(job, "Captioner", RecordedCaptioner)
    assert pipeline.run(caption_job(stub_recipe([tmp_path / "images" / "files"], tmp_path / "out"))).balanced
    stages = [line.split()[0] for line in (tmp_path / "notes").read_text().splitlines()]
    assert stages[:3] == ["prepare", "prepare", "caption"]


class Shortened:
    """A stage that loses the last row."""

    name, needs, drops = "short", ("index",), ()

    def apply(self, rows: list[dict[str, Any]]) -> list[dict[str, Any] | RowFailure]:
        return [{} for _ in rows[:-1]]


class Lengthened(Shortened):
    def apply(self, rows: list[dict[str, Any]]) -> list[dict[str, Any] | RowFailure]:
        return [{} for _ in [*rows, None]]


class Renumbered(Shortened):
    def apply(self, rows: list[dict[str, Any]]) -> list[dict[str, Any] | RowFailure]:
        return [{"index": row["index"] + 1} for row in rows]


@pytest.mark.parametrize("stage", [Shortened(), Lengthened(), Renumbered()])
def test_a_stage_that_loses_or_adds_rows_is_caught(stage: Any) -> None:
    schema = row_schema(pa.schema([]))
    rows = [dict.fromkeys(schema.names) | {"unit": 0, "index": index} for index in range(3)]
    # No assert, which python -O would leave out.
    with pytest.raises(SystemFailure, match=r"^short: .* came out"):
        run_stage(stage, pa.Table.from_pylist(rows, schema=schema))


def test_a_ray_dataset_comes_back_with_its_own_columns_and_captions(
    images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import ray

    from caprl_ray import caption_dataset

    paths = sorted((images / "files").glob("*"))[:20]
    rows = [{"image": path.read_bytes(), "width": path.name, "n": n} for n, path in enumerate(paths)]
    rows += [{"image": b"", "width": "none", "n": 20}, {"image": None, "width": "none", "n": 21}]
    settings = {"model": {"source": "stub"}, "replicas": {"gpus": 0}, "prepare": {"max_pixels": 20_000}}
    out = {row["n"]: row for row in caption_dataset(ray.data.from_items(rows), settings).take_all()}
    recipe = stub_recipe([images], images)
    assert len(out) == 22 and out[20]["caption"] is out[21]["caption"] is None
    assert [(out[n]["stage"], out[n]["code"]) for n in (20, 21)] == [("prepare", "image_empty"), ("read", "no_image")]
    for n, path in enumerate(paths):
        assert out[n]["caption"] == expected_caption(path.read_bytes(), recipe) and out[n]["width"] == path.name
    with pytest.raises(RecipeError, match="no column picture"):
        caption_dataset(ray.data.from_items(rows), settings, image_column="picture")
    with pytest.raises(RecipeError, match="width holds string, not encoded images as bytes; read them without"):
        caption_dataset(ray.data.from_items(rows), settings, image_column="width")
    gpus = settings | {"replicas": {"gpus": 1, "wait_s": 1}}
    if not optional.plain():  # otherwise it is not known whether nodes may join
        with pytest.raises(RecipeError, match=r"replicas.gpus: 1 .* this machine has 0 GPUs"):
            caption_dataset(ray.data.from_items(rows), gpus)
    monkeypatch.setattr(session, "joined", lambda: True)  # a cluster that may grow
    with pytest.raises(SystemFailure, match=r"wait_s: no node had room for a replica \(1 GPUs\) for 1 seconds"):
        caption_dataset(ray.data.from_items(rows), gpus).materialize()


def test_a_batch_of_a_ray_dataset_is_one_block_however_large_its_rows_are(
    images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where Ray cut it would depend on the captions, and a block that is made again would have other rows."""
    import ray

    from caprl_ray import caption_dataset

    monkeypatch.setattr(ray.data.DataContext.get_current(), "target_max_block_size", 32 * 2**20)
    image = min((images / "files").glob("*")).read_bytes()

    def rows(size: int, count: int) -> Any:
        blob = b"x" * size
        return ray.data.range(count).map(lambda row: {"image": image, "n": row["id"], "blob": blob})

    settings = {"model": {"source": "stub"}, "replicas": {"gpus": 0}, "prepare": {"max_pixels": 20_000}}
    out = caption_dataset(rows(2_000_000, 70), settings).materialize()
    tables = [ray.get(ref) for ref in out.to_arrow_refs()]
    assert sorted(table.num_rows for table in tables) == [6, 32, 32]
    assert all(table.nbytes > 1.9e6 * table.num_rows for table in tables)
    assert sorted(n for table in tables for n in table["n"].to_pylist()) == list(range(70))
    with pytest.raises(Exception, match=r"32 rows that are captioned together have 3.. MiB"):
        caption_dataset(rows(12_500_000, 32), settings).materialize()


def test_an_unbalanced_end_is_an_error_of_its_own() -> None:
    assert (LedgerUnbalanced.exit_code, SystemFailure.exit_code, RecipeError.exit_code) == (3, 1, 2)
