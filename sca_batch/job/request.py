"""A captioning run as it is asked for: every option with its default, and what records depend on.

The command line's options are made from these fields, and a run's fingerprint is made from those
that are marked as `content`. No model is loaded.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from sca_batch.captioners.settings import CaptionSettings
from sca_batch.errors import ERROR_CODES, ScaError
from sca_batch.images.policy import ReadPolicy
from sca_batch.options import (
    check_options,
    option,
    option_fields,
    option_values,
    with_options,
)
from sca_batch.pipeline.settings import BatchSettings
from sca_batch.records import Json, JsonObject
from sca_batch.regions.settings import RegionSettings

if TYPE_CHECKING:
    from sca_batch.model.config import Domain

__all__ = [
    "ALL_CODES", "FORMATS", "BatchingSettings", "CaptionRequest", "ExistingRun", "Failures",
    "ModelReport", "ModelSettings", "OutputSettings", "RunningSettings", "SourceSettings",
]  # fmt: skip

FORMATS = ("parquet", "coco", "jsonl")
ALL_CODES = "all"

EngineName = Literal["auto", "torch", "openvino", "onnx", "tensorrt"]


@dataclass(frozen=True)
class Failures:
    """The number of images that may fail: a count, or a share of all."""

    count: int = 0
    share: float | None = None

    @classmethod
    def of(cls, value: object) -> Failures:
        """A number such as 5, or a share such as "0.1%".

        Raises:
            ScaError: for anything else.
        """
        found = re.fullmatch(r"(\d+)|(\d+(?:\.\d+)?)%", str(value).strip())
        if not found or (found[2] and float(found[2]) > 100):
            raise ScaError(f"{value!r}; expected a number such as 5, or a share such as 0.1%")
        return cls(int(found[1])) if found[1] else cls(share=float(found[2]) / 100)

    def allow(self, failed: int, images: int) -> bool:
        limit = self.count if self.share is None else self.share * images
        return failed <= limit

    def __str__(self) -> str:
        return str(self.count) if self.share is None else f"{self.share:.6g}"


@dataclass(frozen=True, slots=True)
class SourceSettings:
    """The sources, and what may be read of them."""

    names: tuple[str, ...] = ()  # folders, images, patterns, archives, URLs of stores, manifests
    box_format: Literal["xyxy", "xywh"] | None = option(
        None, "What a manifest's bare bbox or boxes column means."
    )
    limit: int | None = option(None, "Only the first N images.", kept=True, least=1)
    read: ReadPolicy = field(default_factory=ReadPolicy)

    def __post_init__(self) -> None:
        check_options(self)


@dataclass(frozen=True, slots=True)
class ModelSettings:
    """The model, its device and precision, and what runs parts of it.

    `plans` names the files of the engine that were chosen before: no others are looked at.
    """

    model: str = option(
        "sca-tiny",
        "A name from `sca model list`, a checkpoint folder, a hub id (with @revision), or "
        "sam=...,lm=...,mixer=...",
        kept=True,
    )
    device: str = option("auto", "auto, cpu, cuda or cuda:N.")
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = option(
        "auto", "auto is float32 on a CPU and half precision under autocast on a GPU.", kept=True
    )
    engine: EngineName = option(
        "auto",
        "What runs SAM and the mixer. auto takes plans that `sca engine build` made for this "
        "model, device and dtype, else torch, and says which.",
        kept=True,
    )
    int8: bool = option(
        False,
        "Encode images with the plan that `sca engine build --precision int8` made: sooner; some "
        "masks and captions differ.",
        kept=True,
    )
    engine_dir: Path = option(
        Path("engines"), "Where plans lie; also SCA_ENGINE_DIR.", environment="SCA_ENGINE_DIR"
    )
    trust_engine: bool = option(
        False, "Use plans whose bytes are not those that were built. Plans are native code."
    )
    plans: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        check_options(self)


@dataclass(frozen=True, slots=True)
class OutputSettings:
    """The output, and what is written beside its shards."""

    output: str | None = option(
        None,
        "Folder to write, or - with --format jsonl.",
        short="-o",
        shown="NAME-captions, here",
    )
    formats: tuple[str, ...] = option(
        ("parquet", "coco"),
        "parquet is always written to a folder; coco adds captions.json; jsonl prints one JSON "
        "line per image and needs -o -.",
        name="format",
        form="names",
        shown="parquet,coco",
        metavar="TEXT",
    )

    def __post_init__(self) -> None:
        unknown = sorted(set(self.formats) - set(FORMATS))
        if unknown or not self.formats:
            raise ScaError(
                f"--format {','.join(self.formats)!r}: expected some of {', '.join(FORMATS)}"
            )
        if "jsonl" in self.formats and len(set(self.formats)) > 1:
            raise ScaError("--format jsonl prints lines and goes alone: --format jsonl -o -")


@dataclass(frozen=True, slots=True)
class RunningSettings:
    """Worker processes, and when a run waits no longer.

    `start_method` is how worker processes are started: "fork" is for a process without threads.
    """

    workers: int | None = option(
        None,
        "Worker processes, each with a model of its own; 0 works in this process, where an image "
        "that crashes it stops the run.",
        least=0,
        shown="one per GPU, else 1",
    )
    image_timeout: float = option(
        900.0,
        "An image that takes longer fails as timeout; 0 waits for ever.",
        form="duration",
        least=0,
        shown="15m",
    )
    shard_timeout: float = option(
        86400.0,
        "A worker that is not done with a shard by then is ended and its shard resumed from the "
        "last commit, three times at most; 0 waits for ever.",
        form="duration",
        least=0,
        shown="24h",
    )
    time_limit: float | None = option(
        None,
        "Stop before this much time has passed since the start, such as 7h45m.",
        form="duration",
        least=0,
    )
    commit_every: float = option(60.0, "Seconds between commits of an unfinished shard.", least=0)
    max_failures: Failures = option(
        Failures(),
        "Images that may fail before the exit code is 1: a number, or a share such as 0.5%.",
        form="failures",
        shown="0",
    )
    metrics_file: Path | None = option(
        None, "Write counts here in Prometheus' text format, now and then and at the end."
    )
    start_method: Literal["forkserver", "fork", "spawn"] = "forkserver"

    def __post_init__(self) -> None:
        check_options(self)


@dataclass(frozen=True, slots=True)
class ExistingRun:
    """The fate of the run that is in the output; without any of these it goes on.

    `retry_failed` holds error codes, or "all".
    """

    update: bool = option(
        False, "List the sources again: caption what is new or has changed, mark what has vanished."
    )
    verify_content: bool = option(
        False, "With --update: compare every file's digest, not only its size and time."
    )
    accept_vanished: bool = option(
        False, "With --update: go on though most images are not in the sources any more."
    )
    retry_failed: tuple[str, ...] = option(
        (),
        "Try failed images again; all, or those with one of CODES, such as timeout,oom.",
        form="codes",
        metavar="[CODES]",
    )
    overwrite: bool = option(False, "Start over: remove the run in the folder.")

    def __post_init__(self) -> None:
        check_options(self)
        unknown = sorted(set(self.retry_failed) - {ALL_CODES, *ERROR_CODES})
        if unknown:
            raise ScaError(
                f"--retry-failed {unknown[0]}: no such code; expected some of "
                f"{', '.join(ERROR_CODES)}. Without codes the option goes last"
            )
        for name in ("verify_content", "accept_vanished"):
            if getattr(self, name) and not self.update:
                flag = f"--{name.replace('_', '-')}"
                raise ScaError(f"{flag} goes with --update: add it, or leave both out")
        others = [("--update", self.update), ("--retry-failed", self.retry_failed)]
        for name, given in others:
            if self.overwrite and given:
                raise ScaError(
                    f"--overwrite removes the run that {name} would go on with; choose one of them"
                )


@dataclass(frozen=True, slots=True)
class BatchingSettings:
    """Sizes of batches. Only the size of a shard leaves a trace, in the dataset's files."""

    shard_size: int = option(64, "Images per Parquet file.", kept=True, least=1)
    encoder_batch: int | None = option(None, "Images.", least=1, shown="1 on a CPU, 4 on a GPU")
    caption_batch: int | None = option(None, "Regions.", least=1, shown="32 on a CPU, 128 on a GPU")
    mask_memory: float = option(1.0, "GiB for masks at the size of the image.", least=0.001)

    def __post_init__(self) -> None:
        check_options(self)

    def on(self, *, cpu: bool, threads: int) -> BatchSettings:
        """The sizes on a CPU or a GPU, where torch has so many threads."""
        return BatchSettings(
            encoder_batch=self.encoder_batch or (1 if cpu else 4),
            caption_batch=self.caption_batch or (32 if cpu else 128),
            mask_memory_bytes=int(self.mask_memory * 2**30),
            # On a CPU the model's own threads are busy already.
            decode_threads=1 if cpu else max(1, min(8, threads // 2)),
            decode_ahead=2 if cpu else 16,
        )


@dataclass(frozen=True, slots=True)
class ModelReport:
    """A worker's answer about the model that it has loaded.

    `engine` is a value of `--engine`; `engine_label` stands in the fingerprint, `engine_why` is
    for people. `dtype` is the resolved one.
    """

    weights: str
    dtype: str
    device: str
    engine: EngineName
    engine_label: str
    engine_why: str
    plans: tuple[str, ...]
    domain: Domain | None
    versions: Mapping[str, str]


def _group(name: str) -> dict[str, str]:
    return {"group": name}


@dataclass(frozen=True, slots=True, kw_only=True)
class CaptionRequest:
    """A whole run: what `sca caption` is asked for, and `caption_corpus` does.

    `given` names the options that somebody gave; `settled` those that were taken from the run in
    the output or from the model. Others are open: their defaults give way to either.

    Raises:
        ScaError: for values that make no sense, named as the command line spells them.

    Example:
        >>> CaptionRequest.of("images", output="out", num_beams=1).captions.num_beams
        1
    """

    source: SourceSettings = field(default_factory=SourceSettings, metadata=_group("Source"))
    model: ModelSettings = field(default_factory=ModelSettings, metadata=_group("Model"))
    regions: RegionSettings = field(default_factory=RegionSettings, metadata=_group("Regions"))
    captions: CaptionSettings = field(default_factory=CaptionSettings, metadata=_group("Captions"))
    output: OutputSettings = field(default_factory=OutputSettings, metadata=_group("Output"))
    running: RunningSettings = field(default_factory=RunningSettings, metadata=_group("Running"))
    existing: ExistingRun = field(default_factory=ExistingRun, metadata=_group("Updating"))
    batching: BatchingSettings = field(default_factory=BatchingSettings, metadata=_group("Speed"))
    given: frozenset[str] = frozenset()
    settled: frozenset[str] = frozenset()

    @classmethod
    def of(cls, *sources: str | os.PathLike[str], **options: object) -> CaptionRequest:
        """A request from sources and options by the command line's names.

        Raises:
            ScaError: for an option that there is not, too.
        """
        known = {found.name for found in option_fields(cls)}
        unknown = sorted(options.keys() - known)
        if unknown:
            raise ScaError(f"no option {unknown[0]}; expected some of {', '.join(sorted(known))}")
        request = cls(source=SourceSettings(tuple(os.fspath(source) for source in sources)))
        return replace(with_options(request, options), given=frozenset(options))

    def __post_init__(self) -> None:
        if self.existing.update and self.source.limit is not None:
            raise ScaError("--limit with --update would mark the other images as vanished")
        # What differs from its default was given, by whoever built this from its parts.
        differing = {
            found.name
            for found in option_fields(type(self))
            if self._value(found.owner, found.field) != found.default
        }
        object.__setattr__(self, "given", self.given | (differing - self.settled))

    def _value(self, owner: tuple[str, ...], name: str) -> object:
        part: object = self
        for step in owner:
            part = getattr(part, step)
        value: object = getattr(part, name)
        return value

    def resolved(self, values: Mapping[str, object]) -> CaptionRequest:
        """The request with these values for the options that are still open."""
        open_options = {
            found.name: values[found.name]
            for found in option_fields(type(self))
            if found.name in values and found.name not in self.given | self.settled
        }
        settled = replace(self, settled=self.settled | open_options.keys())
        return with_options(settled, open_options)

    def with_engine(self, report: ModelReport) -> CaptionRequest:
        """The request of workers that take the engine which the first one found."""
        settled = replace(self, settled=self.settled | {"engine"})
        found = replace(settled.model, engine=report.engine, plans=report.plans)
        return replace(settled, model=found)

    def kept(self) -> JsonObject:
        """The options that a run gives back where they are left out when it is resumed."""
        values = option_values(self)
        return {
            f.name: _json(values[f.name])
            for f in option_fields(type(self))
            if f.option.kept or f.option.content
        }

    def content(self, report: ModelReport) -> JsonObject:
        """Everything that records depend on, for the fingerprint."""
        values = option_values(self)
        marked = [found.name for found in option_fields(type(self)) if found.option.content]
        return {
            "weights": report.weights,
            "dtype": report.dtype,
            "engine": report.engine_label,
            **{name: _json(values[name]) for name in marked},
        }

    def informative(self, report: ModelReport) -> JsonObject:
        """The rest of a run's file: for people, and for a run that is resumed."""
        values = option_values(self)
        batching = ("encoder_batch", "points_per_batch", "caption_batch", "mask_memory")
        domain = report.domain
        return {
            "model": self.model.model,
            "domain": None
            if domain is None
            else {f.name: getattr(domain, f.name) for f in fields(domain)},
            "device": report.device,
            "engine": report.engine_why,
            "plans": list(report.plans),
            "versions": dict(report.versions),
            "batching": {name: _json(values[name]) for name in batching},
            # As they were typed, so that a run can be resumed without repeating them.
            "options": {**self.kept(), "engine": report.engine},
        }


def _json(value: object) -> Json:
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, Path):
        # Another working folder must not change what a relative path means.
        return os.path.abspath(value)
    if isinstance(value, tuple):
        return [_json(item) for item in value]
    return str(value)
