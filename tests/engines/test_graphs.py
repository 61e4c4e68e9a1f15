"""One graph, three runtimes, one answer."""

from __future__ import annotations

import pytest
import torch

from sca_batch.engines.graphs import GRAPHS, build_graph, example_inputs
from sca_batch.engines.onnx import OnnxEngine
from sca_batch.engines.openvino import OpenVinoEngine
from sca_batch.errors import ScaError


def as_tuple(outputs):
    return outputs if isinstance(outputs, tuple) else (outputs,)


def relative_error(ours, theirs):
    return ((ours - theirs).norm() / theirs.norm()).item()


SIZES = [
    pytest.param({"images": 1, "regions": 1, "prompt_tokens": 2}, id="one of everything"),
    pytest.param({"images": 3, "regions": 5, "prompt_tokens": 4}, id="3 images, 5 x 3 points"),
]


@pytest.mark.parametrize("sizes", SIZES)
@pytest.mark.parametrize("graph", GRAPHS)
def test_a_graph_computes_what_the_model_computes(shapes_model, graph, sizes):
    inputs = example_inputs(shapes_model, graph, **sizes)
    with torch.inference_mode():
        outputs = as_tuple(build_graph(shapes_model, graph)(*inputs))
        if graph == "encoder":
            expected = (shapes_model.encode_image(*inputs),)
        elif graph == "upscale":
            expected = (shapes_model.predict_masks(*inputs),)
        else:
            embedding, sparse, *image = inputs
            if image:
                embedding = embedding.index_select(0, *image)
            dense = shapes_model.prompt_encoder.no_mask_embed.weight[:, :, None, None]
            expected = shapes_model.mask_decoder.fuse(
                embedding, sparse, dense, shapes_model.position_code()
            )
            if graph == "mixer":
                tokens, features = expected
                queries = shapes_model.mix(tokens, features).flatten(1, 2)
                expected = (queries, shapes_model.predict_iou(tokens))
    assert len(outputs) == len(expected) == len(GRAPHS[graph].outputs)
    for ours, theirs in zip(outputs, expected, strict=True):
        assert ours.shape == theirs.shape
        assert relative_error(ours, theirs) < 1e-5


@pytest.mark.parametrize("graph", GRAPHS)
def test_a_file_gives_the_same_in_onnx_runtime_and_openvino_at_any_size(
    shapes_model, exported, graph
):
    module = build_graph(shapes_model, graph)
    engines = [
        OnnxEngine(exported(graph), threads=1),
        OpenVinoEngine(exported(graph), threads=1),
        OpenVinoEngine(exported(graph), threads=1, static=True),
    ]
    for sizes in ({"images": 1, "regions": 1}, {"images": 3, "regions": 5, "prompt_tokens": 4}):
        inputs = example_inputs(shapes_model, graph, **sizes)
        expected = as_tuple(module(*inputs))
        for engine in engines:
            for ours, theirs in zip(engine(*inputs), expected, strict=True):
                assert ours.shape == theirs.shape
                assert relative_error(ours, theirs) < 2e-5


def test_half_precision_leaves_the_model_alone_and_keeps_what_it_is_told(shapes_model):
    inputs = example_inputs(shapes_model, "encoder")
    exact = build_graph(shapes_model, "encoder")(*inputs)
    half = build_graph(shapes_model, "encoder", half=True)
    kept = build_graph(
        shapes_model, "encoder", half=True, keep_fp32=["vision_encoder.*.layer_norm?"]
    )
    assert {p.dtype for p in shapes_model.parameters()} == {torch.float32}
    assert {p.dtype for p in half.parameters()} == {torch.float16}
    names = [name for name, p in kept.named_parameters() if p.dtype == torch.float32]
    assert names
    assert all("layer_norm" in name for name in names)
    for graph in (half, kept):
        output = graph(*inputs)
        assert output.dtype == torch.float32
        assert 0 < relative_error(output, exact) < 5e-3


def test_a_pattern_that_keeps_nothing_is_refused(shapes_model):
    with pytest.raises(ScaError, match="keep_fp32 'neck' names nothing in the graph encoder"):
        build_graph(shapes_model, "encoder", half=True, keep_fp32=["neck"])
