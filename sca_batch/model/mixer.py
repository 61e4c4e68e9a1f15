"""The text feature mixer: what Segment and Caption Anything adds to SAM."""

# Shape letters:  R regions, from any number of images   T tokens in one region's prompt
#                 Q caption queries (heads x tokens)   D prompt width   N image tokens (H x W)

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn
from transformers import SamMaskDecoderConfig
from transformers.models.sam.modeling_sam import SamTwoWayTransformer

__all__ = ["TextFeatureMixer"]


class TextFeatureMixer(nn.Module):
    """Reads a caption out of SAM's features for one region.

    The query-based feature mixer of Segment and Caption Anything (arXiv:2312.00869, section
    3.2): learned caption queries join the tokens that SAM has already fused with the image, and
    attend to both for `depth` more two-way layers.
    """

    def __init__(self, decoder: SamMaskDecoderConfig, *, depth: int, num_queries: int) -> None:
        super().__init__()
        config = copy.deepcopy(decoder)
        config.num_hidden_layers = depth
        self.queries = nn.Embedding(num_queries, decoder.hidden_size)
        self.transformer = SamTwoWayTransformer(config)

    def forward(self, tokens_RTD: Tensor, features_RND: Tensor, position_1ND: Tensor) -> Tensor:
        """Returns one set of caption queries per region, (R, Q, D).

        Args:
            tokens_RTD: all tokens that leave SAM's two-way transformer.
            features_RND: the image tokens that leave it, not the image embedding that entered.
            position_1ND: the position code of the image tokens.
        """
        queries_QD = self.queries.weight
        # The queries come first: their position in the sequence is part of the published model.
        joined_RTD = torch.cat([queries_QD.expand(tokens_RTD.shape[0], -1, -1), tokens_RTD], dim=1)
        mixed_R1TD, _ = self.transformer(
            point_embeddings=joined_RTD[:, None],
            # High-res features behind the image tokens are for masks alone.
            image_embeddings=_as_grid(features_RND[..., : queries_QD.shape[-1]]),
            image_positional_embeddings=_as_grid(position_1ND),
            attention_similarity=None,
        )
        mixed_RQD: Tensor = mixed_R1TD[:, 0, : len(queries_QD)]
        return mixed_RQD


def _as_grid(tokens_RND: Tensor) -> Tensor:
    # The transformer flattens a grid itself; a grid of one row is the same thing.
    return tokens_RND.transpose(1, 2)[:, :, None]
