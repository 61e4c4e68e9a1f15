from __future__ import annotations

import pytest

from sca_batch.errors import ScaError
from sca_batch.records import Region
from sca_batch.regions.proposal import ModelPrompt, Proposal
from sca_batch.regions.select import select_regions
from sca_batch.regions.settings import RegionLimits

SIZE_HW = (10, 20)


def proposals(*areas_and_ious):
    return [
        Proposal(Region((0, 0, 1, 1), area, "box", predicted_iou=iou), ModelPrompt())
        for area, iou in areas_and_ious
    ]


def areas(chosen):
    return [p.region.area for p in chosen]


@pytest.mark.parametrize(
    ("limits", "expected"),
    [
        pytest.param({}, [5, 50, 200, 20], id="no limit"),
        pytest.param({"min_area": 20}, [50, 200, 20], id="pixels, the limit itself is kept"),
        pytest.param({"max_area": 50}, [5, 50, 20], id="most pixels"),
        pytest.param({"min_area": 0.1, "max_area": 0.25}, [50, 20], id="fractions of the image"),
        pytest.param({"max_area": 1}, [], id="one pixel, not all of the image"),
        pytest.param({"max_regions": 2}, [50, 20], id="highest predicted IoU, order kept"),
        pytest.param({"max_regions": 9}, [5, 50, 200, 20], id="more than there are"),
        pytest.param({"max_regions": 1, "max_area": 10}, [5], id="areas first, then the best"),
    ],
)
def test_limits_leave_regions_in_their_order(limits, expected):
    given = proposals((5, 0.7), (50, 0.8), (200, 0.6), (20, 0.9))

    assert areas(select_regions(given, RegionLimits(**limits), SIZE_HW)) == expected


def test_equal_estimates_keep_the_earlier_region_and_none_comes_last():
    given = proposals((1, None), (2, 0.5), (3, 0.5), (4, 0.5))

    assert areas(select_regions(given, RegionLimits(max_regions=2), SIZE_HW)) == [2, 3]
    assert areas(select_regions(given, RegionLimits(max_regions=4), SIZE_HW)) == [1, 2, 3, 4]


@pytest.mark.parametrize(
    ("limits", "message"),
    [
        ({"min_area": -1}, "--min-area is -1"),
        ({"max_area": float("nan")}, "--max-area is nan"),
        ({"max_regions": 0}, "--max-regions is 0; expected a whole number of at least 1"),
        ({"min_area": 100, "max_area": 50}, "--min-area 100 is above --max-area 50"),
    ],
)
def test_limits_that_make_no_sense_are_refused(limits, message):
    with pytest.raises(ScaError) as refused:
        RegionLimits(**limits)

    assert message in str(refused.value)
