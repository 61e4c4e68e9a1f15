"""Model names: which there are, where their weights come from, and `load_model`."""

from __future__ import annotations

import contextlib
import difflib
import logging
import re
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from sca_batch.errors import ScaError
from sca_batch.model.checkpoint import load_checkpoint
from sca_batch.model.config import ScaConfig, read_config
from sca_batch.model.parts import compose
from sca_batch.model.sca import ScaModel
from sca_batch.model.tokenizer import read_tokenizer, tokenizer_files
from sca_batch.model.weight_files import weight_files

__all__ = [
    "DEFAULT_MODEL",
    "MODELS",
    "Composition",
    "ModelFacts",
    "bundled_folder",
    "config_at_hand",
    "fetch_part",
    "load_model",
    "locate",
    "tokenizer_folder",
]

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
_DTYPES = {
    "float32": torch.float32,
    "fp32": torch.float32,
    "bfloat16": torch.bfloat16,
    "bf16": torch.bfloat16,
    "float16": torch.float16,
    "fp16": torch.float16,
}
# Names and not `*`: repositories hold the weights of other frameworks and of training's middle.
_TOKENIZER_PATTERNS = (
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "vocab.json",
    "merges.txt",
)
_SAFETENSORS_PATTERNS = ("model.safetensors", "model-*.safetensors", "model.safetensors.index.json")
_PICKLE_PATTERNS = ("pytorch_model.bin", "pytorch_model-*.bin", "pytorch_model.bin.index.json")


@dataclass(frozen=True, slots=True)
class Composition:
    """A model put together from files or folders that are all here."""

    sam: Path
    language_model: Path
    mixer: Path


def load_model(
    name_or_path: str | Path,
    *,
    device: str | torch.device = "auto",
    dtype: str = "auto",
    with_tokenizer: bool = True,
) -> ScaModel:
    """A model in evaluation mode on a device.

    Args:
        name_or_path: a name of `MODELS`; a checkpoint folder; a hub id, with `@revision` if
            wanted; or `sam=...,lm=...,mixer=...`: SAM (a folder, a hub id or one of
            segment_anything's `.pth` files), a language model (a folder or a hub id) and the
            trained part (a file, a folder or a hub id).
        device: `auto` is CUDA where there is one.
        dtype: `float32`, `bfloat16` or `float16` for matrix products under autocast; weights stay
            float32. `auto` is float32 on a CPU and half precision on CUDA, bfloat16 where the GPU
            has it, as in the published evaluation.
        with_tokenizer: without, a checkpoint that lacks its tokenizer need not fetch one; such a
            model gives ids and no text.

    Raises:
        ScaError: saying what is wrong with the name, the files, the device or the hub.

    Example:
        >>> import torch
        >>> from sca_batch import load_model
        >>> model = load_model("sca-tiny", device="cpu")
        >>> size = model.config.image_size
        >>> embedding = model.encode_image(torch.zeros(1, 3, size, size))
        >>> found = model.region_queries(embedding, boxes_R4=torch.tensor([[8.0, 8.0, 90.0, 70.0]]))
        >>> [[best]] = model.generate(found.queries)[0]
        >>> isinstance(model.tokenizer.decode(best.ids), str)
        True
    """
    target = resolve_device(device)
    autocast_dtype = resolve_dtype(dtype, target)
    with quiet_libraries():
        located = locate(name_or_path)
        if isinstance(located, Composition):
            model = compose(located.sam, located.language_model, located.mixer)
        else:
            model = load_checkpoint(located)
        if with_tokenizer and model.tokenizer is None:
            _fetch_tokenizer(model, str(name_or_path))
    if target.type == "cuda" and autocast_dtype is None:
        # cuDNN convolves in TF32 unless told otherwise: ten bits where float32 was asked for.
        torch.backends.cudnn.allow_tf32 = False
    model.autocast_dtype = autocast_dtype
    return model.to(target)


def locate(name_or_path: str | Path) -> Path | Composition:
    """The checkpoint folder that a name means, or the parts of a composition.

    What is on the hub is downloaded to its cache.
    """
    name = str(name_or_path)
    if not name.strip():
        raise ScaError("an empty model name: expected a checkpoint folder, a hub id or a name")
    if name in MODELS and MODELS[name].bundled:
        return bundled_folder(name)
    if Path(name).is_dir():
        return _of_training_run(Path(name))
    if name.startswith(tuple(f"{part}=" for part in _PARTS)):
        return _located_parts(name)
    if Path(name).is_file():
        raise ScaError(
            f"{name} is a file; expected a checkpoint folder. A mixer alone goes with the models "
            f"it was trained behind: sam=...,lm=...,mixer={name}"
        )
    if _is_hub_id(name):
        return _download(name, weights=True)
    raise ScaError(f"no model {name!r}. {_suggestion(name)}".rstrip())


def _of_training_run(folder: Path) -> Path:
    """The folder itself, or the model that a training run has left in it."""
    if (folder / "config.json").is_file() or not (folder / "checkpoints").is_dir():
        return folder
    if not (folder / "model" / "config.json").is_file():
        raise ScaError(
            f"{folder} is a training run that has not ended: there is no {folder / 'model'} yet. "
            "Go on with sca train ... --resume"
        )
    return folder / "model"


def config_at_hand(name_or_path: str | Path) -> ScaConfig | None:
    """A model's configuration where its folder is here; None where it would have to be fetched.

    Raises:
        ScaError: the folder's config.json is not one.
    """
    name = str(name_or_path)
    if name in MODELS and MODELS[name].bundled:
        return read_config(bundled_folder(name))
    if Path(name).is_dir():
        return read_config(_of_training_run(Path(name)))
    return None


def bundled_folder(name: str) -> Path:
    """Where a model that comes with this package lies."""
    folder = Path(__file__).parent.parent / "assets" / name
    if not (folder / "config.json").is_file():
        raise ScaError(
            f"{name} is not in this installation ({folder} has no config.json). Install the "
            "package again, or name a checkpoint folder"
        )
    return folder


def resolve_device(device: str | torch.device) -> torch.device:
    """A device that is there; `auto` is CUDA where there is one, else the CPU."""
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        resolved = torch.device(device)
    except RuntimeError:
        raise ScaError(f"device {device!r}: expected auto, cpu, cuda or cuda:N") from None
    if resolved.type == "cuda":
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if (resolved.index or 0) >= count:
            raise ScaError(
                f"device {device}: {count} CUDA devices are visible. Use --device cpu, or see "
                "what is wrong: sca doctor"
            )
    elif resolved.type != "cpu":
        raise ScaError(f"device {device}: expected auto, cpu, cuda or cuda:N")
    return resolved


def resolve_dtype(dtype: str, device: torch.device) -> torch.dtype | None:
    """The dtype of matrix products under autocast; None is float32 throughout."""
    if dtype == "auto":
        if device.type != "cuda":
            return None
        return (
            torch.bfloat16
            if torch.cuda.is_bf16_supported(including_emulation=False)
            else torch.float16
        )
    if dtype not in _DTYPES:
        raise ScaError(f"dtype {dtype!r}: expected auto, float32, bfloat16 or float16")
    return None if _DTYPES[dtype] is torch.float32 else _DTYPES[dtype]


@contextlib.contextmanager
def quiet_libraries() -> Iterator[None]:
    """Keeps transformers' and the hub's own log lines away; what matters is raised."""
    loggers = [logging.getLogger(name) for name in ("transformers", "huggingface_hub")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _located_parts(name: str) -> Composition:
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
    # The mixer first: it is small and most likely here, so that a typing error costs no download.
    mixer = fetch_part("mixer", parts["mixer"])
    sam = fetch_part("sam", parts["sam"])
    return Composition(sam, fetch_part("lm", parts["lm"]), mixer)


def fetch_part(part: str, value: str) -> Path:
    """Where `sam`, `lm` or `mixer` lies: a folder, a file, or the hub's cache after fetching it."""
    path = Path(value).expanduser()
    if path.is_dir() or (path.is_file() and part != "lm"):
        return path
    # A language model's id may have no owner: gpt2-large.
    if _is_hub_id(value) or (part == "lm" and _is_hub_id(f"any/{value}")):
        return _download(value, weights=True)
    raise ScaError(f"{part}={value}: no such folder{'' if part == 'lm' else ' or file'}")


def _is_hub_id(name: str) -> bool:
    return _HUB_ID.fullmatch(name.split("@", 1)[0]) is not None


def _fetch_tokenizer(model: ScaModel, name: str) -> None:
    """Gives a model the tokenizer of the language model that its config.json names."""
    folder = _tokenizer_of(model.config.tokenizer_name, name)
    if folder is not None and tokenizer_files(folder):
        model.tokenizer = read_tokenizer(folder, eos_token_id=model.config.eos_token_id)


def tokenizer_folder(name: str, tokenizer_name: str) -> Path:
    """The folder with a model's tokenizer: beside its weights, or the language model's own."""
    located = locate(name)
    beside = located if isinstance(located, Path) else located.language_model
    if tokenizer_files(beside):
        return beside
    folder = _tokenizer_of(tokenizer_name, name)
    if folder is None or not tokenizer_files(folder):
        raise ScaError(f"{name} has no tokenizer; copy those of its language model beside it")
    return folder


def _tokenizer_of(source: str, name: str) -> Path | None:
    if Path(source).is_dir() and source:
        return Path(source)
    if not (_is_hub_id(source) or _is_hub_id(f"any/{source}")):
        return None
    try:
        return _download(source, weights=False)
    except ScaError as error:
        raise ScaError(
            f"{name} has no tokenizer beside its weights, and that of {source} could not be "
            f"fetched: {error}"
        ) from None


def _download(name: str, *, weights: bool) -> Path:
    """The cached snapshot of a hub repository, fetched as far as it is not there yet."""
    repository, _, revision = name.partition("@")
    if not weights:
        return _snapshot(repository, revision, _TOKENIZER_PATTERNS)
    wanted = ("config.json", *_TOKENIZER_PATTERNS)
    folder = _snapshot(repository, revision, (*wanted, *_SAFETENSORS_PATTERNS))
    try:
        weight_files(folder)
    except ScaError:  # an older repository: pickles only, which are not fetched beside safetensors
        folder = _snapshot(repository, revision, (*wanted, *_PICKLE_PATTERNS))
    return folder


def _snapshot(repository: str, revision: str, patterns: Sequence[str]) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )
    from huggingface_hub.utils import disable_progress_bars

    if not sys.stderr.isatty():
        disable_progress_bars()
    try:
        folder = snapshot_download(
            repository, revision=revision or None, allow_patterns=list(patterns)
        )
    except GatedRepoError:
        raise ScaError(
            f"{repository}: its owner asks for an agreement. Accept it on the model's page, then "
            "log in: hf auth login"
        ) from None
    except RepositoryNotFoundError:
        raise ScaError(
            f"{repository}: no folder here, and no such model on the hub, or a private one. "
            f"{_suggestion(repository)}For a private one log in: hf auth login"
        ) from None
    except RevisionNotFoundError:
        raise ScaError(
            f"{repository}: no revision {revision!r} on the hub; expected a branch, a tag or a "
            f"commit: {repository}@main"
        ) from None
    except HFValidationError as error:
        raise ScaError(f"{repository}: not a hub id: {error}") from None
    except (LocalEntryNotFoundError, OfflineModeIsEnabled):
        raise ScaError(
            f"{repository}: no folder here, not in the hub's cache, and the hub cannot be reached. "
            + _near_names(repository)
            + "Copy the model's files into a folder and name that, or use the bundled --model "
            f"{DEFAULT_MODEL}"
        ) from None
    except (_transport_error(HfHubHTTPError), OSError) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ScaError(
            f"{repository}: downloading stopped: {reason}. The same command goes on from there"
        ) from None
    return Path(folder)


def _transport_error(hub_error: type[Exception]) -> type[Exception]:
    """What a broken transfer raises: the hub client's library for HTTP changes between releases."""
    return next((cls for cls in hub_error.__mro__ if cls.__name__ == "HTTPError"), hub_error)


def _suggestion(name: str) -> str:
    """What to type next for a name that means nothing."""
    return _near_names(name) or (
        "Expected a checkpoint folder, a hub id (owner/name), or a name that `sca model list` "
        "shows. "
    )


def _near_names(name: str) -> str:
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
