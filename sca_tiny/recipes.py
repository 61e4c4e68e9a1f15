"""Recipes of the bundled model: five stages, every number with its reason or source."""

from __future__ import annotations

from dataclasses import dataclass, field, fields

from sca_batch.model.config import ScaConfig, config_from_dict
from sca_batch.options import replace_fields
from sca_batch.records import JsonObject
from sca_batch.train.recipes import CaptionRecipe, DataPart

__all__ = [
    "TINY", "TINY_RECIPES", "LanguageRecipe", "LanguageSizes", "ReadingRecipe", "SamRecipe",
    "SamSizes", "SceneCaptionRecipe", "Stage", "TinyRecipe", "with_workers",
]  # fmt: skip


@dataclass(frozen=True, slots=True)
class SamSizes:
    """Sizes of a small SAM on a convolutional backbone of timm."""

    image_size: int = 256
    cell: int = 8  # pixels of one cell of the embedding: masks then have 128 cells a side
    # 3.4 M parameters without its head; plain convolutions, and ImageNet weights in a package.
    backbone: str = "tf_efficientnet_lite0"
    levels: tuple[int, ...] = (0, 1, 2, 3, 4)  # strides 2 to 32; the first for edges of masks
    prompt_width: int = 128
    decoder_layers: int = 2  # SAM's
    decoder_heads: int = 4  # 16 channels a head, as in SAM
    decoder_mlp: int = 512

    def config(self) -> ScaConfig:
        """The configuration, through the published form of config.json.

        A SAM alone needs no mixer and no language model: their sizes are the smallest ones.
        """
        raw: JsonObject = {
            "architectures": ["ScaTimmPyramidModel"],
            "timm_vision_name": self.backbone,
            "timm_levels": list(self.levels),
            "num_task_tokens": 1,
            "vision_config": {
                "output_channels": self.prompt_width,
                "image_size": self.image_size,
                "patch_size": self.cell,
                "num_pos_feats": self.prompt_width // 2,
            },
            "prompt_encoder_config": {
                "hidden_size": self.prompt_width,
                "image_size": self.image_size,
                "patch_size": self.cell,
                "mask_input_channels": 16,
                "num_point_embeddings": 4,
                "hidden_act": "gelu",
                "layer_norm_eps": 1e-6,
            },
            "mask_caption_decoder_config": {
                "hidden_size": self.prompt_width,
                "hidden_act": "relu",
                "mlp_dim": self.decoder_mlp,
                "num_hidden_layers": self.decoder_layers,
                "num_attention_heads": self.decoder_heads,
                "attention_downsample_rate": 2,
                "num_multimask_outputs": 3,
                "iou_head_depth": 3,
                "iou_head_hidden_dim": self.prompt_width,
                "layer_norm_eps": 1e-6,
                "additional_num_hidden_layers": 1,
                "num_caption_tokens": 1,
                "num_caption_heads": 1,
            },
            "text_config": {"model_type": "gpt2", "n_embd": 2, "n_layer": 1, "n_head": 1},
        }
        return config_from_dict(raw, where="recipe")


@dataclass(frozen=True, slots=True)
class SamRecipe:
    """A small SAM on composed scenes. Counts are per image unless the name says otherwise."""

    name: str = "tiny-sam"
    sizes: SamSizes = field(default_factory=SamSizes)
    seed: int = 42  # the reference code's
    # To go on from instead of ImageNet: the folder of a SAM or of a whole model, or a checkpoint
    # (.pt) of an earlier run, which has the classifiers too, and quality scores before calibration.
    start: str = ""
    skipped_batches: int = 0  # whose scenes that run has seen

    steps: int = 8_000
    images_per_step: int = 8  # many small steps: data is endless, time is not
    images_per_device: int = 8
    # The first steps see dense scenes and learn names alone: an object without a mask to decode
    # costs an eighth.
    naming_steps: int = 1_078
    naming_images_per_device: int = 16
    dense_images_per_device: int = 2  # of the later batches: more names an image
    named_images_per_device: int = 4  # beside them, natural scenes that give names alone
    boxes_per_image: int = 2
    points_per_image: int = 2
    background_points_per_image: int = 1

    # How often a batch has each scene, every other time mirrored, with prompts of its own: for
    # devices that train faster than processors compose (batch augmentation, arXiv:1901.09335).
    views: int = 1
    restyled_share: float = 0.25  # images in other colours: another style of drawing has others

    # Boxes of automatic masks are off by a pixel or two; given ones by more.
    box_jitter: float = 0.05
    exact_boxes: float = 0.3

    # Train only what masks are upscaled with and high-res features: what captions read stays as it
    # is, so that a model whose mixer is trained can have better edges.
    edges_alone: bool = False

    # The first of the backbone's stages stay as ImageNet made them, and so do all depthwise
    # kernels: edges and textures are the same everywhere, and on a CPU they take most of the time
    # of a step for a twentieth of the weights.
    frozen_stages: int = 3
    frozen_depthwise: bool = True
    lr: float = 1e-3
    backbone_lr_factor: float = 0.5  # it starts from ImageNet, the rest from nothing
    warmup_steps: int = 200  # SCA's
    betas: tuple[float, float] = (0.9, 0.98)
    weight_decay: float = 0.05
    clip_norm: float = 1.0  # SCA's

    # SAM, appendix A: focal 20 : dice 1 : IoU 1. Four times that, or names take the decoder over.
    focal_weight: float = 80.0
    dice_weight: float = 4.0
    iou_weight: float = 4.0
    # SAM trains only the best of the three masks, for prompts that mean several things. Here a
    # point on an object means what is seen of that object, and all three may learn it.
    other_masks_weight: float = 0.2
    geometry_weight: float = 4.0  # of each of the embedding's own losses of shape
    # Names, by classifiers that are thrown away: 0 is SAM's own training.
    label_weight: float = 0.5
    label_smoothing: float = 0.1  # SCA's

    precision: str = "bf16"
    validate_every: int = 500
    validation_scenes: int = 40
    # The IoU head's squared error on 40 other scenes was 0.032 after 40 scenes, 0.025 after 400 and
    # 0.023 after 800.
    calibration_scenes: int = 600
    checkpoint_every: int = 50
    report_every: int = 20
    workers: int = 1


@dataclass(frozen=True, slots=True)
class LanguageSizes:
    """Sizes of a small GPT-2."""

    vocab_size: int = 4_000  # an upper bound: merges stop at whole words
    width: int = 256
    layers: int = 4
    heads: int = 4
    positions: int = 96


@dataclass(frozen=True, slots=True)
class LanguageRecipe:
    """A small causal language model on what the captions of composed scenes say.

    A document is what is said of one object, its name first, each text behind an end token. So the
    model learns to say of a thing again what stands before, which is what SCA's queries need of it.
    """

    name: str = "tiny-language"
    sizes: LanguageSizes = field(default_factory=LanguageSizes)
    seed: int = 42
    scenes: int = 3_000  # whose captions are the corpus: about 18,000 objects
    steps: int = 800
    documents_per_step: int = 48
    documents_per_device: int = 48
    texts_per_document: int = 4
    lr: float = 1.5e-3
    warmup_steps: int = 100
    betas: tuple[float, float] = (0.9, 0.98)
    weight_decay: float = 0.1
    clip_norm: float = 1.0
    precision: str = "bf16"
    validate_every: int = 250
    validation_documents: int = 400
    checkpoint_every: int = 100
    report_every: int = 20
    workers: int = 1


@dataclass(frozen=True, slots=True)
class ReadingRecipe:
    """The language model learns to read SAM's embedding, averaged inside an object's mask.

    The mixer alone, between parts that know nothing of each other, would need far more captions
    than a small training has.
    """

    name: str = "tiny-reading"
    sam: str = "sam"
    language_model: str = "language"
    seed: int = 42
    mixer_layers: int = 4  # of the model that is put together here, for the next stage
    caption_tokens: int = 8  # the published models'
    task_tokens: int = 6  # the published models'
    scenes: int = 10_360
    dense_of_eight: int = 3
    steps: int = 1_000
    objects_per_step: int = 96
    objects_per_device: int = 96
    simple_phrases: float = 0.6  # positions and neighbours cannot be read out of one object
    recognition_share: float = 0.1
    lr: float = 1e-3
    warmup_steps: int = 50
    betas: tuple[float, float] = (0.9, 0.98)
    weight_decay: float = 0.1
    clip_norm: float = 1.0
    label_smoothing: float = 0.1
    precision: str = "bf16"
    validate_every: int = 150
    validation_objects: int = 500
    checkpoint_every: int = 100
    report_every: int = 20
    workers: int = 1


@dataclass(frozen=True)
class SceneCaptionRecipe(CaptionRecipe):
    """SCA on composed scenes: the paper's training, with scenes for data.

    SAM and the language model are frozen, and only captions are a loss.
    """

    simple_phrases: float = 0.4  # share of the first, plainest phrase; the rest is drawn evenly
    recognition_share: float = 0.1  # images whose regions' text is the bare label
    box_jitter: float = 0.03
    exact_boxes: float = 0.4
    coarse_steps: int = 1_100  # whose mixer sees a quarter of the image tokens
    pull_weight: float = 1.0  # of the pull on queries towards the object's averaged embedding
    domain_scenes: int = 100  # on which is measured how unsure the model is of its own domain


Stage = LanguageRecipe | SamRecipe | ReadingRecipe | SceneCaptionRecipe


@dataclass(frozen=True, slots=True)
class TinyRecipe:
    """All of the bundled model, one stage after another."""

    name: str = "tiny"
    language: LanguageRecipe = field(default_factory=LanguageRecipe)
    sam: SamRecipe = field(default_factory=SamRecipe)
    edges: SamRecipe = field(
        default_factory=lambda: SamRecipe(
            name="tiny-edges",
            start="sam/checkpoints/step-00008000.pt",
            skipped_batches=8_000,
            edges_alone=True,
            steps=650,
            naming_steps=0,
            # An image that is encoded without a gradient is cheap: more prompts for each.
            named_images_per_device=0,
            boxes_per_image=4,
            points_per_image=3,
            restyled_share=0.1,
            lr=8e-4,
            warmup_steps=20,
            label_weight=0.0,
            validate_every=325,
        )
    )
    reading: ReadingRecipe = field(default_factory=ReadingRecipe)
    caption: SceneCaptionRecipe = field(
        default_factory=lambda: SceneCaptionRecipe(
            name="tiny-caption",
            data=(DataPart("scenes", 0),),
            start="reading",
            steps=1_300,
            images_per_step=6,
            images_per_device=6,
            regions_per_image=6,
            lr=1.5e-3,
            lr_images=6,
            warmup_steps=50,
            betas=(0.9, 0.98),
            precision="bf16",
            validate_every=250,
            validation_images=60,
            sample_pictures=2,
            checkpoint_every=50,
            workers=1,
        )
    )

    @property
    def stages(self) -> tuple[Stage, ...]:
        """In their order."""
        return self.language, self.sam, self.edges, self.reading, self.caption


TINY = TinyRecipe()
TINY_RECIPES: dict[str, TinyRecipe | Stage] = {
    recipe.name: recipe for recipe in (TINY, *TINY.stages)
}


def with_workers(recipe: TinyRecipe | Stage, workers: int) -> TinyRecipe | Stage:
    """The recipe, or each of its stages, with this number of processes that make batches."""
    whole = isinstance(recipe, TinyRecipe)
    stages = [(f.name,) for f in fields(recipe) if f.name != "name"] if whole else [()]
    return replace_fields(recipe, {stage: {"workers": workers} for stage in stages})
