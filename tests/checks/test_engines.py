"""The engines' gate can fail: a value that is no number is never good enough."""

from __future__ import annotations

import math

import pytest
import torch

from sca_batch.checks.engines import misses, parity, torch_outputs
from sca_batch.engines.plans import PlanFacts


def spoiled(model, graph, output):
    """An engine that computes what torch does, but for one output that is NaN."""

    def engine(*inputs):
        outputs = list(torch_outputs(model, graph, inputs))
        outputs[output] = torch.full_like(outputs[output], math.nan)
        return tuple(outputs)

    return engine


@pytest.mark.parametrize(
    ("graph", "output"),
    [("encoder", 0), ("decoder", 0), ("decoder", 1), ("upscale", 0), ("mixer", 0), ("mixer", 1)],
)
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_an_output_that_is_no_number_is_a_miss(shapes_model, graph, output, precision):
    error = parity(shapes_model, graph, spoiled(shapes_model, graph, output))
    assert not math.isfinite(error["relative_error"])
    facts = PlanFacts(graph, "onnx", "1", precision, "w", "g", "p", 1, error=error)
    assert "not finite" in misses(facts)[0]


def test_what_computes_what_torch_does_is_no_miss(shapes_model):
    for graph in ("encoder", "decoder", "upscale", "mixer"):
        error = parity(
            shapes_model, graph, lambda *inputs, g=graph: torch_outputs(shapes_model, g, inputs)
        )
        facts = PlanFacts(graph, "onnx", "1", "fp32", "w", "g", "p", 1, error=error)
        assert misses(facts) == []
