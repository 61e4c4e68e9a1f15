import numpy as np
import pytest

from sca_batch.train.order import SampleOrder, interleave


def slow_interleave(lengths, chances, seed):
    """The loop of the package `datasets`, as it is written there."""
    rng, drawn = np.random.default_rng(seed), []
    through, current, picks = [False] * len(lengths), [0] * len(lengths), []
    while not all(through):
        if not drawn:
            drawn = [int(i) for i in rng.choice(len(lengths), size=1000, p=chances)]
        source = drawn.pop(0)
        picks.append([source, current[source]])
        current[source] += 1
        if current[source] >= lengths[source]:
            through[source], current[source] = True, 0
    return picks


@pytest.mark.parametrize("seed", [0, 42])
def test_mixed_data_sets_end_when_every_one_was_gone_through(seed):
    lengths = [7, 1500, 40]
    chances = np.array([0.05, 0.9, 0.05])

    picks = interleave(lengths, chances, seed)

    assert picks.tolist() == slow_interleave(lengths, chances, seed)


def test_an_epoch_has_every_image_once_and_the_next_one_another_order():
    order = SampleOrder([10], [1.0], seed=1)

    first, second = ([order(slot)[1] for slot in range(s, s + 10)] for s in (0, 10))

    assert sorted(first) == sorted(second) == list(range(10))
    assert first != second


def test_a_slot_does_not_depend_on_those_before_it():
    order = SampleOrder([10, 20], [1.0, 2.0], seed=1)
    slots = [order(slot) for slot in range(100)]

    assert SampleOrder([10, 20], [1.0, 2.0], seed=1)(77) == slots[77]
