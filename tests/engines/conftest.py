"""The shapes model's graphs as ONNX, written once."""

from __future__ import annotations

from dataclasses import replace

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


@pytest.fixture(scope="session")
def plan_of(shapes_model, shapes_folder, exported):
    """`plan_of(folder, graph, **facts)`: puts a plan of the shapes model into a folder."""
    import onnx
    import openvino

    from sca_batch.engines.onnx import files_digest
    from sca_batch.engines.plans import PlanFacts, building_folder, keep_plan
    from sca_batch.model.checkpoint import weights_digest

    facts = PlanFacts(
        graph="encoder",
        backend="openvino",
        version=openvino.__version__.split("-")[0],
        precision="fp32",
        weights=weights_digest(shapes_model),
        graph_digest="",
        plan_digest="",
        plan_bytes=0,
        error={"relative_error": 1e-7, "cosine": 1.0},
        model=str(shapes_folder),
    )

    def put(folder, graph="encoder", **changes):
        with building_folder(folder) as building:
            file = building / "graph.onnx"
            onnx.save(onnx.load(exported(graph)), file)  # in one file, whatever its name
            own = {"plan_digest": files_digest(file), "plan_bytes": file.stat().st_size}
            return keep_plan(file, replace(facts, graph=graph, **{**own, **changes}), folder)

    return put
