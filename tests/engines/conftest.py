"""The shapes model's graphs as ONNX, written once."""

from __future__ import annotations

import pytest

pytest.importorskip("onnxscript", reason="pip install -e '.[dev]'")


@pytest.fixture(scope="session")
def exported(shapes_model, tmp_path_factory):
    """`exported(graph)`: the ONNX file of one graph of the shapes model in float32."""
    from sca_batch.engines.onnx import export

    folder = tmp_path_factory.mktemp("onnx")
    made = {}

    def one(graph):
        if graph not in made:
            made[graph] = folder / f"{graph}.onnx"
            export(shapes_model, graph, made[graph])
        return made[graph]

    return one
