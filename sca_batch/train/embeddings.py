"""Image embeddings on disk, for runs that see every image the same way each time."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from safetensors import SafetensorError
from safetensors.numpy import load_file, save
from torch import Tensor

from sca_batch.model.sca import ScaModel
from sca_batch.storage.atomic import writing

__all__ = ["EmbeddingCache", "encoder_fingerprint"]

Floats = npt.NDArray[np.float32]


class EmbeddingCache:
    """One file per image and flip, in a folder per encoder.

    Embeddings are float32, or float16 behind an encoder that runs in half precision: 4 MiB or 2
    MiB for each image at SAM's size.
    """

    def __init__(self, folder: Path, *, half: bool) -> None:
        self.folder, self.half = folder, half

    def name(self, key: str, uri: str, *, flipped: bool) -> str:
        return hashlib.sha256(f"{key}\n{uri}\n{flipped}".encode()).hexdigest()

    def load(self, name: str) -> tuple[Floats, tuple[int, int]] | None:
        """The embedding (D, H, W) and the image's size (height, width), or None."""
        path = self._path(name)
        if not path.exists():
            return None
        try:
            stored = load_file(path)
            embedding, (height, width) = stored["embedding"], stored["size_hw"].tolist()
        except (SafetensorError, KeyError, ValueError):  # made anew, and written over
            return None
        return embedding.astype(np.float32), (int(height), int(width))

    def save(self, name: str, embedding_DHW: Tensor, size_hw: tuple[int, int]) -> None:
        dtype = np.float16 if self.half else np.float32
        tensors = {
            # Safetensors writes memory as it lies, whatever the strides say.
            "embedding": np.ascontiguousarray(embedding_DHW.detach().float().cpu(), dtype),
            "size_hw": np.array(size_hw, np.int64),
        }
        path = self._path(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        with writing(path) as file:
            file.write(save(tensors))

    def _path(self, name: str) -> Path:
        return self.folder / name[:2] / f"{name}.safetensors"


def encoder_fingerprint(model: ScaModel) -> str:
    """Sixteen hex digits over the weights of the image encoder."""
    digest = hashlib.sha256()
    for name, value in sorted(model.vision_encoder.state_dict().items()):
        digest.update(f"{name} {tuple(value.shape)}\n".encode())
        digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()[:16]
