"""Images in, records out: decode, encode, propose, caption. All regrouping lives here."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import islice
from typing import Literal, TypeVar

import numpy as np
import torch
from torch import Tensor

from sca_batch.captioners import Captioner, EncodedImage
from sca_batch.errors import ImageError
from sca_batch.images import DEFAULT_MAX_PIXELS, DecodedImage, Places, preprocess, read_image
from sca_batch.model.memory import Allowance, fit
from sca_batch.model.sca import ScaModel
from sca_batch.records import Caption, CaptionedRegion, ImageRecord, ImageRef, Prompt
from sca_batch.regions.automatic import AutomaticMaskSettings, propose_regions
from sca_batch.regions.given import given_regions
from sca_batch.regions.proposal import Proposal
from sca_batch.regions.select import RegionLimits

__all__ = ["BatchSettings", "Pipeline", "RegionSettings"]

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class RegionSettings:
    """Which regions are captioned; records depend on all of it.

    `source` None takes an image's given regions where the manifest has a list and proposes them
    elsewhere; "auto" always proposes; "given" takes the list and proposes nothing. `limits` and
    `min_caption_score` concern proposed regions: given ones are kept, in order.
    """

    source: Literal["auto", "given"] | None = None
    automatic: AutomaticMaskSettings = field(default_factory=AutomaticMaskSettings)
    limits: RegionLimits = field(default_factory=RegionLimits)
    keep_crop_embeddings: bool = False  # for captions prompted by grid points
    min_caption_score: float = 0.0
    max_pixels: int = DEFAULT_MAX_PIXELS


@dataclass(frozen=True, slots=True)
class BatchSettings:
    """How work is grouped; speed and memory depend on it, records do not."""

    encoder_batch: int = 1
    caption_batch: int = 32
    mask_memory_bytes: int = 1 << 30
    decode_threads: int = 1
    decode_ahead: int = 4
    decode_ahead_bytes: int = 1 << 29
    places: Places = field(default_factory=Places)


@dataclass(slots=True)
class _Waiting:
    """An image on its way: a finished record, or regions that wait for their captions."""

    ref: ImageRef
    image: DecodedImage | None = None
    encoded: EncodedImage | None = None
    proposals: Sequence[Proposal] = ()
    record: ImageRecord | None = None


class Pipeline:
    """One model on one device, and a captioner."""

    def __init__(
        self,
        model: ScaModel,
        captioner: Captioner,
        regions: RegionSettings,
        batches: BatchSettings,
    ) -> None:
        self.model = model
        self.captioner = captioner
        self.regions = regions
        self.batches = batches
        # What fits into memory; batches shrink when they do not, and grow back.
        self._images = Allowance("--encoder-batch", batches.encoder_batch)
        self._points = Allowance("--points-per-batch", regions.automatic.points_per_batch)
        self._captions = Allowance("--caption-batch", batches.caption_batch)
        # Entered around every stage, by name: whoever wants to know how long they take.
        self.watch: Callable[[str], AbstractContextManager[None]] = lambda stage: nullcontext()

    def run(self, refs: Iterable[ImageRef]) -> Generator[ImageRecord]:
        """One record per image, in order. A bad image gives a record that says why."""
        waiting: list[_Waiting] = []
        decoded = self._decode_ahead(refs)
        try:
            while batch := list(islice(decoded, self._images.size)):
                self._encode_and_propose(batch)
                waiting += batch
                # Captions are made for full batches; whatever fills up ends the wait.
                num_regions = sum(len(item.proposals) for item in waiting)
                if num_regions >= self.batches.caption_batch or num_regions == 0:
                    yield from self._caption(waiting)
                    waiting = []
            yield from self._caption(waiting)
        finally:
            decoded.close()

    def run_one(self, ref: ImageRef, image: DecodedImage) -> ImageRecord:
        """The record of an image that is decoded already."""
        item = _Waiting(ref, image=image)
        self._encode_and_propose([item])
        return next(self._caption([item]))

    def _decode_ahead(self, refs: Iterable[ImageRef]) -> Generator[_Waiting]:
        """Decodes in threads while the model runs, bounded by count and by bytes."""
        source = iter(refs)
        pool = ThreadPoolExecutor(self.batches.decode_threads, thread_name_prefix="decode")
        queue: deque[tuple[ImageRef, Future[DecodedImage | ImageError]]] = deque()
        try:
            while True:
                while len(queue) < self.batches.decode_ahead and not self._too_much(queue):
                    ref = next(source, None)
                    if ref is None:
                        break
                    queue.append((ref, pool.submit(self._decode, ref)))
                if not queue:
                    return
                ref, future = queue.popleft()
                result = future.result()
                if isinstance(result, ImageError):
                    yield _Waiting(ref, record=_failed(ref, result))
                else:
                    yield _Waiting(ref, image=result)
        finally:
            pool.shutdown(cancel_futures=True)

    def _decode(self, ref: ImageRef) -> DecodedImage | ImageError:
        try:
            with self.watch("decode"):
                digest = ref.extra.get("sha256")
                return read_image(
                    ref.uri,
                    max_pixels=self.regions.max_pixels,
                    places=self.batches.places,
                    sha256=digest if isinstance(digest, str) else None,
                )
        except ImageError as error:
            return error

    def _too_much(
        self, queue: Iterable[tuple[ImageRef, Future[DecodedImage | ImageError]]]
    ) -> bool:
        held = 0
        for _, future in queue:
            if future.done() and isinstance(image := future.result(), DecodedImage):
                held += image.rgb.nbytes
        return held > self.batches.decode_ahead_bytes

    def _encode_and_propose(self, batch: Sequence[_Waiting]) -> None:
        """Fills in each image's embedding and regions, or its record if there is nothing to say."""
        live = [item for item in batch if item.image is not None]
        with self.watch("encode"):
            encoded = self._one_by_one(live, self._encode, self._images)
        for item, embedding in zip(live, encoded, strict=True):
            if embedding is None:
                continue
            assert item.image is not None
            item.encoded = EncodedImage(item.image.rgb, embedding[0])
            try:
                with self.watch("propose"):
                    proposals = fit(partial(self._propose, item.ref, item.encoded), self._points)
            except ImageError as error:
                item.record = _failed(item.ref, error, item.image)
                continue
            if proposals is None:
                item.record = _out_of_memory(item)
            elif not proposals:
                item.record = _record(item, [])
            else:
                item.proposals = proposals

    def _one_by_one(
        self,
        items: Sequence[_Waiting],
        stage: Callable[[Sequence[_Waiting], int], list[T]],
        allowance: Allowance,
    ) -> list[T | None]:
        """What a stage makes of all items together; alone, of each, if memory does not suffice.

        None for an item that does not fit even so; it has its record then.
        """
        if not items:
            return []
        together = fit(partial(stage, items), allowance)
        if together is not None:
            return list(together)
        results: list[T | None] = []
        for item in items:
            alone = fit(partial(stage, [item]), allowance)
            results.append(None if alone is None else alone[0])
            if alone is None:
                item.record = _out_of_memory(item)
        return results

    @torch.inference_mode()
    def _encode(self, items: Sequence[_Waiting], at_once: int) -> list[tuple[Tensor | None]]:
        """The embedding (1, D, H, W) of each image, or None where nobody will look at it."""
        wanted = [i for i, item in enumerate(items) if self._needs_embedding(item.ref)]
        embeddings: list[Tensor | None] = [None] * len(items)
        size = self.model.config.image_size
        for start in range(0, len(wanted), at_once):
            places = wanted[start : start + at_once]
            pixels = [preprocess(i.image.rgb, size) for i in (items[p] for p in places) if i.image]
            batch = torch.from_numpy(np.stack(pixels)).to(self.model.device)
            for place, embedding in zip(places, self.model.encode_image(batch), strict=True):
                embeddings[place] = embedding[None]
        return [(embedding,) for embedding in embeddings]

    def _needs_embedding(self, ref: ImageRef) -> bool:
        prompts = self._given(ref)
        if prompts is None:
            return True
        if self.captioner.needs_embedding:
            return len(prompts) > 0
        # Only points alone have no place without a mask.
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
                mask_memory_bytes=memory,
            )
        proposals = propose_regions(
            self.model,
            encoded.rgb,
            encoded.embedding,
            replace(self.regions.automatic, points_per_batch=points_at_once),
            mask_memory_bytes=memory,
            keep_crop_embeddings=self.regions.keep_crop_embeddings,
        )
        return self.regions.limits.select(proposals, encoded.size_hw)

    def _caption(self, waiting: Sequence[_Waiting]) -> Iterator[ImageRecord]:
        live = [item for item in waiting if item.record is None]
        captions: list[list[Caption] | None] = []
        if live:
            with self.watch("caption"):
                captions = self._one_by_one(live, self._caption_batch, self._captions)
        of_item = {id(item): found for item, found in zip(live, captions, strict=True) if found}
        for item in waiting:
            yield item.record or self._finish(item, of_item[id(item)])

    def _caption_batch(self, items: Sequence[_Waiting], at_once: int) -> list[list[Caption]]:
        if hasattr(self.captioner, "batch_size"):
            self.captioner.batch_size = at_once
        images = [item.encoded for item in items if item.encoded is not None]
        return self.captioner.caption(images, [item.proposals for item in items])

    def _finish(self, item: _Waiting, captions: Sequence[Caption]) -> ImageRecord:
        if not all(np.isfinite(caption.logprob) for caption in captions):
            overflow = ImageError(
                "not_finite",
                "the model's scores are not finite numbers; half precision overflows on some "
                "images: try --dtype float32",
            )
            return _failed(item.ref, overflow, item.image)
        least = self.regions.min_caption_score
        kept = [
            (proposal, caption)
            for proposal, caption in zip(item.proposals, captions, strict=True)
            if np.exp(caption.logprob) >= least or proposal.region.prompt_type != "grid_point"
        ]
        return _record(item, kept)


def _record(item: _Waiting, captioned: Sequence[tuple[Proposal, Caption]]) -> ImageRecord:
    assert item.image is not None
    height, width = item.image.size_hw
    return ImageRecord(
        ref=item.ref,
        status="ok" if captioned else "empty",
        sha256=item.image.sha256,
        height=height,
        width=width,
        regions=tuple(
            CaptionedRegion(i, proposal.region, caption)
            for i, (proposal, caption) in enumerate(captioned)
        ),
    )


def _out_of_memory(item: _Waiting) -> ImageRecord:
    error = ImageError("oom", "the device's memory does not suffice for this image alone")
    return _failed(item.ref, error, item.image)


def _failed(ref: ImageRef, error: ImageError, image: DecodedImage | None = None) -> ImageRecord:
    height, width = image.size_hw if image else (None, None)
    return ImageRecord(
        ref=ref,
        status="failed",
        sha256=image.sha256 if image else None,
        height=height,
        width=width,
        error_code=error.code,
        error=str(error),
    )
