"""What needs an NVIDIA GPU: `benchmarks/gpu.sh` runs it."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from sca_batch import caption
from sca_batch.captioners.sca import ScaCaptioner
from sca_batch.captioners.settings import CaptionSettings
from sca_batch.engines import load_plan, use_engines
from sca_batch.engines.graphs import GRAPHS, build_graph, example_inputs
from sca_batch.engines.plans import BACKENDS, read_plans, tensorrt_flavour, this_machine
from sca_batch.engines.recipes import Recipe
from sca_batch.images.decode import read_image
from sca_batch.pipeline.pipeline import Pipeline
from sca_batch.pipeline.settings import BatchSettings
from sca_batch.records import ImageRef, Prompt
from sca_batch.regions.settings import RegionSettings

pytestmark = pytest.mark.gpu


@pytest.fixture(scope="module")
def on_gpu(shapes_folder):
    from sca_batch.model.load import load_model

    return load_model(shapes_folder, device="cuda", dtype="float32")


@pytest.fixture(scope="module")
def backend():
    """The flavour for this GPU, if it is installed."""
    flavour = tensorrt_flavour(this_machine(torch.device("cuda")))
    pytest.importorskip(BACKENDS[flavour][0])
    return flavour


@pytest.fixture(scope="module")
def plans(on_gpu, backend, tmp_path_factory):
    """All four plans, built and checked on this GPU; the small sizes are split into pieces."""
    from sca_batch.checks.engines import build_checked
    from sca_batch.model.checkpoint import weights_digest

    folder = tmp_path_factory.mktemp("plans")
    # TensorRT multiplies in TF32 where it likes: three digits.
    recipe = Recipe(backend=backend, images=(1, 1, 2), regions=(1, 4, 4), tolerance=5e-3)
    weights = weights_digest(on_gpu)
    for graph in GRAPHS:
        built = build_checked(on_gpu, graph, recipe, folder, weights=weights, model_name="shapes")
        assert not built.missed
        assert built.facts.executed
    return folder


def test_float32_on_a_gpu_is_float32_on_a_cpu(on_gpu, shapes_model):
    inputs = example_inputs(shapes_model, "mixer")
    expected = build_graph(shapes_model, "mixer")(*inputs)
    found = build_graph(on_gpu, "mixer")(*(value.cuda() for value in inputs))
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours.cpu(), theirs, rtol=1e-3, atol=1e-3)


def test_a_gpu_finds_the_regions_of_a_cpu_and_says_the_same_of_them(
    on_gpu, shapes_model, shapes_settings, shapes_images
):
    for image in sorted(shapes_images.iterdir()):
        ours = caption(image, model=on_gpu, automatic=shapes_settings)
        theirs = caption(image, model=shapes_model, automatic=shapes_settings)
        assert len(ours.regions) == len(theirs.regions) > 0
        for one, other in zip(ours.regions, theirs.regions, strict=True):
            np.testing.assert_allclose(one.region.box_xyxy, other.region.box_xyxy, atol=2)
            assert one.caption.text == other.caption.text


def test_too_little_memory_makes_batches_smaller_and_changes_nothing(on_gpu, shapes_images, caplog):
    image = read_image(str(shapes_images / "shapes-2.png"))
    rng = np.random.default_rng(0)
    corner = rng.uniform(0, 90, (4_000, 2))
    boxes = np.concatenate([corner, corner + rng.uniform(10, 38, (4_000, 2))], axis=1)
    prompts = tuple(Prompt(box_xyxy=tuple(box)) for box in boxes.tolist())
    ref = ImageRef(1, "shapes", "shapes", "shapes", prompts=prompts)

    def captions():
        captioner = ScaCaptioner(on_gpu, CaptionSettings(num_beams=1, max_new_tokens=4))
        pipeline = Pipeline(on_gpu, captioner, RegionSettings(), BatchSettings(caption_batch=4_000))
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        record = pipeline.run_one(ref, image)
        return [region.caption.text for region in record.regions]

    expected = captions()
    total = torch.cuda.get_device_properties(0).total_memory
    held, most = torch.cuda.memory_allocated(), torch.cuda.max_memory_reserved()
    assert "Out of memory" not in caplog.text
    torch.cuda.set_per_process_memory_fraction((held + (most - held) * 0.4) / total)
    try:
        found = captions()
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert "Out of memory: --caption-batch is 2000 for now" in caplog.text
    assert len(found) == 4_000
    # Batches of other sizes are multiplied in another order: a tie may fall otherwise.
    assert np.mean([ours == theirs for ours, theirs in zip(found, expected, strict=True)]) > 0.99


@pytest.mark.tensorrt
@pytest.mark.parametrize("graph", GRAPHS)
def test_a_plan_runs_in_pieces_and_on_another_stream(on_gpu, plans, graph):
    [(path, facts)] = [item for item in read_plans(plans) if item[1].graph == graph]
    engine = load_plan(path, facts)
    inputs = example_inputs(on_gpu, graph, images=5, regions=11)
    module = build_graph(on_gpu, graph)
    for stream in (torch.cuda.default_stream(), torch.cuda.Stream()):
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream), torch.inference_mode():
            # CUDA graphs are captured the second time at the latest, and replayed the third.
            found = [engine(*inputs) for _ in range(4)]
            expected = module(*inputs)
        stream.synchronize()
        expected = expected if isinstance(expected, tuple) else (expected,)
        for outputs in found:
            for ours, theirs in zip(outputs, expected, strict=True):
                error = (ours - theirs).norm() / theirs.norm()
                assert error < 5e-3


@pytest.mark.tensorrt
def test_caption_takes_the_plans(on_gpu, plans):
    chosen = use_engines(on_gpu, "tensorrt", plans, precisions=("fp32",))
    try:
        assert set(on_gpu.engines) == set(GRAPHS)
        assert chosen.engine == "tensorrt"
    finally:
        on_gpu.engines = {}


@pytest.mark.tensorrt
def test_two_streams_that_do_not_wait_for_each_other_share_one_plan(on_gpu, plans):
    [(path, facts)] = [item for item in read_plans(plans) if item[1].graph == "mixer"]
    engine, module = load_plan(path, facts), build_graph(on_gpu, "mixer")
    batches = [
        tuple(value.roll(i, 0) for value in example_inputs(on_gpu, "mixer", images=2, regions=4))
        for i in range(8)
    ]
    streams = [torch.cuda.Stream(), torch.cuda.Stream()]
    torch.cuda.synchronize()
    found = []
    with torch.inference_mode():
        for i, inputs in enumerate(batches):
            with torch.cuda.stream(streams[i % 2]):
                found.append(engine(*inputs))
        torch.cuda.synchronize()
        for inputs, outputs in zip(batches, found, strict=True):
            for ours, theirs in zip(outputs, module(*inputs), strict=True):
                assert (ours - theirs).norm() / theirs.norm() < 5e-3


@pytest.mark.tensorrt
def test_a_full_gpu_is_an_error_about_memory_and_the_plan_works_again_afterwards(on_gpu, plans):
    [(path, facts)] = [item for item in read_plans(plans) if item[1].graph == "upscale"]
    engine, module = load_plan(path, facts), build_graph(on_gpu, "upscale")
    inputs = example_inputs(on_gpu, "upscale", regions=500)
    engine(*inputs)
    torch.cuda.empty_cache()
    full = []
    for size in (1 << 30, 1 << 24, 1 << 20):  # until not a MiB is left
        try:
            while True:
                full.append(torch.empty(size, dtype=torch.uint8, device="cuda"))
        except torch.OutOfMemoryError:
            continue
    with pytest.raises(torch.OutOfMemoryError):
        engine(*inputs)
    full.clear()
    torch.cuda.empty_cache()
    [ours], theirs = engine(*inputs), module(*inputs)
    assert (ours - theirs).norm() / theirs.norm() < 5e-3


@pytest.mark.tensorrt
def test_what_tensorrt_rtx_compiled_is_taken_by_the_next_process(on_gpu, plans, backend, caplog):
    if backend != "tensorrt-rtx":
        pytest.skip("standard TensorRT compiles when it builds")
    [(path, facts)] = [item for item in read_plans(plans) if item[1].graph == "decoder"]
    inputs = example_inputs(on_gpu, "decoder", regions=4)
    load_plan(path, facts)(*inputs)
    [cache] = plans.glob(f"{path.name}.*.cache")
    assert cache.stat().st_size > 0
    load_plan(path, facts)(*inputs)
    assert "is made anew" not in caplog.text
