"""Checkpoints of a run: whole or not there, the last three and the best."""

from __future__ import annotations

import io
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TypedDict

import torch
from torch import Tensor

from sca_batch.errors import ScaError
from sca_batch.storage.atomic import writing
from sca_batch.train.sharding import OptimizerState
from sca_batch.train.tracking import Row

__all__ = ["Best", "Checkpoint", "Checkpoints"]

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
