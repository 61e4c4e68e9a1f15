"""Every size of a model, read from a checkpoint's config.json.

torch and transformers take seconds to load, and much can be told without them: `ConfigFile`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING

from sca_batch.errors import ScaError
from sca_batch.records import Json, JsonObject

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, SamConfig

__all__ = [
    "ARCHITECTURES", "SAM_WIDTHS", "ConfigFile", "Domain", "ModelSizes", "ScaConfig",
    "config_from_dict", "read_config", "read_config_file", "read_sizes", "sam_config_from_dicts",
    "sam_config_of", "sam_vit_config", "text_config_from_dict",
]  # fmt: skip

# The published classes whose forward pass is implemented here; the first one is that of every
# recipe of the paper but the ablation of image encoders.
TIMM_ARCHITECTURE = "ScaTimmMultitaskV2Model"
# Ours alone: a convolutional backbone of timm whose levels are summed on one grid.
PYRAMID_ARCHITECTURE = "ScaTimmPyramidModel"
ARCHITECTURES = ("ScaMultitaskV2Model", TIMM_ARCHITECTURE, PYRAMID_ARCHITECTURE)

TASKS = ("recognition", "caption")  # the order of the rows in `task_tokens`

# The keys that matter. A published config.json is a dump of old PretrainedConfigs with some fifty
# more in each part, which newer releases would reject or take for generation settings.
# fmt: off
_VISION_KEYS = frozenset([
    "hidden_size", "output_channels", "num_hidden_layers", "num_attention_heads",
    "num_channels", "image_size", "patch_size", "hidden_act", "layer_norm_eps",
    "attention_dropout", "qkv_bias", "use_abs_pos", "use_rel_pos", "window_size",
    "global_attn_indexes", "num_pos_feats", "mlp_ratio", "mlp_dim",
])
_PROMPT_KEYS = frozenset([
    "hidden_size", "image_size", "patch_size", "mask_input_channels", "num_point_embeddings",
    "hidden_act", "layer_norm_eps",
])
_DECODER_KEYS = frozenset([
    "hidden_size", "hidden_act", "mlp_dim", "num_hidden_layers", "num_attention_heads",
    "attention_downsample_rate", "num_multimask_outputs", "iou_head_depth",
    "iou_head_hidden_dim", "layer_norm_eps",
])
_GPT2_KEYS = frozenset([
    "vocab_size", "n_positions", "n_embd", "n_layer", "n_head", "n_inner",
    "activation_function", "resid_pdrop", "embd_pdrop", "attn_pdrop", "layer_norm_epsilon",
    "scale_attn_weights", "scale_attn_by_inverse_layer_idx", "reorder_and_upcast_attn",
    "bos_token_id", "eos_token_id", "tie_word_embeddings",
])
_LLAMA_KEYS = frozenset([
    "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers",
    "num_attention_heads", "num_key_value_heads", "hidden_act", "max_position_embeddings",
    "rms_norm_eps", "attention_bias", "attention_dropout", "mlp_bias", "head_dim", "rope_theta",
    "rope_scaling", "rope_parameters", "bos_token_id", "eos_token_id", "pad_token_id",
    "tie_word_embeddings",
])
# fmt: on
# Width of ViT-B, L and H: layers, heads, layers with global attention.
SAM_WIDTHS = {
    768: (12, 12, (2, 5, 8, 11)),
    1024: (24, 16, (5, 11, 17, 23)),
    1280: (32, 16, (7, 15, 23, 31)),
}
# The width and the number of layers of each language model.
_TEXT_SIZES = {"gpt2": ("n_embd", "n_layer"), "llama": ("hidden_size", "num_hidden_layers")}
_TEXT_KEYS = {"gpt2": _GPT2_KEYS, "llama": _LLAMA_KEYS}


@dataclass(frozen=True, slots=True)
class Domain:
    """Images that a model was made for, and how it shows that one is something else.

    `least_logprob` is a bound on the mean of an image's captions' log-probabilities (nats per
    token) that all but `share_below` of the images of the domain keep; it was measured on images
    that the model was not trained on. `elsewhere` is a model to use for other images.
    """

    name: str
    least_logprob: float
    share_below: float
    elsewhere: str


@dataclass(frozen=True, kw_only=True)
class ConfigFile:
    """All that a config.json says but the sizes of SAM and of the language model.

    Defaults are the published ones: 12 layers, 8 queries. `mixer_layers`, `num_caption_tokens` and
    `num_task_tokens` default to what the paper's checkpoints have, not to the reference code's
    defaults (2, 1, 6).
    """

    mixer_layers: int = 12
    num_caption_tokens: int = 8
    num_caption_heads: int = 1
    num_task_tokens: int = 6
    tokenizer_name: str = ""
    timm_vision_name: str = ""  # a backbone of timm instead of SAM's image encoder
    # Which of its feature levels; none: its last tokens. With the first one, 0, masks are upscaled
    # with high-res features.
    timm_levels: tuple[int, ...] = ()
    domain: Domain | None = None  # of a model that is narrow enough to say so
    # What SAM's automatic mask generation runs with for this model unless it is told otherwise,
    # under SAM's names; SAM's defaults for what is not named.
    automatic_masks: dict[str, float] = field(default_factory=dict)
    raw: JsonObject = field(default_factory=dict, repr=False)


@dataclass(frozen=True, kw_only=True)
class ScaConfig(ConfigFile):
    """Sizes of one model. Defaults are the published ones, with SAM ViT-H."""

    sam: SamConfig
    text: PreTrainedConfig

    @property
    def image_size(self) -> int:
        """Side of the square input, in pixels."""
        return int(self.sam.vision_config.image_size)

    @property
    def grid_size(self) -> int:
        """Side of the image embedding, in cells."""
        return self.image_size // int(self.sam.vision_config.patch_size)

    @property
    def width(self) -> int:
        """Width of prompts, queries and the image tokens that they attend to."""
        return int(self.sam.mask_decoder_config.hidden_size)

    @property
    def embedding_width(self) -> int:
        """Channels of an image embedding: `width`, and behind it any high-res features."""
        return 4 * self.width if 0 in self.timm_levels else self.width

    @property
    def text_width(self) -> int:
        """Width of the language model's embeddings."""
        return int(self.text.hidden_size)

    @property
    def most_new_tokens(self) -> int:
        """Tokens that the language model can add to its prefix before its positions are used up."""
        prefix = self.num_task_tokens + self.num_caption_tokens
        # The last token that is made is never read.
        return int(self.text.max_position_embeddings) - prefix + 1

    @property
    def eos_token_id(self) -> int:
        """The id that ends a caption."""
        eos = self.text.eos_token_id
        return int(eos[0] if isinstance(eos, list) else eos)

    def _class_dict(self) -> JsonObject:
        found: JsonObject = {"architectures": [ARCHITECTURES[0]], "model_type": "sca"}
        if self.timm_vision_name:
            found = {"architectures": [TIMM_ARCHITECTURE], "model_type": "sca_timm"}
            found["timm_vision_name"] = self.timm_vision_name
        if self.timm_levels:
            found |= {"architectures": [PYRAMID_ARCHITECTURE], "model_type": "sca_timm_pyramid"}
            found["timm_levels"] = list(self.timm_levels)
        return found

    def to_dict(self) -> JsonObject:
        """A config.json in the published form, without the keys that carry no meaning."""
        decoder = _chosen(self.sam.mask_decoder_config.to_dict(), _DECODER_KEYS)
        decoder |= {
            "additional_num_hidden_layers": self.mixer_layers,
            "num_caption_tokens": self.num_caption_tokens,
            "num_caption_heads": self.num_caption_heads,
        }
        prompt = _chosen(self.sam.prompt_encoder_config.to_dict(), _PROMPT_KEYS)
        return {
            **self._class_dict(),
            **({} if self.domain is None else {"domain": asdict(self.domain)}),
            **({"automatic_masks": {**self.automatic_masks}} if self.automatic_masks else {}),
            "num_task_tokens": self.num_task_tokens,
            "use_decoder_only_language_model": True,
            "initializer_range": 0.02,
            "vl_projector_type": "linear",
            "vl_projector_norm_type": "none",
            "vision_config": _chosen(self.sam.vision_config.to_dict(), _VISION_KEYS),
            "prompt_encoder_config": prompt | {"image_embedding_size": self.grid_size},
            "mask_caption_decoder_config": decoder,
            "text_config": {
                "model_type": self.text.model_type,
                "_name_or_path": self.tokenizer_name,
                **_text_dict(self.text),
            },
        }


def config_from_dict(raw: JsonObject, *, where: str) -> ScaConfig:
    """Reads a config.json that is already parsed. `where` names it in errors.

    Raises:
        ScaError: for another architecture, or a part that is missing or does not make sense.
    """
    file = _config_file(raw, where=where)
    with _named(where):
        parts = ("vision_config", "prompt_encoder_config", "mask_caption_decoder_config")
        sam = sam_config_from_dicts(*(_object(raw, part) for part in parts))
        text = text_config_from_dict(_object(raw, "text_config"), where=where)
    return ScaConfig(sam=sam, text=text, **{f.name: getattr(file, f.name) for f in fields(file)})


def _config_file(raw: JsonObject, *, where: str) -> ConfigFile:
    architectures = raw.get("architectures") if isinstance(raw, dict) else None
    if architectures not in [[name] for name in ARCHITECTURES]:
        raise ScaError(
            f"{where}: architectures is {architectures}, expected one of {list(ARCHITECTURES)}; "
            "other model classes are not supported"
        )
    with _named(where):
        decoder = _object(raw, "mask_caption_decoder_config")
        levels = raw["timm_levels"] if architectures == [PYRAMID_ARCHITECTURE] else []
        if not isinstance(levels, list):
            raise TypeError(f"timm_levels is {levels!r}, expected a list")
        domain = None
        if raw.get("domain") is not None:
            domain = Domain(**_object(raw, "domain"))  # type: ignore[arg-type]
        return ConfigFile(
            mixer_layers=_integer(decoder, "additional_num_hidden_layers"),
            num_caption_tokens=_integer(decoder, "num_caption_tokens"),
            num_caption_heads=_integer({"num_caption_heads": 1} | decoder, "num_caption_heads"),
            num_task_tokens=_integer(raw, "num_task_tokens"),
            tokenizer_name=str(_object(raw, "text_config").get("_name_or_path") or ""),
            timm_vision_name=(
                "" if architectures == [ARCHITECTURES[0]] else str(raw["timm_vision_name"])
            ),
            timm_levels=tuple(_integer({"timm_levels": n}, "timm_levels") for n in levels),
            domain=domain,
            automatic_masks=dict(raw.get("automatic_masks") or {}),  # type: ignore[arg-type]
            raw=raw,
        )


@dataclass(frozen=True, slots=True)
class ModelSizes:
    """The sizes that describe a model to a reader."""

    image: int  # side of the square input, in pixels
    vision_width: int
    vision_layers: int
    prompt_width: int
    language_model: str
    text_width: int
    text_layers: int
    vocabulary: int
    tied: bool  # the language model's head is its embedding

    @classmethod
    def of(cls, raw: JsonObject) -> ModelSizes:
        """The sizes that a config.json names.

        Raises:
            KeyError: it leaves one of them to the defaults of transformers' classes.
        """
        vision, text = _object(raw, "vision_config"), _object(raw, "text_config")
        language_model = str(text.get("model_type") or "gpt2")
        tied = text.get("tie_word_embeddings")
        width, layers = _TEXT_SIZES.get(language_model, _TEXT_SIZES["llama"])
        return cls(
            image=_integer(vision, "image_size"),
            vision_width=_integer(vision, "hidden_size"),
            vision_layers=_integer(vision, "num_hidden_layers"),
            prompt_width=_integer(_object(raw, "mask_caption_decoder_config"), "hidden_size"),
            language_model=language_model,
            text_width=_integer(text, width),
            text_layers=_integer(text, layers),
            vocabulary=_integer(text, "vocab_size"),
            tied=bool(language_model == "gpt2" if tied is None else tied),
        )


def read_sizes(folder: Path) -> ModelSizes:
    """The sizes in `folder/config.json`; transformers are asked for those that it does not name."""
    raw, where = _read(folder), str(folder / "config.json")
    with _named(where):
        try:
            return ModelSizes.of(raw)
        except KeyError:
            return ModelSizes.of(config_from_dict(raw, where=where).to_dict())


@contextmanager
def _named(where: str) -> Iterator[None]:
    """Turns what a part that is missing or makes no sense raises into one line with its file."""
    from huggingface_hub.errors import StrictDataclassError

    try:
        yield
    except KeyError as error:
        raise ScaError(
            f"{where}: no {error.args[0]!r}. Expected the config.json of a published SCA "
            "checkpoint; sizes are read from it and never guessed"
        ) from None
    except (AttributeError, TypeError, ValueError, StrictDataclassError) as error:
        raise ScaError(f"{where}: {' '.join(str(error).split())}") from None


def _object(part: JsonObject, key: str) -> JsonObject:
    if not isinstance(value := part[key], dict):
        raise TypeError(f"{key} is {value!r}, expected an object")
    return value


def _integer(part: JsonObject, key: str) -> int:
    if (value := part.get(key)) is None:
        raise KeyError(key)
    if not isinstance(value, int | float | str):
        raise TypeError(f"{key} is {value!r}, expected a whole number")
    return int(value)


def sam_config_from_dicts(
    vision: JsonObject, prompt_encoder: JsonObject, mask_decoder: JsonObject
) -> SamConfig:
    """SAM's sizes from the three parts of a config.json; keys without meaning are left out."""
    from transformers import (
        SamConfig,
        SamMaskDecoderConfig,
        SamPromptEncoderConfig,
        SamVisionConfig,
    )

    config = SamConfig(
        vision_config=SamVisionConfig(**_chosen(vision, _VISION_KEYS)),
        prompt_encoder_config=SamPromptEncoderConfig(**_chosen(prompt_encoder, _PROMPT_KEYS)),
        mask_decoder_config=SamMaskDecoderConfig(**_chosen(mask_decoder, _DECODER_KEYS)),
    )
    # Unset, a transformer that is not built through a whole SamModel warns at every call. Eager is
    # what exports to the smallest graph, and 7 tokens against an image leave little to fuse.
    config.mask_decoder_config._attn_implementation = "eager"
    return config


def sam_config_of(raw: Mapping[str, object]) -> SamConfig:
    """SAM's sizes in its config.json, or in that of an SCA checkpoint, which is SAM as well."""
    decoder = raw.get("mask_caption_decoder_config") or raw.get("mask_decoder_config")
    parts = raw.get("vision_config"), raw.get("prompt_encoder_config"), decoder
    return sam_config_from_dicts(*(part if isinstance(part, dict) else {} for part in parts))


def sam_vit_config(width: int) -> SamConfig:
    """The sizes of SAM's ViT-B, L or H, whose `width` is one of SAM_WIDTHS."""
    layers, heads, global_layers = SAM_WIDTHS[width]
    vision: JsonObject = {
        "hidden_size": width,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "global_attn_indexes": list(global_layers),
        "mlp_dim": 4 * width,
    }
    return sam_config_from_dicts(vision, {}, {})


def text_config_from_dict(raw: JsonObject, *, where: str) -> PreTrainedConfig:
    """The language model's sizes; no `model_type` means GPT-2, as in the reference code."""
    from transformers import GPT2Config, LlamaConfig

    kinds = {"gpt2": GPT2Config, "llama": LlamaConfig}
    model_type = raw.get("model_type") or "gpt2"
    if model_type not in kinds:
        raise ScaError(
            f"{where}: language model {model_type!r} is not supported, "
            f"expected one of {sorted(kinds)}"
        )
    chosen = _chosen(raw, _TEXT_KEYS[str(model_type)])
    if isinstance(scaling := chosen.get("rope_scaling"), dict):
        # Up to 4.42 the kind was called `type`, which newer releases do not count as known.
        kind = scaling.get("type", "default")
        rest = {key: value for key, value in scaling.items() if key != "type"}
        chosen["rope_scaling"] = {"rope_type": kind} | rest
    with _named(f"{where}: language model"):
        return kinds[str(model_type)](**chosen)


def read_config(folder: Path) -> ScaConfig:
    """Reads `folder/config.json`."""
    return config_from_dict(_read(folder), where=str(folder / "config.json"))


def read_config_file(folder: Path) -> ConfigFile:
    """Reads `folder/config.json`, but for sizes that only SAM and the language model check."""
    return _config_file(_read(folder), where=str(folder / "config.json"))


def _read(folder: Path) -> JsonObject:
    path = folder / "config.json"
    try:
        raw: JsonObject = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ScaError(f"{folder}: no config.json; expected a checkpoint folder") from None
    except ValueError as error:
        raise ScaError(f"{path}: not valid JSON: {error}") from None
    return raw


def _text_dict(config: PreTrainedConfig) -> JsonObject:
    """The keys that matter, rotary settings under the names that older releases read too."""
    chosen = _chosen(config.to_dict(), _TEXT_KEYS[config.model_type])
    rope = chosen.pop("rope_parameters", None)
    if isinstance(rope, dict) and rope:
        rope = dict(rope)
        chosen["rope_theta"] = rope.pop("rope_theta")
        kind = rope.pop("rope_type", "default")
        if kind != "default":
            chosen["rope_scaling"] = {"type": kind, **rope}
    return chosen


def _chosen(raw: Mapping[str, Json], keys: frozenset[str]) -> JsonObject:
    # null means "not set" in the old dumps; the classes' own defaults apply then.
    return {key: raw[key] for key in sorted(keys) if raw.get(key) is not None}
