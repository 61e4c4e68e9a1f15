"""Two small models whose masks are real ones, images for them, and segment_anything beside them."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw
from segment_anything.modeling import (
    ImageEncoderViT,
    MaskDecoder,
    PromptEncoder,
    Sam,
    TwoWayTransformer,
)
from segment_anything.modeling.common import LayerNorm2d

from sca_batch.images.pixels import preprocess
from sca_batch.model.checkpoint import load_checkpoint
from sca_batch.model.weight_names import own_sam_name

GOLDEN = Path(__file__).parents[1] / "golden"


@pytest.fixture(scope="session", params=["anything", "anything-crops"])
def golden(request):
    """A recorded run of the reference's automatic mask-and-caption generator."""
    return GOLDEN / request.param


@pytest.fixture(scope="session")
def model():
    return load_checkpoint(GOLDEN / "anything")


@pytest.fixture(scope="session")
def peer(model):
    return build_peer(model)


@pytest.fixture(scope="session")
def encode(model):
    """One image to the model's embedding of it."""

    def encode(rgb):
        pixels = torch.from_numpy(preprocess(rgb, model.config.image_size))
        with torch.no_grad():
            return model.encode_image(pixels[None])

    return encode


@pytest.fixture(scope="session")
def shapes():
    return draw_shapes


def draw_shapes(size_hw: tuple[int, int], seed: int) -> np.ndarray:
    """Coloured ellipses and rectangles on a plain background, uint8 (H, W, 3)."""
    random = np.random.default_rng(seed)
    height, width = size_hw
    image = Image.new("RGB", (width, height), tuple(random.integers(0, 256, 3).tolist()))
    draw = ImageDraw.Draw(image)
    for i in range(7):
        x, y = random.uniform(0, 0.8, 2) * (width, height)
        w, h = random.uniform(0.12, 0.5, 2) * min(size_hw)
        shape = draw.ellipse if i % 2 else draw.rectangle
        shape((x, y, x + w, y + h), fill=tuple(random.integers(0, 256, 3).tolist()))
    return np.asarray(image)


def build_peer(model) -> Sam:
    """segment_anything's own model with our sizes, weights and LayerNorm epsilons."""
    vision = model.config.sam.vision_config
    prompt = model.config.sam.prompt_encoder_config
    decoder = model.config.sam.mask_decoder_config
    side = model.config.image_size
    grid = model.config.grid_size
    sam = Sam(
        ImageEncoderViT(
            img_size=side,
            patch_size=vision.patch_size,
            embed_dim=vision.hidden_size,
            depth=vision.num_hidden_layers,
            num_heads=vision.num_attention_heads,
            mlp_ratio=vision.mlp_dim / vision.hidden_size,
            out_chans=vision.output_channels,
            qkv_bias=vision.qkv_bias,
            norm_layer=partial(torch.nn.LayerNorm, eps=vision.layer_norm_eps),
            use_rel_pos=vision.use_rel_pos,
            window_size=vision.window_size,
            global_attn_indexes=tuple(vision.global_attn_indexes),
        ),
        PromptEncoder(prompt.hidden_size, (grid, grid), (side, side), prompt.mask_input_channels),
        MaskDecoder(
            transformer_dim=decoder.hidden_size,
            transformer=TwoWayTransformer(
                depth=decoder.num_hidden_layers,
                embedding_dim=decoder.hidden_size,
                num_heads=decoder.num_attention_heads,
                mlp_dim=decoder.mlp_dim,
                attention_downsample_rate=decoder.attention_downsample_rate,
            ),
            num_multimask_outputs=decoder.num_multimask_outputs,
            iou_head_depth=decoder.iou_head_depth,
            iou_head_hidden_dim=decoder.iou_head_hidden_dim,
        ),
    )
    ours = model.state_dict()
    sam.load_state_dict({name: ours[own_sam_name(name)] for name in sam.state_dict()})
    for name, module in sam.named_modules():
        if isinstance(module, torch.nn.LayerNorm | LayerNorm2d):
            module.eps = model.get_submodule(
                own_sam_name(f"{name}.weight").removesuffix(".weight")
            ).eps
    return sam.eval()


@pytest.fixture(scope="session")
def empty_masks():
    """A model whose every mask is empty: all its logits are negative."""
    model = load_checkpoint(GOLDEN / "anything")
    decoder = model.mask_decoder
    with torch.no_grad():
        decoder.upscale_conv2.weight.zero_()
        decoder.upscale_conv2.bias.fill_(1.0)
        for mlp in decoder.output_hypernetworks_mlps:
            mlp.proj_out.weight.zero_()
            mlp.proj_out.bias.fill_(-1.0)
    return model
