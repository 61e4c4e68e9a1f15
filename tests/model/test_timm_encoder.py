"""Timm backbones: published names, what is trained, saving, and buffers no checkpoint holds."""

import json

import pytest
import torch
from transformers import GPT2Config

timm = pytest.importorskip("timm")

from sca_batch.errors import ScaError  # noqa: E402
from sca_batch.model.checkpoint import (  # noqa: E402
    build_empty,
    load_checkpoint,
    parameter_counts,
    published_state,
    save_checkpoint,
)
from sca_batch.model.config import ScaConfig, sam_config_from_dicts  # noqa: E402
from sca_batch.model.timm_encoder import TimmEncoder  # noqa: E402

SAM_LARGE = {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16,
             "global_attn_indexes": [5, 11, 17, 23]}  # fmt: skip


def test_the_published_variant_has_exactly_the_published_names_and_shapes(golden):
    keys = golden / "keys-timm-vit_large_patch14_clip_336-gpt2_large.json"
    listed = json.loads(keys.read_text())
    model = build_empty(
        ScaConfig(
            sam=sam_config_from_dicts(SAM_LARGE, {}, {}),
            text=GPT2Config(n_embd=1280, n_layer=36, n_head=20),
            timm_vision_name="vit_large_patch14_clip_336.openai",
        )
    )

    ours = {n: list(v.shape) for n, v in published_state(model, with_ties=True).items()}

    assert ours == {name: shape for name, shape, _ in listed["keys"]}
    assert parameter_counts(model) == (listed["total_params"], 20_285_824)


def test_a_timm_model_survives_saving(golden, tmp_path):
    model = load_checkpoint(golden / "timm-box")

    save_checkpoint(model, tmp_path)

    again = load_checkpoint(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["architectures"] == [
        "ScaTimmMultitaskV2Model"
    ]
    pixels = torch.randn(1, 3, 128, 128, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(again.encode_image(pixels), model.encode_image(pixels))


def test_rotary_codes_are_computed_anew_after_building_without_memory():
    config = ScaConfig(
        sam=sam_config_from_dicts({"hidden_size": 192, "image_size": 64}, {"image_size": 64}, {}),
        text=GPT2Config(n_embd=32, n_layer=1, n_head=2, vocab_size=50),
        timm_vision_name="eva02_tiny_patch14_224",
    )
    with torch.device("meta"):
        encoder = TimmEncoder(config)
    truth = TimmEncoder(config).eval()

    encoder.load_state_dict(truth.state_dict(), assign=True)
    encoder.restore_buffers()

    pixels = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(encoder.eval()(pixels), truth(pixels))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        pytest.param("vit_of_nobody", "vit_of_nobody", id="unknown"),
        pytest.param("test_vit.r160_in1k", "64 wide", id="another width"),
    ],
)
def test_a_backbone_that_does_not_fit_is_named(name, message):
    config = ScaConfig(
        sam=sam_config_from_dicts({"hidden_size": 768}, {}, {}),
        text=GPT2Config(n_embd=32, n_layer=1, n_head=2, vocab_size=50),
        timm_vision_name=name,
    )
    with pytest.raises(ScaError, match=message):
        build_empty(config)
