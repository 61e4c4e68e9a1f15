"""`load_model`: a name or a path to a model on a device."""

from __future__ import annotations

from pathlib import Path

import torch

from sca_batch.errors import ScaError
from sca_batch.model.checkpoint import load_checkpoint
from sca_batch.model.hub import Composition, fetch_tokenizer, locate, quiet_libraries
from sca_batch.model.parts import compose
from sca_batch.model.sca import ScaModel
from sca_batch.model.tokenizer import read_tokenizer, tokenizer_files

__all__ = ["load_model", "resolve_device", "resolve_dtype"]

_DTYPES = {
    "float32": torch.float32,
    "fp32": torch.float32,
    "bfloat16": torch.bfloat16,
    "bf16": torch.bfloat16,
    "float16": torch.float16,
    "fp16": torch.float16,
}


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
            folder = fetch_tokenizer(model.config.tokenizer_name, str(name_or_path))
            if folder is not None and tokenizer_files(folder):
                model.tokenizer = read_tokenizer(folder, eos_token_id=model.config.eos_token_id)
    if target.type == "cuda":
        # What is made without a device's name, streams and events among it, is made on this one.
        torch.cuda.set_device(target)
    if target.type == "cuda" and autocast_dtype is None:
        # cuDNN convolves in TF32 unless told otherwise: ten bits where float32 was asked for.
        torch.backends.cudnn.allow_tf32 = False
    model.autocast_dtype = autocast_dtype
    return model.to(target)


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
