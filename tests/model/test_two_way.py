"""The absorbed two-way transformer computes what the plain one computes."""

from __future__ import annotations

import pytest
import torch
from transformers import SamMaskDecoderConfig
from transformers.models.sam.modeling_sam import SamTwoWayTransformer

from sca_batch.model.two_way import absorbed_two_way, absorbing_pays


def transformer(seed, **sizes):
    torch.manual_seed(seed)
    config = SamMaskDecoderConfig(**sizes)
    config._attn_implementation = "eager"
    built = SamTwoWayTransformer(config).eval()
    for parameter in built.parameters():  # biases start at zero, where mistakes would not show
        torch.nn.init.normal_(parameter, std=0.2)
    return built


@torch.inference_mode()
@pytest.mark.parametrize("num_tokens", [7, 9], ids=["a point or a box", "two points and a box"])
@pytest.mark.parametrize("shared", [True, False], ids=["one image", "an image per region"])
@pytest.mark.parametrize("layers", [1, 2, 3])
def test_it_equals_the_plain_transformer(num_tokens, shared, layers):
    plain = transformer(layers, num_hidden_layers=layers, hidden_size=64, mlp_dim=96)
    tokens = torch.randn(3, num_tokens, 64)
    image = torch.randn(1 if shared else 3, 49, 64)
    position = torch.randn(1, 49, 64)
    expected, expected_image = plain(
        point_embeddings=tokens[:, None],
        image_embeddings=image.expand(3, -1, -1).transpose(1, 2)[:, :, None],
        image_positional_embeddings=position.transpose(1, 2)[:, :, None],
        attention_similarity=None,
    )
    got, got_image = absorbed_two_way(plain, tokens, image, position)
    scale = expected_image.abs().max().item()
    assert torch.allclose(got, expected[:, 0], atol=2e-6 * scale)
    assert torch.allclose(got_image, expected_image[:, 0], atol=2e-6 * scale)


def test_gradients_flow_through_it():
    plain = transformer(0, num_hidden_layers=1, hidden_size=64, mlp_dim=32)
    tokens, image = torch.randn(2, 7, 64), torch.randn(1, 16, 64)
    got, _ = absorbed_two_way(plain, tokens, image, torch.randn(1, 16, 64))
    got.sum().backward()
    attention = plain.layers[0].cross_attn_token_to_image
    assert attention.k_proj.weight.grad.abs().sum() > 0


@pytest.mark.parametrize(("num_tokens", "pays"), [(7, True), (15, True), (16, False), (40, False)])
def test_it_is_used_only_where_it_saves_work(num_tokens, pays):
    assert absorbing_pays(transformer(0), num_tokens) == pays
