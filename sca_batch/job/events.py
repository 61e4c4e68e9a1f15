"""Events of a run, in the order in which a listener may hear of them. No model is loaded."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from sca_batch.records import Status

__all__ = [
    "EngineChosen", "Event", "Exporting", "Finished", "ImageDone", "Listener", "OutsideDomain",
    "Planned", "Resumed", "RetryingFailed", "ShardLost", "SourcesChanged", "SourcesUnlisted",
    "StageSeconds", "StoppingSoon", "ignore",
]  # fmt: skip


@dataclass(frozen=True, slots=True)
class SourcesUnlisted:
    """The sources of a run that is resumed cannot be listed again; it goes on with its plan."""

    error: str


@dataclass(frozen=True, slots=True)
class EngineChosen:
    """The first worker is ready: what runs SAM and the mixer, and why."""

    engine: str
    why: str


@dataclass(frozen=True, slots=True)
class SourcesChanged:
    """The sources as they are now, in rows of the plan. `followed` says that it was an update.

    Without an update the run goes on with its plan, and this is what an update would find.
    `unreadable` could not be compared now: they count as unchanged, until they can.
    """

    new: int
    changed: int
    gone: int
    back: int
    unchanged: int
    followed: bool
    unreadable: int = 0


@dataclass(frozen=True, slots=True)
class RetryingFailed:
    """So many failed images are captioned again."""

    images: int


@dataclass(frozen=True, slots=True)
class Planned:
    """The run is planned and its folder held: so many images in all."""

    images: int


@dataclass(frozen=True, slots=True)
class Resumed:
    """So many images had a record before; told once or more often."""

    images: int


@dataclass(frozen=True, slots=True)
class ImageDone:
    """An image has its record, which stays with the worker."""

    shard: str
    key: str
    status: Status
    regions: int
    error_code: str | None = None
    error: str | None = None
    logprob: float | None = None  # the mean of its captions', in nats per token


@dataclass(frozen=True, slots=True)
class OutsideDomain:
    """The first image that lies outside of what a narrow model knows.

    `logprob` is the mean of its captions' log-probabilities; `share_above` of the images that the
    model was made for lie above `least_logprob`. `elsewhere` names a model for others.
    """

    key: str
    model: str
    domain: str
    logprob: float
    least_logprob: float
    share_above: float
    elsewhere: str


@dataclass(frozen=True, slots=True)
class StoppingSoon:
    """The time limit is near: the run stops after this batch."""


@dataclass(frozen=True, slots=True)
class ShardLost:
    """A shard that no worker could finish, and why; the others go on."""

    shard: str
    error: str
    is_bug: bool


@dataclass(frozen=True, slots=True)
class Exporting:
    """No more images are captioned in this session; the summary and the exports are written."""


@dataclass(frozen=True, slots=True)
class Finished:
    """The run has ended; `complete` says that every image has a record."""

    complete: bool


Event = (
    SourcesUnlisted | EngineChosen | SourcesChanged | RetryingFailed | Planned | Resumed | ImageDone
    | OutsideDomain | StoppingSoon | ShardLost | Exporting | Finished
)  # fmt: skip
Listener = Callable[[Event], None]
# How long each stage took, in seconds, one entry per image or batch.
StageSeconds = dict[str, list[float]]


def ignore(event: Event) -> None:
    """The listener of those who do not want to know."""
