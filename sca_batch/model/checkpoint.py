"""Published weights to ours and back. The only file that knows foreign names.

Nothing here executes what it reads: safetensors, or torch's pickle with `weights_only`.
"""

from __future__ import annotations

import copy
import dataclasses
import hashlib
import json
import os
import pickle
import re
import struct
import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from transformers import GPT2Config, PreTrainedConfig, SamConfig

from sca_batch.errors import ScaError
from sca_batch.model.config import (
    ScaConfig,
    read_config,
    sam_config_from_dicts,
    text_config_from_dict,
)
from sca_batch.model.language import restore_buffers
from sca_batch.model.sca import PromptableSam, ScaModel
from sca_batch.model.timm_encoder import TimmEncoder
from sca_batch.model.tokenizer import CaptionTokenizer, read_tokenizer, tokenizer_files

__all__ = [
    "Parts",
    "assemble",
    "compose",
    "load_checkpoint",
    "load_sam",
    "parameter_counts",
    "published_name",
    "published_state",
    "read_parts",
    "save_checkpoint",
    "save_sam",
    "stored_dtypes",
    "weight_files",
    "weights_digest",
]

# Ours, as published. Everything else has the published name already.
_PREFIXES = (
    ("mixer.queries.", "mask_decoder.caption_tokens."),
    ("mixer.transformer.", "mask_decoder.additional_transformer."),
    ("projection.", "language_project."),
    ("vision_encoder.backbone.", "timm_vision_encoder."),
    ("vision_encoder.projector.", "neck."),
)
# What the paper trains, under published names; the neck stands behind a timm backbone.
_TRAINED = ("mask_decoder.caption_tokens.", "mask_decoder.additional_transformer.",
            "language_project.", "task_tokens.", "neck.")  # fmt: skip
_NOT_SAM = (*_TRAINED, "language_model.")
_POSITION = "prompt_encoder.shared_embedding.positional_embedding"
_POSITION_TWIN = "shared_image_embedding.positional_embedding"
_LM_HEAD = "language_model.lm_head.weight"
_LM_EMBEDDING = {
    "gpt2": "language_model.transformer.wte.weight",
    "llama": "language_model.model.embed_tokens.weight",
}

_INDEXES = ("model.safetensors.index.json", "pytorch_model.bin.index.json")
_SINGLE_FILES = ("model.safetensors", "pytorch_model.bin")

# What older releases of transformers stored and newer ones recompute.
_LEGACY = re.compile(
    r"^language_model\..*(\.rotary_emb\.inv_freq|\.h\.\d+\.attn\.(bias|masked_bias))$"
)

# segment_anything's names, as transformers spells them (its own conversion script does the same).
_SEGMENT_ANYTHING = (
    (r"^image_encoder\.", "vision_encoder."),
    (r"\.patch_embed\.proj\.", ".patch_embed.projection."),
    (r"^(vision_encoder)\.blocks\.", r"\1.layers."),
    (r"\.neck\.0\.", ".neck.conv1."),
    (r"\.neck\.1\.", ".neck.layer_norm1."),
    (r"\.neck\.2\.", ".neck.conv2."),
    (r"\.neck\.3\.", ".neck.layer_norm2."),
    (r"\.norm(\d)\.", r".layer_norm\1."),
    (r"\.norm_final_attn\.", ".layer_norm_final_attn."),
    (r"\.output_upscaling\.0\.", ".upscale_conv1."),
    (r"\.output_upscaling\.1\.", ".upscale_layer_norm."),
    (r"\.output_upscaling\.3\.", ".upscale_conv2."),
    (r"(iou_prediction_head|output_hypernetworks_mlps\.\d+)\.layers\.0\.", r"\1.proj_in."),
    (r"(iou_prediction_head|output_hypernetworks_mlps\.\d+)\.layers\.2\.", r"\1.proj_out."),
    (r"(iou_prediction_head|output_hypernetworks_mlps\.\d+)\.layers\.1\.", r"\1.layers.0."),
    (r"^prompt_encoder\.pe_layer\.positional_encoding_gaussian_matrix$", _POSITION),
    (r"\.point_embeddings\.", ".point_embed."),
    (r"\.mask_downscaling\.0\.", ".mask_embed.conv1."),
    (r"\.mask_downscaling\.1\.", ".mask_embed.layer_norm1."),
    (r"\.mask_downscaling\.3\.", ".mask_embed.conv2."),
    (r"\.mask_downscaling\.4\.", ".mask_embed.layer_norm2."),
    (r"\.mask_downscaling\.6\.", ".mask_embed.conv3."),
)


# What torch's unpickler raises on files that are cut off, are something else, or hold code.
_BAD_PICKLE = (
    pickle.UnpicklingError,
    AssertionError,
    EOFError,
    MemoryError,
    LookupError,
    OSError,
    RuntimeError,
    TypeError,
    ValueError,
    AttributeError,
    struct.error,
)


def published_name(name: str) -> str:
    """The published name of one of our parameters."""
    for ours, theirs in _PREFIXES:
        if name.startswith(ours):
            return theirs + name[len(ours) :]
    return name


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
    # Each file gets its name when it is whole: a run that is stopped here leaves the old one.
    writing = folder / f".model-{os.getpid()}.safetensors"
    try:
        save_file(state, writing, metadata={"format": "pt"})
        writing.replace(folder / "model.safetensors")
    except SafetensorError as error:
        code = re.search(r"os error (\d+)", str(error))
        if code is None:
            raise
        raise OSError(int(code[1]), os.strerror(int(code[1])), str(folder)) from None
    finally:
        writing.unlink(missing_ok=True)
    config = json.dumps(model.config.to_dict(), indent=2) + "\n"
    (folder / "config.json").write_text(config, encoding="utf-8")


def save_sam(sam: PromptableSam, folder: Path) -> None:
    """Writes a SAM alone, in the layout that `read_parts` takes for one."""
    folder.mkdir(parents=True, exist_ok=True)
    state = {published_name(name): value for name, value in sam.state_dict().items()}
    state[_POSITION_TWIN] = state.pop(_POSITION)
    writing = folder / f".model-{os.getpid()}.safetensors"
    state = {name: value.detach().contiguous() for name, value in state.items()}
    save_file(state, writing, metadata={"format": "pt"})
    writing.replace(folder / "model.safetensors")
    whole = sam.config.to_dict()
    kept = ("timm_vision_name", "timm_levels", "vision_config", "prompt_encoder_config")
    config = {"model_type": "sam"} | {key: whole[key] for key in kept if key in whole}
    config["mask_decoder_config"] = whole["mask_caption_decoder_config"]
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def load_sam(folder: Path) -> PromptableSam:
    """Reads what `save_sam` writes, float32, on the CPU.

    Raises:
        ScaError: there is no such SAM, or its weights do not fit its sizes.
    """
    sam_config, state = _read_sam(folder)
    timm_name, timm_levels = _pyramid_of(folder)
    config = ScaConfig(
        sam=sam_config, text=GPT2Config(), timm_vision_name=timm_name, timm_levels=timm_levels
    )
    with torch.device("meta"):
        sam = PromptableSam(config)
    own = _own_names(state, config, where=str(folder))
    try:
        sam.load_state_dict({name: value.float() for name, value in own.items()}, assign=True)
    except RuntimeError as error:
        raise ScaError(f"{folder}: {' '.join(str(error).split())}") from None
    return sam.requires_grad_(False).eval()


def published_state(model: ScaModel, *, with_ties: bool = False) -> dict[str, Tensor]:
    """The state dict under published names; shared tensors stand once unless `with_ties`.

    Of the position code's two names the outer one stays, as in files of the reference's
    `save_pretrained`; of a tied language model the embedding.
    """
    state = {published_name(name): value for name, value in model.state_dict().items()}
    state[_POSITION_TWIN] = state[_POSITION] if with_ties else state.pop(_POSITION)
    if model.language_model.config.tie_word_embeddings and not with_ties:
        state.pop(_LM_HEAD)
    return {name: value.detach().contiguous() for name, value in state.items()}


def compose(
    sam: Path, language_model: Path, mixer: Path, *, num_caption_heads: int | None = None
) -> ScaModel:
    """Puts a model together from SAM, a language model and the trained part.

    `sam` is a folder in the layout of transformers or one of segment_anything's `.pth` files;
    `mixer` holds the mixer, projection and task tokens under published names (a whole checkpoint
    will do). Sizes of the trained part are read from its shapes, but for the number of caption
    heads, which shapes do not show: it is that of a config.json beside the mixer, or 1.
    """
    parts = read_parts(sam, language_model)
    if num_caption_heads is None:
        num_caption_heads = _caption_heads_beside(mixer)
    own = {
        name: value
        for name, value in _read_file_or_folder(mixer).items()
        if name.startswith(_TRAINED)
    }
    layers = [
        int(match.group(1))
        for match in (
            re.match(r"mask_decoder\.additional_transformer\.layers\.(\d+)\.", n) for n in own
        )
        if match
    ]
    queries, tasks = own.get("mask_decoder.caption_tokens.weight"), own.get("task_tokens.weight")
    if not layers or queries is None or tasks is None:
        raise ScaError(
            f"{mixer}: expected mask_decoder.additional_transformer.*, "
            "mask_decoder.caption_tokens.weight, language_project.* and task_tokens.weight"
        )
    config = ScaConfig(
        sam=parts.sam,
        text=parts.text,
        mixer_layers=max(layers) + 1,
        num_caption_tokens=len(queries) // num_caption_heads,
        num_caption_heads=num_caption_heads,
        num_task_tokens=len(tasks) // 2,
        tokenizer_name=parts.tokenizer_name,
        timm_vision_name=parts.timm_vision_name,
        timm_levels=parts.timm_levels,
    )
    where = f"sam={sam}, lm={language_model}, mixer={mixer}"
    return assemble(config, parts.state | own, parts.tokenizer, where=where)


@dataclasses.dataclass(frozen=True)
class Parts:
    """SAM and a language model, read; `state` has published names."""

    sam: SamConfig
    text: PreTrainedConfig
    tokenizer_name: str
    tokenizer: CaptionTokenizer | None
    state: dict[str, Tensor] = dataclasses.field(repr=False)
    timm_vision_name: str = ""
    timm_levels: tuple[int, ...] = ()


def read_parts(sam: Path, language_model: Path) -> Parts:
    """Reads what stands in front of the trained part and behind it.

    `sam` is a folder in the layout of transformers or one of segment_anything's `.pth` files.
    """
    sam_config, sam_state = _read_sam(sam)
    timm_name, timm_levels = _pyramid_of(sam)
    text_path = language_model / "config.json"
    text_raw = _read_json(text_path, "a language model's folder")
    text = text_config_from_dict(text_raw, where=str(text_path))
    tokenizer = None
    if tokenizer_files(language_model):
        eos = text.eos_token_id
        eos_token_id = int(eos[0] if isinstance(eos, list) else eos)
        tokenizer = read_tokenizer(language_model, eos_token_id=eos_token_id)
    return Parts(
        sam=sam_config,
        text=text,
        tokenizer_name=str(text_raw.get("_name_or_path") or ""),
        tokenizer=tokenizer,
        state=sam_state | _language_names(read_weights(language_model)),
        timm_vision_name=timm_name,
        timm_levels=timm_levels,
    )


def _pyramid_of(sam: Path) -> tuple[str, tuple[int, ...]]:
    """The timm backbone and its levels, where SAM has such an encoder; empty for SAM's own."""
    if not sam.is_dir():
        return "", ()
    raw = _read_json(sam / "config.json", "SAM in the layout of transformers")
    if not raw.get("timm_levels"):
        return "", ()
    return str(raw["timm_vision_name"]), tuple(int(level) for level in raw["timm_levels"])


def read_weights(folder: Path) -> dict[str, Tensor]:
    """All tensors of a folder: safetensors or torch pickle, single or sharded by an index."""
    state: dict[str, Tensor] = {}
    for path in weight_files(folder):
        state |= _read_file(path)
    named = _indexed_names(folder)
    absent = sorted(named.keys() - state.keys())
    if absent:
        raise ScaError(f"{folder}: " + _listed("named in the index but not in the shards", absent))
    return state


def weight_files(folder: Path) -> list[Path]:
    """The files that `read_weights` reads: the shards of an index, or the single file."""
    shards = sorted(set(_indexed_names(folder).values()))
    if shards:
        return [folder / name for name in shards]
    for name in _SINGLE_FILES:
        if (folder / name).is_file():
            return [folder / name]
    raise ScaError(
        f"{folder}: no weights; expected model.safetensors or pytorch_model.bin, or an index of "
        "their shards"
    )


def stored_dtypes(path: Path) -> dict[str, int]:
    """Number of parameters of each dtype in one weight file, as they are on disk."""
    counts: dict[str, int] = {}
    for value in _read_file(path).values():  # mapped, so that nothing is read yet
        name = str(value.dtype).removeprefix("torch.")
        counts[name] = counts.get(name, 0) + value.numel()
    return counts


def weights_digest(model: ScaModel) -> str:
    """SHA-256 over names, dtypes and bytes of all weights, hex."""
    digest = hashlib.sha256()
    for name, value in sorted(published_state(model).items()):
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
        digest.update(value.cpu().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def parameter_counts(model: ScaModel) -> tuple[int, int]:
    """All parameters and the trainable ones, counted as the published implementation does.

    A tied head counts once; the position code is not one (a buffer there).
    """
    counted = {
        parameter: parameter.numel()
        for name, parameter in model.named_parameters()
        if name != _POSITION
    }
    modules = model.trainable_modules().values()
    trained = (parameter for module in modules for parameter in module.parameters())
    return sum(counted.values()), sum(parameter.numel() for parameter in trained)


def build_empty(config: ScaConfig) -> ScaModel:
    """A model of these sizes on the meta device: shapes without memory."""
    with torch.device("meta"):
        return ScaModel(config)


def assemble(
    config: ScaConfig,
    state: dict[str, Tensor],
    tokenizer: CaptionTokenizer | None,
    *,
    where: str,
) -> ScaModel:
    """A model of these sizes with these weights, all of them and no others."""
    if config.text.tie_word_embeddings and _is_untied(state, config):
        # As the reference would: it loads both tensors and never ties them again.
        text = copy.deepcopy(config.text)
        text.tie_word_embeddings = False
        config = dataclasses.replace(config, text=text)
    model = build_empty(config)
    own = _own_names(state, config, where=where)
    expected = model.state_dict()
    missing, unexpected = sorted(expected.keys() - own.keys()), sorted(own.keys() - expected.keys())
    if missing or unexpected:
        raise ScaError(
            f"{where}: the weights do not match config.json. "
            + _listed("missing", [published_name(name) for name in missing])
            + _listed("unexpected", [published_name(name) for name in unexpected])
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
    left = [name for name, value in _tensors(model) if value.is_meta]
    assert not left, f"left on the meta device: {left}"
    model.tokenizer = tokenizer
    return model.requires_grad_(False).eval()


def _own_names(state: Mapping[str, Tensor], config: ScaConfig, *, where: str) -> dict[str, Tensor]:
    """Published names to ours, with the twins, ties and leftovers of old files sorted out."""
    own = {
        _own_name(name): value
        for name, value in state.items()
        if not _LEGACY.match(name) and name != _POSITION_TWIN
    }
    if _POSITION_TWIN in state:
        # Both names hold one tensor; files written by save_pretrained drop either of them.
        twin = state[_POSITION_TWIN]
        if not torch.equal(own.setdefault(_POSITION, twin), twin):
            raise ScaError(f"{where}: {_POSITION} and {_POSITION_TWIN} differ; expected one tensor")
    if config.text.tie_word_embeddings:
        embedding = _LM_EMBEDDING[config.text.model_type]
        if embedding in own:
            own.setdefault(_LM_HEAD, own[embedding])
        elif _LM_HEAD in own:
            own[embedding] = own[_LM_HEAD]
    return own


def _own_name(name: str) -> str:
    for ours, theirs in _PREFIXES:
        if name.startswith(theirs):
            return ours + name[len(theirs) :]
    return name


def _is_untied(state: Mapping[str, Tensor], config: ScaConfig) -> bool:
    embedding, head = state.get(_LM_EMBEDDING[config.text.model_type]), state.get(_LM_HEAD)
    return embedding is not None and head is not None and not torch.equal(embedding, head)


def _caption_heads_beside(mixer: Path) -> int:
    folder = mixer if mixer.is_dir() else mixer.parent
    if not (folder / "config.json").is_file():
        return 1
    raw = _read_json(folder / "config.json", "a checkpoint folder")
    return int((raw.get("mask_caption_decoder_config") or {}).get("num_caption_heads", 1))


def _read_sam(path: Path) -> tuple[SamConfig, dict[str, Tensor]]:
    if path.is_dir():
        raw = _read_json(path / "config.json", "SAM in the layout of transformers")
        # An SCA checkpoint is SAM as well; what it adds to the decoder is not looked at.
        decoder = "mask_caption_decoder_config"
        decoder = decoder if decoder in raw else "mask_decoder_config"
        parts = ("vision_config", "prompt_encoder_config", decoder)
        state = {n: v for n, v in read_weights(path).items() if not n.startswith(_NOT_SAM)}
        return sam_config_from_dicts(*(raw.get(part) or {} for part in parts)), state
    state = {_renamed(name): value for name, value in _read_file(path).items()}
    return _sam_config_from_shapes(state, path), state


def _renamed(name: str) -> str:
    for pattern, replacement in _SEGMENT_ANYTHING:
        name = re.sub(pattern, replacement, name)
    return name


def _sam_config_from_shapes(state: Mapping[str, Tensor], path: Path) -> SamConfig:
    """segment_anything's files hold no configuration; the width tells ViT-B, L or H."""
    patch = state.get("vision_encoder.patch_embed.projection.weight")
    sizes = {768: (12, 12, (2, 5, 8, 11)), 1024: (24, 16, (5, 11, 17, 23)),
             1280: (32, 16, (7, 15, 23, 31))}  # fmt: skip
    if patch is None or patch.shape[0] not in sizes:
        raise ScaError(f"{path}: not one of sam_vit_b, sam_vit_l, sam_vit_h of segment_anything")
    width = int(patch.shape[0])
    layers, heads, global_layers = sizes[width]
    vision = {
        "hidden_size": width,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "global_attn_indexes": list(global_layers),
        "mlp_dim": 4 * width,
    }
    return sam_config_from_dicts(vision, {}, {})


def _language_names(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A language model's own files to their place in an SCA checkpoint."""
    bare = not any(name.startswith(("transformer.", "model.")) for name in state)
    inner = ""
    if bare:
        inner = "transformer." if "wte.weight" in state else "model."
    return {
        f"language_model.{'' if name.startswith('lm_head.') else inner}{name}": value
        for name, value in state.items()
    }


def _read_file_or_folder(path: Path) -> dict[str, Tensor]:
    return read_weights(path) if path.is_dir() else _read_file(path)


def _indexed_names(folder: Path) -> dict[str, str]:
    """Tensor name to shard file; empty where there is no index."""
    index = next((folder / name for name in _INDEXES if (folder / name).is_file()), None)
    if index is None:
        return {}
    names = _read_json(index, "an index of weight files").get("weight_map")
    if not isinstance(names, dict) or not names:
        raise ScaError(f"{index}: not an index of weight files (no weight_map)")
    for file_name in names.values():
        if not isinstance(file_name, str) or Path(file_name).name != file_name:
            raise ScaError(f"{index}: shard {file_name!r} is not a file name in this folder")
    return names


def _read_json(path: Path, expected: str) -> dict[str, Any]:
    if not path.is_file():
        raise ScaError(f"{path.parent}: no {path.name}; expected {expected}")
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ScaError(f"{path}: not valid JSON: {error}") from None
    if not isinstance(raw, dict):
        raise ScaError(f"{path}: not a JSON object; expected {expected}")
    return raw


def _read_file(path: Path) -> dict[str, Tensor]:
    """One weight file, by its content: a pickle is read with `weights_only`."""
    if not path.is_file():
        raise ScaError(f"{path}: no such file")
    if path.suffix == ".safetensors":
        try:
            with safe_open(path, framework="pt") as file:
                return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except SafetensorError as error:
            raise ScaError(f"{path}: not a safetensors file: {error}") from None
    try:
        with warnings.catch_warnings():
            # About a pickle of another protocol; either it can be read, or the error says so.
            warnings.filterwarnings("ignore", "Detected pickle protocol", UserWarning)
            loaded = torch.load(path, map_location="cpu", weights_only=True, mmap=_is_zip(path))
    except _BAD_PICKLE as error:
        reason = str(error).strip().split("\n", 1)[0] or type(error).__name__
        raise ScaError(
            f"{path}: not a plain weight file (it is read with weights_only, nothing in it is "
            f"run): {reason}"
        ) from None
    state = loaded.get("model", loaded) if isinstance(loaded, dict) else loaded
    if not isinstance(state, dict) or not all(isinstance(v, Tensor) for v in state.values()):
        raise ScaError(f"{path}: expected a state dict, a mapping from names to tensors")
    return state


def _is_zip(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(4) == b"PK\x03\x04"


def _described(value: Tensor) -> str:
    dtype = "" if value.is_floating_point() else f" of {value.dtype}".replace("torch.", "")
    return f"{tuple(value.shape)}{dtype}"


def _tensors(model: ScaModel) -> Iterable[tuple[str, Tensor]]:
    yield from model.named_parameters()
    yield from model.named_buffers()


def _listed(what: str, names: list[str], shown: int = 6) -> str:
    if not names:
        return ""
    more = f" and {len(names) - shown} more" if len(names) > shown else ""
    return f"{len(names)} {what}: {', '.join(names[:shown])}{more}. "
