"""Captions of held-out regions, and how good they are: CIDEr-D, BLEU, the loss."""

# Shape letters:  R regions of one image

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from PIL import Image, ImageDraw

from sca_batch.errors import ImageError, MissingPackageError, ScaError
from sca_batch.images.decode import read_image
from sca_batch.manifests.references import CaptionedImage
from sca_batch.model.sca import ScaModel
from sca_batch.train.captioning import prefix_caption_loss
from sca_batch.train.samples import collate, inference_sample

__all__ = ["Captioned", "RegionCaption", "caption_image", "paint", "score_captions"]

REGIONS_AT_ONCE = 32
# What is not a word to the metrics: the tokeniser of COCO's evaluation drops it.
_PUNCTUATION = re.compile(r"(?<!\d)[.:]|[.:](?!\d)|[^\w\s'.:&/$-]|_|(?<!\w)-|-(?!\w)")
_CLITIC = re.compile(r"(n't|'(?:s|re|ve|ll|d|m))\b")

COLOURS = ("#e6194b", "#3cb44b", "#4363d8", "#f58231", "#911eb4", "#008080", "#9a6324", "#000075")


@dataclass(frozen=True, slots=True)
class RegionCaption:
    """The caption of a region, and what people said about it."""

    key: str
    region: int
    caption: str
    references: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Captioned:
    """The captions of an image's regions, and the sum of their losses over `num_tokens` tokens."""

    captions: list[RegionCaption]
    loss_sum: float
    num_tokens: int


@torch.no_grad()
def caption_image(model: ScaModel, image: CaptionedImage, *, num_beams: int) -> Captioned:
    """Captions every region of an image from its given box, with a model in evaluation mode."""
    assert model.tokenizer is not None, "a model that is validated has a tokenizer"
    try:
        rgb = read_image(image.uri).rgb
    except ImageError as error:
        raise ScaError(f"validation, {image.key}: {error} ({image.uri})") from None
    sample = inference_sample(image, rgb, size=model.config.image_size)
    batch = collate([sample], model.tokenizer).to(model.device)
    assert batch.pixels_B3SS is not None
    embedding = model.encode_image(batch.pixels_B3SS)
    captions: list[RegionCaption] = []
    loss_sum, num_tokens = 0.0, 0
    for first in range(0, len(sample.region_N), REGIONS_AT_ONCE):
        part = slice(first, first + REGIONS_AT_ONCE)
        queries = model.region_queries(embedding, boxes_R4=batch.boxes_R4[part]).queries
        prefix = model.prefix(queries, image.task)
        ids, attention = batch.ids_RL[part], batch.attention_RL[part]
        count = int(attention.sum()) * model.config.num_caption_heads
        loss_sum += float(prefix_caption_loss(model, prefix, ids, attention)) * count
        num_tokens += count
        for heads in model.generate(queries, tasks=image.task, num_beams=num_beams):
            text = model.tokenizer.decode(heads[0][0].ids) if heads[0] else ""
            region = len(captions)
            captions.append(RegionCaption(image.key, region, text, image.phrases[region]))
    return Captioned(captions, loss_sum, num_tokens)


def score_captions(captions: Sequence[RegionCaption]) -> dict[str, float]:
    """CIDEr-D and BLEU 1 to 4 by the Python scorers of pycocoevalcap, as fractions.

    Words are told apart by a rule that follows the tokeniser of COCO's evaluation, which needs
    Java; published numbers are made with that one.
    """
    try:
        from pycocoevalcap.bleu.bleu import Bleu
        from pycocoevalcap.cider.cider import Cider
    except ImportError:
        raise MissingPackageError("pycocoevalcap", "validation", "train") from None
    said = {i: [tokenised(row.caption)] for i, row in enumerate(captions)}
    truth = {i: [tokenised(text) for text in row.references] for i, row in enumerate(captions)}
    cider, _ = Cider().compute_score(truth, said)
    bleu, _ = Bleu(4).compute_score(truth, said, verbose=0)
    return {"cider_d": float(cider)} | {f"bleu_{n + 1}": float(bleu[n]) for n in range(4)}


def tokenised(text: str) -> str:
    """Lower case, clitics apart, no punctuation."""
    spaced = _CLITIC.sub(r" \1", text.lower())
    return " ".join(_PUNCTUATION.sub(" ", spaced).split())


def paint(image: CaptionedImage, captions: Sequence[RegionCaption]) -> Image.Image:
    """The image with a few of its boxes, and what was said about them."""
    picture = Image.fromarray(read_image(image.uri).rgb)
    draw = ImageDraw.Draw(picture)
    own = [row for row in captions if row.key == image.key][: len(COLOURS)]
    for row, colour in zip(own, COLOURS, strict=False):
        box = tuple(image.boxes_xyxy[row.region].tolist())
        draw.rectangle(box, outline=colour, width=2)
        draw.text((box[0] + 3, box[1] + 2), row.caption or "-", fill=colour)
    return picture
