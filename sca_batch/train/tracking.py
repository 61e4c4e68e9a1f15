"""A run's numbers: JSON lines and their curves, TensorBoard and wandb where asked for."""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Protocol

import numpy as np
from PIL import Image

from sca_batch.errors import MissingPackageError, ScaError
from sca_batch.storage.atomic import writing

if TYPE_CHECKING:
    from sca_batch.train.task import LoopNumbers

__all__ = ["Curves", "Row", "Tracking", "draw_curves", "listed", "read_curves", "row_line"]

Row = dict[str, float]  # a step's numbers; the step itself is one of them


class _Tracker(Protocol):
    def scalars(self, step: int, values: Mapping[str, float]) -> None: ...

    def picture(self, step: int, number: int, picture: Image.Image) -> None: ...

    def close(self, *, failed: bool) -> None: ...


class Tracking:
    """`OUT/log.jsonl`, `OUT/tensorboard`, a run of wandb, and `OUT/pictures`; a context manager.

    The log is the same for a run that was stopped and went on.
    """

    def __init__(
        self, out: Path, first_step: int, trackers: Sequence[str], recipe: LoopNumbers
    ) -> None:
        self.out = out
        self._trackers: list[_Tracker] = []
        if "tensorboard" in trackers:
            self._trackers.append(_TensorBoard(out / "tensorboard", first_step))
        if "wandb" in trackers:
            self._trackers.append(_Wandb(out, recipe))
        _cut_log(out / "log.jsonl", first_step)
        self._log = (out / "log.jsonl").open("a", encoding="utf-8")

    def row(self, row: Row, scores: Row | None = None) -> None:
        """A step's numbers, and the scores of a validation after it."""
        known = {name: _finite(value) for name, value in row.items()}
        nested = {"validation": {k: _finite(v) for k, v in scores.items()}} if scores else {}
        self._log.write(json.dumps(known | nested) + "\n")
        self._log.flush()
        values = {f"train/{name}": float(v) for name, v in row.items() if name != "step"}
        values |= {f"validation/{name}": float(value) for name, value in (scores or {}).items()}
        for tracker in self._trackers:
            tracker.scalars(int(row["step"]), values)

    def picture(self, step: int, number: int, picture: Image.Image) -> None:
        """A sample after `step` steps; it comes before the row of the last of them."""
        path = self.out / "pictures" / f"step-{step:08d}-{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        picture.save(path)
        for tracker in self._trackers:
            tracker.picture(step, number, picture)

    def __enter__(self) -> Tracking:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._log.close()
        for tracker in self._trackers:
            tracker.close(failed=error is not None)


class _TensorBoard:
    def __init__(self, folder: Path, first_step: int) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            raise MissingPackageError("tensorboard", "--track tensorboard", "train") from None
        # Points at and after this step are of a run that was stopped, and are made again.
        self._writer = SummaryWriter(str(folder), purge_step=first_step)

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def picture(self, step: int, number: int, picture: Image.Image) -> None:
        self._writer.add_image(f"sample/{number}", np.asarray(picture), step, dataformats="HWC")

    def close(self, *, failed: bool) -> None:
        self._writer.close()


class _Wandb:
    def __init__(self, out: Path, recipe: LoopNumbers) -> None:
        try:
            import wandb
        except ImportError:
            raise MissingPackageError("wandb", "--track wandb") from None
        folder = out.resolve()
        # The same for a run that is resumed, and another one for a folder of the same name.
        digest = hashlib.sha256(str(folder).encode()).hexdigest()[:8]
        self._run = wandb.init(
            dir=str(out),
            project=os.environ.get("WANDB_PROJECT", "sca"),
            name=folder.name,
            id=f"{folder.name}-{digest}",
            config=asdict(recipe),
            resume="allow",
        )
        if self._run is None:
            raise ScaError("wandb gave no run; log in first: wandb login")

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        self._run.log(dict(values), step=step)

    def picture(self, step: int, number: int, picture: Image.Image) -> None:
        import wandb

        # With the step of the row that follows: wandb drops what is of an earlier step.
        self._run.log({f"sample/{number}": wandb.Image(picture)}, step=step - 1)

    def close(self, *, failed: bool) -> None:
        self._run.finish(exit_code=1 if failed else 0)


def row_line(row: Row) -> str:
    """A row as people read it."""
    return f"step {row['step']}: " + listed({k: v for k, v in row.items() if k != "step"})


def listed(values: Row) -> str:
    return ", ".join(f"{name} {value:.4g}" for name, value in values.items())


def _finite(value: float) -> float | None:
    """The value as JSON has it, which has no number for what is not finite."""
    return value if math.isfinite(value) else None


def _cut_log(path: Path, step: int) -> None:
    """Drops the rows of steps that were done after the checkpoint and will be done again."""
    if not path.exists():
        return
    kept = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            if json.loads(line)["step"] < step:
                kept.append(line + "\n")
        except ValueError:
            break  # the line that a kill cut short is the last
    with writing(path) as file:
        file.write("".join(kept).encode())


Series = list[tuple[int, float]]

# What is neither a loss nor a score.
_PACE = ("lr", "grad_norm")
_SMOOTHED = 200  # points that a noisy curve is averaged to


@dataclass(slots=True)
class Curves:
    """Numbers against steps, each as (step, value): of training, and of validations."""

    training: dict[str, Series] = field(default_factory=dict)
    validation: dict[str, Series] = field(default_factory=dict)


def read_curves(log: Path) -> Curves:
    """Reads every number in the rows of a `log.jsonl`, whatever recipe wrote it.

    A row has a `step`, numbers, and where something was validated a dict `validation` of numbers.

    Raises:
        ScaError: no such file, or no row in it.
    """
    curves = Curves()
    try:
        lines = log.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise ScaError(f"{log}: {error.strerror or error}; expected the log of a run") from None
    for number, line in enumerate(lines, start=1):
        try:
            row = json.loads(line)
            step = int(row["step"])
        except (ValueError, KeyError, TypeError):
            if number == len(lines):
                break  # cut short by a kill
            raise ScaError(f"{log}, line {number:,}: not a row of a training log") from None
        _add(curves.training, step, row)
        scores = row.get("validation")
        if isinstance(scores, dict):
            _add(curves.validation, step, scores)
    if not curves.training and not curves.validation:
        raise ScaError(f"{log}: no rows yet")
    return curves


def draw_curves(log: Path, picture: Path) -> None:
    """Paints the curves of a log as a PNG: losses, parts of the loss, scores, rate and gradient.

    Raises:
        ScaError: see `read_curves`.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    curves = read_curves(log)
    panels = [(title, lines) for title, lines in _panels(curves) if lines]
    figure = Figure(figsize=(8, 3 * len(panels)), layout="constrained")
    for axes, (title, lines) in zip(
        figure.subplots(len(panels), 1, squeeze=False)[:, 0], panels, strict=True
    ):
        for name, (points, style) in lines.items():
            steps, values = np.array(points).T
            axes.plot(steps, values, style, label=name, markersize=4)
        axes.set_title(title, loc="left")
        axes.set_xlabel("step")
        axes.grid(alpha=0.3)
        axes.legend(loc="best", fontsize="small")
    FigureCanvasAgg(figure)
    with writing(picture) as file:
        figure.savefig(file, format="png", dpi=110)


def _panels(curves: Curves) -> Sequence[tuple[str, dict[str, tuple[Series, str]]]]:
    """Titles, and lines by name with matplotlib's style."""
    training = {name: (_smoothed(points), "-") for name, points in curves.training.items()}
    validation = {name: (points, "o-") for name, points in curves.validation.items()}
    losses = {"training": training.pop("loss", None), "validation": validation.pop("loss", None)}
    pace = [(name, {name: training.pop(name)} if name in training else {}) for name in _PACE]
    parts, scores = (
        {name: line for name, line in lines.items() if not _is_count(name)}
        for lines in (training, validation)
    )
    loss = {name: line for name, line in losses.items() if line is not None}
    return [("loss", loss), ("parts of the loss", parts), ("validation", scores), *pace]


def _is_count(name: str) -> bool:
    return name.startswith(("images", "regions")) or name.endswith("_per_s")


def _add(found: dict[str, Series], step: int, values: Mapping[str, object]) -> None:
    for name, value in values.items():
        if name != "step" and isinstance(value, int | float) and not isinstance(value, bool):
            found.setdefault(name, []).append((step, float(value)))


def _smoothed(points: Series) -> Series:
    """Means of neighbours, so that a curve of 200,000 steps is a line and not a band."""
    if len(points) <= _SMOOTHED:
        return points
    chunks = np.array_split(np.array(points), _SMOOTHED)
    return [(int(chunk[-1, 0]), float(chunk[:, 1].mean())) for chunk in chunks]
