"""Where a run's numbers go: JSON lines always, TensorBoard and wandb where they are asked for."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from PIL import Image

from sca_batch.errors import MissingPackageError, ScaError
from sca_batch.train.logs import cut_log, write_row

__all__ = ["TRACKERS", "Tracking"]

TRACKERS = ("tensorboard", "wandb")


class Tracking:
    """`OUT/log.jsonl`, `OUT/tensorboard`, a run of wandb, and `OUT/pictures`; a context manager."""

    def __init__(
        self, out: Path, first_step: int, trackers: Sequence[str], config: dict[str, Any]
    ) -> None:
        self.out = out
        self._writer: Any = None
        self._wandb: Any = None
        if "tensorboard" in trackers:
            self._writer = _tensorboard(out / "tensorboard", first_step)
        if "wandb" in trackers:
            self._wandb = _wandb(out, config)
        cut_log(out / "log.jsonl", first_step)
        self._log = (out / "log.jsonl").open("a", encoding="utf-8")

    def row(self, row: dict[str, Any]) -> None:
        """A step's numbers; the validation of a step is a dict in its row."""
        write_row(self._log, row)
        step = int(row["step"])
        scalars: dict[str, float] = {}
        for name, value in row.items():
            nested = value if isinstance(value, dict) else {name: value}
            prefix = f"{name}/" if isinstance(value, dict) else "train/"
            scalars |= {f"{prefix}{n}": float(v) for n, v in nested.items() if n != "step"}
        if self._writer is not None:
            for name, number in scalars.items():
                self._writer.add_scalar(name, number, step)
        if self._wandb is not None:
            self._wandb.log(scalars, step=step)

    def picture(self, step: int, number: int, picture: Image.Image) -> None:
        """A sample after `step` steps; it comes before the row of the last of them."""
        path = self.out / "pictures" / f"step-{step:08d}-{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        picture.save(path)
        if self._writer is not None:
            self._writer.add_image(f"sample/{number}", np.asarray(picture), step, dataformats="HWC")
        if self._wandb is not None:
            import wandb

            # With the step of the row that follows: wandb drops what is of an earlier step.
            self._wandb.log({f"sample/{number}": wandb.Image(picture)}, step=step - 1)

    def __enter__(self) -> Tracking:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._log.close()
        if self._writer is not None:
            self._writer.close()
        if self._wandb is not None:
            self._wandb.finish(exit_code=0 if error is None else 1)


def _tensorboard(folder: Path, first_step: int) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise MissingPackageError("tensorboard", "--track tensorboard", "train") from None
    # Points at and after this step are of a run that was stopped, and are made again.
    return SummaryWriter(str(folder), purge_step=first_step)


def _wandb(out: Path, config: dict[str, Any]) -> Any:
    try:
        import wandb
    except ImportError:
        raise MissingPackageError("wandb", "--track wandb") from None
    folder = out.resolve()
    # The same for a run that is taken up again, and another one for a folder of the same name.
    digest = hashlib.sha256(str(folder).encode()).hexdigest()[:8]
    run = wandb.init(
        dir=str(out),
        project=os.environ.get("WANDB_PROJECT", "sca"),
        name=folder.name,
        id=f"{folder.name}-{digest}",
        config=config,
        resume="allow",
    )
    if run is None:
        raise ScaError("wandb gave no run; log in first: wandb login")
    return run
