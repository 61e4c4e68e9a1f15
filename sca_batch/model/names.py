"""Names of models: which are known, and what a name or a path means on this machine."""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass
from pathlib import Path

from sca_batch.errors import ScaError
from sca_batch.model.config import ConfigFile, read_config_file

__all__ = [
    "DEFAULT_MODEL", "MODELS", "ModelFacts", "bundled_folder", "config_at_hand", "folder_at_hand",
    "is_hub_id", "near_names", "parts_named", "suggestion",
]  # fmt: skip

DEFAULT_MODEL = "sca-tiny"


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """One line about a model that has a name. Scores are Visual Genome's, times 100."""

    language_model: str
    trained_on: str
    cider: float | None = None
    meteor: float | None = None
    bundled: bool = False


# Scores as reported with the published weights (Segment and Caption Anything, CVPR 2024).
MODELS: dict[str, ModelFacts] = {
    "sca-tiny": ModelFacts("a small GPT-2", "composed scenes of pictograms", bundled=True),
    "xk-huang/segment-caption-anything-gpt2_large-vg": ModelFacts(
        "GPT2-large", "Visual Genome", 148.8, 17.4
    ),
    "xk-huang/segment-caption-anything-ollm3bv2-vg": ModelFacts(
        "OpenLLaMA-3B v2", "Visual Genome", 149.8, 17.4
    ),
    "xk-huang/segment-caption-anything-gpt2_large-pt_vg": ModelFacts(
        "GPT2-large", "Objects365, then Visual Genome", 149.8, 17.5
    ),
    "xk-huang/segment-caption-anything-gpt2_large-pt": ModelFacts("GPT2-large", "Objects365"),
}

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_PARTS = ("sam", "lm", "mixer")


def folder_at_hand(name: str) -> Path | None:
    """The checkpoint folder that a name means; None where it is not a bundled model or a folder.

    A training run's folder means the model that the run has left in it.

    Raises:
        ScaError: the bundled model is not installed, or the training run has not ended.
    """
    if name in MODELS and MODELS[name].bundled:
        return bundled_folder(name)
    folder = Path(name)
    if not name or not folder.is_dir():
        return None
    if (folder / "config.json").is_file() or not (folder / "checkpoints").is_dir():
        return folder
    if not (folder / "model" / "config.json").is_file():
        raise ScaError(
            f"{folder} is a training run that has not ended: there is no {folder / 'model'} yet. "
            "Go on with sca train ... --resume"
        )
    return folder / "model"


def config_at_hand(name_or_path: str | Path) -> ConfigFile | None:
    """A model's configuration where its folder is here; None where it would have to be fetched.

    Raises:
        ScaError: the folder's config.json is not one.
    """
    folder = folder_at_hand(str(name_or_path))
    return None if folder is None else read_config_file(folder)


def bundled_folder(name: str) -> Path:
    """The folder of a model that comes with this package."""
    folder = Path(__file__).parent.parent / "assets" / name
    if not (folder / "config.json").is_file():
        raise ScaError(
            f"{name} is not in this installation ({folder} has no config.json). Install the "
            "package again, or name a checkpoint folder"
        )
    return folder


def parts_named(name: str) -> dict[str, str] | None:
    """The parts that `sam=...,lm=...,mixer=...` names; None for another form of name.

    Raises:
        ScaError: a part is missing, named twice, or unknown.
    """
    if not name.startswith(tuple(f"{part}=" for part in _PARTS)):
        return None
    parts: dict[str, str] = {}
    for item in name.split(","):
        key, _, value = item.partition("=")
        if key not in _PARTS or not value or key in parts:
            raise ScaError(f"model {name!r}: {item!r} is not one of sam=..., lm=..., mixer=...")
        parts[key] = value
    absent = [part for part in _PARTS if part not in parts]
    if absent:
        raise ScaError(
            f"model {name!r}: no {absent[0]}=...; expected sam=PATH_OR_HUB_ID,lm=PATH_OR_HUB_ID,"
            "mixer=PATH"
        )
    return parts


def is_hub_id(name: str) -> bool:
    """True for owner/name, with or without @revision."""
    return _HUB_ID.fullmatch(name.split("@", 1)[0]) is not None


def suggestion(name: str) -> str:
    """Advice for a name that means nothing."""
    return near_names(name) or (
        "Expected a checkpoint folder, a hub id (owner/name), or a name that `sca model list` "
        "shows. "
    )


def near_names(name: str) -> str:
    """A question for a name that looks like a known model or a folder beside; else empty."""
    if name in MODELS:
        return ""
    short = {known.split("/")[-1]: known for known in MODELS}
    near = [
        *difflib.get_close_matches(name, MODELS, n=2),
        *(short[n] for n in difflib.get_close_matches(name.split("/")[-1], short, n=2)),
    ]
    parent = Path(name).parent
    if not near and parent.is_dir():
        folders = [path.name for path in parent.iterdir() if path.is_dir()]
        beside = difflib.get_close_matches(Path(name).name, sorted(folders), n=2)
        near = [str(parent / folder) for folder in beside]
    return f"Did you mean {' or '.join(dict.fromkeys(near))}? " if near else ""
