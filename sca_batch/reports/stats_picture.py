"""Statistics as one page of small charts."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from sca_batch.errors import ScaError
from sca_batch.reports.stats import BOX_SIZES, GRID, SCORE_STEPS, Statistics, quantile

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["draw_statistics"]

INK, GREY, FAINT = "#1f2933", "#7b8794", "#e4e7eb"
BLUE, ORANGE, GREEN, RED = "#2f6fab", "#d9822b", "#3f9167", "#b4443f"
WORDS_SHOWN = 18
BINS = 24
STYLE = {
    "font.size": 9, "text.color": INK,
    "axes.edgecolor": FAINT, "axes.labelcolor": GREY, "xtick.color": GREY, "ytick.color": GREY,
    "xtick.major.size": 0, "ytick.major.size": 0,
    "axes.spines.top": False, "axes.spines.right": False,
    "axes.axisbelow": True, "grid.color": FAINT, "grid.linewidth": 0.8,
    "axes.titlelocation": "left", "axes.titlesize": 10.5, "axes.titlecolor": INK,
    "axes.titlepad": 18,
    "legend.frameon": False, "legend.loc": "upper left", "legend.labelcolor": INK,
    "text.parse_math": False,  # words may hold dollar signs
}  # fmt: skip


def draw_statistics(statistics: Statistics, target: Path) -> None:
    """Writes one picture: the row of Table 4, and how captions, boxes and scores are spread.

    Raises:
        ScaError: when TARGET cannot be written, or its suffix is no picture's.
    """
    # Figures of their own, not pyplot: nothing global, and no window system is looked for.
    from matplotlib import rc_context
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    with rc_context(STYLE):  # type: ignore[arg-type]
        figure = Figure(figsize=(13.5, 9), dpi=110, facecolor="white")
        FigureCanvasAgg(figure)
        _headline(figure, statistics)
        margins = {"left": 0.06, "right": 0.975, "top": 0.755, "bottom": 0.07}
        axes = figure.subplots(
            2, 3, squeeze=False, gridspec_kw={**margins, "hspace": 0.46, "wspace": 0.26}
        )
        words, boxes = statistics.sentence_words, statistics.boxes_per_image
        to_be_found = "no regions are given: they will be found"
        _whole_numbers(axes[0, 0], words, BLUE, "sentences", "Words per sentence", "no sentences")
        _frequent_words(axes[0, 1], statistics)
        _whole_numbers(axes[0, 2], boxes, ORANGE, "images", "Regions per image", to_be_found)
        _box_sides(axes[1, 0], statistics)
        _coverage(axes[1, 1], statistics)
        last_panel = _scores if statistics.scores else _words_needed
        last_panel(axes[1, 2], statistics)
        try:
            figure.savefig(target)
        except (OSError, ValueError) as error:
            raise ScaError(f"{target}: cannot be written: {error}") from None


def _headline(figure: Figure, statistics: Statistics) -> None:
    row = statistics.table_4_row()
    figure.text(0.03, 0.945, row.data_set, fontsize=17, weight="bold")
    kind = row.kind if row.kind != "-" else f"a {statistics.form}"
    failed = statistics.status.get("failed", 0)
    noted = f"; failed images: {failed:,}" if failed else ""
    figure.text(0.03, 0.918, f"{kind}{noted}", color=RED if failed else GREY)
    shown = [
        ("images", row.samples),
        ("regions", row.regions),
        ("sentences", row.sentences),
        ("words, GPT-2 pieces", row.words),
        ("GPT-2 tokens", row.tokens),
        ("different words", len(statistics.vocabulary)),
    ]
    if statistics.tokenizer is not None and not statistics.tokenizer.is_gpt2:
        shown[4] = ("tokens, not GPT-2's", row.tokens)
    for i, (label, value) in enumerate(shown):
        x = 0.03 + i * 0.158
        figure.text(x, 0.862, "no vocabulary" if value is None else f"{value:,}", fontsize=15)
        figure.text(x, 0.84, label, color=GREY)


def _titled(axes: Axes, title: str, remark: str) -> None:
    axes.set_title(title)
    axes.text(0, 1.035, remark, transform=axes.transAxes, color=GREY, fontsize=8.5)


def _nothing(axes: Axes, text: str) -> None:
    axes.set_axis_off()
    axes.text(0.5, 0.5, text, ha="center", va="center", color=GREY, transform=axes.transAxes)


def _counted(counter: Counter[int]) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]]:
    """Values, and the share of each in percent."""
    return np.array(list(counter)), 100 * np.array(list(counter.values())) / counter.total()


def _whole_numbers(
    axes: Axes, counter: Counter[int], colour: str, unit: str, title: str, without: str
) -> None:
    """A histogram of whole numbers; the last hundredth is gathered in the last bar."""
    if not counter:
        _nothing(axes, without)
        return
    last = max(quantile(counter, 0.99), min(counter) + 1)
    step = max(1, -(-(last + 1) // BINS))
    values, shares = _counted(counter)
    values = np.minimum(values, last) // step * step
    low, high = values.min(), values.max() + step
    edges = np.arange(low, high + 1, step) - 0.5
    axes.hist(values, bins=edges, weights=shares, rwidth=0.86, color=colour)  # type: ignore[arg-type]
    if max(counter) >= high:
        end = f"last bar: {high - step:,} and more"
        axes.set_xlabel(end, loc="right", fontsize=8, labelpad=2)
    left, right = low - 0.7 * step, high - 0.3
    spare = max(0.0, 6 * step - (right - left)) / 2  # one or two values need no giant's bars
    axes.set_xlim(max(left - spare, -0.7 * step), right + spare)
    axes.set_ylabel(f"% of {unit}")
    axes.grid(axis="y")
    axes.locator_params(axis="x", integer=True, nbins=9)
    mean = sum(value * count for value, count in counter.items()) / counter.total()
    _titled(
        axes,
        title,
        f"median {quantile(counter, 0.5):,}, mean {mean:,.1f}, 95% up to "
        f"{quantile(counter, 0.95):,}, largest {max(counter):,}",
    )


def _frequent_words(axes: Axes, statistics: Statistics) -> None:
    words = statistics.frequent_words(WORDS_SHOWN)
    if not words:
        _nothing(axes, "no words")
        return
    total = statistics.vocabulary.total()
    shares = [100 * count / total for _, count in words]
    # A font without the glyph would warn once per word, and the picture says no more for it.
    labels = [
        word if word.isascii() else word.encode("ascii", "replace").decode() for word, _ in words
    ]
    rows = range(len(words))
    axes.barh(rows, shares, color=BLUE, height=0.7)
    axes.set_yticks(rows, labels)
    axes.tick_params(axis="y", labelcolor=INK, labelsize=8.5)
    axes.invert_yaxis()
    axes.grid(axis="x")
    covered = sum(shares)
    _titled(
        axes, "Most frequent words", f"% of {total:,} words; these {len(words)} are {covered:.0f}%"
    )


def _box_sides(axes: Axes, statistics: Statistics) -> None:
    counter = +statistics.box_sides
    sides = Counter({side: count for side, count in counter.items() if side > 0})
    if not sides:
        _nothing(axes, "no boxes")
        return
    top = max(sides) + 1
    edges = np.geomspace(1, max(top, 2), BINS + 1)
    values, counts = np.array(list(sides)), np.array(list(sides.values()))
    shares, _ = np.histogram(values, bins=edges, weights=100 * counts / counter.total())
    axes.bar(edges[:-1], shares, width=0.92 * np.diff(edges), align="edge", color=ORANGE)
    axes.set_xscale("log")
    for border in (32, 96):
        axes.axvline(border, color=GREY, linewidth=0.8, linestyle=":")
    ticks = [tick for tick in (1, 3, 10, 32, 96, 300, 1000, 3000) if tick <= top]
    axes.set_xticks(ticks, [f"{tick:,}" for tick in ticks])
    axes.minorticks_off()
    axes.set_ylabel("% of boxes")
    axes.grid(axis="y")
    total = counter.total()
    sizes = ", ".join(
        f"{100 * statistics.box_sizes[name] / total:.0f}% {name}"
        for name in BOX_SIZES
        if statistics.box_sizes[name]
    )
    _titled(axes, "Size of boxes: square root of the area, pixels", sizes)


def _coverage(axes: Axes, statistics: Statistics) -> None:
    most = int(statistics.coverage.max())
    if not most:
        _nothing(axes, "where boxes lie is not known:\nno boxes, or no width and height")
        return
    share = 100 * statistics.coverage / statistics.box_shares.total()
    picture = axes.imshow(share, cmap="magma", extent=(0, 1, 1, 0), aspect="auto", vmin=0)
    axes.set_xticks([])
    axes.set_yticks([])
    bar = axes.figure.colorbar(picture, ax=axes, fraction=0.05, pad=0.02)
    bar.outline.set_visible(False)
    _titled(axes, "Where boxes lie", f"% of boxes over each of {GRID} x {GRID} parts of the image")


def _scores(axes: Axes, statistics: Statistics) -> None:
    names = {
        "caption_score": ("caption score", BLUE),
        "predicted_iou": ("predicted IoU", ORANGE),
        "stability_score": ("stability score", GREEN),
    }
    edges = np.linspace(0, 1.0001, 51)
    for name, (label, colour) in names.items():
        counter = statistics.scores[name]
        if not counter:
            continue
        values, weights = _counted(counter)
        shares, _ = np.histogram(np.clip(values / SCORE_STEPS, 0, 1), bins=edges, weights=weights)
        label = f"{label}, median {quantile(counter, 0.5) / SCORE_STEPS:.2f}"
        axes.stairs(shares, edges, color=colour, linewidth=1.6, label=label)
    if not any(statistics.scores.values()):
        _nothing(axes, "no scores")
        return
    axes.legend()
    axes.set_ylabel("% of regions")
    axes.set_xlim(0, 1)
    axes.grid(axis="y")
    axes.set_ylim(0, 1.3 * axes.get_ylim()[1])  # room for the legend
    _titled(axes, "Scores", "the captioner's, and SAM's own of its masks")


def _words_needed(axes: Axes, statistics: Statistics) -> None:
    counts = np.array(sorted(statistics.vocabulary.values(), reverse=True))
    if not len(counts):
        _nothing(axes, "no words")
        return
    covered = 100 * np.cumsum(counts) / counts.sum()
    ranks = np.arange(1, len(counts) + 1)
    axes.plot(ranks, covered, color=GREEN, linewidth=2)
    if len(counts) > 100:
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter("{x:,.0f}")  # the default one writes formulas
        axes.minorticks_off()
    axes.margins(x=0.15)
    axes.set_ylim(0, 103)
    axes.set_ylabel("% of all words")
    axes.grid()
    needed = [int(np.searchsorted(covered, share)) + 1 for share in (50, 90, 99)]
    for share, rank in zip((50, 90, 99), needed, strict=True):
        axes.plot([rank], [covered[rank - 1]], "o", color=GREEN, markersize=4.5)
        axes.annotate(f"{share}%: {rank:,}", (rank, covered[rank - 1]), xytext=(7, -11),
                      textcoords="offset points", color=INK, fontsize=8.5)  # fmt: skip
    _titled(
        axes,
        "How many words it takes",
        f"{len(counts):,} different words; the most frequent cover most of the text",
    )
