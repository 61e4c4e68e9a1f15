"""Published checkpoints to our model and back: their names, all weights and no others."""

from __future__ import annotations

import copy
import dataclasses
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from sca_batch.errors import ScaError
from sca_batch.model.config import ScaConfig, read_config
from sca_batch.model.language import restore_buffers
from sca_batch.model.sca import ScaModel
from sca_batch.model.timm_encoder import TimmEncoder
from sca_batch.model.tokenizer import CaptionTokenizer, read_tokenizer, tokenizer_files
from sca_batch.model.weight_files import listed, read_weights, write_weights
from sca_batch.model.weight_names import (
    LEGACY,
    LM_EMBEDDING,
    LM_HEAD,
    POSITION,
    POSITION_TWIN,
    own_name,
    published_counts,
    published_name,
)

__all__ = [
    "assemble", "build_empty", "load_checkpoint", "own_names", "parameter_counts",
    "published_state", "save_checkpoint", "weights_digest",
]  # fmt: skip


def load_checkpoint(folder: Path) -> ScaModel:
    """Reads a checkpoint folder in the published format, float32, on the CPU.

    A tokenizer beside the weights is read too; a folder without one gives a model without one.

    Raises:
        ScaError: naming every missing or unexpected key, or what is wrong with a file.
    """
    config = read_config(folder)
    tokenizer = None
    if tokenizer_files(folder):
        tokenizer = read_tokenizer(folder, eos_token_id=config.eos_token_id)
    return assemble(config, read_weights(folder), tokenizer, where=str(folder))


def save_checkpoint(model: ScaModel, folder: Path, *, dtype: torch.dtype | None = None) -> None:
    """Writes `config.json` and `model.safetensors` in the published format.

    Every name is there, also those of one tensor: the reference's loader would leave a language
    model's head that it does not find at random values.
    """
    folder.mkdir(parents=True, exist_ok=True)
    # Copies, since a safetensors file holds no tensor twice.
    state = {
        name: value.to(dtype or value.dtype, copy=True)
        for name, value in published_state(model, with_ties=True).items()
    }
    write_weights(state, folder)
    config = json.dumps(model.config.to_dict(), indent=2) + "\n"
    (folder / "config.json").write_text(config, encoding="utf-8")


def published_state(model: ScaModel, *, with_ties: bool = False) -> dict[str, Tensor]:
    """The state dict under published names; shared tensors stand once unless `with_ties`.

    Of the position code's two names the outer one stays, as in files of the reference's
    `save_pretrained`; of a tied language model the embedding.
    """
    state = {published_name(name): value for name, value in model.state_dict().items()}
    state[POSITION_TWIN] = state[POSITION] if with_ties else state.pop(POSITION)
    if model.language_model.config.tie_word_embeddings and not with_ties:
        state.pop(LM_HEAD)
    return {name: value.detach().contiguous() for name, value in state.items()}


def weights_digest(model: ScaModel) -> str:
    """SHA-256 over names, dtypes and bytes of all weights, hex."""
    digest = hashlib.sha256()
    for name, value in sorted(published_state(model).items()):
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
        digest.update(value.cpu().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def parameter_counts(model: ScaModel) -> tuple[int, int]:
    """All parameters and the trainable ones, as `published_counts` counts them."""
    sizes = {name: value.numel() for name, value in published_state(model).items()}
    return published_counts(sizes, tied=model.language_model.config.tie_word_embeddings)


def build_empty(config: ScaConfig) -> ScaModel:
    """A model of these sizes on the meta device: shapes without memory."""
    with torch.device("meta"):
        return ScaModel(config)


def assemble(
    config: ScaConfig, state: dict[str, Tensor], tokenizer: CaptionTokenizer | None, *, where: str
) -> ScaModel:
    """A model of these sizes with these weights, all of them and no others."""
    if config.text.tie_word_embeddings and _is_untied(state, config):
        # As the reference would: it loads both tensors and never ties them again.
        text = copy.deepcopy(config.text)
        text.tie_word_embeddings = False
        config = dataclasses.replace(config, text=text)
    model = build_empty(config)
    own = own_names(state, config, where=where)
    expected = model.state_dict()
    missing, unexpected = sorted(expected.keys() - own.keys()), sorted(own.keys() - expected.keys())
    if missing or unexpected:
        raise ScaError(
            f"{where}: the weights do not match config.json. "
            + listed("missing", [published_name(name) for name in missing])
            + listed("unexpected", [published_name(name) for name in unexpected])
            + "Nothing is left at random: use the config.json that belongs to these weights"
        )
    misfits = [
        f"{published_name(name)} is {_described(own[name])}, expected {tuple(value.shape)}"
        for name, value in expected.items()
        if own[name].shape != value.shape or not own[name].is_floating_point()
    ]
    if misfits:
        more = f" and {len(misfits) - 4} more" if len(misfits) > 4 else ""
        raise ScaError(f"{where}: {'; '.join(misfits[:4])}{more}. Sizes come from config.json")
    # Half precision on disk is a matter of size; the run's dtype is chosen elsewhere.
    model.load_state_dict({name: value.float() for name, value in own.items()}, assign=True)
    if config.text.tie_word_embeddings:
        model.language_model.tie_weights()
    restore_buffers(model.language_model, torch.device("cpu"))
    if isinstance(model.vision_encoder, TimmEncoder):
        model.vision_encoder.restore_buffers()
    tensors = [*model.named_parameters(), *model.named_buffers()]
    left = [name for name, value in tensors if value.is_meta]
    assert not left, f"left on the meta device: {left}"
    model.tokenizer = tokenizer
    return model.requires_grad_(False).eval()


def own_names(state: Mapping[str, Tensor], config: ScaConfig, *, where: str) -> dict[str, Tensor]:
    """Published names to ours, with the twins, ties and leftovers of old files sorted out."""
    own = {
        own_name(name): value
        for name, value in state.items()
        if not LEGACY.match(name) and name != POSITION_TWIN
    }
    if POSITION_TWIN in state:
        # Both names hold one tensor; files written by save_pretrained drop either of them.
        twin = state[POSITION_TWIN]
        if not torch.equal(own.setdefault(POSITION, twin), twin):
            raise ScaError(f"{where}: {POSITION} and {POSITION_TWIN} differ; expected one tensor")
    if config.text.tie_word_embeddings:
        embedding = LM_EMBEDDING[config.text.model_type]
        if embedding in own:
            own.setdefault(LM_HEAD, own[embedding])
        elif LM_HEAD in own:
            own[embedding] = own[LM_HEAD]
    return own


def _is_untied(state: Mapping[str, Tensor], config: ScaConfig) -> bool:
    embedding, head = state.get(LM_EMBEDDING[config.text.model_type]), state.get(LM_HEAD)
    return embedding is not None and head is not None and not torch.equal(embedding, head)


def _described(value: Tensor) -> str:
    dtype = "" if value.is_floating_point() else f" of {value.dtype}".replace("torch.", "")
    return f"{tuple(value.shape)}{dtype}"
