"""The processes of a run, one per device, and how they speak to each other: accelerate."""

from __future__ import annotations

import os
import signal
from typing import Any

import cv2
import torch

from sca_batch.errors import MissingPackageError, ScaError
from sca_batch.train.task import RunSettings

__all__ = ["begin_batch_worker", "gathered", "open_accelerator", "summed"]


def open_accelerator(settings: RunSettings, *, cpu: bool) -> Any:
    """Accelerate's accelerator for this process, as its launcher and configuration say.

    Raises:
        ScaError: for settings that these devices cannot meet.
    """
    try:
        from accelerate import Accelerator
    except ImportError:
        raise MissingPackageError("accelerate", "training", "train") from None
    if settings.precision == "fp16" and (cpu or not torch.cuda.is_available()):
        raise ScaError("precision=fp16 needs a GPU; on a CPU: --set precision=no")
    for kind in ("DEEPSPEED", "MEGATRON_LM"):
        if _asks_for(kind):
            raise ScaError(
                f"{kind} is on in accelerate's configuration and is not supported: what is trained "
                "is small. Choose plain multi-GPU training or FSDP 2: accelerate config"
            )
    accelerator = Accelerator(mixed_precision=settings.precision, cpu=cpu)
    if _asks_for("FSDP") and not getattr(accelerator, "is_fsdp2", False):
        # On a CPU accelerate would leave it out without a word.
        raise ScaError(
            "FSDP is on in accelerate's configuration, and accelerate gives "
            f"{accelerator.distributed_type.value}: expected FSDP 2 (fsdp_version: 2) on several "
            "GPUs. Change that, or choose plain data parallelism: accelerate config"
        )
    share = accelerator.num_processes * settings.images_per_device
    if settings.images_per_step % share:
        raise ScaError(
            f"images_per_step={settings.images_per_step} cannot be divided among "
            f"{accelerator.num_processes} devices with {settings.images_per_device} images each"
        )
    return accelerator


def _asks_for(kind: str) -> bool:
    return os.environ.get(f"ACCELERATE_USE_{kind}", "").lower() in ("1", "true", "yes")


def gathered(accelerator: Any, values: list[Any]) -> list[Any]:
    """The lists of all processes one after another, the same on each."""
    if accelerator.num_processes == 1:
        return values
    from accelerate.utils import gather_object

    found: list[Any] = gather_object(values)
    return found


def summed(accelerator: Any, values: list[float]) -> list[float]:
    """Numbers added up over all processes."""
    if accelerator.num_processes == 1:
        return values
    total = accelerator.reduce(torch.tensor(values, device=accelerator.device), "sum")
    return [float(value) for value in total]


def begin_batch_worker(worker: int) -> None:
    """For processes that make batches: a signal to the whole group is the main one's to answer.

    Otherwise Ctrl-C, or a scheduler's SIGTERM, would end them before the step that waits for them.
    OpenCV gets one thread in each: with one for every core, sixteen processes on sixteen cores
    would mostly wait for each other.
    """
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)
    cv2.setNumThreads(1)
