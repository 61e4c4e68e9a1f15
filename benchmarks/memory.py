"""Whether memory grows with the corpus.

    python benchmarks/memory.py job --images 1000 10000     captioning, one given box per image
    python benchmarks/memory.py plan --rows 100000 400000   listing and planning a manifest

Each size runs in processes of its own; the peak is that of the largest one, in MiB.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import psutil
from PIL import Image

ROOT = Path(__file__).parents[1]

PLAN = """
import resource, sys
sys.path.insert(0, sys.argv[2])
from pathlib import Path
from sca_batch.data.sources import plan_sources
from sca_batch.data.cut import cut_frame, write_cut_plan
plan = plan_sources([sys.argv[1]], is_image=lambda path: True)
write_cut_plan(cut_frame(plan, 64), Path(sys.argv[1] + "-out"), plan.digest)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)
"""


def main() -> None:
    parser = argparse.ArgumentParser()
    commands = parser.add_subparsers(dest="what", required=True)
    jobs = commands.add_parser("job")
    jobs.add_argument("--images", type=int, nargs="+", default=[1000, 10_000])
    jobs.add_argument("--model", default=str(ROOT / "tests/golden/anything"))
    plans = commands.add_parser("plan")
    plans.add_argument("--rows", type=int, nargs="+", default=[100_000, 400_000])
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        if arguments.what == "job":
            for count in arguments.images:
                print(f"{count:,} images: {job(Path(folder), count, arguments.model)}", flush=True)
        else:
            for count in arguments.rows:
                print(f"{count:,} rows: peak {plan(Path(folder), count):,} MiB", flush=True)


def job(folder: Path, count: int, model: str) -> str:
    image = folder / "image.png"
    Image.new("RGB", (32, 24), (90, 40, 20)).save(image)
    manifest = folder / f"{count}.jsonl"
    with manifest.open("w") as file:
        for i in range(count):
            line = {"uri": "image.png", "image_id": i + 1, "boxes_xyxy": [[2, 2, 20, 20]]}
            file.write(json.dumps(line) + "\n")
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


def plan(folder: Path, rows: int) -> int:
    manifest = folder / f"plan-{rows}.jsonl"
    with manifest.open("w") as file:
        for i in range(rows):
            file.write(f'{{"uri": "photos/{i // 1000:05}/{i:09}.jpg"}}\n')
    command = [sys.executable, "-c", PLAN, str(manifest), str(ROOT)]
    return int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


if __name__ == "__main__":
    main()
