"""Small runs of the paper's training on painted pictures, for tests and their processes."""

from __future__ import annotations

import dataclasses
import json
import multiprocessing
import os
import signal
import socket
import time
from pathlib import Path

import torch
from PIL import Image, ImageDraw

from sca_batch.train.caption_task import train_captioner
from sca_batch.train.loop import RunOptions
from sca_batch.train.recipes import CAPTION_RECIPES
from sca_batch.train.request import RunRequest

torch.set_num_threads(1)

REPOSITORY = Path(__file__).parents[2]
GOLDEN = REPOSITORY / "tests/golden"
COLOURS = {"a red bus": "#ff0000", "blue sky": "#0000ff", "green grass": "#00ff00"}

QUICK = dataclasses.replace(
    CAPTION_RECIPES["vg"],
    start=str(GOLDEN / "anything"),
    steps=8,
    images_per_step=2,
    lr=2e-4,
    lr_images=2,
    warmup_steps=2,
    precision="no",
    validate_every=4,
    validation_images=2,
    validation_beams=1,
    sample_pictures=1,
    checkpoint_every=2,
    workers=0,
)
STILL = dataclasses.replace(QUICK, jitter_scales=None, flip_chance=0.0)


def write_data(folder: Path, images: int = 5) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    rows = []
    for i in range(images):
        picture = Image.new("RGB", (100 + i, 80), "#808080")
        draw = ImageDraw.Draw(picture)
        boxes = []
        for k, colour in enumerate(COLOURS.values()):
            box = [5 + 31 * k, 10 + 4 * i, 30 + 31 * k, 40 + 4 * i]
            draw.rectangle(box, fill=colour)
            boxes.append(box)
        picture.save(folder / f"{i}.png")
        references = [[text, text.split()[-1]] for text in COLOURS]
        rows.append({"uri": f"{i}.png", "boxes_xyxy": boxes, "references": references})
    path = folder / "manifest.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def run(recipe, out, data, *, said=None, validation=None, cache=None, **options):
    manifests = {part.name: data for part in recipe.data}
    asked = {name: options.pop(name) for name in ("resume", "trackers") if name in options}
    report = (said if said is not None else []).append
    told = RunOptions(report, RunRequest(cpu=True, **asked), **options)
    return train_captioner(recipe, manifests, out, told, validation=validation, cache=cache)


def rows_of(out):
    rows = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == list(range(len(rows))), "a step is logged once"
    return rows


def losses(out):
    return [row["loss"] for row in rows_of(out)]


def command_of(recipe, out, data, *, base="vg"):
    """Arguments of `sca` that train such a recipe, on a CPU."""
    command = ["train", base, "--data", str(data), "--cpu", "-o", str(out)]
    for field in dataclasses.fields(recipe):
        value = getattr(recipe, field.name)
        if value != getattr(CAPTION_RECIPES[base], field.name) and field.name != "name":
            command += ["--set", f"{field.name}={json.dumps(value)}"]
    return command


class Started:
    """`sca` in a process of its own, from a server that has loaded torch already."""

    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(
        ["accelerate", "sca_batch.cli.train", "sca_batch.job", "sca_batch.train.caption_task"]
    )

    def __init__(self, command, said, *, group=False, environment=None):
        self.said = said
        arguments = (command, said, group, environment or {})
        self.process = self.context.Process(target=_main, args=arguments)
        self.process.start()

    def wait_for(self, condition, seconds=120):
        deadline = time.monotonic() + seconds
        while not condition():
            assert self.process.is_alive(), self.said.read_text()
            assert time.monotonic() < deadline
            time.sleep(0.01)

    def wait_for_rows(self, out, count):
        log = out / "log.jsonl"
        self.wait_for(lambda: log.exists() and log.read_text().count("\n") >= count)

    def wait_for_words(self, words):
        self.wait_for(lambda: self.said.exists() and words in self.said.read_text())

    def send(self, number):
        os.kill(self.process.pid, number)

    def ended(self, seconds=60):
        """The exit code."""
        self.process.join(seconds)
        assert self.process.exitcode is not None, "it did not end"
        return self.process.exitcode


def start_two(command, said, **environment):
    """The same command in two processes that work together, as accelerate launches them."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    shared = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1",
              "MASTER_PORT": str(port), "ACCELERATE_USE_CPU": "true",
              "OMP_NUM_THREADS": "1", **environment}  # fmt: skip
    return [
        Started(
            command,
            said.with_name(f"{said.name}-{rank}.said"),
            environment=shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
        )
        for rank in (0, 1)
    ]


def _main(command, said, group, environment):
    import sys

    from sca_batch.cli import main
    from sca_batch.cli.stopping import SIGNALS

    os.environ.update(environment)
    # A fork server that a captioning run began is deaf to signals, and so would its children be.
    signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
    if "PRETEND_GPUS" in environment:
        # Accelerate takes FSDP for GPUs only. It works on CPUs, where its state says otherwise.
        from accelerate import PartialState
        from accelerate.utils import DistributedType

        PartialState(cpu=True)._shared_state["distributed_type"] = DistributedType.MULTI_GPU
    if group:
        os.setsid()
    with said.open("w") as file:
        os.dup2(file.fileno(), 2)
        # Buffered lines would be lost where the process ends by a signal.
        sys.stderr.reconfigure(line_buffering=True)
        main(command)
