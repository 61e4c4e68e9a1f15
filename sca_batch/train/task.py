"""What the loop trains: the shape that every recipe's part of a run has."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol, Self

import torch
from PIL import Image
from torch import Tensor, nn

from sca_batch.train.optimization import ParameterGroup, cosine_with_warmup

__all__ = [
    "BatchFailure",
    "LoopNumbers",
    "Losses",
    "Report",
    "RunSettings",
    "Task",
    "TrainingBatch",
    "Validation",
    "settings_of",
]

Report = Callable[[str], None]


class Losses(NamedTuple):
    """The scalar that is minimised, and its parts before they are weighted, to be logged."""

    total: Tensor
    parts: dict[str, Tensor]


class Validation(NamedTuple):
    """Scores over all held-out examples, the same on every process, and pictures to look at."""

    scores: dict[str, float]
    pictures: Sequence[Image.Image] = ()


class TrainingBatch(Protocol):
    """What a device sees at a time.

    `keys` name what is in it, for messages. `counts` are added up over a step's batches and
    logged; of "images" and "regions" the log also has the rate.
    """

    @property
    def keys(self) -> Sequence[str]: ...

    @property
    def counts(self) -> Mapping[str, int]: ...

    def to(self, device: torch.device) -> Self: ...


@dataclass(frozen=True, slots=True)
class BatchFailure:
    """Why a batch could not be made: an error in a worker process loses its type on the way."""

    message: str


@dataclass(frozen=True, slots=True)
class RunSettings:
    """The numbers of a run that are the loop's own. Steps are counted from 0.

    `learning_rate` is the rate of a step, before a group's `lr_factor`; `steps` is where the run
    ends. `ranked_by` is the score by which the best checkpoint is told, larger being better.
    """

    steps: int
    images_per_step: int  # over all devices
    images_per_device: int  # at a time; the rest is accumulated
    learning_rate: Callable[[int], float]
    betas: tuple[float, float]
    weight_decay: float
    clip_norm: float
    precision: str  # no, bf16 or fp16
    seed: int
    validate_every: int
    checkpoint_every: int
    report_every: int
    ranked_by: str
    fused_optimizer: bool = False


class LoopNumbers(Protocol):
    """What every recipe says of the loop under the same names."""

    @property
    def steps(self) -> int: ...

    @property
    def warmup_steps(self) -> int: ...

    @property
    def betas(self) -> tuple[float, float]: ...

    @property
    def weight_decay(self) -> float: ...

    @property
    def clip_norm(self) -> float: ...

    @property
    def precision(self) -> str: ...

    @property
    def seed(self) -> int: ...

    @property
    def validate_every(self) -> int: ...

    @property
    def checkpoint_every(self) -> int: ...

    @property
    def report_every(self) -> int: ...


def settings_of(
    recipe: LoopNumbers,
    *,
    lr: float,
    images_per_step: int,
    images_per_device: int,
    ranked_by: str,
    last_step: int | None = None,
    fused_optimizer: bool = False,
) -> RunSettings:
    """A recipe's settings: a cosine over its steps, ended at `last_step` or at the end of it.

    "Images" are whatever the recipe counts its batches in.
    """

    def learning_rate(step: int) -> float:
        return cosine_with_warmup(step, lr=lr, steps=recipe.steps, warmup_steps=recipe.warmup_steps)

    return RunSettings(
        steps=recipe.steps if last_step is None else last_step,
        images_per_step=images_per_step,
        images_per_device=images_per_device,
        learning_rate=learning_rate,
        betas=recipe.betas,
        weight_decay=recipe.weight_decay,
        clip_norm=recipe.clip_norm,
        precision=recipe.precision,
        seed=recipe.seed,
        validate_every=recipe.validate_every,
        checkpoint_every=recipe.checkpoint_every,
        report_every=recipe.report_every,
        ranked_by=ranked_by,
        fused_optimizer=fused_optimizer,
    )


class Task(Protocol):
    """What is trained, on what, and how good it is; `engine.run_task` does the rest.

    The loop owns devices, gradients, AdamW, the learning rate, the log, checkpoints, resuming,
    and how a run stops. A task owns the model and the data:

    - `module` is called with a batch and gives `Losses`; it holds every parameter of `groups`.
      It is what is wrapped for many devices, so a step's whole forward pass happens in it.
    - `groups` are the parameters that are trained, by name. Names are how they are found again in
      a checkpoint, so that two groups share none.
    - `batches` makes the batches of some numbers, in that order. Batch `m` holds images
      `m * images_per_device` onwards of the whole run, whatever the number of devices, and follows
      from its number and the seed alone: there is no position and no generator to save. Before
      every batch the loop seeds torch from the seed, the step and the batch's number, so that
      dropout and the like are repeated too. A batch that cannot be made is a `BatchFailure`.
    - `fingerprint` are JSON values that a run which is taken up again has to share: its recipe and
      a digest of its data.
    - `state` is what the next step depends on beside the trained parameters and the optimizer:
      tensors, numbers, texts, and lists and dicts of these. Most tasks have none: {}.
    - `validate` is called on every process with accelerate's accelerator; each may do its share
      and gather. It asks `should_stop` now and then, and gives None where any process was told
      to stop; it leaves torch's generators and the model's mode as it likes, and no gradients.
      A task without held-out data has `can_validate` False.
    - `export` writes the model of the present weights into a folder, in the published format, on
      the main process. It may change the model: it is the last thing that is asked of a task.
    """

    @property
    def name(self) -> str: ...

    @property
    def module(self) -> nn.Module: ...

    @property
    def can_validate(self) -> bool: ...

    def groups(self) -> Sequence[ParameterGroup]: ...

    def batches(self, numbers: range) -> Iterator[Any]: ...

    def fingerprint(self) -> Mapping[str, Any]: ...

    def state(self) -> dict[str, Any]: ...

    def load_state(self, state: Mapping[str, Any]) -> None: ...

    def validate(self, accelerator: Any, should_stop: Callable[[], bool]) -> Validation | None: ...

    def export(self, folder: Path) -> None: ...
