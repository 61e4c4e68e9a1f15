"""`sca_batch.caption`: what is no table of boxes or points is refused by name."""

from __future__ import annotations

import numpy as np
import pytest

from sca_batch.api import caption
from sca_batch.errors import ScaError

IMAGE = np.zeros((40, 50, 3), np.uint8)


@pytest.mark.parametrize(
    ("prompts", "message"),
    [
        ({"boxes": [[1, 2, 3]]}, "boxes are"),
        ({"boxes": [[1, 2, 3, 4], [1, 2]]}, "boxes are"),
        ({"boxes": [["a", "b", "c", "d"]]}, "boxes are"),
        ({"boxes": 7}, "boxes are"),
        ({"boxes": [[9, 2, 3, 4]]}, r"boxes\[0\] is \[9.0, 2.0, 3.0, 4.0\]"),
        ({"boxes": [[0, 0, float("nan"), 4]]}, r"boxes\[0\]"),
        ({"points": [[1, 2, 3]]}, "points are"),
        ({"points": [[1, float("inf")]]}, r"points\[0\]"),
        ({"points": None, "boxes": [[[1, 2, 3, 4]]]}, "boxes are"),
    ],
)
def test_what_is_no_box_or_point_is_refused(shapes_model, prompts, message):
    with pytest.raises(ScaError, match=message):
        caption(IMAGE, model=shapes_model, **prompts)


def test_one_box_or_point_alone_is_one_region(shapes_model):
    small = {"model": shapes_model, "num_beams": 1, "max_new_tokens": 2}
    assert len(caption(IMAGE, boxes=[2, 3, 20, 30], **small).regions) == 1
    assert len(caption(IMAGE, points=[5, 6], **small).regions) == 1
    assert (
        len(caption(IMAGE, boxes=np.array([[2, 3, 20, 30]]), points=[[5, 6]], **small).regions) == 2
    )
    assert caption(IMAGE, boxes=[], **small).regions == ()
