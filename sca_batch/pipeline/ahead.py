"""Decoding in threads, ahead of the model."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor

from sca_batch.errors import ImageError
from sca_batch.images.decode import DecodedImage
from sca_batch.pipeline.settings import BatchSettings
from sca_batch.records import ImageRef

__all__ = ["decode_ahead"]

_Queue = deque[tuple[ImageRef, Future[DecodedImage | ImageError]]]


def decode_ahead(
    refs: Iterable[ImageRef],
    decode: Callable[[ImageRef], DecodedImage | ImageError],
    batches: BatchSettings,
) -> Generator[tuple[ImageRef, DecodedImage | ImageError]]:
    """Every image in order, decoded while the one before is worked on.

    At most `decode_ahead` of them wait, and no more are begun while those that are done take more
    than `decode_ahead_bytes`.
    """
    source = iter(refs)
    pool = ThreadPoolExecutor(batches.decode_threads, thread_name_prefix="decode")
    queue: _Queue = deque()
    try:
        while True:
            while len(queue) < batches.decode_ahead and _held(queue) <= batches.decode_ahead_bytes:
                ref = next(source, None)
                if ref is None:
                    break
                queue.append((ref, pool.submit(decode, ref)))
            if not queue:
                return
            ref, future = queue.popleft()
            yield ref, future.result()
    finally:
        pool.shutdown(cancel_futures=True)


def _held(queue: _Queue) -> int:
    """Bytes of the pixels that wait."""
    return sum(
        image.rgb.nbytes
        for _, future in queue
        if future.done() and isinstance(image := future.result(), DecodedImage)
    )
