"""Half precision leaves coordinates alone: what a model is shown of a prompt is float32."""

from __future__ import annotations

import pytest
import torch


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_prompts_and_positions_are_those_of_float32_under_every_autocast(shapes_model, dtype):
    columns = torch.arange(512, dtype=torch.float64) / 4
    points = torch.stack([columns, columns], dim=-1)[:, None]
    prompts = {"points_RP2": points, "boxes_R4": torch.cat([points[:, 0], points[:, 0] + 9], 1)}
    exact, _ = shapes_model.encode_prompts(**prompts)
    grid = shapes_model.position_code()
    with torch.autocast("cpu", dtype=dtype):
        shown, _ = shapes_model.encode_prompts(**prompts)
        assert torch.equal(shapes_model.position_code(), grid)
    assert shown.dtype == torch.float32
    assert torch.equal(shown, exact)
    # A quarter of a pixel apart, and every column has a code of its own.
    assert len(torch.unique(shown[:, 0], dim=0)) == 512
