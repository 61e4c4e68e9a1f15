"""The paper's training as a task: captions of regions, with SAM and the language model frozen."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from sca_batch.errors import ScaError
from sca_batch.manifests.references import CaptionedImages
from sca_batch.model.checkpoint import save_checkpoint
from sca_batch.model.sca import ScaModel
from sca_batch.train.batches import RegionBatches
from sca_batch.train.captioning import region_caption_loss
from sca_batch.train.embeddings import EmbeddingCache, encoder_fingerprint
from sca_batch.train.optimization import (
    ParameterGroup,
    parameter_groups,
    select_trainable,
)
from sca_batch.train.processes import begin_batch_worker, gathered
from sca_batch.train.recipes import RUN_FIELDS, CaptionRecipe
from sca_batch.train.samples import CaptionBatch
from sca_batch.train.start import copy_tokenizer
from sca_batch.train.task import BatchFailure, Losses, RunSettings, Validation, settings_of
from sca_batch.train.validation import Validated, caption_images, paint, score_captions

__all__ = ["CaptionStep", "CaptionTask", "run_settings"]


def run_settings(recipe: CaptionRecipe) -> RunSettings:
    """The recipe's numbers that are the loop's."""
    return settings_of(
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


class CaptionTask:
    """Captions of the regions of manifests, by a recipe of the paper. See `task.Task`."""

    can_validate: bool

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

    def batches(self, numbers: range) -> Iterator[CaptionBatch | BatchFailure]:
        recipe = self.recipe
        data = RegionBatches(
            recipe,
            self.sources,
            size=self.model.config.image_size,
            tokenizer_folder=self.tokenizer,
            eos_token_id=self.model.config.eos_token_id,
            cache=self.cache,
        )
        return iter(
            DataLoader(
                data,
                batch_size=None,
                sampler=numbers,
                num_workers=recipe.workers,
                prefetch_factor=2 if recipe.workers else None,
                worker_init_fn=begin_batch_worker,
            )
        )

    def fingerprint(self) -> dict[str, Any]:
        kept = {k: v for k, v in asdict(self.recipe).items() if k not in RUN_FIELDS}
        return kept | {"manifests": [source.digest()[:16] for source in self.sources]}

    def state(self) -> dict[str, Any]:
        return {}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """There is none beside the weights."""

    def validate(self, accelerator: Any, should_stop: Callable[[], bool]) -> Validation | None:
        """Every device captions its share of the images; the scores are over all of them."""
        recipe, held_out = self.recipe, self.held_out
        assert held_out is not None
        # Spread over the whole split, and the same ones every time.
        count = min(recipe.validation_images, len(held_out))
        chosen = np.linspace(0, len(held_out) - 1, count).round().astype(int).tolist()
        own = chosen[accelerator.process_index :: accelerator.num_processes]
        with accelerator.autocast():
            part = caption_images(
                self.model,
                held_out,
                own,
                num_beams=recipe.validation_beams,
                should_stop=should_stop,
            )
        parts: list[Validated] = gathered(accelerator, [part])
        if any(each.stopped for each in parts):
            return None
        captions = [row for each in parts for row in each.captions]
        tokens = max(sum(each.num_tokens for each in parts), 1)
        scores = {
            "loss": sum(each.loss_sum for each in parts) / tokens,
            **score_captions(captions),
            "regions": float(len(captions)),
        }
        shown = chosen[: recipe.sample_pictures] if accelerator.is_main_process else []
        return Validation(scores, [paint(held_out, index, captions) for index in shown])

    def export(self, folder: Path) -> None:
        save_checkpoint(self.model, folder)
        copy_tokenizer(self.tokenizer, folder)
