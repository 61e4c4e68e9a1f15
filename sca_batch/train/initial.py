"""A model before training: SAM and a language model as published, what SCA adds at random."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor
from transformers import PreTrainedConfig, SamConfig

from sca_batch.errors import ScaError
from sca_batch.model.checkpoint import assemble, build_empty
from sca_batch.model.config import ScaConfig, sam_config_of, sam_vit_config, text_config_from_dict
from sca_batch.model.hub import fetch_part, quiet_libraries, tokenizer_folder
from sca_batch.model.load import load_model
from sca_batch.model.parts import read_parts
from sca_batch.model.sca import ScaModel
from sca_batch.model.timm_encoder import pretrained_timm_state
from sca_batch.model.tokenizer import read_tokenizer, tokenizer_files
from sca_batch.model.weight_names import published_name
from sca_batch.records import JsonObject
from sca_batch.storage.atomic import writing
from sca_batch.train.recipes import CaptionRecipe

__all__ = ["copy_tokenizer", "initial_model", "sizes_before_training", "starting_model"]

INITIALIZER_RANGE = 0.02  # of the published config.json

# Sizes of models that recipes name, for a look at a run before anything is downloaded.
_SAM_WIDTHS = {
    "facebook/sam-vit-base": 768, "facebook/sam-vit-large": 1024, "facebook/sam-vit-huge": 1280,
}  # fmt: skip
_TEXT_SIZES: dict[str, JsonObject] = {
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


@dataclass(frozen=True, match_args=False)
class MixerNumbers(Protocol):
    """The sizes of what SCA adds, and the seed of its weights, as recipes have them."""

    mixer_layers: int
    caption_tokens: int
    task_tokens: int
    seed: int


def initial_model(
    sam: Path,
    language_model: Path,
    recipe: MixerNumbers,
    *,
    timm_encoder: str = "",
    tokenizer_name: str = "",
) -> ScaModel:
    """Puts SAM, a language model and an untrained mixer together; all frozen, float32, CPU.

    With `timm_encoder`, SAM gives prompts and decoder only, and the neck is untrained too. The new
    part is drawn as transformers draws SAM's: normal with deviation 0.02, biases zero.
    """
    parts = read_parts(sam, language_model)
    config = replace(
        _sized(parts.sam, parts.text, recipe),
        tokenizer_name=parts.tokenizer_name or tokenizer_name,
        timm_vision_name=timm_encoder or parts.timm_vision_name,
        timm_levels=() if timm_encoder else parts.timm_levels,
    )
    state = parts.state
    if timm_encoder:
        state = {n: v for n, v in state.items() if not n.startswith("vision_encoder.")}
        state |= pretrained_timm_state(timm_encoder)
    state = state | _drawn(build_empty(config), recipe.seed)
    where = f"sam={sam}, language_model={language_model}"
    return assemble(config, state, parts.tokenizer, where=where)


def sizes_before_training(recipe: CaptionRecipe) -> ScaConfig:
    """The sizes of a recipe's model from config files alone, or from memory for well-known names.

    Raises:
        ScaError: for a name that is neither a folder here nor well known.
    """
    sizes = _sized(_sam_sizes(recipe.sam), _text_sizes(recipe.language_model), recipe)
    return replace(sizes, timm_vision_name=recipe.timm_encoder)


def _sized(sam: SamConfig, text: PreTrainedConfig, recipe: MixerNumbers) -> ScaConfig:
    return ScaConfig(
        sam=sam,
        text=text,
        mixer_layers=recipe.mixer_layers,
        num_caption_tokens=recipe.caption_tokens,
        num_task_tokens=recipe.task_tokens,
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


def starting_model(recipe: CaptionRecipe, tokenizer: Path, *, write: bool) -> ScaModel:
    """The model of a recipe before its first step, float32, on the CPU, with its tokenizer.

    The tokenizer's files are copied to `tokenizer` where `write` says so, to be read by workers and
    to go with the result.
    """
    with quiet_libraries():
        if recipe.start:
            model = load_model(recipe.start, device="cpu", dtype="float32", with_tokenizer=False)
            source = tokenizer_folder(recipe.start, model.config.tokenizer_name)
        else:
            language_model = fetch_part("lm", recipe.language_model)
            model = initial_model(
                fetch_part("sam", recipe.sam),
                language_model,
                recipe,
                timm_encoder=recipe.timm_encoder,
                tokenizer_name=recipe.language_model,
            )
            source = language_model
    model.tokenizer = read_tokenizer(source, eos_token_id=model.config.eos_token_id)
    if write:
        copy_tokenizer(source, tokenizer)
    return model


def copy_tokenizer(source: Path, target: Path) -> None:
    """Copies the files of a tokenizer."""
    names = tokenizer_files(source)
    if not names:
        raise ScaError(f"{source}: no tokenizer to copy")
    target.mkdir(parents=True, exist_ok=True)
    for name in names:
        with writing(target / name) as file:
            file.write((source / name).read_bytes())
