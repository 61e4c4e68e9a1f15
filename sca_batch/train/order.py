"""The order of images in a run: shuffled epochs, and data sets mixed by their sizes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

__all__ = ["SampleOrder", "interleave"]

DRAWS_AT_ONCE = 1_000  # as `datasets` draws them, which fixes the order


class SampleOrder:
    """The image of every slot of a run: a function of the seed and the slot's number alone.

    There is no position to save: a run that goes on at a slot asks for that slot. An epoch is each
    image once, or for a mix of data sets one pass of `interleave`; each epoch is shuffled anew.
    """

    def __init__(self, lengths: Sequence[int], shares: Sequence[float], seed: int) -> None:
        self._seed = seed
        self._epoch = -1
        self._permutation: npt.NDArray[np.int64] = np.empty(0, np.int64)
        if len(lengths) == 1:
            indices = np.arange(lengths[0])
            self._picks = np.stack([np.zeros_like(indices), indices], axis=1)
        else:
            self._picks = interleave(lengths, shares, seed)

    def __len__(self) -> int:
        """Slots of one epoch."""
        return len(self._picks)

    def __call__(self, slot: int) -> tuple[int, int]:
        """The data set and the image in it."""
        epoch, position = divmod(slot, len(self._picks))
        if epoch != self._epoch:
            rng = np.random.default_rng([self._seed, epoch])
            self._permutation, self._epoch = rng.permutation(len(self._picks)), epoch
        return self.pick(int(self._permutation[position]))

    def pick(self, number: int) -> tuple[int, int]:
        """The same by its number before shuffling."""
        source, index = self._picks[number]
        return int(source), int(index)


def interleave(lengths: Sequence[int], shares: Sequence[float], seed: int) -> npt.NDArray[np.int64]:
    """Draws data sets in proportion to `shares` until each has been gone through, (M, 2).

    Rows are (data set, index). One that is through begins again, so that small ones are seen more
    than once: `interleave_datasets(..., stopping_strategy="all_exhausted")` of the package
    `datasets`, draw for draw, as the paper's mixes were made.
    """
    chances = np.asarray(shares, np.float64) / np.sum(shares)
    rng = np.random.default_rng(seed)
    sources: list[npt.NDArray[np.int64]] = []
    seen = np.zeros(len(lengths), np.int64)
    while (seen < lengths).any():
        drawn = rng.choice(len(lengths), size=DRAWS_AT_ONCE, p=chances)
        sources.append(drawn)
        seen += np.bincount(drawn, minlength=len(lengths))
    source_M = np.concatenate(sources)
    # It ends with the draw that goes through the last one.
    ends = [np.flatnonzero(source_M == k)[length - 1] for k, length in enumerate(lengths)]
    source_M = source_M[: max(ends) + 1]
    index_M = np.empty_like(source_M)
    for k, length in enumerate(lengths):
        own = source_M == k
        index_M[own] = np.arange(own.sum()) % length
    return np.stack([source_M, index_M], axis=1)
