"""The state of a run: begun, saved in checkpoints that are whole or not there, and resumed."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypedDict

import torch
from torch import Tensor, nn

from sca_batch.errors import ScaError
from sca_batch.storage.atomic import writing
from sca_batch.train.optimization import build_optimizer
from sca_batch.train.sharding import (
    OptimizerState,
    is_sharded,
    sharded_like,
    sharded_optimizer_state,
    whole,
    whole_optimizer_state,
)
from sca_batch.train.task import Report, RunSettings, Task
from sca_batch.train.tracking import Row

if TYPE_CHECKING:
    from accelerate import Accelerator
    from accelerate.optimizer import AcceleratedOptimizer

__all__ = [
    "Best", "Checkpoint", "Checkpoints", "RunState", "save_state", "start_state", "weights_of_step",
]  # fmt: skip

KEPT = 3
_NAME = re.compile(r"step-(\d{8})\.pt")


class Checkpoint(TypedDict):
    """Everything that the next step depends on. Tensors are whole and on the CPU.

    `fingerprint` is a JSON object; `images` is the position in the data.
    """

    fingerprint: str
    step: int
    images: int
    unvalidated: Row | None
    trained: dict[str, Tensor]
    optimizer: OptimizerState
    scaler: dict[str, object] | None
    task: dict[str, object]


@dataclass(frozen=True, slots=True)
class Best:
    """The best validation so far. Larger is better."""

    step: int
    score: float


class Checkpoints:
    """The folder `OUT/checkpoints`: `step-00001000.pt`, ..., and `best.json`."""

    def __init__(self, out: Path) -> None:
        self.folder = out / "checkpoints"

    def steps(self) -> list[int]:
        """Steps that there is a checkpoint of, ascending."""
        if not self.folder.is_dir():
            return []
        names = (_NAME.fullmatch(path.name) for path in self.folder.iterdir())
        return sorted(int(match[1]) for match in names if match)

    def refuse_any(self) -> None:
        """Raises a ScaError where there is a run already that one did not ask to go on with."""
        if self.steps():
            raise ScaError(
                f"{self.folder.parent} holds a training run: go on with --resume, or choose "
                "another folder"
            )

    def best(self) -> Best | None:
        path = self.folder / "best.json"
        if not path.exists():
            return None
        raw = json.loads(path.read_text(encoding="utf-8"))
        return Best(int(raw["step"]), float(raw["score"]))

    def save(self, step: int, state: Checkpoint, *, score: float | None = None) -> None:
        """Writes the checkpoint of `step`, then removes what is neither recent nor the best.

        `score` is that of a validation at this very step.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        # Into memory first: on a full disk, torch's own writer hides which error it was.
        buffer = io.BytesIO()
        torch.save(state, buffer)
        with writing(self.path(step)) as file:
            file.write(buffer.getbuffer())
        best = self.best()
        if score is not None and (best is None or score > best.score):
            best = Best(step, score)
            with writing(self.folder / "best.json") as file:
                file.write(json.dumps({"step": step, "score": score}).encode())
        for old in self.steps()[:-KEPT]:
            if best is None or old != best.step:
                self.path(old).unlink()

    def load(self, step: int) -> Checkpoint:
        """Reads a checkpoint; nothing in it is run."""
        try:
            state: Checkpoint = torch.load(self.path(step), map_location="cpu", weights_only=True)
        except (OSError, RuntimeError, ValueError, EOFError) as error:
            raise ScaError(
                f"{self.path(step)}: cannot be read ({' '.join(str(error).split())}); remove it to "
                "go on from the one before"
            ) from None
        return state

    def path(self, step: int) -> Path:
        return self.folder / f"step-{step:08d}.pt"


@dataclass(slots=True)
class RunState:
    """The parts of a run that one process holds.

    `module` and `optimizer` are as accelerate wrapped them.
    `unvalidated` is the log's row of the last step while its scores are due: a run that is stopped
    during a validation makes it up when it is resumed.
    """

    settings: RunSettings
    accelerator: Accelerator
    module: nn.Module
    optimizer: AcceleratedOptimizer
    trainable: dict[str, nn.Parameter]
    checkpoints: Checkpoints
    fingerprint: str
    step: int = 0  # the next one
    saved_step: int = 0
    unvalidated: Row | None = None


def start_state(
    task: Task,
    settings: RunSettings,
    out: Path,
    accelerator: Accelerator,
    *,
    resume: bool,
    report: Report,
) -> RunState:
    """The state before the first step, or that of the last checkpoint.

    Raises:
        ScaError: there is a run in `out` and `resume` is False, or it is another one.
    """
    checkpoints = Checkpoints(out)
    steps = checkpoints.steps()
    if not resume:
        checkpoints.refuse_any()
    out.mkdir(parents=True, exist_ok=True)
    groups = task.groups()
    trainable = {name: p for group in groups for name, p in group.parameters.items()}
    if len(trainable) != sum(len(group.parameters) for group in groups):
        raise AssertionError("two parameter groups share a name")
    fingerprint = json.dumps(dict(task.fingerprint()), sort_keys=True)
    saved = checkpoints.load(steps[-1]) if steps else None
    if saved is not None:
        _refuse_another_run(saved, fingerprint, out)
        _copy_weights(trainable, saved["trained"])
        task.load_state(saved["task"])
    optimizer = build_optimizer(
        groups,
        lr=1.0,  # set anew before every step
        betas=settings.recipe.betas,
        weight_decay=settings.recipe.weight_decay,
        fused=settings.fused_optimizer,
    )
    in_module = {id(parameter): name for name, parameter in task.module.named_parameters()}
    names = {name: in_module[id(parameter)] for name, parameter in trainable.items()}
    module, optimizer = accelerator.prepare(task.module, optimizer)
    if is_sharded(module):  # then these are other parameters than before
        wrapped = dict(module.named_parameters())
        trainable = {name: wrapped[own] for name, own in names.items()}
    state = RunState(
        settings=settings,
        accelerator=accelerator,
        module=module,
        optimizer=optimizer,
        trainable=trainable,
        checkpoints=checkpoints,
        fingerprint=fingerprint,
    )
    if saved is None:
        count = sum(parameter.numel() for parameter in trainable.values())
        report(
            f"Training {count:,} parameters for {settings.steps:,} steps on "
            f"{accelerator.num_processes} x {accelerator.device.type}"
        )
        return state
    ordered = [p for group in optimizer.param_groups for p in group["params"]]
    optimizer.load_state_dict(sharded_optimizer_state(saved["optimizer"], ordered))
    if accelerator.scaler is not None and saved["scaler"] is not None:
        accelerator.scaler.load_state_dict(saved["scaler"])
    state.step = state.saved_step = int(saved["step"])
    state.unvalidated = saved["unvalidated"]
    report(f"Going on from step {state.step:,} of {settings.steps:,}")
    return state


def save_state(task: Task, state: RunState, score: float | None) -> None:
    """A checkpoint of everything that the next step depends on; frozen weights are elsewhere."""
    state.saved_step = state.step
    is_main = state.accelerator.is_main_process
    if not is_main and not is_sharded(state.module):
        return
    trained = {name: whole(p.detach()).cpu() for name, p in state.trainable.items()}
    optimizer = whole_optimizer_state(state.optimizer.state_dict())
    if not is_main:
        return
    scaler = state.accelerator.scaler
    content: Checkpoint = {
        "fingerprint": state.fingerprint,
        "step": state.step,
        "images": state.step * state.settings.images_per_step,  # the data's position
        "unvalidated": state.unvalidated,
        "trained": trained,
        "optimizer": optimizer,
        "scaler": None if scaler is None else scaler.state_dict(),
        "task": task.state(),
    }
    state.checkpoints.save(state.step, content, score=score)


def weights_of_step(state: RunState, step: int) -> None:
    """Puts the trained weights of a checkpoint into the model; the optimizer is left alone."""
    if step != state.step:
        _copy_weights(state.trainable, state.checkpoints.load(step)["trained"])


@torch.no_grad()
def _copy_weights(trainable: Mapping[str, nn.Parameter], saved: Mapping[str, Tensor]) -> None:
    for name, parameter in trainable.items():
        parameter.copy_(sharded_like(saved[name], parameter))


def _refuse_another_run(saved: Checkpoint, fingerprint: str, out: Path) -> None:
    if "fingerprint" not in saved:
        raise ScaError(f"{out} is a run of an earlier version of sca; choose another folder")
    theirs, ours = json.loads(saved["fingerprint"]), json.loads(fingerprint)
    differing = sorted(key for key in {*ours, *theirs} if ours.get(key) != theirs.get(key))
    if differing:
        changes = ", ".join(f"{k} was {theirs.get(k)}, is {ours.get(k)}" for k in differing)
        raise ScaError(f"{out} is another run: {changes}. Choose another folder")
