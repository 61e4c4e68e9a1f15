"""The batches of a run on real images, made in worker processes from their numbers alone."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from safetensors import SafetensorError
from safetensors.numpy import load_file, save
from torch import Tensor
from torch.utils.data import Dataset

from sca_batch.errors import ImageError, ScaError
from sca_batch.images.decode import read_image
from sca_batch.manifests.references import CaptionedImage, CaptionedImages
from sca_batch.model.sca import ScaModel
from sca_batch.model.tokenizer import CaptionTokenizer, read_tokenizer
from sca_batch.storage.atomic import writing
from sca_batch.train.order import SampleOrder
from sca_batch.train.recipes import CaptionRecipe
from sca_batch.train.samples import CaptionBatch, RegionSample, collate, draw, training_sample
from sca_batch.train.task import BatchFailure

__all__ = ["EmbeddingCache", "RegionBatches", "TokenizerFolder", "encoder_fingerprint"]

Floats = npt.NDArray[np.float32]


class EmbeddingCache:
    """One file per image and flip, in a folder per encoder.

    Embeddings are float32, or float16 behind an encoder that runs in half precision: 4 MiB or 2
    MiB for each image at SAM's size.
    """

    def __init__(self, folder: Path, *, half: bool) -> None:
        self.folder, self.half = folder, half

    def name(self, key: str, uri: str, *, flipped: bool) -> str:
        return hashlib.sha256(f"{key}\n{uri}\n{flipped}".encode()).hexdigest()

    def load(self, name: str) -> tuple[Floats, tuple[int, int]] | None:
        """The embedding (D, H, W) and the image's size (height, width), or None."""
        path = self._path(name)
        if not path.exists():
            return None
        try:
            stored = load_file(path)
            embedding, (height, width) = stored["embedding"], stored["size_hw"].tolist()
        except (SafetensorError, KeyError, ValueError):  # made anew, and written over
            return None
        return embedding.astype(np.float32), (int(height), int(width))

    def save(self, name: str, embedding_DHW: Tensor, size_hw: tuple[int, int]) -> None:
        dtype = np.float16 if self.half else np.float32
        tensors = {
            # Safetensors writes memory as it lies, whatever the strides say.
            "embedding": np.ascontiguousarray(embedding_DHW.detach().float().cpu(), dtype),
            "size_hw": np.array(size_hw, np.int64),
        }
        path = self._path(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        with writing(path) as file:
            file.write(save(tensors))

    def _path(self, name: str) -> Path:
        return self.folder / name[:2] / f"{name}.safetensors"


def encoder_fingerprint(model: ScaModel) -> str:
    """Sixteen hex digits over the weights of the image encoder."""
    digest = hashlib.sha256()
    for name, value in sorted(model.vision_encoder.state_dict().items()):
        digest.update(f"{name} {tuple(value.shape)}\n".encode())
        digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()[:16]


MOST_ATTEMPTS = 50


@dataclass(frozen=True)
class TokenizerFolder:
    """A tokenizer by its folder: its functions do not travel to another process, this does."""

    folder: Path
    eos_token_id: int

    @cached_property
    def tokenizer(self) -> CaptionTokenizer:
        return read_tokenizer(self.folder, eos_token_id=self.eos_token_id)


class RegionBatches(Dataset[CaptionBatch | BatchFailure]):
    """Batch `m` holds the images of slots `m * images_per_device` onwards.

    Every draw follows from the seed and the slot. As in the reference, an image without a region
    after the crop is dropped from its batch, and with `skip_bad_images` so is one that cannot be
    read; both are counted. Where the reference skips a batch that is empty then, and goes on with
    the next one, here one image drawn from all takes its place: every device has something to do in
    every step, and which images a step sees does not depend on earlier ones.
    """

    def __init__(
        self,
        recipe: CaptionRecipe,
        sources: Sequence[CaptionedImages],
        size: int,
        words: TokenizerFolder,
        *,
        cache: EmbeddingCache | None = None,
    ) -> None:
        self.recipe, self.sources, self.size = recipe, sources, size
        self.words, self.cache = words, cache
        shares = [part.images for part in recipe.data]
        self.order = SampleOrder([len(source) for source in sources], shares, recipe.seed)

    def __getitem__(self, number: int) -> CaptionBatch | BatchFailure:
        first = number * self.recipe.images_per_device
        left_out = Counter({"images_without_region": 0, "images_unreadable": 0})
        try:
            samples = self._samples(range(first, first + self.recipe.images_per_device), left_out)
            return replace(collate(samples, self.words.tokenizer), left_out=dict(left_out))
        except ScaError as error:
            return BatchFailure(str(error))

    def _samples(self, slots: range, left_out: Counter[str]) -> list[RegionSample]:
        samples = []
        for slot in slots:
            rng = np.random.default_rng([self.recipe.seed, 1, slot])
            sample = self._sample(self.order(slot), rng, left_out)
            if sample is not None:
                samples.append(sample)
        if samples:
            return samples
        for _ in range(MOST_ATTEMPTS):
            picked = self.order.pick(int(rng.integers(len(self.order))))
            sample = self._sample(picked, rng, left_out)
            if sample is not None:
                return [sample]
        key = self.sources[picked[0]][picked[1]].key
        raise ScaError(
            f"{MOST_ATTEMPTS} images in a row gave no region to train on, the last was {key}: "
            "look at the manifest with sca manifest check"
        )

    def _sample(
        self, picked: tuple[int, int], rng: np.random.Generator, left_out: Counter[str]
    ) -> RegionSample | None:
        source, index = picked
        image = self.sources[source][index]
        try:
            sample = self._try(image, rng)
        except ImageError as error:
            if not self.recipe.skip_bad_images:
                raise ScaError(
                    f"{image.key}: {error} ({image.uri}). Put it back, or go on without such "
                    "images: --resume --set skip_bad_images=true"
                ) from None
            left_out["images_unreadable"] += 1
            return None
        if sample is None:
            left_out["images_without_region"] += 1
        return sample

    def _try(self, image: CaptionedImage, rng: np.random.Generator) -> RegionSample | None:
        recipe = self.recipe
        scales = recipe.jitter_scales
        augments = scales is not None or recipe.flip_chance > 0
        draws = draw(rng, scales or (1.0, 1.0)) if augments else None
        name = cached = None
        if self.cache is not None:
            flipped = draws is not None and draws.flip < recipe.flip_chance
            name = self.cache.name(image.key, image.uri, flipped=flipped)
            cached = self.cache.load(name)
        if cached is None:
            rgb = read_image(image.uri).rgb
        else:
            rgb = np.broadcast_to(np.zeros(3, np.uint8), (*cached[1], 3))  # only its size counts
        sample = training_sample(
            image,
            rgb,
            rng,
            size=self.size,
            most_regions=recipe.regions_per_image,
            draws=draws,
            flip_chance=recipe.flip_chance,
            with_jitter=scales is not None,
            with_pixels=cached is None,
        )
        if sample is None:
            return None
        return replace(sample, cache_name=name, embedding_DHW=None if cached is None else cached[0])
