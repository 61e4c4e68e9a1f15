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

TYPICAL_BYTES = 36 << 20  # of 12 megapixels

_Queue = deque[tuple[ImageRef, Future[DecodedImage | ImageError]]]


def decode_ahead(
    refs: Iterable[ImageRef],
    decode: Callable[[ImageRef], DecodedImage | ImageError],
    batches: BatchSettings,
) -> Generator[tuple[ImageRef, DecodedImage | ImageError]]:
    """Every image in order, decoded while the one before is worked on.

    At most `decode_ahead` of them wait, and no more are begun while those that are done, and what
    those in flight may come to, take more than `decode_ahead_bytes`; one is always on its way.
    """
    source = iter(refs)
    pool = ThreadPoolExecutor(batches.decode_threads, thread_name_prefix="decode")
    queue: _Queue = deque()
    expected = TYPICAL_BYTES
    try:
        while True:
            while not queue or (
                len(queue) < batches.decode_ahead
                and _held(queue, expected) <= batches.decode_ahead_bytes
            ):
                ref = next(source, None)
                if ref is None:
                    break
                queue.append((ref, pool.submit(decode, ref)))
            if not queue:
                return
            ref, future = queue.popleft()
            result = future.result()
            if isinstance(result, DecodedImage):
                # The next may be as large; one that was is forgotten with time.
                expected = max(result.rgb.nbytes, int(0.9 * expected))
            yield ref, result
    finally:
        pool.shutdown(cancel_futures=True)


def _held(queue: _Queue, expected: int) -> int:
    """Bytes of the pixels that wait, those of images in flight as large as is to be expected."""
    held = 0
    for _, future in queue:
        if not future.done():
            held += expected
        elif isinstance(image := future.result(), DecodedImage):
            held += image.rgb.nbytes
    return held + expected  # of the one that would be begun
