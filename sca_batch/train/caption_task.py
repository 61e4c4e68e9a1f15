"""The paper's training: captions of regions, with SAM and the language model frozen."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

from sca_batch.errors import ScaError
from sca_batch.manifests.references import CaptionedImages, read_captioned
from sca_batch.model.checkpoint import save_checkpoint
from sca_batch.model.sca import ScaModel
from sca_batch.train.batches import (
    EmbeddingCache,
    RegionBatches,
    TokenizerFolder,
    encoder_fingerprint,
)
from sca_batch.train.captioning import region_caption_loss
from sca_batch.train.initial import copy_tokenizer, starting_model
from sca_batch.train.loop import Outcome, RunOptions, room_on_disk, run_task
from sca_batch.train.optimization import ParameterGroup, parameter_groups, select_trainable
from sca_batch.train.processes import gathered, load_batches, main_only, open_accelerator
from sca_batch.train.recipes import RUN_FIELDS, CaptionRecipe, check_recipe
from sca_batch.train.samples import CaptionBatch
from sca_batch.train.state import Checkpoints
from sca_batch.train.task import (
    Batch,
    BatchFailure,
    Losses,
    Report,
    RunSettings,
    Task,
    Validation,
    recipe_fingerprint,
)
from sca_batch.train.validation import Captioned, caption_image, paint, score_captions

if TYPE_CHECKING:
    from accelerate import Accelerator

__all__ = ["CaptionStep", "CaptionTask", "caption_settings", "train_captioner"]


def train_captioner(
    recipe: CaptionRecipe,
    manifests: Mapping[str, Path],
    out: Path,
    options: RunOptions,
    *,
    validation: Path | None = None,
    cache: Path | None = None,
) -> Outcome:
    """Trains `recipe` into `out`, and leaves a model in the published format in `out/model`.

    `manifests` has one manifest for each data set of the recipe. With `cache`, embeddings are kept
    in that folder and the encoder runs once per image. The rest is as `loop.run_task` says.

    Raises:
        ScaError: saying what is wrong with the request, the data or the disk; a loss is not
            finite. The last checkpoint is kept.
    """
    check_recipe(recipe)
    settings = caption_settings(recipe)
    accelerator = open_accelerator(settings, cpu=options.run.cpu)
    say = main_only(options.report, accelerator)
    if recipe.warning:
        say(f"Warning: {recipe.warning}")
    sources = _read_sources(recipe, manifests, say)
    held_out = None if validation is None else read_captioned(validation)
    if not options.run.resume:
        Checkpoints(out).refuse_any()
    with room_on_disk(out, options.run.resume):
        out.mkdir(parents=True, exist_ok=True)
        model = starting_model(recipe, out / "tokenizer", write=accelerator.is_main_process)
    accelerator.wait_for_everyone()
    task = CaptionTask(
        recipe, model, sources, tokenizer=out / "tokenizer", held_out=held_out, cache=cache
    )
    return run_task(task, settings, out, options, accelerator)


def _read_sources(
    recipe: CaptionRecipe, manifests: Mapping[str, Path], report: Report
) -> list[CaptionedImages]:
    names = [part.name for part in recipe.data]
    if set(names) != manifests.keys():
        options = " ".join(f"--data {name}=MANIFEST" for name in names)
        raise ScaError(f"recipe {recipe.name} trains on {', '.join(names)}; expected {options}")
    sources = [read_captioned(manifests[name]) for name in names]
    for name, source in zip(names, sources, strict=True):
        left = ", ".join(f"{count:,} {what}" for what, count in source.left_out.items() if count)
        rest = f" (left out, nothing to train on: {left})" if left else ""
        report(f"{name}: {len(source):,} images, {source.num_regions:,} regions{rest}")
    return sources


def caption_settings(recipe: CaptionRecipe) -> RunSettings:
    """The recipe's numbers that are the loop's."""
    return RunSettings(
        recipe,
        lr=recipe.learning_rate,
        images_per_step=recipe.images_per_step,
        images_per_device=recipe.images_per_device,
        ranked_by="cider_d",
        last_step=recipe.last_step,
    )


class CaptionStep(nn.Module):
    """One forward pass to the loss, as one module: what is wrapped for many devices.

    With a cache, an image that is in it is not encoded, and one that is not is added.
    """

    def __init__(
        self, model: ScaModel, label_smoothing: float, cache: EmbeddingCache | None = None
    ) -> None:
        super().__init__()
        self.model, self.label_smoothing, self.cache = model, label_smoothing, cache

    def forward(self, batch: CaptionBatch) -> Losses:
        loss = region_caption_loss(
            self.model,
            self._embedding(batch),
            image_R=batch.image_R,
            prompts={"boxes_R4": batch.boxes_R4},
            ids_RL=batch.ids_RL,
            attention_RL=batch.attention_RL,
            tasks=batch.tasks,
            label_smoothing=self.label_smoothing,
        )
        return Losses(loss, {})

    def _embedding(self, batch: CaptionBatch) -> Tensor:
        if self.cache is None:
            assert batch.pixels_B3SS is not None
            # Gradients are kept only for what is trained.
            trained = any(p.requires_grad for p in self.model.vision_encoder.parameters())
            with torch.set_grad_enabled(torch.is_grad_enabled() and trained):
                return self.model.encode_image(batch.pixels_B3SS)
        new: list[Tensor] = []
        if batch.pixels_B3SS is not None:
            with torch.no_grad():
                new = list(self.model.encode_image(batch.pixels_B3SS))
        found: list[Tensor] = []
        for known, name, size_hw in zip(
            batch.embeddings, batch.cache_names, batch.sizes_hw, strict=True
        ):
            if known is None:
                known = new.pop(0)
                assert name is not None
                self.cache.save(name, known, size_hw)
            found.append(known)
        return torch.stack(found)


class CaptionTask(Task):
    """Captions of the regions of manifests, by a recipe of the paper. See `task.Task`."""

    def __init__(
        self,
        recipe: CaptionRecipe,
        model: ScaModel,
        sources: Sequence[CaptionedImages],
        *,
        tokenizer: Path,
        held_out: CaptionedImages | None = None,
        cache: Path | None = None,
    ) -> None:
        """`model` is the recipe's before the first step; `tokenizer` is its tokenizer's folder.

        Raises:
            ScaError: a cache for images or an encoder that change; a prefix that names nothing.
        """
        if cache is not None and (recipe.jitter_scales is not None or recipe.timm_encoder):
            reason = (
                "images are jittered" if recipe.jitter_scales is not None else "its neck is trained"
            )
            raise ScaError(f"--cache-embeddings: not with recipe {recipe.name}, {reason}")
        self.recipe, self.model, self.sources = recipe, model, sources
        self.held_out, self.tokenizer = held_out, tokenizer
        self.can_validate = held_out is not None
        self.cache: EmbeddingCache | None = None
        if cache is not None:
            folder = cache / encoder_fingerprint(model)
            self.cache = EmbeddingCache(folder, half=recipe.precision != "no")
        select_trainable(model, recipe.also_trained)
        if recipe.gradient_checkpointing:
            model.language_model.gradient_checkpointing_enable()
        # The language model's dropout is active in training, frozen as it is (the reference's).
        self.module: nn.Module = CaptionStep(model.train(), recipe.label_smoothing, self.cache)
        self.name = recipe.name

    def groups(self) -> list[ParameterGroup]:
        return parameter_groups(self.model, lr_factors=self.recipe.lr_factors)

    @property
    def words(self) -> TokenizerFolder:
        return TokenizerFolder(self.tokenizer, self.model.config.eos_token_id)

    def batches(self, numbers: range) -> Iterator[Batch | BatchFailure]:
        size = self.model.config.image_size
        data = RegionBatches(self.recipe, self.sources, size, self.words, cache=self.cache)
        return load_batches(data, numbers, workers=self.recipe.workers, ahead=2)

    def fingerprint(self) -> dict[str, object]:
        manifests = [source.digest()[:16] for source in self.sources]
        return recipe_fingerprint(self.recipe, RUN_FIELDS) | {"manifests": manifests}

    def validate(
        self, accelerator: Accelerator, should_stop: Callable[[], bool]
    ) -> Validation | None:
        """Every device captions its share of the images; the scores are over all of them."""
        recipe, held_out = self.recipe, self.held_out
        assert held_out is not None
        # Spread over the whole split, and the same ones every time.
        count = min(recipe.validation_images, len(held_out))
        chosen = np.linspace(0, len(held_out) - 1, count).round().astype(int).tolist()
        own = chosen[accelerator.process_index :: accelerator.num_processes]
        self.model.eval()
        found: list[Captioned] = []
        for index in own:
            if should_stop():
                break
            with accelerator.autocast():
                image = held_out[index]
                found.append(caption_image(self.model, image, num_beams=recipe.validation_beams))
        self.model.train()
        if any(gathered(accelerator, [len(found) < len(own)])):
            return None
        found = gathered(accelerator, found)
        captions = [row for each in found for row in each.captions]
        tokens = max(sum(each.num_tokens for each in found), 1)
        scores = {
            "loss": sum(each.loss_sum for each in found) / tokens,
            **score_captions(captions),
            "regions": float(len(captions)),
        }
        shown = chosen[: recipe.sample_pictures] if accelerator.is_main_process else []
        return Validation(scores, [paint(held_out[index], captions) for index in shown])

    def export(self, folder: Path) -> None:
        save_checkpoint(self.model, folder)
        copy_tokenizer(self.tokenizer, folder)
