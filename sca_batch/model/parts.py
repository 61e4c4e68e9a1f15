"""SAM, a language model and the trained part, each on its own, and what they make together."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor
from transformers import GPT2Config, PreTrainedConfig, SamConfig

from sca_batch.errors import ScaError
from sca_batch.model.checkpoint import assemble, own_names
from sca_batch.model.config import (
    SAM_WIDTHS,
    ScaConfig,
    sam_config_of,
    sam_vit_config,
    text_config_from_dict,
)
from sca_batch.model.sca import PromptableSam, ScaModel
from sca_batch.model.tokenizer import CaptionTokenizer, read_tokenizer, tokenizer_files
from sca_batch.model.weight_files import (
    read_file_or_folder,
    read_json,
    read_weight_file,
    read_weights,
    write_weights,
)
from sca_batch.model.weight_names import (
    NOT_SAM,
    POSITION,
    POSITION_TWIN,
    TRAINED,
    own_sam_name,
    published_name,
)

__all__ = ["Parts", "compose", "load_sam", "read_parts", "save_sam"]


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
        for name, value in read_file_or_folder(mixer).items()
        if name.startswith(TRAINED)
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
    text_raw = read_json(text_path, "a language model's folder")
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


def save_sam(sam: PromptableSam, folder: Path) -> None:
    """Writes a SAM alone, in the layout that `read_parts` takes for one."""
    folder.mkdir(parents=True, exist_ok=True)
    state = {published_name(name): value for name, value in sam.state_dict().items()}
    state[POSITION_TWIN] = state.pop(POSITION)
    write_weights({name: value.detach().contiguous() for name, value in state.items()}, folder)
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
    own = own_names(state, config, where=str(folder))
    try:
        sam.load_state_dict({name: value.float() for name, value in own.items()}, assign=True)
    except RuntimeError as error:
        raise ScaError(f"{folder}: {' '.join(str(error).split())}") from None
    return sam.requires_grad_(False).eval()


def _pyramid_of(sam: Path) -> tuple[str, tuple[int, ...]]:
    """The timm backbone and its levels, where SAM has such an encoder; empty for SAM's own."""
    if not sam.is_dir():
        return "", ()
    raw = read_json(sam / "config.json", "SAM in the layout of transformers")
    if not raw.get("timm_levels"):
        return "", ()
    return str(raw["timm_vision_name"]), tuple(int(level) for level in raw["timm_levels"])


def _caption_heads_beside(mixer: Path) -> int:
    folder = mixer if mixer.is_dir() else mixer.parent
    if not (folder / "config.json").is_file():
        return 1
    raw = read_json(folder / "config.json", "a checkpoint folder")
    return int((raw.get("mask_caption_decoder_config") or {}).get("num_caption_heads", 1))


def _read_sam(path: Path) -> tuple[SamConfig, dict[str, Tensor]]:
    if path.is_dir():
        raw = read_json(path / "config.json", "SAM in the layout of transformers")
        # What an SCA checkpoint adds to SAM's decoder is not looked at.
        state = {n: v for n, v in read_weights(path).items() if not n.startswith(NOT_SAM)}
        return sam_config_of(raw), state
    state = {own_sam_name(name): value for name, value in read_weight_file(path).items()}
    # segment_anything's files hold no configuration; the width tells ViT-B, L or H.
    patch = state.get("vision_encoder.patch_embed.projection.weight")
    if patch is None or patch.shape[0] not in SAM_WIDTHS:
        raise ScaError(f"{path}: not one of sam_vit_b, sam_vit_l, sam_vit_h of segment_anything")
    return sam_vit_config(patch.shape[0]), state


def _language_names(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A language model's own files under their names in an SCA checkpoint."""
    inner = ""
    if not any(name.startswith(("transformer.", "model.")) for name in state):
        inner = "transformer." if "wte.weight" in state else "model."
    return {
        f"language_model.{'' if name.startswith('lm_head.') else inner}{name}": value
        for name, value in state.items()
    }
