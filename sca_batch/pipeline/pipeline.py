"""Images in, records out: decode, encode, propose, caption. All regrouping lives here."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, closing, nullcontext
from dataclasses import replace
from functools import partial
from itertools import islice
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from sca_batch.captioners.captioner import Captioner, EncodedImage
from sca_batch.errors import ImageError
from sca_batch.images.decode import ANYWHERE, DecodedImage, read_image
from sca_batch.images.pixels import preprocess
from sca_batch.images.policy import ReadPolicy
from sca_batch.model.memory import Allowance, fit
from sca_batch.model.sca import ScaModel
from sca_batch.pipeline.ahead import decode_ahead
from sca_batch.pipeline.settings import BatchSettings
from sca_batch.pipeline.waiting import (
    Waiting,
    failed_record,
    finished_record,
    out_of_memory_record,
)
from sca_batch.records import Caption, ImageRecord, ImageRef, Prompt
from sca_batch.regions.automatic import propose_regions
from sca_batch.regions.given import given_regions
from sca_batch.regions.proposal import Proposal
from sca_batch.regions.select import select_regions
from sca_batch.regions.settings import RegionSettings

__all__ = ["Pipeline", "Watch"]

T = TypeVar("T")

Watch = Callable[[str], AbstractContextManager[None]]


def unwatched(stage: str) -> AbstractContextManager[None]:
    """The watch of those who do not want to know."""
    return nullcontext()


class Pipeline:
    """One model on one device, and a captioner."""

    def __init__(
        self,
        model: ScaModel,
        captioner: Captioner,
        regions: RegionSettings,
        batches: BatchSettings,
        policy: ReadPolicy = ANYWHERE,
        watch: Watch = unwatched,
    ) -> None:
        # Entered around every stage, by its name.
        self.model = model
        self.captioner = captioner
        self.regions = regions
        self.batches = batches
        self.policy = policy
        # What fits into memory; batches shrink when they do not, and grow back.
        self._images = Allowance("--encoder-batch", batches.encoder_batch)
        self._points = Allowance("--points-per-batch", regions.automatic.points_per_batch)
        self._captions = Allowance("--caption-batch", batches.caption_batch)
        self.watch = watch

    def run(self, refs: Iterable[ImageRef]) -> Generator[ImageRecord]:
        """One record per image, in order. A bad image gives a record that says why."""
        waiting: list[Waiting] = []
        decoded = self._decode_ahead(refs)
        try:
            while batch := list(islice(decoded, self._images.size)):
                self._encode_and_propose(batch)
                waiting += batch
                # Captions are made for full batches; whatever fills up ends the wait.
                num_regions = sum(len(item.proposals) for item in waiting)
                is_heavy = sum(i.pixel_bytes for i in waiting) > self.batches.decode_ahead_bytes
                if num_regions >= self.batches.caption_batch or num_regions == 0 or is_heavy:
                    yield from self._caption(waiting)
                    waiting = []
            yield from self._caption(waiting)
        finally:
            decoded.close()

    def run_one(self, ref: ImageRef, image: DecodedImage) -> ImageRecord:
        """The record of an image that is decoded already."""
        item = Waiting.of(ref, image)
        self._encode_and_propose([item])
        return next(self._caption([item]))

    def _decode_ahead(self, refs: Iterable[ImageRef]) -> Generator[Waiting]:
        """Decodes in threads while the model runs, bounded by count and by bytes."""
        with closing(decode_ahead(refs, self._decode, self.batches)) as decoded:
            for ref, result in decoded:
                if isinstance(result, ImageError):
                    yield Waiting(ref, record=failed_record(Waiting(ref), result))
                else:
                    yield Waiting.of(ref, result)

    def _decode(self, ref: ImageRef) -> DecodedImage | ImageError:
        try:
            with self.watch("decode"):
                digest = ref.extra.get("sha256")
                return read_image(
                    ref.uri,
                    policy=self.policy,
                    sha256=digest if isinstance(digest, str) else None,
                )
        except ImageError as error:
            return error

    def _encode_and_propose(self, batch: Sequence[Waiting]) -> None:
        """Fills in each image's embedding and regions, or its record if there is nothing to say."""
        live = [item for item in batch if item.image is not None]
        with self.watch("encode"):
            encoded = self._one_by_one(live, self._encode, self._images)
        for i, embedding in encoded.items():
            item = live[i]
            assert item.image is not None
            item.encoded = EncodedImage(
                item.image.size_hw, None if embedding is None else embedding[None], item.image.rgb
            )
            try:
                with self.watch("propose"):
                    proposals = fit(partial(self._propose, item.ref, item.encoded), self._points)
            except ImageError as error:
                item.record = failed_record(item, error)
                continue
            if proposals is None:
                item.record = out_of_memory_record(item)
            elif not proposals:
                item.record = finished_record(item, [])
            else:
                item.proposals = proposals
        for item in batch:
            if item.record is not None or not self.captioner.needs_pixels:
                item.drop_pixels()

    def _one_by_one(
        self,
        items: Sequence[Waiting],
        stage: Callable[[Sequence[Waiting], int], Sequence[T]],
        allowance: Allowance,
    ) -> dict[int, T]:
        """Results of a stage for all items together; for each alone, if memory does not suffice.

        By the item's index in `items`; one that does not fit even so has its record instead.
        """
        if not items:
            return {}
        together = fit(partial(stage, items), allowance)
        if together is not None:
            return dict(enumerate(together))
        results: dict[int, T] = {}
        for i, item in enumerate(items):
            alone = fit(partial(stage, [item]), allowance)
            if alone is None:
                item.record = out_of_memory_record(item)
            else:
                results[i] = alone[0]
        return results

    @torch.inference_mode()
    def _encode(self, items: Sequence[Waiting], at_once: int) -> list[Tensor | None]:
        """The embedding (D, H, W) of each image, or None where nobody will look at it."""
        wanted = [i for i, item in enumerate(items) if self._needs_embedding(item.ref)]
        embeddings: list[Tensor | None] = [None] * len(items)
        size = self.model.config.image_size
        for start in range(0, len(wanted), at_once):
            batch = wanted[start : start + at_once]
            pixels = [preprocess(i.image.rgb, size) for i in (items[b] for b in batch) if i.image]
            stacked = torch.from_numpy(np.stack(pixels)).to(self.model.device)
            for i, embedding in zip(batch, self.model.encode_image(stacked), strict=True):
                embeddings[i] = embedding
        return embeddings

    def _needs_embedding(self, ref: ImageRef) -> bool:
        prompts = self._given(ref)
        if prompts is None:
            return True
        if self.captioner.needs_embedding:
            return len(prompts) > 0
        # Only points alone have no box without a mask.
        return any(prompt.prompt_type == "points" and not prompt.box_xyxy for prompt in prompts)

    def _given(self, ref: ImageRef) -> tuple[Prompt, ...] | None:
        """The regions that the manifest gives and the settings allow; None to propose some."""
        if self.regions.source == "auto":
            return None
        if self.regions.source == "given":
            return ref.prompts or ()
        return ref.prompts

    def _propose(
        self, ref: ImageRef, encoded: EncodedImage, points_at_once: int
    ) -> Sequence[Proposal]:
        memory = self.batches.mask_memory_bytes
        prompts = self._given(ref)
        if prompts is not None:
            return given_regions(
                self.model,
                encoded.embedding,
                encoded.size_hw,
                prompts,
                with_masks=self.captioner.needs_embedding,
                prompts_per_batch=points_at_once,
                mask_memory_bytes=memory,
            )
        assert encoded.rgb is not None, "pixels are let go of when regions are there"
        proposals = propose_regions(
            self.model,
            encoded.rgb,
            encoded.embedding,
            replace(self.regions.automatic, points_per_batch=points_at_once),
            mask_memory_bytes=memory,
            keep_crop_embeddings=self.captioner.needs_crop_embeddings,
        )
        return select_regions(proposals, self.regions.limits, encoded.size_hw)

    def _caption(self, waiting: Sequence[Waiting]) -> Iterator[ImageRecord]:
        live = [item for item in waiting if item.record is None]
        captions: dict[int, list[Caption]] = {}
        if live:
            with self.watch("caption"):
                captions = self._one_by_one(live, self._caption_batch, self._captions)
        of_item = {id(live[i]): found for i, found in captions.items()}
        for item in waiting:
            yield item.record or self._finish(item, of_item[id(item)])

    def _caption_batch(self, items: Sequence[Waiting], at_once: int) -> list[list[Caption]]:
        images = [item.encoded for item in items if item.encoded is not None]
        return self.captioner.caption(images, [item.proposals for item in items], at_once)

    def _finish(self, item: Waiting, captions: Sequence[Caption]) -> ImageRecord:
        if not all(np.isfinite(caption.logprob) for caption in captions):
            overflow = ImageError(
                "not_finite",
                "the model's scores are not finite numbers; half precision overflows on some "
                "images: try --dtype float32",
            )
            return failed_record(item, overflow)
        least = self.regions.min_caption_score
        kept = [
            (proposal, caption)
            for proposal, caption in zip(item.proposals, captions, strict=True)
            if np.exp(caption.logprob) >= least or proposal.region.prompt_type != "grid_point"
        ]
        return finished_record(item, kept)
