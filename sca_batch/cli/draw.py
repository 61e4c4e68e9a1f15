"""`sca draw`: look at one image of a dataset."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from sca_batch.cli.datasets import DATASET
from sca_batch.cli.values import IN_FOLDER, OUT_FILE
from sca_batch.errors import ScaError

if TYPE_CHECKING:
    from sca_batch.storage.stores import AnyPath


@click.command()
@click.argument("dataset", type=DATASET)
@click.argument("image")
@click.option(
    "-o",
    "--output",
    type=OUT_FILE,
    help="PNG or JPEG to write.  [default: IMAGE's name with -regions.png, in this folder]",
)
@click.option("--max-regions", type=click.IntRange(1), help="Only the N with the best masks.")
@click.option(
    "--root",
    type=IN_FOLDER,
    help="Where the images are now, if they were moved since they were captioned.",
)
def draw(
    dataset: AnyPath, image: str, output: Path | None, max_regions: int | None, root: Path | None
) -> None:
    """Paint the masks of one IMAGE of DATASET, with its captions beside them.

    IMAGE is an image id, a key, or a file name as it stands in the dataset.

    \b
    Example:
      sca draw images-captions dog.jpg -o dog-regions.png
    """
    from sca_batch.dataset.shards import find_row
    from sca_batch.images.decode import read_image
    from sca_batch.reports.draw import draw_regions

    row = find_row(dataset, image)
    if row["status"] == "failed":
        raise ScaError(f"{row['key']} failed ({row['error_code']}): {row['error']}")
    uri = str(root / row["file_name"]) if root else row["uri"]
    pixels = read_image(uri)
    if row["sha256"] and pixels.sha256 != row["sha256"]:
        click.echo(f"Warning: {uri} has changed since it was captioned.", err=True)
    regions = row["regions"]
    if max_regions is not None:
        best = sorted(regions, key=lambda r: -(r["predicted_iou"] or 0.0))[:max_regions]
        regions = sorted(best, key=lambda r: r["region_id"])
    target = output or Path(f"{Path(row['file_name']).stem}-regions.png")
    title = f"{row['file_name']}: {len(regions)} of {len(row['regions'])} regions"
    picture = draw_regions(pixels.rgb, regions, title=title)
    try:
        picture.save(target)
    except (OSError, ValueError) as error:
        raise ScaError(f"{target}: cannot be written: {error}") from None
    click.echo(f"Wrote {len(regions)} regions of {row['file_name']} to {target}", err=True)
