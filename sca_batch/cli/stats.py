"""`sca stats`: what is in a manifest or a dataset."""

from __future__ import annotations

import json
import logging
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from sca_batch.cli.datasets import DATASET_OR_FILE
from sca_batch.cli.values import OUT_FILE, aligned, box_format_option

if TYPE_CHECKING:
    from sca_batch.manifests.values import BoxFormat
    from sca_batch.reports.gpt2 import Gpt2Tokenizer
    from sca_batch.reports.stats import Statistics
    from sca_batch.storage.stores import AnyPath

log = logging.getLogger(__name__)

NO_VOCABULARY = "no vocabulary"


@click.command()
@click.argument("source", metavar="DATASET|MANIFEST", type=DATASET_OR_FILE)
@click.option("--json", "as_json", is_flag=True, help="Print everything as one JSON object.")
@click.option(
    "--picture", type=OUT_FILE, help="Also draw charts into this file, .png, .pdf or .svg."
)
@click.option(
    "--tokenizer",
    metavar="PATH|gpt2",
    help="GPT-2's vocabulary, to count tokens: tokenizer.json, or a folder with it, with "
    "vocab.json and merges.txt, or with encoder.json and vocab.bpe; gpt2 fetches it once.  "
    "[default: the one in the hub's cache]",
)
@click.option(
    "--words",
    "words_shown",
    type=click.IntRange(0),
    default=12,
    show_default=True,
    help="How many of the most frequent words to name.",
)
@box_format_option()
def stats(
    source: AnyPath,
    as_json: bool,
    picture: Path | None,
    tokenizer: str | None,
    words_shown: int,
    box_format: BoxFormat | None,
) -> None:
    """Count images, regions, sentences, words and tokens of a DATASET or MANIFEST.

    The first row is that of the SCA paper's Table 4, and below it the paper's own where it counted
    the same data. There, tokens are GPT-2's, and words are the pieces that GPT-2's pre-tokenizer
    cuts: punctuation counts, a space belongs to the word behind it. Then come the lengths of
    sentences, the vocabulary, and how many boxes there are and how large; for a dataset also which
    images failed, and the scores.

    \b
    Examples:
      sca stats images-captions --picture captions.png
      sca stats vg-train.jsonl --tokenizer gpt2
      sca stats manifest.jsonl --json | jq .table_4
    """
    from tqdm import tqdm

    from sca_batch.reports.gpt2 import cached_gpt2, load_gpt2
    from sca_batch.reports.stats import collect

    loaded = load_gpt2(tokenizer) if tokenizer is not None else cached_gpt2()
    quiet = not log.isEnabledFor(logging.INFO) or not sys.stderr.isatty()
    with tqdm(unit="image", disable=quiet, dynamic_ncols=True) as bar:
        statistics = collect(
            source, tokenizer=loaded, box_format=box_format, progress=lambda _: bar.update(1)
        )
    if picture is not None:
        from sca_batch.reports.stats_picture import draw_statistics

        draw_statistics(statistics, picture)
    if as_json:
        click.echo(json.dumps(statistics.to_dict(words_shown), ensure_ascii=False))
    else:
        click.echo("\n".join(_lines(statistics, words_shown)))
    if picture is not None:
        click.echo(f"Drew {picture}", err=True)


def _lines(statistics: Statistics, words_shown: int) -> list[str]:
    from sca_batch.reports.stats import BOX_SIZES, SCORE_STEPS, spread

    total = statistics.vocabulary.total()
    frequent = statistics.frequent_words(words_shown)
    sizes = (f"{statistics.box_sizes[name]:,} {name}" for name in BOX_SIZES)
    facts = [
        ("words per sentence", _spread(spread(statistics.sentence_words))),
        ("sentences per region", _spread(spread(statistics.sentences_per_region))),
        ("vocabulary", f"{len(statistics.vocabulary):,} different words of {total:,}"),
        ("most frequent", ", ".join(f"{word} {100 * n / total:.1f}%" for word, n in frequent)),
        ("boxes per image", _spread(spread(statistics.boxes_per_image))),
        ("box side, pixels", _spread(spread(statistics.box_sides))),
        ("box share of image", _spread(spread(statistics.box_shares, 1000), percent=True)),
        ("box sizes", ", ".join(sizes) if statistics.box_sides else ""),
        ("status", ", ".join(f"{n:,} {name}" for name, n in statistics.status.most_common())),
        (
            "failed because",
            ", ".join(f"{n:,} {code}" for code, n in statistics.errors.most_common()),
        ),
        *(
            (name.replace("_", " "), _spread(spread(counter, SCORE_STEPS)))
            for name, counter in statistics.scores.items()
        ),
    ]
    lines = [f"{name:<22}{text}" for name, text in facts if text]
    return [*_table_4(statistics), "", *lines, *_notes(statistics.tokenizer)]


def _table_4(statistics: Statistics) -> list[str]:
    row, paper = statistics.table_4_row(), statistics.paper_row()
    rows = (
        [row] if paper is None else [row, paper._replace(data_set=f"{paper.data_set}, the paper")]
    )
    cells = [["data set", "type", "samples", "regions", "sentences", "tokens", "words"]]
    for entry in rows:
        numbers = [NO_VOCABULARY if n is None else f"{n:,}" for n in entry[2:]]
        cells.append([entry.data_set, entry.kind, *numbers])
    return aligned(cells, text_columns=2)


def _spread(values: dict[str, float] | None, *, percent: bool = False) -> str:
    if values is None:
        return ""

    def show(value: float) -> str:
        if percent:
            return f"{100 * value:.1f}%"
        return f"{value:,}" if isinstance(value, int) else f"{value:,.2f}"

    return (
        f"median {show(values['median'])}, mean {show(float(values['mean']))}, "
        f"5% to 95%: {show(values['p5'])} to {show(values['p95'])}, "
        f"largest {show(values['max'])}"
    )


def _notes(tokenizer: Gpt2Tokenizer | None) -> list[str]:
    if tokenizer is None:
        return [
            "",
            "Tokens were not counted: GPT-2's vocabulary is not in the hub's cache. Fetch it with "
            "--tokenizer gpt2, or name a file or folder that has it.",
        ]
    if not tokenizer.is_gpt2:
        return ["", f"Tokens are those of {tokenizer.name}, whose vocabulary is not GPT-2's."]
    return []
