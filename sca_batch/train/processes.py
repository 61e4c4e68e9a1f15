"""The processes of a run, one per device, and how they speak to each other: accelerate."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from typing import TYPE_CHECKING, TypeVar

import cv2
import torch
from torch.utils.data import DataLoader, Dataset

from sca_batch.errors import MissingPackageError, ScaError
from sca_batch.train.task import Report, RunSettings

if TYPE_CHECKING:
    from accelerate import Accelerator

__all__ = ["gathered", "load_batches", "main_only", "open_accelerator", "summed"]

T = TypeVar("T")


def open_accelerator(settings: RunSettings, *, cpu: bool) -> Accelerator:
    """Accelerate's accelerator for this process, as its launcher and configuration say.

    Raises:
        ScaError: for settings that these devices cannot meet.
    """
    try:
        from accelerate import Accelerator
    except ImportError:
        raise MissingPackageError("accelerate", "training", "train") from None
    if settings.recipe.precision == "fp16" and (cpu or not torch.cuda.is_available()):
        raise ScaError("precision=fp16 needs a GPU; on a CPU: --set precision=no")
    for kind in ("DEEPSPEED", "MEGATRON_LM"):
        if _asks_for(kind):
            raise ScaError(
                f"{kind} is on in accelerate's configuration and is not supported: what is trained "
                "is small. Choose plain multi-GPU training or FSDP 2: accelerate config"
            )
    accelerator = Accelerator(mixed_precision=settings.recipe.precision, cpu=cpu)
    if _asks_for("FSDP") and not getattr(accelerator, "is_fsdp2", False):
        # On a CPU accelerate would leave it out without a word. All have to have joined before the
        # first one leaves, who keeps the store that the others join by.
        accelerator.wait_for_everyone()
        raise ScaError(
            "FSDP is on in accelerate's configuration, and accelerate gives "
            f"{accelerator.distributed_type.value}: expected FSDP 2 (fsdp_version: 2) on several "
            "GPUs. Change that, or choose plain data parallelism: accelerate config"
        )
    share = accelerator.num_processes * settings.images_per_device
    if settings.images_per_step % share:
        accelerator.wait_for_everyone()
        raise ScaError(
            f"images_per_step={settings.images_per_step} cannot be divided among "
            f"{accelerator.num_processes} devices with {settings.images_per_device} images each"
        )
    return accelerator


def _asks_for(kind: str) -> bool:
    return os.environ.get(f"ACCELERATE_USE_{kind}", "").lower() in ("1", "true", "yes")


def gathered(accelerator: Accelerator, values: list[T]) -> list[T]:
    """The lists of all processes one after another, the same on each."""
    if accelerator.num_processes == 1:
        return values
    from accelerate.utils import gather_object

    found: list[T] = gather_object(values)
    return found


def summed(accelerator: Accelerator, values: list[float]) -> list[float]:
    """Numbers added up over all processes."""
    if accelerator.num_processes == 1:
        return values
    total = accelerator.reduce(torch.tensor(values, device=accelerator.device), "sum")
    return [float(value) for value in total]


def main_only(report: Report, accelerator: Accelerator) -> Report:
    """The report on the main process, silence on the others."""
    return report if accelerator.is_main_process else lambda line: None


def load_batches(data: Dataset[T], numbers: range, *, workers: int, ahead: int = 4) -> Iterator[T]:
    """The items of some numbers in that order, made by `workers` processes, `ahead` in each."""
    return iter(
        DataLoader(
            data,
            batch_size=None,
            sampler=numbers,
            num_workers=workers,
            prefetch_factor=ahead if workers else None,
            worker_init_fn=_begin_batch_worker,
        )
    )


def _begin_batch_worker(worker: int) -> None:
    """For processes that make batches: a signal to the whole group is the main one's to answer.

    Otherwise Ctrl-C, or a scheduler's SIGTERM, would end them before the step that waits for them.
    OpenCV gets one thread in each: with one for every core, sixteen processes on sixteen cores
    would mostly wait for each other.
    """
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)
    cv2.setNumThreads(1)
