"""The paper's recipes: a text feature mixer between a frozen SAM and a frozen language model."""

from __future__ import annotations

from dataclasses import dataclass, replace

from sca_batch.errors import ScaError

__all__ = ["CAPTION_RECIPES", "RUN_FIELDS", "CaptionRecipe", "DataPart", "check_recipe"]

# Images and regions of the training splits (Segment and Caption Anything, CVPR 2024, table 4 of
# the supplement): what runs cost, and in which proportion data sets are mixed.
IMAGES = {"vg": 77_398, "coco": 117_266, "v3det": 183_348, "objects365": 1_742_289}

SAM_HUGE = "facebook/sam-vit-huge"
LARGEST_LR = 4e-4  # linear scaling holds up to here; 8e-4 hurts (paper, supplement)


@dataclass(frozen=True, slots=True)
class DataPart:
    """One data set of a recipe: the name it is given on the command line, and its images.

    The number of images is its share in a mix and the base of epochs in a dry run.
    """

    name: str
    images: int


@dataclass(frozen=True, slots=True)
class CaptionRecipe:
    """One training run. Defaults are those of the paper's ablations (table 1 of the supplement).

    `lr` is that of `lr_images` images a step; another number of images scales it linearly.
    """

    name: str
    data: tuple[DataPart, ...] = (DataPart("vg", IMAGES["vg"]),)
    seed: int = 42  # the reference code's

    # Where a run begins: SAM and a language model with a new mixer, or a checkpoint (`start`).
    start: str = ""
    sam: str = SAM_HUGE
    language_model: str = "gpt2-large"
    timm_encoder: str = ""  # a timm backbone instead of SAM's image encoder
    also_trained: tuple[str, ...] = ()  # prefixes of published names beside what SCA adds
    mixer_layers: int = 12
    caption_tokens: int = 8
    task_tokens: int = 6

    steps: int = 200_000
    stop_at: int = 0  # end there, though the schedule goes on to `steps`; 0 is the end
    images_per_step: int = 8  # over all devices: 8 GPUs with one image each
    images_per_device: int = 1  # at a time; the rest is accumulated
    regions_per_image: int = 16
    # Without jitter there is no flip either: both belong to one transform of the reference.
    jitter_scales: tuple[float, float] | None = None
    flip_chance: float = 0.0

    lr: float = 1e-4
    lr_images: int = 8
    lr_factors: tuple[tuple[str, float], ...] = ()  # (prefix of published names, factor)
    warmup_steps: int = 200  # the table's warm-up ratio of 0.333 loses against these
    betas: tuple[float, float] = (0.9, 0.999)
    weight_decay: float = 1e-4
    clip_norm: float = 1.0
    label_smoothing: float = 0.1
    precision: str = "fp16"  # no, bf16 or fp16
    gradient_checkpointing: bool = False  # of the language model; the reference's for Llama

    # What follows changes no weight and may differ when a run is resumed.
    validate_every: int = 5_000
    validation_images: int = 800
    validation_beams: int = 1  # "direct decoding" in the paper's ablations
    sample_pictures: int = 4
    checkpoint_every: int = 1_000
    report_every: int = 20
    skip_bad_images: bool = False  # replace an image that cannot be read by another one
    workers: int = 4

    @property
    def learning_rate(self) -> float:
        """The peak of the schedule, scaled to the images of a step."""
        return self.lr * self.images_per_step / self.lr_images

    @property
    def last_step(self) -> int:
        return min(self.stop_at or self.steps, self.steps)

    @property
    def warning(self) -> str:
        if self.learning_rate <= LARGEST_LR * (1 + 1e-9):
            return ""
        return (
            f"lr {self.lr:g} for {self.lr_images} images becomes {self.learning_rate:g} for "
            f"{self.images_per_step}; linear scaling is known to hold up to {LARGEST_LR:g} "
            "(twice that hurts)"
        )


# Fields beside the loop's that a run which is resumed need not repeat.
RUN_FIELDS = ("images_per_device", "validation_images", "validation_beams", "sample_pictures",
              "skip_bad_images")  # fmt: skip


def check_recipe(recipe: CaptionRecipe) -> None:
    """Refuses numbers that cannot be meant.

    Raises:
        ScaError: naming the field and what was expected.
    """
    positive = ("steps", "images_per_step", "images_per_device", "regions_per_image", "lr_images",
                "mixer_layers", "caption_tokens", "validate_every", "checkpoint_every",
                "report_every", "validation_beams")  # fmt: skip
    for name in positive:
        if getattr(recipe, name) < 1:
            raise ScaError(f"{name}={getattr(recipe, name)}: expected at least 1")
    if not recipe.lr > 0:
        raise ScaError(f"lr={recipe.lr}: expected a number above 0")
    if recipe.precision not in ("no", "bf16", "fp16"):
        raise ScaError(f"precision={recipe.precision}: expected no, bf16 or fp16")
    scales = recipe.jitter_scales
    if scales is not None and not 0 < scales[0] <= scales[1]:
        raise ScaError(f"jitter_scales={scales}: expected two scales, the smaller first")
    if not 0 <= recipe.flip_chance <= 1:
        raise ScaError(f"flip_chance={recipe.flip_chance}: expected a number from 0 to 1")


_ABLATION = CaptionRecipe(name="vg-ablation")  # 8 GPUs x 1 image, lr 1e-4, 200k steps, no jitter
_MAIN = replace(  # 32 GPUs x 1 image, lr 4e-4, 200k steps, jitter of 0.1 to 2.0
    _ABLATION, name="vg", images_per_step=32, jitter_scales=(0.1, 2.0), flip_chance=0.5
)
_OBJECTS365 = (DataPart("objects365", IMAGES["objects365"]),)
_MIX = tuple(DataPart(name, IMAGES[name]) for name in ("coco", "v3det", "objects365"))

_RECIPES = (
    _ABLATION,
    _MAIN,
    replace(
        _MAIN,
        name="vg-llama",
        language_model="openlm-research/open_llama_3b_v2",
        gradient_checkpointing=True,
    ),
    # Of a 200k-step schedule the first half: fine-tuning starts from the 100k-step checkpoint.
    # 64 GPUs (paper); 4e-4 is the largest rate that worked, whatever linear scaling says.
    replace(
        _MAIN,
        name="objects365-pretrain",
        data=_OBJECTS365,
        images_per_step=64,
        lr=4e-4,
        lr_images=64,
        stop_at=100_000,
    ),
    replace(_MAIN, name="vg-finetune", start="runs/objects365-pretrain/model", steps=100_000),
    # Weak supervision: class names as captions. Task "caption" throughout, as in the reference,
    # whose released models never saw the task "recognition".
    *(
        replace(_ABLATION, name=f"weak-{name}", data=(DataPart(name, IMAGES[name]),))
        for name in ("coco", "v3det", "objects365")
    ),
    replace(_ABLATION, name="weak-mix", data=_MIX),
    replace(
        _ABLATION, name="weak-finetune", start="runs/weak-mix/model", steps=100_000
    ),  # then the ablation's settings on Visual Genome
)

# Table 2 of the supplement: backbones, and the name of the recipe for each.
_BACKBONES = {
    "clip336": "vit_large_patch14_clip_336.openai",
    "clip224": "vit_large_patch14_clip_224.datacompxl",
    "eva02": "eva02_large_patch14_clip_336.merged2b",
    "dinov2": "vit_large_patch14_reg4_dinov2.lvd142m",
    "mae": "vit_large_patch16_224.mae",
}
# All five are 1,024 wide, and so must be the image encoder of the SAM that gives the decoder.
_ENCODERS = tuple(
    replace(_ABLATION, name=f"encoder-{short}", timm_encoder=name, sam="facebook/sam-vit-large")
    for short, name in _BACKBONES.items()
)
# The lower half of the table trains SAM's own feature mixer as well.
_WITH_SAM_MIXER = tuple(
    replace(recipe, name=f"{recipe.name}-sam-mixer", also_trained=("mask_decoder.transformer",))
    for recipe in _ENCODERS
)

CAPTION_RECIPES: dict[str, CaptionRecipe] = {
    recipe.name: recipe for recipe in (*_RECIPES, *_ENCODERS, *_WITH_SAM_MIXER)
}
