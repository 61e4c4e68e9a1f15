"""SCA on composed scenes: the paper's task with scenes for data, and scores that scenes allow."""

# ruff: noqa: N815  (shape suffixes)

# Shape letters:  R regions, image by image   Q caption queries   P prefix tokens   L caption ids
#                 E width of the language model   V vocabulary   B, D, H, W image embedding
#                 T tokens of SAM's decoder   N image tokens

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image, ImageDraw
from torch import Tensor, nn
from torch.utils.data import Dataset

from sca_batch.boxes import to_model_frame
from sca_batch.images.pixels import preprocess
from sca_batch.model.checkpoint import save_checkpoint
from sca_batch.model.sca import ScaModel
from sca_batch.model.tokenizer import CaptionTokenizer
from sca_batch.train.batches import TokenizerFolder
from sca_batch.train.caption_task import CaptionTask
from sca_batch.train.captioning import prefix_caption_loss
from sca_batch.train.initial import copy_tokenizer
from sca_batch.train.processes import load_batches
from sca_batch.train.recipes import RUN_FIELDS
from sca_batch.train.samples import CaptionBatch, RegionSample, collate
from sca_batch.train.task import Batch, Losses, Validation, recipe_fingerprint
from sca_batch.train.validation import COLOURS, RegionCaption, score_captions
from sca_tiny.domain import AUTOMATIC_MASKS, measure_domain
from sca_tiny.recipes import SceneCaptionRecipe
from sca_tiny.sam.batches import coverage, jittered
from sca_tiny.sam.losses import pooled_embedding
from sca_tiny.sam.task import validation_scenes
from sca_tiny.scenes.art import Art
from sca_tiny.scenes.compose import Scene, compose_scene
from sca_tiny.scoring import CaptionScore, mean_of, score_captions_of

if TYPE_CHECKING:
    from accelerate import Accelerator

__all__ = ["SceneCaptionTask", "caption_sample", "distance", "mixer_from_decoder"]

FIRST_SEED = 500_000_000  # no scene that SAM was trained on


@dataclass(frozen=True, slots=True)
class SceneBatch(CaptionBatch):
    """A batch of scenes; `cover_RYX` is the share of each cell that an object covers, in 255ths."""

    cover_RYX: Tensor | None = None
    cells_pooled: int = 1  # image tokens of this many cells a side are averaged for the mixer

    def to(self, device: torch.device) -> SceneBatch:
        """The same on a device."""
        assert self.cover_RYX is not None, "a batch of scenes has masks"
        moved = CaptionBatch.to(self, device)
        assert isinstance(moved, SceneBatch)
        return replace(moved, cover_RYX=self.cover_RYX.to(device))


class SceneCaptionStep(nn.Module):
    """One forward pass to the losses: captions, and the queries' distance from an object's average.

    The language model has learnt to read SAM's embedding averaged inside an object's mask
    (`reading/task.py`). Each query is pulled towards that average, which it has to find without the
    mask; captions alone would take tens of thousands of steps to tell it where to look.
    """

    def __init__(self, model: ScaModel, recipe: SceneCaptionRecipe) -> None:
        super().__init__()
        self.model, self.recipe = model, recipe

    def forward(self, batch: SceneBatch) -> Losses:
        model = self.model
        assert batch.pixels_B3SS is not None
        assert batch.cover_RYX is not None
        with torch.no_grad():
            # Without high-res features, which no caption reads.
            embedding_BDHW = model.encode_image(batch.pixels_B3SS)[:, : model.config.width]
            tokens_RTD, features_RND = model.fuse_prompts(
                embedding_BDHW, image_R=batch.image_R, boxes_R4=batch.boxes_R4
            )
            cover_RYX = batch.cover_RYX.float() / 255
            average_RD = pooled_embedding(embedding_BDHW, cover_RYX, batch.image_R)
        queries_RCQD = _mixed(model, tokens_RTD, features_RND, batch.cells_pooled)
        prefix_RPE = model.prefix(queries_RCQD, batch.tasks)
        smoothing = self.recipe.label_smoothing
        caption = prefix_caption_loss(
            model, prefix_RPE, batch.ids_RL, batch.attention_RL, smoothing
        )
        pull = distance(queries_RCQD, average_RD)
        return Losses(caption + self.recipe.pull_weight * pull, {"caption": caption, "pull": pull})


def distance(queries_RCQD: Tensor, average_RD: Tensor) -> Tensor:
    """The squared distance of queries from their object's average, as a share of the average's."""
    wanted = average_RD.float()[:, None, None]
    apart = (queries_RCQD.float() - wanted).square().mean()
    return apart / wanted.square().mean()


def _mixed(model: ScaModel, tokens_RTD: Tensor, features_RND: Tensor, cells: int) -> Tensor:
    """`model.mix` on image tokens that are averaged over `cells` x `cells` of the grid."""
    position_1DHW = model.position_code()
    if cells == 1:
        return model.mix(tokens_RTD, features_RND)
    side = position_1DHW.shape[-1]
    features_RDHW = features_RND.transpose(1, 2).reshape(len(features_RND), -1, side, side)
    pooled = [nn.functional.avg_pool2d(x, cells) for x in (features_RDHW, position_1DHW)]
    features, position = (x.flatten(2).transpose(1, 2) for x in pooled)
    with model.autocast():
        queries_RQD: Tensor = model.mixer(tokens_RTD, features, position)
    return queries_RQD.float()[:, None]


@torch.no_grad()
def mixer_from_decoder(model: ScaModel, seed: int) -> None:
    """Starts the mixer where SAM's decoder ended, in place: the same layers, its tokens as queries.

    They look at the prompted object already, which takes drawn weights most of a short training.
    Of a deeper mixer the further layers keep their weights.
    """
    ours, theirs = model.mixer.transformer, model.mask_decoder.transformer
    for mine, layer in zip(ours.layers, theirs.layers, strict=False):
        mine.load_state_dict(layer.state_dict())
    for name in ("final_attn_token_to_image", "layer_norm_final_attn"):
        getattr(ours, name).load_state_dict(getattr(theirs, name).state_dict())
    own_MD = torch.cat([model.mask_decoder.iou_token.weight, model.mask_decoder.mask_tokens.weight])
    queries_QD = model.mixer.queries.weight
    generator = torch.Generator().manual_seed(seed)
    noise_QD = 0.1 * torch.randn(queries_QD.shape, generator=generator)
    rows = torch.arange(len(queries_QD)) % len(own_MD)
    queries_QD.copy_(own_MD[rows] + noise_QD)


class SceneCaptionTask(CaptionTask):
    """Captions of the objects of composed scenes. See `task.Task`."""

    def __init__(
        self, recipe: SceneCaptionRecipe, model: ScaModel, art: Art, *, tokenizer: Path
    ) -> None:
        super().__init__(recipe, model, [], tokenizer=tokenizer)
        self.scene_recipe, self.art = recipe, art
        self.can_validate = True
        model.vision_encoder.to(memory_format=torch.channels_last)
        self.module = SceneCaptionStep(model, recipe)
        self._scenes: list[Scene] | None = None

    def batches(self, numbers: range) -> Iterator[Batch]:
        config = self.model.config
        data = _SceneBatches(
            self.scene_recipe, self.art, config.image_size, config.grid_size, self.words
        )
        return load_batches(data, numbers, workers=self.recipe.workers)

    def fingerprint(self) -> dict[str, object]:
        kept = recipe_fingerprint(self.recipe, RUN_FIELDS)
        return kept | {"concepts": len(self.art.concepts), "styles": list(self.art.styles)}

    def validate(
        self, accelerator: Accelerator, should_stop: Callable[[], bool]
    ) -> Validation | None:
        """Captions of new compositions; every process does all of them."""
        recipe = self.scene_recipe
        if self._scenes is None:
            self._scenes = validation_scenes(
                self.art, recipe.validation_images, self.model.config.image_size
            )
        tokenizer = self.model.tokenizer
        assert tokenizer is not None, "a model that is validated has a tokenizer"
        size = self.model.config.image_size
        self.model.eval()
        scores: list[CaptionScore] = []
        by_scene: list[list[CaptionScore]] = []
        loss_sum = num_regions = 0.0
        with accelerator.autocast():
            for scene in self._scenes:
                if should_stop():
                    self.model.train()
                    return None
                by_scene.append(
                    score_captions_of(
                        self.model, scene, self.art, num_beams=recipe.validation_beams
                    )
                )
                scores += by_scene[-1]
                sample = caption_sample(scene, size, range(len(scene.masks)))
                grid = self.model.config.grid_size
                batch = scene_batch([sample], scene.masks, tokenizer, grid).to(accelerator.device)
                with torch.no_grad():
                    loss = float(self.module(batch).parts["caption"])
                loss_sum += loss * len(sample.phrases)
                num_regions += len(sample.phrases)
        self.model.train()
        rows = [
            RegionCaption("scenes", i, row.caption, row.references) for i, row in enumerate(scores)
        ]
        return Validation(
            {
                "loss": loss_sum / num_regions,
                "named": mean_of(scores, "named"),
                **score_captions(rows),
                "log_probability": mean_of(scores, "log_probability"),
                "regions": float(len(scores)),
            },
            [
                _painted(scene, rows_of)
                for scene, rows_of in zip(self._scenes, by_scene, strict=True)
            ][: recipe.sample_pictures],
        )

    def export(self, folder: Path) -> None:
        # Beyond the scenes of the validations, which have picked nothing here but may one day.
        scenes = validation_scenes(
            self.art,
            self.scene_recipe.domain_scenes,
            self.model.config.image_size,
            first=self.scene_recipe.validation_images,
        )
        self.model.config = replace(self.model.config, automatic_masks=dict(AUTOMATIC_MASKS))
        domain = measure_domain(self.model.eval(), scenes)
        self.model.config = replace(self.model.config, domain=domain)
        # Half precision is a matter of size: 2e-4 in a logit of a mask.
        save_checkpoint(self.model, folder, dtype=torch.float16)
        copy_tokenizer(self.tokenizer, folder)


class _SceneBatches(Dataset[SceneBatch]):
    """Every batch of a run, made from its number alone."""

    def __init__(
        self, recipe: SceneCaptionRecipe, art: Art, size: int, grid: int, words: TokenizerFolder
    ) -> None:
        self.recipe, self.art, self.size = recipe, art, size
        self.grid, self.words = grid, words

    def __getitem__(self, number: int) -> SceneBatch:
        first = number * self.recipe.images_per_device
        made = [self._sample(first + i) for i in range(self.recipe.images_per_device)]
        masks = np.concatenate([masks for _, masks in made])
        batch = scene_batch([sample for sample, _ in made], masks, self.words.tokenizer, self.grid)
        # The first steps are many and coarse: a quarter of the image tokens, a quarter of the time.
        coarse = first < self.recipe.coarse_steps * self.recipe.images_per_step
        return replace(batch, cells_pooled=2 if coarse else 1)

    def _sample(self, slot: int) -> tuple[RegionSample, npt.NDArray[np.bool_]]:
        recipe = self.recipe
        scene = compose_scene(FIRST_SEED + slot, self.art, size_px=self.size)
        rng = np.random.default_rng([recipe.seed, slot])
        # As many regions for every scene: those with few objects have some of them again.
        order = rng.permutation(len(scene.masks))
        chosen = [int(order[i % len(order)]) for i in range(recipe.regions_per_image)]
        sample = caption_sample(scene, self.size, chosen, recipe=recipe, rng=rng)
        return sample, scene.masks[chosen]


def scene_batch(
    samples: Sequence[RegionSample],
    masks_RYX: npt.NDArray[np.bool_],
    tokenizer: CaptionTokenizer,
    grid: int,
) -> SceneBatch:
    """Stacks scenes with as many regions each; the masks are the regions', `grid` cells a side."""
    plain = collate(samples, tokenizer)
    values = {f.name: getattr(plain, f.name) for f in fields(plain)}
    return SceneBatch(**values, cover_RYX=torch.from_numpy(coverage(masks_RYX, grid)))


def caption_sample(
    scene: Scene,
    size: int,
    chosen: Sequence[int],
    *,
    recipe: SceneCaptionRecipe | None = None,
    rng: np.random.Generator | None = None,
) -> RegionSample:
    """Some objects of a scene as regions of an image.

    With a recipe and a generator boxes are jittered and phrases drawn, otherwise boxes are exact
    and phrases the plainest.
    """
    boxes, phrases, task = [], [], "caption"
    if recipe is not None and rng is not None and rng.random() < recipe.recognition_share:
        task = "recognition"
    for k in chosen:
        captions, box = scene.captions[k], scene.boxes_xyxy[k]
        phrase = captions[0]
        if recipe is not None and rng is not None:
            box = jittered(
                box,
                scene.image.shape[0],
                jitter=recipe.box_jitter,
                exact_share=recipe.exact_boxes,
                rng=rng,
            )
            if rng.random() >= recipe.simple_phrases:
                phrase = captions[rng.integers(len(captions))]
        boxes.append(box)
        phrases.append(scene.concepts[k] if task == "recognition" else phrase)
    size_hw = scene.image.shape[0], scene.image.shape[1]
    return RegionSample(
        key=f"scene {scene.seed}",
        task=task,
        boxes_N4=to_model_frame(np.stack(boxes).astype(np.float64), size_hw, size),
        region_N=np.asarray(chosen),
        phrases=tuple(phrases),
        size_hw=size_hw,
        pixels_3SS=preprocess(scene.image, size),
    )


def _painted(scene: Scene, scores: list[CaptionScore]) -> Image.Image:
    """The scene at twice its size, with boxes and what was said about them."""
    picture = Image.fromarray(scene.image).resize((2 * scene.image.shape[1],) * 2)
    draw = ImageDraw.Draw(picture)
    for k, row in enumerate(scores):
        x0, y0, x1, y1 = (2 * float(side) for side in scene.boxes_xyxy[k])
        colour = COLOURS[k % len(COLOURS)]
        draw.rectangle((x0, y0, x1, y1), outline=colour, width=2)
        draw.text((x0 + 3, y0 + 2), row.caption or "-", fill=colour)
    return picture
