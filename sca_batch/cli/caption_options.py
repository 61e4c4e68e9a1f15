"""The options of `sca caption`, by what they are about."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from sca_batch.cli.values import DURATION, FAILURES, box_format_option, device_option

__all__ = [
    "CAPTION_OPTIONS",
    "CONTENT_OPTIONS",
    "FORMATS",
    "REGION_OPTIONS",
    "batch_options",
    "caption_options",
    "model_options",
    "nightly_options",
    "region_options",
    "run_options",
    "section",
]

FORMATS = ("parquet", "coco", "jsonl")

# What records depend on; a run that is taken up again gets these from its run.json.
REGION_OPTIONS = (
    "regions", "min_area", "max_area", "max_regions", "min_caption_score", "max_pixels",
    "points_per_side", "pred_iou_thresh", "stability_score_thresh", "stability_score_offset",
    "box_nms_thresh", "crop_n_layers", "crop_nms_thresh", "crop_overlap_ratio",
    "crop_n_points_downscale_factor", "min_mask_region_area",
)  # fmt: skip
CAPTION_OPTIONS = ("task", "prompt", "num_beams", "max_new_tokens", "captions_per_region")
CONTENT_OPTIONS = (
    "model", "dtype", "engine", "int8", "shard_size", *CAPTION_OPTIONS, *REGION_OPTIONS
)  # fmt: skip


def section(*options: Callable[..., Any]) -> Callable[..., Any]:
    def decorate(function: Any) -> Any:
        for option in reversed(options):
            function = option(function)
        return function

    return decorate


def _sam_options(*rows: tuple[str, type, float, str]) -> list[Callable[..., Any]]:
    """Options of SAM's automatic mask generation: its names, its defaults."""
    return [
        click.option(
            f"--{name}", type=kind, default=default, show_default=_shown(default), help=help
        )
        for name, kind, default, help in rows
    ]


def _shown(default: float) -> bool | str:
    return "512/1500" if default == 512 / 1500 else True


run_options = section(
    click.option(
        "-o",
        "--output",
        help="Folder to write, or - with --format jsonl.  [default: NAME-captions, here]",
    ),
    click.option(
        "--format",
        "formats",
        default="parquet,coco",
        show_default=True,
        help="parquet is always written to a folder; coco adds captions.json; jsonl prints one "
        "JSON line per image and needs -o -.",
    ),
    click.option("--limit", type=click.IntRange(1), help="Only the first N images."),
    click.option("--dry-run", is_flag=True, help="Say what would be done; write nothing."),
    click.option("--overwrite", is_flag=True, help="Start over: remove the run in the folder."),
    box_format_option(),
    click.option(
        "--max-failures",
        type=FAILURES,
        default="0",
        show_default=True,
        help="Images that may fail before the exit code is 1: a number, or a share such as 0.5%.",
    ),
)
model_options = section(
    click.option(
        "--model",
        default="sca-tiny",
        show_default=True,
        help="A name from `sca model list`, a checkpoint folder, a hub id (with @revision), or "
        "sam=...,lm=...,mixer=...",
    ),
    device_option(),
    click.option(
        "--dtype",
        type=click.Choice(["auto", "float32", "bfloat16", "float16"]),
        default="auto",
        show_default=True,
        help="auto is float32 on a CPU and half precision under autocast on a GPU.",
    ),
    click.option(
        "--engine",
        type=click.Choice(["auto", "torch", "openvino", "onnx", "tensorrt"]),
        default="auto",
        show_default=True,
        help="What runs SAM and the mixer. auto takes plans that `sca engine build` made for this "
        "model, device and dtype, else torch, and says which.",
    ),
    click.option(
        "--int8",
        is_flag=True,
        help="Encode images with the plan that `sca engine build --precision int8` made: sooner; "
        "some masks and captions differ.",
    ),
    click.option(
        "--engine-dir",
        type=click.Path(file_okay=False, path_type=Path),
        envvar="SCA_ENGINE_DIR",
        default=Path("engines"),
        show_default=True,
        help="Where plans lie; also SCA_ENGINE_DIR.",
    ),
    click.option(
        "--trust-engine",
        is_flag=True,
        help="Use plans whose bytes are not those that were built. Plans are native code.",
    ),
)
caption_options = section(
    click.option(
        "--task",
        type=click.Choice(["caption", "recognition"]),
        default="caption",
        show_default=True,
    ),
    click.option(
        "--prompt",
        type=click.Choice(["box", "point"]),
        default="box",
        show_default=True,
        help="What a proposed region is captioned from: its box, or the grid point it was found "
        "with (as in the published demo).",
    ),
    click.option(
        "--num-beams",
        type=click.IntRange(1),
        default=3,
        show_default=True,
        help="Beams of the search for words; 1 is greedy, faster and a little worse.",
    ),
    click.option(
        "--max-new-tokens",
        type=click.IntRange(1),
        default=19,
        show_default=True,
        help="Length at which captions are cut; 19 is the published max_length 20.",
    ),
    click.option(
        "--captions-per-region",
        type=click.IntRange(1),
        default=1,
        show_default=True,
        help="Keep this many of the beams.",
    ),
    click.option(
        "--min-caption-score",
        type=click.FloatRange(0, 1),
        default=0.0,
        show_default=True,
        help="Leave out proposed regions whose caption is less probable (exp of its mean "
        "log-probability).",
    ),
)
region_options = section(
    click.option(
        "--regions",
        type=click.Choice(["auto", "given"]),
        help="auto proposes regions everywhere; given takes the manifest's only.  [default: given "
        "where the manifest has a list, auto elsewhere]",
    ),
    click.option(
        "--min-area", type=float, help="Smallest proposed mask: pixels, or a fraction below 1."
    ),
    click.option(
        "--max-area", type=float, help="Largest proposed mask: pixels, or a fraction below 1."
    ),
    click.option(
        "--max-regions",
        type=click.IntRange(1),
        help="Proposed per image: those with the best masks.",
    ),
    click.option(
        "--max-pixels",
        type=click.IntRange(1),
        default=178_956_970,
        show_default=True,
        help="Larger images fail as too_large.",
    ),
    *_sam_options(
        (
            "points-per-side",
            int,
            32,
            "Points on each side of the grid over the image. A model may have its own defaults for "
            "these options: `sca model info`. sca-tiny does.",
        ),
        ("pred-iou-thresh", float, 0.88, "Least IoU that SAM predicts for a mask."),
        ("stability-score-thresh", float, 0.95, "Least stability when the cut-off moves."),
        ("stability-score-offset", float, 1.0, "How far it moves, in logits."),
        ("box-nms-thresh", float, 0.7, "Box IoU above which the lesser mask is dropped."),
        ("crop-n-layers", int, 0, "Look again at crops: layer n has 4^n of them."),
        ("crop-nms-thresh", float, 0.7, "As --box-nms-thresh, between crops."),
        ("crop-overlap-ratio", float, 512 / 1500, "How much crops of the first layer overlap."),
        ("crop-n-points-downscale-factor", int, 1, "Fewer points per side, layer by layer."),
        ("min-mask-region-area", int, 0, "Fill holes and drop islands below this many pixels."),
    ),
)
batch_options = section(
    click.option("--shard-size", type=click.IntRange(1), default=64, show_default=True,
                 help="Images per Parquet file."),
    click.option("--encoder-batch", type=click.IntRange(1),
                 help="Images.  [default: 1 on a CPU, 4 on a GPU]"),
    click.option("--points-per-batch", type=int, default=64, show_default=True,
                 help="Grid points."),
    click.option("--caption-batch", type=click.IntRange(1),
                 help="Regions.  [default: 32 on a CPU, 128 on a GPU]"),
    click.option("--mask-memory", type=click.FloatRange(0.001), default=1.0, show_default=True,
                 help="GiB for masks at the size of the image."),
    click.option("--commit-every", type=click.FloatRange(0), default=60.0, show_default=True,
                 help="Seconds between commits of an unfinished shard."),
)  # fmt: skip
nightly_options = section(
    click.option(
        "--update",
        is_flag=True,
        help="List the sources again: caption what is new or has changed, mark what has vanished.",
    ),
    click.option(
        "--verify-content",
        is_flag=True,
        help="With --update: compare every file's digest, not only its size and time.",
    ),
    click.option(
        "--retry-failed",
        is_flag=False,
        flag_value="all",
        metavar="[CODES]",
        help="Try failed images again; all, or those with one of CODES, such as timeout,oom.",
    ),
    click.option(
        "--root",
        type=click.Path(exists=True, file_okay=False),
        help="Read no file outside this folder, wherever a manifest's paths and links lead.",
    ),
    click.option(
        "--allow-http",
        is_flag=True,
        help="Read http(s) images; never from private addresses.",
    ),
    click.option(
        "--workers",
        type=click.IntRange(1),
        help="Worker processes, each with a model of its own.  [default: one per GPU, else 1]",
    ),
    click.option(
        "--image-timeout",
        type=DURATION,
        default="15m",
        show_default=True,
        help="An image that takes longer fails as timeout; 0 waits for ever.",
    ),
    click.option(
        "--shard-timeout",
        type=DURATION,
        default="24h",
        show_default=True,
        help="A worker that is not done with a shard by then is ended and its shard taken up again "
        "from the last commit, three times at most; 0 waits for ever.",
    ),
    click.option(
        "--metrics-file",
        type=click.Path(dir_okay=False, path_type=Path),
        help="Write counts here in Prometheus' text format, now and then and at the end.",
    ),
    click.option(
        "--time-limit",
        type=DURATION,
        help="Stop before this much time has passed since the start, such as 7h45m.",
    ),
)
