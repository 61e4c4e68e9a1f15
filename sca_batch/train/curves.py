"""A run's learning curves as one picture, from its log alone."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from sca_batch.errors import ScaError
from sca_batch.storage.atomic import writing

__all__ = ["Curves", "draw_curves", "read_curves"]

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
    training, validation = curves.training, curves.validation
    losses = {}
    if "loss" in training:
        losses["training"] = (_smoothed(training["loss"]), "-")
    if "loss" in validation:
        losses["validation"] = (validation["loss"], "o-")
    parts = {
        name: (_smoothed(points), "-")
        for name, points in training.items()
        if name not in ("loss", *_PACE) and not _is_count(name)
    }
    scores = {
        name: (points, "o-")
        for name, points in validation.items()
        if name != "loss" and not _is_count(name)
    }
    pace = [
        (name, {name: (_smoothed(training[name]), "-")} if name in training else {})
        for name in _PACE
    ]
    return [("loss", losses), ("parts of the loss", parts), ("validation", scores), *pace]


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
