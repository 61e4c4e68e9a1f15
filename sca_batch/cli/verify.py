"""`sca verify`: is a dataset whole?"""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from sca_batch.cli.datasets import DATASET
from sca_batch.errors import EXIT_LEFTOVERS

if TYPE_CHECKING:
    from sca_batch.storage.stores import AnyPath


@click.command()
@click.argument("dataset", type=DATASET)
@click.pass_context
def verify(ctx: click.Context, /, dataset: AnyPath) -> None:
    """Check every shard of DATASET: digests, columns, counts, ids, masks, boxes and areas.

    What is wrong is printed, one line each. Repeating the `sca caption` command makes damaged and
    missing shards again. Exit codes: 0 all is well; 1 something was found; 2 not a dataset.

    \b
    Example:
      sca verify images-captions
    """
    from sca_batch.dataset.verify import verify_dataset
    from sca_batch.plan.run_plan import open_run_plan

    found = 0
    files: set[str] = set()
    for finding in verify_dataset(dataset):
        found += 1
        files.add(finding.place)
        click.echo(f"{finding.place}: {finding.what}")
    if not found:
        click.echo(f"{dataset}: {open_run_plan(dataset).shards:,} shards, all is well", err=True)
        return
    click.echo(
        f"{dataset}: {found:,} findings in {len(files):,} files. Remove those that are there and "
        "repeat the sca caption command: it makes them again",
        err=True,
    )
    ctx.exit(EXIT_LEFTOVERS)
