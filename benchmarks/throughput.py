"""Measure the images/s of this pipeline, compared with `vllm.LLM.chat` and the stock `ray.data.llm` processor.

    python benchmarks/throughput.py [--images 1500] [--size 640x480] [--repeat 1] [--s3] [--json FILE]
    python benchmarks/throughput.py --images 300 --size 4000x3000

The embedded model captions rendered scenes (JPEGs of one size) greedily on this machine's CPU. All ways use the same
images and model. Each way runs in its own process, one after another:

    engine        the pipeline's engine, started as vLLM does it, on pre-rendered requests: the ceiling
    chat          vllm.LLM.chat on file:// URLs: a first call with 32 images, then one call with all others
    stock         ray.data.read_images, ray.data.llm.build_processor with batches of 32, write_parquet
    stock_tuned   the same, made as fast as the processor's options allow
    caprl_ray     caprl_ray.pipeline.run on the folder
    caprl_ray_s3  the same, from and to an S3 server on loopback (with --s3)

The steady state of `chat` and `engine` is their second call; the first call of 32 images bears the one-time costs. For
`caprl_ray` it is all images over the seconds from a ready engine to the last caption. The engine counts as ready after
a first call with 32 grey pictures. Images that are prepared while the engine starts would look free, so this is
measured in a separate run, which holds the images back until the engine is ready. For the stock processor it is the
middle of its only run, from 20 % to 90 % of the rows. Images that it prepared earlier count in its favour; they may be
most of these rows.

First caption and whole run are seconds from the start of the way's process, including imports and engine start, in a
run that holds nothing back. The first caption is the first row in the postprocess function (`stock`), the first batch
that leaves a replica (`caprl_ray`), or the end of the first call (`chat`). Figures are medians over --repeat rounds, in
which the ways take turns.

Keys of the JSON:

    engine, chat, stock, stock_tuned, caprl_ray, caprl_ray_s3
                                                         images/s in steady state
    first_caption_s, first_caption_s3_s, engine_first_caption_s, chat_first_caption_s, stock_first_caption_s,
    stock_tuned_first_caption_s
                                                         seconds to the first caption (the first is caprl_ray's)
    chat_whole_s, stock_whole_s, stock_tuned_whole_s, caprl_ray_whole_s, caprl_ray_s3_whole_s
                                                         seconds of the whole run
    over_engine, over_chat, over_stock, over_stock_tuned, s3_over_local
                                                         ratios of steady states: caprl_ray / engine, / chat, / stock,
                                                         caprl_ray / stock_tuned, caprl_ray_s3 / caprl_ray
    first_over_engine                                    ratio of seconds to the first caption: caprl_ray / engine
    <way>_tokens, <way>_right, <way>_equal               mean tokens per caption; share of captions that are correct
                                                         to the letter; share that are equal to those of caprl_ray
    images, image_bytes                                  number of images, and their mean stored size
"""

import argparse
import io
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from statistics import mean
from typing import Any

import noisy_scenes
from alone import ENVIRONMENT, Captions, captions_in, medians, run_alone, steady
from throughput_ways import BUCKET, WAYS

SCRIPT = "throughput_ways.py"
LOCAL, S3 = ("engine", "chat", "stock", "stock_tuned", "caprl_ray"), "caprl_ray_s3"
PEERS = ("engine", "chat", "stock")
FIRST_CAPTION = {"caprl_ray": "first_caption_s", S3: "first_caption_s3_s"}


def measure(way: str, images: Path, out: Path) -> tuple[dict[str, float], Captions]:
    """Measure one way. Returns its figures, and caption and tokens of each image."""
    began, finished, ended = run_alone(SCRIPT, way, images, out)
    first = FIRST_CAPTION.get(way, f"{way}_first_caption_s")
    figures = {first: finished[0] - began, f"{way}_whole_s": ended - began}
    if way in ("engine", "chat"):
        figures[way] = steady(out, finished)
    elif way.startswith("stock"):
        figures[way] = middle(finished)
    else:
        held = out.with_name(f"{out.name}-held")
        figures[way] = steady(held, run_alone(SCRIPT, way, images, held, "held")[1])
    written = s3_objects(f"{out.name}/data/") if way == S3 else (out / "data").glob("*.parquet")
    return figures, captions_in(written)


def middle(finished: list[float]) -> float:
    """Rows per second between 20 % and 90 % of the rows. Rows that finish at the same time count as one step."""
    start, end = finished[len(finished) // 5], finished[len(finished) * 9 // 10]
    return sum(start < moment <= end for moment in finished) / (end - start)


@contextmanager
def s3_server(images: Path) -> Iterator[None]:
    """Run an S3 server with the images on loopback, in its own process. AWS_ENDPOINT_URL is set to its address."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    os.environ |= ENVIRONMENT | {"AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}"}
    try:
        _answers(port)
        client = s3_client()
        client.create_bucket(Bucket=BUCKET)
        with ThreadPoolExecutor(8) as pool:
            put = [
                pool.submit(client.put_object, Bucket=BUCKET, Key=f"{images.name}/{file.name}", Body=file.read_bytes())
                for file in images.iterdir()
            ]
        for done in put:
            done.result()
        yield
    finally:
        server.terminate()
        server.wait()


def _answers(port: int, seconds: float = 60) -> None:
    until = time.monotonic() + seconds
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
            return
        except OSError:
            if time.monotonic() > until:
                sys.exit(f"the S3 server did not start within {seconds:.0f} s.")
            time.sleep(0.2)


def s3_client() -> Any:
    """A client of the loopback server."""
    import boto3

    return boto3.client("s3", endpoint_url=os.environ["AWS_ENDPOINT_URL"], region_name="us-east-1")


def s3_objects(prefix: str) -> list[io.BytesIO]:
    """The contents of the objects below a prefix."""
    client = s3_client()
    pages = client.get_paginator("list_objects_v2").paginate(Bucket=BUCKET, Prefix=prefix)
    keys = [entry["Key"] for page in pages for entry in page.get("Contents", [])]
    return [io.BytesIO(client.get_object(Bucket=BUCKET, Key=key)["Body"].read()) for key in keys]


def compare(figures: dict[str, float], captions: dict[str, Captions], right: dict[str, str]) -> None:
    """Add the ratios, and the figures that show that all ways did the same work."""
    for name, over, under in (
        ("over_engine", "caprl_ray", "engine"),
        ("over_chat", "caprl_ray", "chat"),
        ("over_stock", "caprl_ray", "stock"),
        ("over_stock_tuned", "caprl_ray", "stock_tuned"),
        ("first_over_engine", "first_caption_s", "engine_first_caption_s"),
        ("s3_over_local", S3, "caprl_ray"),
    ):
        if {over, under} <= figures.keys():
            figures[name] = figures[over] / figures[under]
    ours = captions.get("caprl_ray", {})
    for way, rows in captions.items():
        if rows.keys() != right.keys():
            sys.exit(f"{way} captioned {len(rows)} images of {len(right)}.")
        figures[f"{way}_tokens"] = mean(tokens for _, tokens in rows.values())
        figures[f"{way}_right"] = mean(rows[key][0] == caption for key, caption in right.items())
        if ours:
            figures[f"{way}_equal"] = mean(rows[key][0] == ours[key][0] for key in right)


def table(figures: dict[str, float], ways: list[str]) -> None:
    """Print the figures, one line per way."""
    ratios = [f"x {peer}" for peer in PEERS]
    columns = ("images/s", *ratios, "first caption", "whole run", "tokens", "right", "as caprl_ray")
    print(f"{'':<13}" + "".join(f"{name:>14}" for name in columns))
    for way in ways:
        rate = figures[way]
        first = figures[FIRST_CAPTION.get(way, f"{way}_first_caption_s")]
        ratios = [f"{rate / figures[peer]:.2f}" if peer in figures else "" for peer in PEERS]
        shares = [f"{100 * figures[n]:.1f} %" if n in figures else "" for n in (f"{way}_right", f"{way}_equal")]
        seconds = [f"{first:.1f} s", f"{figures[f'{way}_whole_s']:.1f} s"]
        cells = [f"{rate:.1f}", *ratios, *seconds, f"{figures[f'{way}_tokens']:.1f}", *shares]
        print(f"{way:<13}" + "".join(f"{cell:>14}" for cell in cells))


def size(text: str) -> tuple[int, int]:
    """Parse width and height, as in 640x480."""
    width, height = text.split("x")
    return int(width), int(height)


def main() -> None:
    """Measure all ways in turns and print one table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=1500, help="number of images, at least 100")
    parser.add_argument(
        "--size", type=size, default=(640, 480), metavar="WxH", help="width and height of the images in pixels"
    )
    parser.add_argument("--repeat", type=int, default=1, metavar="N", help="rounds; the figures are medians over them")
    parser.add_argument(
        "--ways", nargs="+", choices=LOCAL, default=LOCAL, metavar="WAY", help="measure only these ways"
    )
    parser.add_argument("--s3", action="store_true", help="also measure caprl_ray on a loopback S3 server")
    parser.add_argument("--json", type=Path, help="also write the figures as one flat JSON object")
    args = parser.parse_args()
    if args.images < 100 or args.repeat < 1:
        parser.error("--images is at least 100 and --repeat at least 1")
    with tempfile.TemporaryDirectory(prefix="throughput-") as temporary:
        figures, ways = run(Path(temporary), args)
    table(figures, ways)
    if args.json:
        args.json.write_text(json.dumps(figures, indent=1) + "\n")


def run(folder: Path, args: argparse.Namespace) -> tuple[dict[str, float], list[str]]:
    """Run all rounds of all ways. Returns the medians, and the ways in order."""
    images = folder / "images"
    right = noisy_scenes.write(images, args.images, [args.size])
    image_bytes = mean(file.stat().st_size for file in images.iterdir())
    width, height = args.size
    print(f"{args.images} JPEGs of {width} x {height}, {image_bytes / 1e3:.0f} kB each", file=sys.stderr)
    rounds: list[dict[str, float]] = []
    captions = {}

    def one(way: str, number: int) -> None:
        measured, captions[way] = measure(way, images, folder / f"{way}-{number}")
        rounds.append(measured)
        print(", ".join(f"{name} {value:.1f}" for name, value in measured.items()), file=sys.stderr)

    for number in range(args.repeat):
        for way in args.ways:
            one(way, number)
        if args.s3:
            with s3_server(images):
                one(S3, number)
    figures = medians(rounds)
    compare(figures, captions, right)
    return figures | {"images": args.images, "image_bytes": image_bytes}, [way for way in WAYS if way in captions]


if __name__ == "__main__":
    main()
