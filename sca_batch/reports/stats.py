"""Counts of a manifest or a dataset while it streams by: the paper's Table 4 and more."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache, partial
from pathlib import Path
from typing import Literal, NamedTuple, get_args

import numpy as np
import numpy.typing as npt

from sca_batch.boxes import xywh_to_xyxy
from sca_batch.dataset.shards import RUN_FILE, iter_rows, read_run
from sca_batch.errors import ScaError
from sca_batch.manifests.formats import manifest_rows
from sca_batch.manifests.values import BoxFormat
from sca_batch.reports.gpt2 import Gpt2Tokenizer, count_words
from sca_batch.reports.table4 import KINDS, PAPER_TABLE_4, Table4Row
from sca_batch.storage.stores import AnyPath, StorePath

__all__ = ["GRID", "SCORE_STEPS", "Image", "Statistics", "collect", "quantile", "spread"]

# Lower-cased runs of letters and digits with what an apostrophe joins: what a reader calls a word.
WORD = re.compile(r"[^\W_]+(?:['’][^\W_]+)*")
SENTENCES_REMEMBERED = 1 << 16  # names of categories come again and again
GRID = 40  # cells a side of the map of where boxes lie
SCORE_STEPS = 10_000  # scores are counted in steps of 1e-4
SMALL, MEDIUM = 32**2, 96**2  # COCO's borders between small, medium and large, square pixels
BOX_SIZES = ("empty", "small", "medium", "large")

# Without segmentations, which are most of a shard's bytes.
DATASET_COLUMNS = ["status", "error_code", "width", "height"] + [
    f"regions.list.element.{name}"
    for name in (
        *("bbox", "caption", "caption_logprob", "caption_score", "captions", "predicted_iou"),
        *("stability_score", "crop_box"),
    )
]
Score = Literal["caption_score", "predicted_iou", "stability_score"]
SCORES: tuple[Score, ...] = get_args(Score)


class Sentence(NamedTuple):
    """One sentence: its words as a reader counts them, GPT-2's pieces and tokens."""

    words: tuple[str, ...]
    pieces: int
    tokens: int


@dataclass(slots=True)
class Statistics:
    """Counts of one manifest or dataset. Counters map a value to how often it was seen.

    `box_sides` are square roots of areas, `box_shares` thousandths of the image's area; `coverage`
    counts, for each cell of a square laid over every image, the boxes that touch it.
    """

    name: str
    form: Literal["manifest", "dataset"]
    tokenizer: Gpt2Tokenizer | None = None
    samples: int = 0
    regions: int = 0
    sentences: int = 0
    tokens: int = 0
    words: int = 0
    sentence_words: Counter[int] = field(default_factory=Counter)
    vocabulary: Counter[str] = field(default_factory=Counter)
    boxes_per_image: Counter[int] = field(default_factory=Counter)
    sentences_per_region: Counter[int] = field(default_factory=Counter)
    box_sides: Counter[int] = field(default_factory=Counter)
    box_shares: Counter[int] = field(default_factory=Counter)
    box_sizes: Counter[str] = field(default_factory=Counter)
    coverage: npt.NDArray[np.int64] = field(
        default_factory=lambda: np.zeros((GRID, GRID), dtype=np.int64)
    )
    status: Counter[str] = field(default_factory=Counter)
    errors: Counter[str] = field(default_factory=Counter)
    scores: dict[str, Counter[int]] = field(default_factory=dict)
    origins: Counter[tuple[str, str, str]] = field(default_factory=Counter)

    def add(self, image: Image, analyse: Callable[[str], Sentence]) -> None:
        """Counts one image."""
        boxes, sentences, size_hw = image
        self.samples += 1
        for about_one in sentences:
            for sentence in map(analyse, about_one):
                self.sentences += 1
                self.words += sentence.pieces
                self.tokens += sentence.tokens
                self.sentence_words[len(sentence.words)] += 1
                self.vocabulary.update(sentence.words)
        if boxes is None:
            return
        self.regions += len(boxes)
        self.boxes_per_image[len(boxes)] += 1
        for i in range(len(boxes)):
            self.sentences_per_region[len(sentences[i]) if i < len(sentences) else 0] += 1
        for box in boxes:
            if box is not None:
                self._add_box(box, size_hw)

    def _add_box(self, box_xyxy: Sequence[float], size_hw: tuple[int, int] | None) -> None:
        x0, y0, x1, y1 = box_xyxy
        area = (x1 - x0) * (y1 - y0)
        self.box_sizes[BOX_SIZES[sum(area > border for border in (0, SMALL, MEDIUM))]] += 1
        self.box_sides[round(math.sqrt(area))] += 1
        if size_hw is None:
            return
        height, width = size_hw
        self.box_shares[round(1000 * area / (height * width))] += 1
        rows = slice(max(0, math.floor(y0 / height * GRID)), max(0, math.ceil(y1 / height * GRID)))
        cells = slice(max(0, math.floor(x0 / width * GRID)), max(0, math.ceil(x1 / width * GRID)))
        self.coverage[rows, cells] += 1

    @property
    def origin(self) -> tuple[str, str, str] | None:
        """Source, split and protocol, where all rows say the same."""
        return next(iter(self.origins)) if len(self.origins) == 1 else None

    def table_4_row(self) -> Table4Row:
        source, split, _ = self.origin or ("", "", "")
        kind = KINDS.get(source, "" if self.form == "manifest" else "Captions made by sca")
        return Table4Row(
            f"{self.name} ({split})" if split else self.name,
            kind or "-",
            self.samples,
            self.regions,
            self.sentences,
            self.tokens if self.tokenizer is not None else None,
            self.words,
        )

    def paper_row(self) -> Table4Row | None:
        """The paper's row of the same data, where it counted it."""
        source, split, protocol = self.origin or ("", "", "")
        counted = split == "train" and protocol in ("", "published")
        return PAPER_TABLE_4.get(source) if counted else None

    def to_dict(self, most_frequent: int = 25) -> dict[str, object]:
        """Everything as JSON holds it."""
        row, paper = self.table_4_row(), self.paper_row()
        return {
            "name": self.name,
            "form": self.form,
            "table_4": row._asdict(),
            "paper_table_4": None if paper is None else paper._asdict(),
            "tokenizer": None if self.tokenizer is None else self.tokenizer.name,
            "tokenizer_is_gpt2": None if self.tokenizer is None else self.tokenizer.is_gpt2,
            "words_per_sentence": spread(self.sentence_words),
            "sentences_per_region": spread(self.sentences_per_region),
            "vocabulary": {
                "size": len(self.vocabulary),
                "words": self.vocabulary.total(),
                "most_frequent": [list(pair) for pair in self.frequent_words(most_frequent)],
            },
            "boxes_per_image": spread(self.boxes_per_image),
            "box_side_px": spread(self.box_sides),
            "box_share_of_image": spread(self.box_shares, 1000),
            "box_sizes": {name: self.box_sizes[name] for name in BOX_SIZES},
            "status": dict(self.status.most_common()),
            "error_codes": dict(self.errors.most_common()),
            "scores": {name: spread(counter, SCORE_STEPS) for name, counter in self.scores.items()},
        }

    def frequent_words(self, count: int) -> list[tuple[str, int]]:
        """The most frequent words; those seen equally often in the order of the alphabet."""
        return sorted(self.vocabulary.items(), key=lambda pair: (-pair[1], pair[0]))[:count]


# Boxes of one image, or None where none are given (one of them None for a region without a box),
# the sentences about each region or the image, and (height, width) where it is known.
Image = tuple[
    Sequence[Sequence[float] | None] | None, Sequence[Sequence[str]], tuple[int, int] | None
]


def collect(
    source: AnyPath,
    *,
    tokenizer: Gpt2Tokenizer | None = None,
    box_format: BoxFormat | None = None,
    progress: Callable[[int], None] | None = None,
) -> Statistics:
    """Reads a dataset's folder or a manifest once, one row at a time.

    Memory grows with the number of different words, not with that of rows.

    Raises:
        ScaError: when it is neither, or a row is wrong.
    """
    form: Literal["manifest", "dataset"] = "dataset" if source.is_dir() else "manifest"
    if form == "dataset" and not (source / RUN_FILE).is_file():
        raise ScaError(
            f"{source}: a folder without {RUN_FILE} is not a dataset. For a folder of images or "
            f"annotations make a manifest first: sca manifest build {source}"
        )
    statistics = Statistics(source.stem, form, tokenizer)
    if form == "dataset":
        statistics.name = source.absolute().name if isinstance(source, Path) else source.name
        read_run(source)
        rows = _dataset_images(source, statistics)
    elif isinstance(source, StorePath):
        raise ScaError(f"{source}: no dataset there; a manifest is read from a local file")
    else:
        rows = _manifest_images(source, statistics, box_format)
    analyse = lru_cache(SENTENCES_REMEMBERED)(partial(_analyse, tokenizer=tokenizer))
    for done, image in enumerate(rows, start=1):
        statistics.add(image, analyse)
        if progress is not None:
            progress(done)
    return statistics


def _analyse(text: str, *, tokenizer: Gpt2Tokenizer | None) -> Sentence:
    words = tuple(word.group().lower() for word in WORD.finditer(text))
    return Sentence(words, count_words(text), 0 if tokenizer is None else tokenizer.count(text))


def quantile(counter: Counter[int], share: float) -> int:
    """The smallest value that at least this share of what was counted does not exceed."""
    needed, passed = share * counter.total(), 0
    for value in sorted(counter):
        passed += counter[value]
        if passed >= needed:
            return value
    raise ValueError("nothing was counted")


def spread(counter: Counter[int], steps: int = 1) -> dict[str, float] | None:
    """Mean, quantiles and ends of what was counted in steps of 1/`steps`; None for nothing."""
    total = counter.total()
    if not total:
        return None
    mean = sum(value * count for value, count in counter.items()) / total
    values = {
        "min": min(counter),
        "p5": quantile(counter, 0.05),
        "median": quantile(counter, 0.5),
        "p95": quantile(counter, 0.95),
        "max": max(counter),
    }
    scaled = {name: value if steps == 1 else value / steps for name, value in values.items()}
    return {"count": total, "mean": mean / steps} | scaled


def _manifest_images(
    path: Path, statistics: Statistics, box_format: BoxFormat | None
) -> Iterator[Image]:
    for _, row in manifest_rows(path, box_format):
        origin = (row.extra.get(name) for name in ("source", "split", "ref_protocol"))
        source, split, protocol = (value if isinstance(value, str) else "" for value in origin)
        statistics.origins[source, split, protocol] += 1
        boxes = None if row.prompts is None else [prompt.box_xyxy for prompt in row.prompts]
        yield boxes, row.references, row.size_hw


def _dataset_images(path: AnyPath, statistics: Statistics) -> Iterator[Image]:
    statistics.scores = {name: Counter() for name in SCORES}
    for row in iter_rows(path, DATASET_COLUMNS):
        statistics.status[row["status"]] += 1
        if row["status"] == "failed":
            statistics.errors[str(row["error_code"])] += 1
            continue
        boxes = xywh_to_xyxy([region["bbox"] for region in row["regions"]] or np.zeros((0, 4)))
        for region in row["regions"]:
            for name in SCORES:
                score = region[name]
                if score is not None:
                    statistics.scores[name][round(score * SCORE_STEPS)] += 1
        height, width = row["height"], row["width"]
        size_hw = (height, width) if height and width else None
        yield boxes.tolist(), [[region["caption"]] for region in row["regions"]], size_hw
