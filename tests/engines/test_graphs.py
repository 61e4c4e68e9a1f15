"""One graph, three runtimes, one answer."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from sca_batch.engines.graphs import GRAPHS, build_graph, example_inputs
from sca_batch.engines.onnx import OnnxEngine, export
from sca_batch.engines.openvino import OpenVinoEngine
from sca_batch.engines.recipes import Recipe
from sca_batch.engines.tensorrt import build_plan, profile_for
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
            expected = (shapes_model.mask_decoder.predict_masks(*inputs),)
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
    half = build_graph(shapes_model, "encoder", dtype=torch.float16)
    kept = build_graph(
        shapes_model,
        "encoder",
        dtype=torch.float16,
        keep_fp32=["vision_encoder.*.layer_norm?"],
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
        build_graph(shapes_model, "encoder", dtype=torch.float16, keep_fp32=["neck"])


class ConvolutionalEncoder(nn.Module):
    """Two levels of features, normalised by batch statistics, brought together on SAM's grid."""

    def __init__(self, width, grid):
        super().__init__()
        self.fine = nn.Sequential(nn.Conv2d(3, 12, 8, 8), nn.BatchNorm2d(12), nn.ReLU6())
        self.coarse = nn.Sequential(nn.Conv2d(12, 20, 3, 2, 1), nn.BatchNorm2d(20), nn.Hardswish())
        self.neck = nn.Conv2d(32, width, 1)
        self.grid = grid

    def forward(self, pixels):
        fine = self.fine(pixels)
        coarse = self.coarse(fine)
        levels = [
            nn.functional.interpolate(features, (self.grid, self.grid), mode="bilinear")
            for features in (fine, coarse)
        ]
        return self.neck(torch.cat(levels, dim=1))


@pytest.fixture(scope="module")
def convolutional(shapes_model):
    """The shapes model behind a convolutional encoder; it is left in training mode."""
    torch.manual_seed(0)
    model = copy.deepcopy(shapes_model)
    encoder = ConvolutionalEncoder(model.config.width, model.config.grid_size)
    for module in encoder.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.uniform_(-1, 1)
            module.running_var.uniform_(0.5, 2)
    model.vision_encoder = encoder.train()
    return model


@pytest.fixture(scope="module")
def behind_timm(golden):
    pytest.importorskip("timm", reason="pip install timm")
    from sca_batch.model.checkpoint import load_checkpoint

    return load_checkpoint(golden / "timm-box")


@pytest.mark.parametrize("encoder", ["convolutional", "behind_timm"])
def test_any_encoder_is_exported_with_an_open_batch(encoder, request, tmp_path):
    model = request.getfixturevalue(encoder)
    file, plan = tmp_path / "encoder.onnx", tmp_path / "encoder.plan"
    export(model, "encoder", file)
    batch_statistics = {name: value.clone() for name, value in model.vision_encoder.named_buffers()}
    for images in (1, 3):
        (pixels,) = example_inputs(model, "encoder", images=images)
        with torch.inference_mode():
            expected = copy.deepcopy(model.vision_encoder).eval()(pixels)
            (graph,) = as_tuple(build_graph(model, "encoder")(pixels))
        for ours in (
            graph,
            *OnnxEngine(file, threads=1)(pixels),
            *OpenVinoEngine(file, threads=1, static=True)(pixels),
        ):
            assert ours.shape == expected.shape
            assert relative_error(ours, expected) < 1e-5
    for name, value in model.vision_encoder.named_buffers():
        assert torch.equal(value, batch_statistics[name])
    if encoder == "behind_timm":
        pytest.importorskip("tensorrt_rtx", reason="pip install '.[trt-rtx]'")
        small = Recipe(backend="tensorrt-rtx", images=(1, 1, 2))
        build_plan("tensorrt-rtx", file, plan, profile_for(model, "encoder", small))
        assert plan.read_bytes()[:4] == b"vtrt"


@pytest.fixture(scope="module")
def with_high_res():
    """A small model on a pyramid whose embedding carries high-res features; random weights."""
    pytest.importorskip("timm", reason="pip install timm")
    from sca_batch.model.sca import ScaModel
    from sca_tiny.recipes import SamSizes

    sizes = SamSizes(image_size=64, prompt_width=16, decoder_heads=2, decoder_mlp=32)
    model = ScaModel(sizes.config()).eval()
    assert model.config.embedding_width == 64
    torch.manual_seed(0)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.1 if parameter.ndim > 1 else 1.0)
    return model


@pytest.mark.parametrize("graph", GRAPHS)
def test_high_res_features_pass_through_every_graph(with_high_res, graph, tmp_path):
    export(with_high_res, graph, tmp_path / "graph.onnx")
    inputs = example_inputs(with_high_res, graph, images=3, regions=5)
    with torch.inference_mode():
        expected = as_tuple(build_graph(with_high_res, graph)(*inputs))
        if graph == "upscale":
            tokens, features = inputs
            decoder, plain, high_res = with_high_res.mask_decoder, *features.split([16, 48], -1)
            separate = decoder.predict_masks(tokens, plain, high_res)
            torch.testing.assert_close(expected[0], separate)
            assert relative_error(decoder.predict_masks(tokens, plain), separate) > 0.01
    for ours, theirs in zip(
        OpenVinoEngine(tmp_path / "graph.onnx", threads=1)(*inputs), expected, strict=True
    ):
        assert ours.shape == theirs.shape
        assert relative_error(ours, theirs) < 2e-5


def test_masks_are_upscaled_with_the_high_res_features_of_their_image(with_high_res, tmp_path):
    model = copy.deepcopy(with_high_res)
    export(model, "upscale", tmp_path / "upscale.onnx")
    boxes = torch.tensor([[4.0, 4, 30, 40], [10, 20, 60, 50], [0, 0, 20, 20]])
    with torch.inference_mode():
        embedding = torch.randn(2, 64, 8, 8)
        image = torch.tensor([0, 1, 1])
        found = model.region_queries(embedding, image_R=image, boxes_R4=boxes, with_masks=True)
        alone = [
            model.region_queries(embedding[i : i + 1], boxes_R4=box[None], with_masks=True).masks
            for i, box in zip(image.tolist(), boxes, strict=True)
        ]
        torch.testing.assert_close(found.masks, torch.cat(alone))
        tokens, features = model.fuse_prompts(embedding[:1], boxes_R4=boxes)
        expected = model.predict_masks(tokens, features, embedding[:1])
        other = model.predict_masks(tokens, features, embedding[1:])
        assert relative_error(other, expected) > 0.01
        model.engines = {"upscale": OpenVinoEngine(tmp_path / "upscale.onnx", threads=1)}
        assert relative_error(model.predict_masks(tokens, features, embedding[:1]), expected) < 2e-5


def test_an_encoder_that_fixes_the_batch_is_refused(convolutional, tmp_path):
    class OneSize(ConvolutionalEncoder):
        def forward(self, pixels):
            return super().forward(pixels).reshape(len(pixels), -1, self.grid, self.grid)

    model = copy.deepcopy(convolutional)
    model.vision_encoder.__class__ = OneSize
    with pytest.raises(ScaError, match="encoder: tracing fixed the number of images to 2"):
        export(model, "encoder", tmp_path / "encoder.onnx")


def test_bfloat16_without_transposed_convolutions_is_the_same_upscaling(shapes_model):
    inputs = example_inputs(shapes_model, "upscale")
    exact = build_graph(shapes_model, "upscale")(*inputs)
    rounded = build_graph(shapes_model, "upscale", dtype=torch.bfloat16)
    assert not [m for m in rounded.modules() if isinstance(m, nn.ConvTranspose2d)]
    assert {p.dtype for p in rounded.parameters()} == {torch.bfloat16}
    assert 0 < relative_error(rounded(*inputs), exact) < 2e-2
