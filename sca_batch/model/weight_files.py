"""Files of weights as they lie on disk: safetensors or pickles, single or in shards.

Nothing here executes what it reads: safetensors, or torch's pickle with `weights_only`. torch is
loaded where tensors are read: names and sizes of safetensors are told without it.
"""

from __future__ import annotations

import json
import os
import pickle
import re
import struct
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any
from zipfile import is_zipfile

from safetensors import SafetensorError, safe_open

from sca_batch.errors import ScaError

if TYPE_CHECKING:
    from torch import Tensor

__all__ = [
    "listed", "read_file_or_folder", "read_json", "read_weight_file", "read_weights",
    "stored_tensors", "weight_files", "write_weights",
]  # fmt: skip

_INDEXES = ("model.safetensors.index.json", "pytorch_model.bin.index.json")
_SINGLE_FILES = ("model.safetensors", "pytorch_model.bin")

# What torch's unpickler raises on files that are cut off, are something else, or hold code.
_BAD_PICKLE = (
    pickle.UnpicklingError, AssertionError, AttributeError, EOFError, LookupError, MemoryError,
    OSError, RuntimeError, TypeError, ValueError, struct.error,
)  # fmt: skip
# safetensors' names of dtypes, as torch spells them.
_DTYPES = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}


def write_weights(state: Mapping[str, Tensor], folder: Path) -> None:
    """Writes `model.safetensors` into a folder that is there, whole or not at all.

    Raises:
        OSError: the disk is full, or the folder cannot be written to.
    """
    from safetensors.torch import save_file

    writing = folder / f".model-{os.getpid()}.safetensors"
    try:
        writing.touch()
        mode = writing.stat().st_mode
        save_file(dict(state), writing, metadata={"format": "pt"})
        writing.chmod(mode)  # the library leaves files that only their owner may read
        writing.replace(folder / "model.safetensors")
    except SafetensorError as error:
        code = re.search(r"os error (\d+)", str(error))
        if code is None:
            raise
        raise OSError(int(code[1]), os.strerror(int(code[1])), str(folder)) from None
    finally:
        writing.unlink(missing_ok=True)


def read_weights(folder: Path) -> dict[str, Tensor]:
    """All tensors of a folder: safetensors or torch pickle, single or sharded by an index."""
    state: dict[str, Tensor] = {}
    for path in weight_files(folder):
        state |= read_weight_file(path)
    named = _indexed_names(folder)
    absent = sorted(named.keys() - state.keys())
    if absent:
        raise ScaError(f"{folder}: " + listed("named in the index but not in the shards", absent))
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


def stored_tensors(path: Path) -> dict[str, tuple[str, int]]:
    """The dtype on disk and the number of values of each tensor of one weight file, by its name."""
    if path.suffix != ".safetensors":
        tensors = read_weight_file(path)  # mapped, so that nothing is read yet
        return {n: (str(v.dtype).removeprefix("torch."), v.numel()) for n, v in tensors.items()}
    with _opened(path, "numpy") as file:
        slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
        return {
            name: (_DTYPES.get(dtype := part.get_dtype(), dtype.lower()), prod(part.get_shape()))
            for name, part in slices.items()
        }


@contextmanager
def _opened(path: Path, framework: str) -> Iterator[Any]:  # the library has no types
    try:
        with safe_open(path, framework=framework) as file:
            yield file
    except SafetensorError as error:
        raise ScaError(f"{path}: not a safetensors file: {error}") from None


def read_file_or_folder(path: Path) -> dict[str, Tensor]:
    return read_weights(path) if path.is_dir() else read_weight_file(path)


def _indexed_names(folder: Path) -> dict[str, str]:
    """Tensor name to shard file; empty where there is no index."""
    index = next((folder / name for name in _INDEXES if (folder / name).is_file()), None)
    if index is None:
        return {}
    names = read_json(index, "an index of weight files").get("weight_map")
    if not isinstance(names, dict) or not names:
        raise ScaError(f"{index}: not an index of weight files (no weight_map)")
    for file_name in names.values():
        if not isinstance(file_name, str) or Path(file_name).name != file_name:
            raise ScaError(f"{index}: shard {file_name!r} is not a file name in this folder")
    return names


def read_json(path: Path, expected: str) -> dict[str, Any]:
    if not path.is_file():
        raise ScaError(f"{path.parent}: no {path.name}; expected {expected}")
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ScaError(f"{path}: not valid JSON: {error}") from None
    if not isinstance(raw, dict):
        raise ScaError(f"{path}: not a JSON object; expected {expected}")
    return raw


def read_weight_file(path: Path) -> dict[str, Tensor]:
    """One weight file, by its content: a pickle is read with `weights_only`."""
    if not path.is_file():
        raise ScaError(f"{path}: no such file")
    if path.suffix == ".safetensors":
        with _opened(path, "pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    import torch

    try:
        with warnings.catch_warnings():
            # About a pickle of another protocol; either it can be read, or the error says so.
            warnings.filterwarnings("ignore", "Detected pickle protocol", UserWarning)
            loaded = torch.load(path, map_location="cpu", weights_only=True, mmap=is_zipfile(path))
    except _BAD_PICKLE as error:
        reason = str(error).strip().split("\n", 1)[0] or type(error).__name__
        raise ScaError(
            f"{path}: not a plain weight file (it is read with weights_only, nothing in it is "
            f"run): {reason}"
        ) from None
    state = loaded.get("model", loaded) if isinstance(loaded, dict) else loaded
    if not isinstance(state, dict) or not all(isinstance(v, torch.Tensor) for v in state.values()):
        raise ScaError(f"{path}: expected a state dict, a mapping from names to tensors")
    return state


def listed(what: str, names: list[str], shown: int = 6) -> str:
    if not names:
        return ""
    more = f" and {len(names) - shown} more" if len(names) > shown else ""
    return f"{len(names)} {what}: {', '.join(names[:shown])}{more}. "
