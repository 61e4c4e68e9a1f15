"""Files of models: folders that are here, and the hub's, fetched into its cache."""

from __future__ import annotations

import contextlib
import logging
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from sca_batch.errors import ScaError
from sca_batch.model.names import (
    DEFAULT_MODEL,
    folder_at_hand,
    is_hub_id,
    near_names,
    parts_named,
    suggestion,
)
from sca_batch.model.tokenizer import tokenizer_files
from sca_batch.model.weight_files import weight_files

__all__ = [
    "Composition", "fetch_part", "fetch_tokenizer", "locate", "quiet_libraries", "tokenizer_folder",
]  # fmt: skip

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


def locate(name_or_path: str | Path) -> Path | Composition:
    """The checkpoint folder that a name means, or the parts of a composition.

    What is on the hub is downloaded to its cache.
    """
    name = str(name_or_path)
    if not name.strip():
        raise ScaError("an empty model name: expected a checkpoint folder, a hub id or a name")
    if (folder := folder_at_hand(name)) is not None:
        return folder
    if (parts := parts_named(name)) is not None:
        # The mixer first: it is small and most likely here, so that a typing error costs no
        # download.
        mixer = fetch_part("mixer", parts["mixer"])
        return Composition(fetch_part("sam", parts["sam"]), fetch_part("lm", parts["lm"]), mixer)
    if Path(name).is_file():
        raise ScaError(
            f"{name} is a file; expected a checkpoint folder. A mixer alone goes with the models "
            f"it was trained behind: sam=...,lm=...,mixer={name}"
        )
    if is_hub_id(name):
        return _download(name, weights=True)
    raise ScaError(f"no model {name!r}. {suggestion(name)}".rstrip())


def fetch_part(part: str, value: str) -> Path:
    """The folder or file of `sam`, `lm` or `mixer`, fetched to the hub's cache if need be."""
    path = Path(value).expanduser()
    if path.is_dir() or (path.is_file() and part != "lm"):
        return path
    # A language model's id may have no owner: gpt2-large.
    if is_hub_id(value) or (part == "lm" and is_hub_id(f"any/{value}")):
        return _download(value, weights=True)
    raise ScaError(f"{part}={value}: no such folder{'' if part == 'lm' else ' or file'}")


def tokenizer_folder(name: str, tokenizer_name: str) -> Path:
    """The folder with a model's tokenizer: beside its weights, or the language model's own."""
    located = locate(name)
    beside = located if isinstance(located, Path) else located.language_model
    if tokenizer_files(beside):
        return beside
    folder = fetch_tokenizer(tokenizer_name, name)
    if folder is None or not tokenizer_files(folder):
        raise ScaError(f"{name} has no tokenizer; copy those of its language model beside it")
    return folder


def fetch_tokenizer(source: str, name: str) -> Path | None:
    """The folder of the language model `source`, whose tokenizer the model `name` uses.

    None where `source` is neither a folder nor a hub id.
    """
    if Path(source).is_dir() and source:
        return Path(source)
    if not (is_hub_id(source) or is_hub_id(f"any/{source}")):
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
            f"{suggestion(repository)}For a private one log in: hf auth login"
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
            + near_names(repository)
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
    """The error of a broken transfer: the hub client's HTTP library changes between releases."""
    return next((cls for cls in hub_error.__mro__ if cls.__name__ == "HTTPError"), hub_error)


@contextlib.contextmanager
def quiet_libraries(*names: str, level: int = logging.CRITICAL) -> Iterator[None]:
    """Keeps log lines of libraries below a level away: transformers' and the hub's, or others'."""
    loggers = [logging.getLogger(name) for name in names or ("transformers", "huggingface_hub")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(level)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
