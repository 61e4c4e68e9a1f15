"""SAM's parts from `transformers`, and a mask decoder that hands out what SCA needs of it."""

# Shape letters:  B images   R regions, from any number of images   S tokens of one prompt
#                 T = 1 + M + S tokens in SAM's decoder   M mask tokens (4)   D prompt width
#                 H, W embedding grid   N = H * W image tokens   P points in one prompt
#                 E = D, or 4 D with high-res features

from __future__ import annotations

from typing import TypedDict, Unpack

import torch
from torch import Tensor, nn
from transformers.models.sam.modeling_sam import (
    SamMaskDecoder,
    SamPositionalEmbedding,
    SamPromptEncoder,
)

from sca_batch.model.two_way import absorbed_two_way, absorbing_pays

__all__ = [
    "MaskDecoder", "Prompts", "encode_prompts", "high_res_of", "pack_cells", "position_grid",
    "with_high_res",
]  # fmt: skip


class MaskDecoder(SamMaskDecoder):  # type: ignore[misc]
    """SAM's mask decoder in three steps, so that each is run only for whom it is needed.

    `forward` of the parent pairs every image with the same number of prompts, upscales masks
    for all of them and keeps its tokens to itself. Here any regions form a batch, the predicted
    IoU is known before masks are upscaled, and the tokens go on to the text feature mixer.

    An embedding may carry high-res features behind its D channels, as SAM 2's does
    (arXiv:2408.00714): the transformer does not see them, they are added where masks are upscaled.
    They are packed into the cells of the grid (`pack_cells`), D / 4 channels at twice the grid's
    resolution, then D / 8 at four times.
    """

    def fuse(
        self,
        embedding_REHW: Tensor,
        sparse_RSD: Tensor,
        dense_RDHW: Tensor,
        position_1DHW: Tensor,
        *,
        absorbed: bool | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Runs SAM's two-way transformer.

        The embedding and the dense prompt have one entry per region, or one for all of them.
        `absorbed` chooses the form, which changes speed only; by default the faster one. Sizes
        are read from shapes and never made `int`, so that a trace keeps them open.

        Returns:
            tokens (R, T, D): IoU token, mask tokens, prompt tokens, fused with the image.
            features (R, N, D): image tokens, fused with the prompt. High-res features stay with
                the image: most prompts' masks are never upscaled.
        """
        own_MD = torch.cat([self.iou_token.weight, self.mask_tokens.weight])
        tokens_RTD = torch.cat([own_MD.expand(sparse_RSD.shape[0], -1, -1), sparse_RSD], dim=1)
        image_RDHW = embedding_REHW[:, : self.hidden_size] + dense_RDHW
        if absorbed is None:
            absorbed = absorbing_pays(self.transformer, tokens_RTD.shape[1])
        if absorbed:
            fused_RTD, features_RND = absorbed_two_way(
                self.transformer,
                tokens_RTD,
                image_RDHW.flatten(2).transpose(1, 2),
                position_1DHW.flatten(2).transpose(1, 2),
            )
            return fused_RTD, features_RND
        fused_R1TD, features_R1ND = self.transformer(
            point_embeddings=tokens_RTD[:, None],
            image_embeddings=image_RDHW.expand(tokens_RTD.shape[0], -1, -1, -1),
            image_positional_embeddings=position_1DHW,
            attention_similarity=None,
        )
        return fused_R1TD[:, 0], features_R1ND[:, 0]

    def predict_iou(self, tokens_RTD: Tensor) -> Tensor:
        """SAM's estimate of each mask's IoU, (R, M): the single mask first, then the three."""
        iou_RM: Tensor = self.iou_prediction_head(tokens_RTD[:, 0])
        return iou_RM

    def predict_masks(
        self, tokens_RTD: Tensor, features_RND: Tensor, high_res_RNF: Tensor | None = None
    ) -> Tensor:
        """Low-res mask logits (R, M, 4H, 4W): the single mask first, then the three.

        High-res features have one entry per region, or one for all of them.
        """
        side = round(features_RND.shape[1] ** 0.5)
        width = self.hidden_size
        features_RDHW = features_RND.transpose(1, 2).reshape(features_RND.shape[0], -1, side, side)
        upscaled = self.upscale_conv1(features_RDHW)
        if high_res_RNF is not None:
            upscaled = upscaled + _unpacked(high_res_RNF[..., :width], side, 1)
        upscaled = self.upscale_conv2(self.activation(self.upscale_layer_norm(upscaled)))
        if high_res_RNF is not None:
            upscaled = upscaled + _unpacked(high_res_RNF[..., width:], side, 2)
        upscaled = self.activation(upscaled)
        hyper_RMC = torch.stack(
            [mlp(tokens_RTD[:, 1 + i]) for i, mlp in enumerate(self.output_hypernetworks_mlps)],
            dim=1,
        )
        masks: Tensor = (hyper_RMC @ upscaled.flatten(2)).reshape(
            *hyper_RMC.shape[:2], *upscaled.shape[2:]
        )
        return masks


def high_res_of(embedding_BEHW: Tensor, width: int) -> Tensor | None:
    """Features behind the first `width` channels of an embedding, by cell: (B, N, 3 D)."""
    if embedding_BEHW.shape[1] == width:
        return None
    return embedding_BEHW[:, width:].flatten(2).transpose(1, 2)


def with_high_res(features_RND: Tensor, high_res_RNF: Tensor | None) -> Tensor:
    """Both in one tensor (R, N, E), which is what the graph that upscales masks is given."""
    if high_res_RNF is None:
        return features_RND
    # One image may serve all regions.
    return torch.cat([features_RND, high_res_RNF.expand(len(features_RND), -1, -1)], dim=-1)


def pack_cells(maps_BCYX: Tensor, doublings: int) -> Tensor:
    """Maps at a finer resolution by cell of the grid: (B, C, H * 2^d, W * 2^d) to (B, 4^d C, H, W).

    A cell's channels are in the order in which upscaling by doublings makes them.
    """
    for _ in range(doublings):
        num, channels, rows, columns = maps_BCYX.shape
        parts = maps_BCYX.reshape(num, channels, rows // 2, 2, columns // 2, 2)
        maps_BCYX = parts.permute(0, 3, 5, 1, 2, 4).reshape(num, -1, rows // 2, columns // 2)
    return maps_BCYX


def _unpacked(packed_RNF: Tensor, side: int, doublings: int) -> Tensor:
    """Features that `pack_cells` packed, as maps (R, C, side * 2^d, side * 2^d)."""
    maps = packed_RNF.transpose(1, 2).reshape(packed_RNF.shape[0], -1, side, side)
    for step in range(doublings):
        cells = side * 2**step
        parts = maps.reshape(maps.shape[0], 2, 2, -1, cells, cells)
        maps = parts.permute(0, 3, 4, 1, 5, 2).reshape(maps.shape[0], -1, 2 * cells, 2 * cells)
    return maps


class Prompts(TypedDict, total=False):
    """One prompt per region: points, a box, or both, and a low-res mask; all have the same kinds.

    Boxes are x0, y0, x1, y1. Coordinates are pixels of the model's square frame. They stay in the
    dtype they come in until they are normalised, float64 in the reference. Labels: 1 on, 0 off, -1
    no point, -10 nothing; without labels, points are on. Masks are logits (R, 1, 4H, 4W). Prompts
    of one batch have the same number of tokens; SAM attends to padding.
    """

    boxes_R4: Tensor | None
    points_RP2: Tensor | None
    labels_RP: Tensor | None
    masks_R1HW: Tensor | None


def encode_prompts(encoder: SamPromptEncoder, **prompts: Unpack[Prompts]) -> tuple[Tensor, Tensor]:
    """Encodes the prompts of some regions, the points of each first.

    Returns:
        sparse (R, S, D) and dense (R or 1, D, H, W).
    """
    points_RP2, labels_RP = prompts.get("points_RP2"), prompts.get("labels_RP")
    boxes_R4, masks_R1HW = prompts.get("boxes_R4"), prompts.get("masks_R1HW")
    if labels_RP is None and points_RP2 is not None:
        labels_RP = torch.ones(points_RP2.shape[:2], dtype=torch.long, device=points_RP2.device)
    sparse, dense = encoder(
        None if points_RP2 is None else points_RP2[:, None],
        None if labels_RP is None else labels_RP[:, None],
        None if boxes_R4 is None else boxes_R4[:, None],
        masks_R1HW,
    )
    if sparse is None:
        raise ValueError("a prompt needs a box or points")
    return sparse[:, 0], dense if masks_R1HW is not None else dense[:1]


def position_grid(embedding: SamPositionalEmbedding, side: int) -> Tensor:
    """The position code of every cell of the embedding grid, (1, D, side, side)."""
    matrix: nn.Parameter = embedding.positional_embedding
    centres = (torch.arange(side, device=matrix.device, dtype=matrix.dtype) + 0.5) / side
    y_HW, x_HW = torch.meshgrid(centres, centres, indexing="ij")
    code: Tensor = embedding(torch.stack([x_HW, y_HW], dim=-1))
    return code.permute(2, 0, 1)[None]
