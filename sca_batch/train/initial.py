"""A model before training: SAM and a language model as published, what SCA adds at random."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedConfig, SamConfig

from sca_batch.errors import ScaError
from sca_batch.model.checkpoint import assemble, build_empty
from sca_batch.model.config import ScaConfig, sam_config_of, sam_vit_config, text_config_from_dict
from sca_batch.model.parts import Parts, read_parts
from sca_batch.model.sca import ScaModel
from sca_batch.model.timm_encoder import pretrained_timm_state
from sca_batch.model.weight_names import published_name

__all__ = ["initial_model", "sizes_before_training"]

INITIALIZER_RANGE = 0.02  # of the published config.json

# Sizes of models that recipes name, for a look at a run before anything is downloaded.
_SAM_WIDTHS = {
    "facebook/sam-vit-base": 768, "facebook/sam-vit-large": 1024, "facebook/sam-vit-huge": 1280,
}  # fmt: skip
_TEXT_SIZES: dict[str, dict[str, Any]] = {
    "gpt2": {"model_type": "gpt2"},
    "gpt2-large": {"model_type": "gpt2", "n_embd": 1280, "n_layer": 36, "n_head": 20},
    "openlm-research/open_llama_3b_v2": {
        "model_type": "llama",
        "hidden_size": 3200,
        "num_hidden_layers": 26,
        "num_attention_heads": 32,
        "intermediate_size": 8640,
        "rms_norm_eps": 1e-6,
        "tie_word_embeddings": False,
    },
}


def initial_model(
    sam: Path,
    language_model: Path,
    *,
    mixer_layers: int,
    caption_tokens: int,
    task_tokens: int,
    timm_encoder: str = "",
    tokenizer_name: str = "",
    seed: int = 0,
) -> ScaModel:
    """Puts SAM, a language model and an untrained mixer together; all frozen, float32, CPU.

    With `timm_encoder`, SAM gives prompts and decoder only, and the neck is untrained too. The new
    part is drawn as transformers draws SAM's: normal with deviation 0.02, biases zero.
    """
    parts = read_parts(sam, language_model)
    config = ScaConfig(
        sam=parts.sam,
        text=parts.text,
        mixer_layers=mixer_layers,
        num_caption_tokens=caption_tokens,
        num_task_tokens=task_tokens,
        tokenizer_name=parts.tokenizer_name or tokenizer_name,
        timm_vision_name=timm_encoder or parts.timm_vision_name,
        timm_levels=() if timm_encoder else parts.timm_levels,
    )
    empty = build_empty(config)
    state = _encoder_of(parts, timm_encoder) | _drawn(empty, seed)
    where = f"sam={sam}, language_model={language_model}"
    return assemble(config, state, parts.tokenizer, where=where)


def sizes_before_training(
    sam: str,
    language_model: str,
    *,
    mixer_layers: int,
    caption_tokens: int,
    task_tokens: int,
    timm_encoder: str = "",
) -> ScaConfig:
    """The sizes of such a model from config files alone, or from memory for well-known names.

    Raises:
        ScaError: for a name that is neither a folder here nor well known.
    """
    return ScaConfig(
        sam=_sam_sizes(sam),
        text=_text_sizes(language_model),
        mixer_layers=mixer_layers,
        num_caption_tokens=caption_tokens,
        num_task_tokens=task_tokens,
        timm_vision_name=timm_encoder,
    )


def _sam_sizes(sam: str) -> SamConfig:
    if (Path(sam) / "config.json").is_file():
        return sam_config_of(json.loads((Path(sam) / "config.json").read_text(encoding="utf-8")))
    if sam not in _SAM_WIDTHS:
        raise ScaError(f"sam={sam}: no folder with a config.json; {_known(_SAM_WIDTHS)}")
    return sam_vit_config(_SAM_WIDTHS[sam])


def _text_sizes(language_model: str) -> PreTrainedConfig:
    path = Path(language_model) / "config.json"
    if path.is_file():
        return text_config_from_dict(json.loads(path.read_text("utf-8")), where=str(path))
    if language_model not in _TEXT_SIZES:
        raise ScaError(
            f"language_model={language_model}: no folder with a config.json; {_known(_TEXT_SIZES)}"
        )
    return text_config_from_dict(_TEXT_SIZES[language_model], where=language_model)


def _known(sizes: Mapping[str, object]) -> str:
    return f"the sizes of {', '.join(sizes)} are known without one"


def _encoder_of(parts: Parts, timm_encoder: str) -> dict[str, Tensor]:
    if not timm_encoder:
        return parts.state
    kept = {n: v for n, v in parts.state.items() if not n.startswith("vision_encoder.")}
    return kept | pretrained_timm_state(timm_encoder)


def _drawn(empty: ScaModel, seed: int) -> dict[str, Tensor]:
    """New weights for the trained part, under published names."""
    generator = torch.Generator().manual_seed(seed)
    trained = {id(p) for m in empty.trainable_modules().values() for p in m.parameters()}
    drawn: dict[str, Tensor] = {}
    for name, parameter in empty.named_parameters():
        if id(parameter) not in trained:
            continue
        if "norm" in name and name.endswith("weight"):
            value = torch.ones(parameter.shape)
        elif name.endswith("bias"):
            value = torch.zeros(parameter.shape)
        else:
            value = INITIALIZER_RANGE * torch.randn(parameter.shape, generator=generator)
        drawn[published_name(name)] = value
    return drawn
