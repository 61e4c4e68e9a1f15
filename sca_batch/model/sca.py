"""Segment and Caption Anything: SAM, the text feature mixer, and a language model behind it."""

# Shape letters:  B images   R regions, from any number of images   H, W embedding grid
#                 S pixels of the square input   D prompt width   N = H * W   M masks (4)
#                 T tokens of SAM's decoder   C caption heads   Q query tokens per head
#                 K task tokens   E width of the language model   V vocabulary   L caption ids

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Unpack

import torch
from torch import Tensor, nn
from transformers.models.sam.modeling_sam import SamPromptEncoder, SamVisionEncoder

from sca_batch.model.config import TASKS, ScaConfig
from sca_batch.model.language import Hypothesis, beam_search, build_language_model, greedy_search
from sca_batch.model.mixer import TextFeatureMixer
from sca_batch.model.pyramid import PyramidEncoder
from sca_batch.model.sam import (
    MaskDecoder,
    Prompts,
    encode_prompts,
    high_res_of,
    position_grid,
    with_high_res,
)
from sca_batch.model.timm_encoder import TimmEncoder
from sca_batch.model.tokenizer import CaptionTokenizer

__all__ = ["Engine", "PromptableSam", "RegionQueries", "ScaModel", "caption_loss"]

# Stands in for one graph of the model: the graph's float32 inputs in order, its outputs.
Engine = Callable[..., tuple[Tensor, ...]]


@dataclass(frozen=True, slots=True)
class RegionQueries:
    """Answers of SAM and the mixer about some regions.

    `queries` (R, C, Q, D) are the mixed caption queries; `iou` (R, M) is SAM's estimate per mask
    and `masks` (R, M, 4H, 4W) are low-res logits, where asked for: index 0 is the single mask,
    1 to 3 the three of `multimask_output`.
    """

    queries: Tensor
    iou: Tensor
    masks: Tensor | None = None


class PromptableSam(nn.Module):
    """SAM (arXiv:2304.02643): image encoder, prompt encoder and mask decoder, nothing else.

    Every method takes and returns tensors on the model's device; pixels and prompts are in the
    frame of the square input. With `autocast_dtype` set, matrix products run in that dtype and
    outputs come back as float32. `engines` are compiled stand-ins, by graph name
    (`sca_batch/engines/graphs.py`); what has none runs in torch.
    """

    def __init__(self, config: ScaConfig) -> None:
        super().__init__()
        self.config = config
        self.autocast_dtype: torch.dtype | None = None
        self.engines: dict[str, Engine] = {}
        self.vision_encoder = build_image_encoder(config)
        self.prompt_encoder = SamPromptEncoder(config.sam)
        self.mask_decoder = MaskDecoder(config.sam.mask_decoder_config)

    @property
    def device(self) -> torch.device:
        device: torch.device = self.mask_decoder.iou_token.weight.device
        return device

    def encode_image(self, pixels_B3SS: Tensor) -> Tensor:
        """Normalised, padded pixels -> image embeddings (B, E, H, W), float32.

        E is `config.embedding_width`: D, and high-res features behind it where there are any.
        """
        if engine := self.engines.get("encoder"):
            (embedding_BDHW,) = engine(pixels_B3SS)
            return embedding_BDHW
        with self.autocast():
            encoded = self.vision_encoder(pixels_B3SS)
        embedding: Tensor = encoded if isinstance(encoded, Tensor) else encoded.last_hidden_state
        return embedding.float()

    def fuse_prompts(
        self, embedding_BDHW: Tensor, *, image_R: Tensor | None = None, **prompts: Unpack[Prompts]
    ) -> tuple[Tensor, Tensor]:
        """SAM's two-way transformer: tokens (R, T, D) and image tokens (R, N, D).

        `image_R` says which image each region is of, int64; without it there is one image.
        """
        with self.autocast():
            sparse_RSD, dense = self.encode_prompts(**prompts)
            engine = self.engines.get("decoder")
            has_masks = prompts.get("masks_R1HW") is not None
            # The graph is that of prompts without low-res masks on one shared image.
            if engine is not None and len(embedding_BDHW) == 1 and not has_masks:
                tokens_RTD, features_RND = engine(embedding_BDHW, sparse_RSD.float())
                return tokens_RTD, features_RND
            if image_R is not None and len(embedding_BDHW) > 1:
                embedding_BDHW = embedding_BDHW.index_select(0, image_R)
            tokens_RTD, features_RND = self.mask_decoder.fuse(
                embedding_BDHW, sparse_RSD, dense, self.position_code()
            )
        return tokens_RTD.float(), features_RND.float()

    def predict_iou(self, tokens_RTD: Tensor) -> Tensor:
        """SAM's estimate of each mask's IoU, (R, M)."""
        with self.autocast():
            iou_RM: Tensor = self.mask_decoder.predict_iou(tokens_RTD).float()
        return iou_RM

    def predict_masks(
        self,
        tokens_RTD: Tensor,
        features_RND: Tensor,
        embedding_BEHW: Tensor,
        *,
        image_R: Tensor | None = None,
    ) -> Tensor:
        """Low-res mask logits (R, M, 4H, 4W) of what `fuse_prompts` gave.

        `embedding_BEHW` and `image_R` are as they were there: masks are upscaled with the image's
        high-res features, where it has any.
        """
        high_res = high_res_of(embedding_BEHW, self.config.width)
        if high_res is not None and image_R is not None and len(high_res) > 1:
            high_res = high_res.index_select(0, image_R)
        if engine := self.engines.get("upscale"):
            (masks_RMHW,) = engine(tokens_RTD, with_high_res(features_RND, high_res))
            return masks_RMHW
        with self.autocast():
            masks_RM: Tensor = self.mask_decoder.predict_masks(tokens_RTD, features_RND, high_res)
        return masks_RM.float()

    def encode_prompts(self, **prompts: Unpack[Prompts]) -> tuple[Tensor, Tensor]:
        """Prompts as SAM's decoder takes them, sparse (R, S, D) and dense, always in float32."""
        with self._full_precision():
            return encode_prompts(self.prompt_encoder, **prompts)

    def position_code(self) -> Tensor:
        """The position code of the embedding grid, (1, D, H, W), always in float32."""
        with self._full_precision():
            return position_grid(self.prompt_encoder.shared_embedding, self.config.grid_size)

    def _full_precision(self) -> torch.autocast:
        # bfloat16 has too few steps for coordinates: 321 codes for 512 columns of pixels.
        return torch.autocast(self.device.type, enabled=False)

    def autocast(self) -> contextlib.AbstractContextManager[object]:
        if self.autocast_dtype is None:
            return contextlib.nullcontext()
        return torch.autocast(self.device.type, dtype=self.autocast_dtype)


class ScaModel(PromptableSam):
    """One model of any published size: SAM ViT-B/L/H, GPT-2 or Llama, any mixer.

    Segment and Caption Anything (arXiv:2312.00869), class `ScaMultitaskV2Model` of the reference
    implementation.
    """

    def __init__(self, config: ScaConfig, tokenizer: CaptionTokenizer | None = None) -> None:
        super().__init__(config)
        self.tokenizer = tokenizer
        decoder = config.sam.mask_decoder_config
        self.mixer = TextFeatureMixer(
            decoder,
            depth=config.mixer_layers,
            num_queries=config.num_caption_heads * config.num_caption_tokens,
        )
        self.projection = nn.Linear(config.width, config.text_width)
        self.task_tokens = nn.Embedding(len(TASKS) * config.num_task_tokens, config.text_width)
        self.language_model = build_language_model(config.text)

    def trainable_modules(self) -> dict[str, nn.Module]:
        """The modules that the paper trains; SAM and the language model stay frozen.

        Behind a timm backbone there is a neck of SCA's own.
        """
        neck: dict[str, nn.Module] = {}
        if isinstance(self.vision_encoder, TimmEncoder):
            neck = {"neck": self.vision_encoder.projector}
        return {
            **neck,
            "mixer": self.mixer,
            "projection": self.projection,
            "task_tokens": self.task_tokens,
        }

    def mix(self, tokens_RTD: Tensor, features_RND: Tensor) -> Tensor:
        """The text feature mixer: caption queries (R, C, Q, D)."""
        with self.autocast():
            position_1ND = self.position_code().flatten(2).transpose(1, 2)
            queries_RQD: Tensor = self.mixer(tokens_RTD, features_RND, position_1ND)
        return self._by_head(queries_RQD.float())

    def region_queries(
        self,
        embedding_BDHW: Tensor,
        *,
        image_R: Tensor | None = None,
        with_masks: bool = False,
        **prompts: Unpack[Prompts],
    ) -> RegionQueries:
        """Caption queries of some regions, and SAM's masks and IoU with them."""
        engine = self.engines.get("mixer")
        if engine is not None and prompts.get("masks_R1HW") is None and not with_masks:
            with self.autocast():
                sparse_RSD, _ = self.encode_prompts(**prompts)
            if image_R is None:
                image_R = torch.zeros(len(sparse_RSD), dtype=torch.long, device=self.device)
            queries_RQD, iou_RM = engine(embedding_BDHW, sparse_RSD.float(), image_R)
            return RegionQueries(queries=self._by_head(queries_RQD), iou=iou_RM)
        tokens_RTD, features_RND = self.fuse_prompts(embedding_BDHW, image_R=image_R, **prompts)
        return RegionQueries(
            queries=self.mix(tokens_RTD, features_RND),
            iou=self.predict_iou(tokens_RTD),
            masks=self.predict_masks(tokens_RTD, features_RND, embedding_BDHW, image_R=image_R)
            if with_masks
            else None,
        )

    def prefix(self, queries_RCQD: Tensor, tasks: str | Sequence[str] = "caption") -> Tensor:
        """The language model's prefix, (R * C, K + Q, E): task tokens, then the queries.

        `tasks` is one task for all regions, or one per region.
        """
        task_R = self._task_ids(tasks, len(queries_RCQD))
        with self.autocast():
            projected = self.projection(queries_RCQD.flatten(0, 1))
        tokens_TKE = self.task_tokens.weight.reshape(len(TASKS), -1, self.config.text_width)
        task_RKE = tokens_TKE[task_R.repeat_interleave(queries_RCQD.shape[1])]
        return torch.cat([task_RKE, projected.float()], dim=1)

    def caption_logits(
        self, prefix_RPE: Tensor, ids_RL: Tensor, attention_RL: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Teacher forcing: logits (R, P + L, V) and the embeddings (R, P + L, E) they came from.

        `attention_RL` is 1 on caption ids and 0 on right padding.
        """
        embedded = self.language_model.get_input_embeddings()(ids_RL)
        inputs = torch.cat([prefix_RPE, embedded], dim=1)
        mask = torch.cat([attention_RL.new_ones(prefix_RPE.shape[:2]), attention_RL], dim=1)
        with self.autocast():
            output = self.language_model(inputs_embeds=inputs, attention_mask=mask, use_cache=False)
        return output.logits.float(), inputs

    def generate(
        self,
        queries_RCQD: Tensor,
        *,
        tasks: str | Sequence[str] = "caption",
        num_beams: int = 3,
        max_new_tokens: int = 19,
        num_kept: int = 1,
    ) -> list[list[list[Hypothesis]]]:
        """Captions as ids: for each region, for each caption head, the `num_kept` best beams."""
        heads = self.config.num_caption_heads
        settings = {"max_new_tokens": max_new_tokens, "eos_token_id": self.config.eos_token_id}
        with self.autocast(), torch.inference_mode():
            prefix = self.prefix(queries_RCQD, tasks)
            if num_beams == 1:
                rows = greedy_search(self.language_model, prefix, **settings)
            else:
                rows = beam_search(
                    self.language_model, prefix, num_beams=num_beams, num_kept=num_kept, **settings
                )
        return [rows[i : i + heads] for i in range(0, len(rows), heads)]

    def _by_head(self, queries_RQD: Tensor) -> Tensor:
        heads = self.config.num_caption_heads
        return queries_RQD.reshape(len(queries_RQD), heads, -1, queries_RQD.shape[-1])

    def _task_ids(self, tasks: str | Sequence[str], num_regions: int) -> Tensor:
        names = [tasks] * num_regions if isinstance(tasks, str) else list(tasks)
        return torch.tensor([TASKS.index(name) for name in names], device=self.device)


def build_image_encoder(config: ScaConfig) -> PyramidEncoder | TimmEncoder | SamVisionEncoder:
    """SAM's image encoder, or one on the timm backbone that the configuration names."""
    if config.timm_levels:
        return PyramidEncoder(config)
    if config.timm_vision_name:
        return TimmEncoder(config)
    return SamVisionEncoder(config.sam.vision_config)


def caption_loss(logits_RPV: Tensor, labels_RL: Tensor, *, label_smoothing: float = 0.1) -> Tensor:
    """Cross entropy of captions, mean over all tokens of the batch that count (float32).

    `labels_RL` are caption ids with -100 at padding, without the extra -100 that the reference
    puts in front: the last query token predicts the first caption token, and nothing is
    predicted from the last position.
    """
    length = labels_RL.shape[1]
    predicted = logits_RPV[:, -(length + 1) : -1].float()
    return nn.functional.cross_entropy(
        predicted.flatten(0, 1), labels_RL.flatten(), label_smoothing=label_smoothing
    )
