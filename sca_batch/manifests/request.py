"""A manifest as it is asked for: every option of `sca manifest build` with its default."""

from __future__ import annotations

import re
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal, get_args

from sca_batch.errors import ScaError
from sca_batch.manifests.json_stream import Progress
from sca_batch.options import check_options, option, option_fields, with_options

__all__ = ["KINDS", "BuildRequest", "CheckFiles", "Kind", "RefProtocol", "Request"]

# The keys of `sca_batch.manifests.annotations.SOURCES`, which takes long to load.
Kind = Literal[
    "vg", "grit-vg", "refcoco", "refcoco+", "refcocog", "refclef", "coco", "objects365", "v3det",
    "sa1b",
]  # fmt: skip
KINDS: tuple[Kind, ...] = get_args(Kind)
CheckFiles = Literal["exists", "sizes", "none"]
RefProtocol = Literal["published", "clean"]


def _silent(stage: str, done: int) -> None:
    pass


@dataclass(frozen=True, slots=True)
class Request:
    """The data set to read. `annotations` and `images` replace the ones below `root`.

    `split_by` and `ref_protocol` concern the RefCOCO family alone, `min_confidence` SA-1B.
    """

    root: Path = Path()
    split: str = option("train", "train, val or test; RefCOCO has testA and testB.")
    annotations: Path | None = option(
        None, "The annotation file, or the folder it is in, where it is not below SOURCE."
    )
    images: Path | None = option(
        None,
        "The folder that the annotated file names start from, where it is not below SOURCE.",
    )
    split_by: str | None = option(
        None, "RefCOCO family: who made the split.", shown="unc; google for refcocog"
    )
    ref_protocol: RefProtocol = option(
        "published",
        "RefCOCO family. published: an image of the split brings all its refs, as the published "
        "scores were computed (in google's RefCOCOg, val so contains refs of train). clean: only "
        "the split's own.",
    )
    min_confidence: float | None = option(
        None, "SA-1B: leave out captions whose conf is below this."
    )
    task: Literal["caption", "recognition"] = option(
        "caption",
        "Written into the column task. The published models were trained with caption on every "
        "data set, object names too.",
    )
    progress: Progress = _silent

    def __post_init__(self) -> None:
        check_options(self)


@dataclass(frozen=True, slots=True)
class BuildRequest:
    """A manifest to build of a data set of some `kind`, or of any sources."""

    sources: tuple[str, ...] = ()
    kind: Kind | None = option(
        None,
        "SOURCE is the folder of this data set, in the layout that docs/DATASETS.md shows.",
        name="from",
        group="Source",
    )
    limit: int | None = option(None, "Only the first N images.", least=1, group="Source")
    box_format: Literal["xyxy", "xywh"] | None = option(
        None, "What a manifest's bare bbox or boxes column means.", group="Source"
    )
    data_set: Request = field(default_factory=Request, metadata={"group": "Data set"})
    output: Path | None = option(
        None,
        "The manifest, .jsonl or .parquet.",
        short="-o",
        shown="NAME-SPLIT.jsonl, here",
        group="Manifest",
    )
    check_files: CheckFiles = option(
        "exists",
        "Leave out images that are not there; sizes also opens each and compares its size with "
        "the annotated one; none looks at no image.",
        group="Manifest",
    )
    relative: bool = option(False, "Write paths from the manifest's folder.", group="Manifest")
    overwrite: bool = option(False, "Replace the manifest if it is there.", group="Manifest")

    def __post_init__(self) -> None:
        check_options(self)

    @classmethod
    def of(cls, *sources: str, **given: object) -> BuildRequest:
        """A request from sources and options by the command line's names.

        Raises:
            ScaError: for options and sources that do not go together, or that are not there.
        """
        request = with_options(cls(sources), given)
        if request.kind is None:
            of_data_sets = [found.flag for found in option_fields(Request) if found.name in given]
            if of_data_sets:
                raise ScaError(
                    f"{of_data_sets[0]} describes a data set; say which: --from {KINDS[0]}"
                )
            return request
        if len(sources) > 1:
            raise ScaError(
                f"--from {request.kind} reads one folder, and {len(sources)} are named; build one "
                "manifest each"
            )
        data_set = replace(request.data_set, root=Path(sources[0]))
        if not data_set.root.is_dir():
            raise ScaError(
                f"{data_set.root}: no such folder; expected that of {request.kind}, as "
                "docs/DATASETS.md says"
            )
        if data_set.annotations is not None and not data_set.annotations.exists():
            raise ScaError(f"--annotations {data_set.annotations}: no such file or folder")
        if data_set.images is not None and not data_set.images.is_dir():
            raise ScaError(f"--images {data_set.images}: no such folder")
        return replace(request, data_set=data_set)

    @property
    def target(self) -> Path:
        """The manifest to write; after the data set or the first source, where none is named."""
        if self.output is not None:
            return self.output
        if self.kind is not None:
            return Path(f"{self.kind}-{self.data_set.split}.jsonl")
        before_wildcard = re.split(r"[*?[]", self.sources[0])[0]
        name = "" if self.sources[0] == "-" else Path(before_wildcard).absolute().stem
        return Path(f"{name or 'manifest'}.jsonl")
