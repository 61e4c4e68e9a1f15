"""Kills a job again and again at random moments, and compares what it ends with.

    python benchmarks/random_kill.py --kills 50 --images 500 --workers 2

The captioner is the bundled test checkpoint with a small grid. Half of the kills hit the whole
process group, the others one worker. The table must equal that of a run that nobody disturbed.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import psutil
from PIL import Image

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--images", type=int, default=500)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--pause", type=float, default=2.0, help="longest wait before a kill, s")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--model", default=str(ROOT / "tests/golden/anything"))
    arguments = parser.parse_args()
    chance = random.Random(arguments.seed)
    with tempfile.TemporaryDirectory() as folder:
        images = Path(folder, "images")
        images.mkdir()
        pixels = np.random.default_rng(arguments.seed)
        for i in range(arguments.images):
            square = np.full((32, 40, 3), pixels.integers(0, 256, 3), dtype=np.uint8)
            square[8:24, 10:30] = pixels.integers(0, 256, 3)
            Image.fromarray(square).save(images / f"{i:05}.png")
        whole, broken = Path(folder, "whole"), Path(folder, "broken")
        began = time.monotonic()
        assert job(images, whole, arguments).wait() == 0
        print(f"unbroken: {time.monotonic() - began:.1f} s for {arguments.images} images")
        kills = {"group": 0, "worker": 0}
        finished_early = 0
        while sum(kills.values()) < arguments.kills:
            running = job(images, broken, arguments)
            while running.poll() is None and sum(kills.values()) < arguments.kills:
                # One in five hits a job that may not have begun; the others one that has committed
                # something since the last: else a slow machine would kill nothing but starts.
                if chance.random() > 0.2:
                    await_commit(running, broken)
                time.sleep(chance.uniform(0.0, arguments.pause))
                if running.poll() is None:
                    kills[kill(running.pid, chance)] += 1
                    print(f"{sum(kills.values())} kills after {time.monotonic() - began:.0f} s")
            if running.poll() is None:
                break
            finished_early += running.returncode == 0
            if running.returncode == 0 and sum(kills.values()) < arguments.kills:
                same(whole, broken)
                remove(broken)
        if running.poll() is None:
            running.wait()
        assert job(images, broken, arguments).wait() == 0
        rows = same(whole, broken)
        print(
            f"{kills['group']} kills of the group, {kills['worker']} of a worker, "
            f"{finished_early} datasets finished meanwhile: {rows} rows equal, none twice, "
            "none missing"
        )


def job(images: Path, out: Path, arguments: argparse.Namespace) -> subprocess.Popen[bytes]:
    command = [
        sys.executable, str(ROOT / "sca.py"), "-q", "caption", str(images), "-o", str(out),
        "--model", arguments.model, "--points-per-side", "2", "--pred-iou-thresh", "0",
        "--stability-score-thresh", "0", "--num-beams", "1", "--max-new-tokens", "3",
        "--workers", str(arguments.workers), "--shard-size", "16", "--commit-every", "1",
    ]  # fmt: skip
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    return subprocess.Popen(
        command, start_new_session=True, stderr=subprocess.DEVNULL, env=environment
    )


def await_commit(running: subprocess.Popen[bytes], out: Path) -> None:
    """Returns when a shard or the beginning of one is written, or the job has ended."""
    began = time.time()
    while running.poll() is None:
        if any(modified(path) > began for path in out.glob("*shard-*.parquet")):
            return
        time.sleep(0.05)


def modified(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except FileNotFoundError:  # replaced meanwhile
        return 0.0


def kill(pid: int, chance: random.Random) -> str:
    """Ends the whole job or one worker; says which."""
    workers = [p for p in psutil.Process(pid).children(recursive=True) if p.ppid() != pid]
    if workers and chance.random() < 0.5:
        try:
            chance.choice(workers).kill()
        except psutil.NoSuchProcess:
            return "worker"
        return "worker"
    os.killpg(pid, signal.SIGKILL)
    return "group"


def same(whole: Path, broken: Path) -> int:
    """Compares the tables; floats within 1e-4, since batches differ after a kill."""
    from sca_batch.dataset.shards import iter_rows

    count = 0
    for first, second in zip(iter_rows(whole), iter_rows(broken), strict=True):
        compare(first, second, first["key"])
        count += 1
    return count


def compare(first: object, second: object, where: str) -> None:
    if isinstance(first, float) and isinstance(second, float):
        assert abs(first - second) < 1e-4, (where, first, second)
    elif isinstance(first, dict) and isinstance(second, dict):
        assert first.keys() == second.keys(), where
        for name in first:
            compare(first[name], second[name], f"{where}.{name}")
    elif isinstance(first, list) and isinstance(second, list):
        assert len(first) == len(second), where
        for i, (one, other) in enumerate(zip(first, second, strict=True)):
            compare(one, other, f"{where}[{i}]")
    else:
        assert first == second, (where, first, second)


def remove(out: Path) -> None:
    from sca_batch.job.run import remove_run

    remove_run(out)


if __name__ == "__main__":
    main()
