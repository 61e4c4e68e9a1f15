"""Captions by Segment and Caption Anything, batched over the regions of several images."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from sca_batch.captioners.captioner import EncodedImage
from sca_batch.captioners.settings import CaptionSettings
from sca_batch.errors import ScaError
from sca_batch.model.language import Hypothesis
from sca_batch.model.sca import ScaModel
from sca_batch.records import Caption
from sca_batch.regions.proposal import (
    ModelPrompt,
    Proposal,
    batches_by_layout,
    prompt_tensors,
    proposal_prompts,
)

__all__ = ["ScaCaptioner"]


class ScaCaptioner:
    """One model and its settings. A batch is regions of whatever images they are."""

    needs_pixels = False
    needs_embedding = True

    def __init__(self, model: ScaModel, settings: CaptionSettings) -> None:
        if model.tokenizer is None:
            raise ScaError(
                "this model has no tokenizer; copy tokenizer.json (or GPT-2's vocab.json and "
                "merges.txt, or OpenLLaMA's tokenizer.model) beside its weights"
            )
        most = model.config.most_new_tokens
        if settings.max_new_tokens > most:
            raise ScaError(
                f"--max-new-tokens {settings.max_new_tokens} is more than this model's language "
                f"model has positions for; expected at most {most}"
            )
        self.model = model
        self.tokenizer = model.tokenizer
        self.settings = settings
        # Captions from grid points are made where the points were: in the crop.
        self.needs_crop_embeddings = settings.prompt == "point"

    @torch.inference_mode()
    def caption(
        self, images: Sequence[EncodedImage], regions: Sequence[Sequence[Proposal]], at_once: int
    ) -> list[list[Caption]]:
        """Captions of each image's regions, in their order, made `at_once` regions at a time."""
        image_size = self.model.config.image_size
        asked: list[list[int]] = []  # for each image, which prompt each region is captioned from
        prompts: list[ModelPrompt] = []
        embeddings: list[Tensor] = []  # that of each prompt: its crop's, or its image's
        index_of: dict[int, int] = {}
        for image, proposals in zip(images, regions, strict=True):
            assert image.embedding is not None, "the pipeline encodes for this captioner"
            asked.append([])
            for prompt in proposal_prompts(
                proposals, self.settings.prompt, image.size_hw, image_size
            ):
                # The masks of one grid point share its prompt, and so its caption.
                if id(prompt) not in index_of:
                    index_of[id(prompt)] = len(prompts)
                    prompts.append(prompt)
                    own = prompt.crop_embedding
                    embeddings.append(image.embedding if own is None else own)
                asked[-1].append(index_of[id(prompt)])
        captions: dict[int, Caption] = {}
        for batch in batches_by_layout(prompts, at_once):
            found = self._caption_batch([prompts[i] for i in batch], [embeddings[i] for i in batch])
            captions |= zip(batch, found, strict=True)
        return [[captions[index] for index in of_image] for of_image in asked]

    def _caption_batch(
        self, prompts: Sequence[ModelPrompt], embeddings: Sequence[Tensor]
    ) -> list[Caption]:
        distinct = {id(embedding): embedding for embedding in embeddings}
        index_of = {key: index for index, key in enumerate(distinct)}
        device = self.model.device
        found = self.model.region_queries(
            torch.cat(list(distinct.values())),
            image_R=torch.tensor([index_of[id(e)] for e in embeddings], device=device),
            **prompt_tensors(prompts, device),
        )
        generated = self.model.generate(
            found.queries,
            tasks=self.settings.task,
            num_beams=self.settings.num_beams,
            max_new_tokens=self.settings.max_new_tokens,
            num_kept=self.settings.captions_per_region,
        )
        iou_R3 = found.iou[:, 1:].cpu()
        return [self._choose(heads, iou) for heads, iou in zip(generated, iou_R3, strict=True)]

    def _choose(self, heads: list[list[Hypothesis]], iou_3: Tensor) -> Caption:
        """The caption of one region, and everything that was kept beside it.

        With several caption heads it is that of the mask with the highest predicted IoU when
        there are as many heads as masks, else that of the first, as in the published evaluation.
        """
        chosen = int(iou_3.argmax()) if len(heads) == len(iou_3) else 0
        if not heads[chosen]:
            # No beam has a finite score; the pipeline makes this image's record a failed one.
            return Caption(text="", logprob=math.nan)
        best = heads[chosen][0]
        return Caption(
            text=self.tokenizer.decode(best.ids),
            logprob=best.logprob,
            alternatives=tuple(
                (self.tokenizer.decode(beam.ids), beam.logprob) for head in heads for beam in head
            ),
        )
