"""The task that the loop trains: the shape that every recipe's part of a run has."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, Protocol, Self

import torch
from PIL import Image
from torch import Tensor, nn

from sca_batch.train.optimization import ParameterGroup, cosine_with_warmup

if TYPE_CHECKING:
    from accelerate import Accelerator

__all__ = [
    "Batch", "BatchFailure", "LoopNumbers", "Losses", "Report", "RunSettings", "Task", "Validation",
    "recipe_fingerprint",
]  # fmt: skip

Report = Callable[[str], None]


class Losses(NamedTuple):
    """The scalar that is minimised, and its parts before they are weighted, to be logged."""

    total: Tensor
    parts: dict[str, Tensor]


class Validation(NamedTuple):
    """Scores over all held-out examples, the same on every process, and pictures to look at."""

    scores: dict[str, float]
    pictures: Sequence[Image.Image] = ()


class Batch(Protocol):
    """The examples that a device sees at a time.

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
    """The reason why a batch could not be made: an error of a worker process loses its type."""

    message: str


@dataclass(frozen=True, match_args=False)
class LoopNumbers(Protocol):
    """The numbers of the loop that every recipe has under the same names."""

    steps: int
    warmup_steps: int
    betas: tuple[float, float]
    weight_decay: float
    clip_norm: float
    precision: str  # no, bf16 or fp16
    seed: int
    validate_every: int
    checkpoint_every: int
    report_every: int
    workers: int


@dataclass(frozen=True, slots=True)
class RunSettings:
    """The numbers of a run that are the loop's own. Steps are counted from 0.

    "Images" are whatever a recipe counts its batches in. The rate is a cosine over the recipe's
    steps, whose peak is `lr`; the run ends at `last_step`, or at the end of it. `ranked_by` is the
    score by which the best checkpoint is told, larger being better.
    """

    recipe: LoopNumbers
    lr: float
    images_per_step: int  # over all devices
    images_per_device: int  # at a time; the rest is accumulated
    ranked_by: str
    last_step: int | None = None
    fused_optimizer: bool = False

    @property
    def steps(self) -> int:
        return self.recipe.steps if self.last_step is None else self.last_step

    def learning_rate(self, step: int) -> float:
        """The rate of a step, before a group's `lr_factor`."""
        recipe = self.recipe
        return cosine_with_warmup(
            step, lr=self.lr, steps=recipe.steps, warmup_steps=recipe.warmup_steps
        )


# Fields that a run which is resumed need not repeat: they change no weight.
_LOOP_FIELDS = frozenset(["validate_every", "checkpoint_every", "report_every", "workers"])


def recipe_fingerprint(recipe: LoopNumbers, free: Sequence[str] = ()) -> dict[str, object]:
    """The fields that a run which is resumed has to share; those in `free` it need not."""
    return {k: v for k, v in asdict(recipe).items() if k not in _LOOP_FIELDS and k not in free}


class Task(Protocol):
    """The model, the data, and how good the model is; `loop.run_task` does the rest.

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
    - `fingerprint` are JSON values that a run which is resumed has to share: its recipe and
      a digest of its data.
    - `state` is what the next step depends on beside the trained parameters and the optimizer:
      tensors, numbers, texts, and lists and dicts of these. Most tasks have none.
    - `validate` is called on every process with accelerate's accelerator; each may do its share
      and gather. It asks `should_stop` now and then, and gives None where any process was told
      to stop; it leaves torch's generators and the model's mode as it likes, and no gradients.
      A task without held-out data has `can_validate` False.
    - `export` writes the model of the present weights into a folder, in the published format, on
      the main process. It may change the model: it is the last thing that is asked of a task.
    """

    name: str
    module: nn.Module
    can_validate: bool

    def groups(self) -> Sequence[ParameterGroup]: ...

    def batches(self, numbers: range) -> Iterator[Batch | BatchFailure]: ...

    def fingerprint(self) -> Mapping[str, object]: ...

    def state(self) -> dict[str, object]:
        return {}

    def load_state(self, state: Mapping[str, object]) -> None:
        """Takes back what `state` gave."""
        assert not state, "a task with a state reads it"

    def validate(
        self, accelerator: Accelerator, should_stop: Callable[[], bool]
    ) -> Validation | None: ...

    def export(self, folder: Path) -> None: ...
