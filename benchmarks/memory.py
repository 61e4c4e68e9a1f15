"""Whether memory grows with the corpus.

    python benchmarks/memory.py job --images 1000 10000         captioning, one given box per image
    python benchmarks/memory.py rows --rows 10000 1000000       a whole run over images that are
                                                                missing: all but the model
    python benchmarks/memory.py plan --rows 100000 1000000 10000000   a manifest to a plan; --update
    python benchmarks/memory.py coco --mb 30 300                a COCO file to a plan

Each size runs in processes of its own; the peak is that of the largest one, in MiB.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
from pathlib import Path

import psutil
from PIL import Image

ROOT = Path(__file__).parents[1]

SIZES = {"job": "images", "rows": "rows", "plan": "rows", "coco": "mb"}

PEAK = """
import dataclasses, resource, sys, time
from pathlib import Path
sys.path.insert(0, sys.argv[1])
import sca_batch.job.load, sca_batch.plan.sources
from sca_batch.job.request import Failures
loaded = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
began = time.monotonic()
def say(what):
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    print(f"{what}: peak {peak:,} MiB after {time.monotonic() - began:,.0f} s")
"""
PLAN = """
from sca_batch.plan.sources import plan_sources
from sca_batch.plan.run_plan import run_plan_frames, write_run_plan
from sca_batch.job.update import update_plan
print(f"libraries alone: {loaded:,} MiB")
def listed():
    return plan_sources([sys.argv[2]])
plan = listed()
say("listed")
out = Path(sys.argv[3])
write_run_plan(run_plan_frames(plan, 64), out)
say("planned")
if sys.argv[4] == "update":
    del plan
    print(update_plan(out, listed(), 64))
    say("updated")
"""
ROWS = """
sys.path.insert(0, sys.argv[1] + "/tests/helpers")
from jobs import small_request
from sca_batch.job.caption import caption_corpus
from sca_batch.job.events import Planned
def listen(event):
    if isinstance(event, Planned):
        say("planned")
request = small_request(sys.argv[2], sys.argv[3], shard_size=int(sys.argv[4]), commit_every=60.0)
request = dataclasses.replace(
    request, running=dataclasses.replace(request.running, max_failures=Failures(share=1.0))
)
outcome = caption_corpus(request, listen=listen)
assert (outcome.tally.images, outcome.exit_code) == (outcome.planned, 0)
say("done")
assert caption_corpus(request).tally.images == 0
say("looked through again")
"""


def main() -> None:
    parser = argparse.ArgumentParser()
    commands = parser.add_subparsers(dest="what", required=True)
    jobs = commands.add_parser("job")
    jobs.add_argument("--images", type=int, nargs="+", default=[1000, 10_000])
    jobs.add_argument("--model", default=str(ROOT / "tests/golden/anything"))
    rows = commands.add_parser("rows")
    rows.add_argument("--rows", type=int, nargs="+", default=[10_000, 1_000_000])
    rows.add_argument("--shard-size", type=int, default=64)
    plans = commands.add_parser("plan")
    plans.add_argument("--rows", type=int, nargs="+", default=[100_000, 1_000_000])
    cocos = commands.add_parser("coco")
    cocos.add_argument("--mb", type=int, nargs="+", default=[30, 300])
    arguments = parser.parse_args()
    for count in getattr(arguments, SIZES[arguments.what]):
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            if arguments.what == "job":
                print(f"{count:,} images: {job(folder, count, arguments.model)}", flush=True)
            elif arguments.what == "rows":
                manifest = boxed_manifest(folder, count, "missing.png")
                measure(f"{count:,} rows", ROWS, manifest, str(arguments.shard_size))
            elif arguments.what == "plan":
                measure(f"{count:,} rows", PLAN, plain_manifest(folder, count), "update")
            else:
                measure(f"{count:,} MB of COCO", PLAN, coco_file(folder, count), "-")


def measure(what: str, script: str, manifest: Path, option: str) -> None:
    """Runs a script in a process of its own and shows what it says of its memory."""
    arguments = [str(ROOT), str(manifest), str(manifest.parent / "out"), option]
    command = [sys.executable, "-c", PEAK + script, *arguments]
    said = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout
    for line in said.splitlines():
        print(f"{what}, {line}", flush=True)


def job(folder: Path, count: int, model: str) -> str:
    manifest = boxed_manifest(folder, count)
    command = [
        sys.executable, str(ROOT / "sca.py"), "-q", "caption", str(manifest),
        "-o", str(folder / str(count)), "--model", model, "--num-beams", "1",
        "--max-new-tokens", "4",
    ]  # fmt: skip
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    running = psutil.Popen(command, env=environment)
    supervisor = worker = 0
    while running.poll() is None:
        try:
            supervisor = max(supervisor, running.memory_info().rss)
            for child in running.children(recursive=True):
                worker = max(worker, child.memory_info().rss)
        except psutil.NoSuchProcess:
            pass
        try:
            running.wait(0.1)
        except psutil.TimeoutExpired:
            continue
    assert running.returncode == 0, running.returncode
    return f"peak supervisor {supervisor >> 20:,} MiB, worker {worker >> 20:,} MiB"


def boxed_manifest(folder: Path, count: int, uri: str = "image.png") -> Path:
    """One small image under many ids, with a box."""
    Image.new("RGB", (32, 24), (90, 40, 20)).save(folder / "image.png")
    manifest = folder / f"{count}.jsonl"
    with manifest.open("w") as file:
        for i in range(count):
            line = {"uri": uri, "image_id": i + 1, "boxes_xyxy": [[2, 2, 20, 20]]}
            file.write(json.dumps(line) + "\n")
    return manifest


def plain_manifest(folder: Path, rows: int) -> Path:
    manifest = folder / f"plan-{rows}.jsonl"
    with manifest.open("w") as file:
        for i in range(rows):
            file.write(f'{{"uri": "photos/{i // 1000:05}/{i:09}.jpg"}}\n')
    return manifest


def coco_file(folder: Path, megabytes: int) -> Path:
    """Annotations first, in no order of images, then the images: ten regions for each."""
    manifest = folder / "instances.json"
    images = megabytes * 1_000_000 // 1800
    chance = random.Random(0)
    with manifest.open("w") as file:
        file.write('{"annotations": [')
        for i in range(images * 10):
            x = chance.randrange(100)
            entry = {
                "id": i, "image_id": chance.randrange(images), "bbox": [x, 3, 20, 20],
                "segmentation": [[x, 3, x + 20, 3, x + 20, 23, x, 23, x + 1, 4]], "area": 400,
                "category_id": 1, "iscrowd": 0, "caption": "a grey square",
            }  # fmt: skip
            file.write(("," if i else "") + json.dumps(entry))
        file.write('], "images": [')
        for i in range(images):
            entry = {"id": i, "file_name": f"{i:012}.jpg", "width": 200, "height": 100}
            file.write(("," if i else "") + json.dumps(entry))
        file.write("]}")
    print(f"{manifest.stat().st_size / 1e6:,.0f} MB, {images:,} images, {images * 10:,} regions")
    return manifest


if __name__ == "__main__":
    main()
