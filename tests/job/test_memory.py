"""Memory does not grow with the number of rows; `benchmarks/memory.py` measures large ones."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

PLANNED = """
import resource, sys
from pathlib import Path
from sca_batch.plan.run_plan import run_plan_frames, write_run_plan
from sca_batch.plan.sources import plan_sources
plan = plan_sources([sys.argv[1]])
write_run_plan(run_plan_frames(plan, 64), Path(sys.argv[2]))
print(len(plan), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


def peak_mib(manifest, out, rows):
    command = [sys.executable, "-c", PLANNED, str(manifest), str(out)]
    said = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout.split()
    assert int(said[0]) == rows
    return int(said[1]) / 1024


def lines(path, rows):
    with path.open("w") as file:
        for i in range(rows):
            file.write(f'{{"uri": "{i:060}.jpg", "n": "{i:040}"}}\n')
    return path


def coco(path, images):
    """Annotations first, each image's scattered over all of them."""
    with path.open("w") as file:
        file.write('{"annotations": [')
        for i in range(images * 8):
            entry = {"id": i, "image_id": i * 7919 % images, "bbox": [1, 2, 3, 4], "k": "x" * 300}
            file.write(("," if i else "") + json.dumps(entry))
        file.write('], "images": [')
        for i in range(images):
            file.write(("," if i else "") + json.dumps({"id": i, "file_name": f"{i}.jpg"}))
        file.write("]}")
    return path


@pytest.mark.parametrize(
    ("write", "few", "many", "most_more"),
    [
        # Held whole, 150,000 more rows would take 60 MiB, and 16 MB of COCO 140.
        pytest.param(lines, 60_000, 210_000, 25, id="lines"),
        pytest.param(coco, 2_500, 7_500, 60, id="COCO"),
    ],
)
def test_a_plan_is_made_in_memory_that_does_not_grow(tmp_path, write, few, many, most_more):
    small = peak_mib(write(tmp_path / _name(write, "few"), few), tmp_path / "a", few)
    large = peak_mib(write(tmp_path / _name(write, "many"), many), tmp_path / "b", many)
    assert large - small < most_more


def _name(write, size):
    return f"{size}.jsonl" if write is lines else f"{size}.json"
