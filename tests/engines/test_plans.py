"""Which plans may be used, and what is said about those that may not."""

from __future__ import annotations

import json

import pytest
import torch

from sca_batch.engines import use_engines
from sca_batch.engines.plans import Machine, building_folder, read_plans, refusal, this_machine
from sca_batch.errors import ScaError

CPU = torch.device("cpu")


def reason_for(path, *, machine=None, **named):
    [(found, facts)] = read_plans(path.parent)
    assert found == path
    return refusal(path, facts, machine or this_machine(CPU), **named)


def test_a_plan_that_fits_may_be_used(plan_of, tmp_path, shapes_model):
    from sca_batch.model.checkpoint import weights_digest

    path = plan_of(tmp_path)
    weights = weights_digest(shapes_model)
    assert path.name.startswith(f"encoder-{weights[:8]}-fp32-openvino2")
    assert reason_for(path, weights=weights) is None
    assert sorted(p.name for p in tmp_path.iterdir()) == [path.name, f"{path.name}.json"]


@pytest.mark.parametrize(
    ("facts", "expected"),
    [
        pytest.param({"version": "2020.1"}, "openvino is 2020.1, need 2", id="another version"),
        pytest.param({"weights": "0" * 64}, "weights are 00000000, need ", id="another model"),
        pytest.param({"capabilities": ("sm90",)}, "built for sm90, need cpu", id="another device"),
        pytest.param({"capabilities": ()}, "built for GPUs, need cpu", id="any GPU"),
        pytest.param({"plan_bytes": 9}, "bytes, need 9: cut off or replaced", id="truncated"),
        pytest.param({"plan_digest": "0"}, "not those that were built", id="other bytes"),
    ],
)
def test_a_refusal_says_why_and_how_to_rebuild(
    plan_of, tmp_path, shapes_model, shapes_folder, facts, expected
):
    from sca_batch.model.checkpoint import weights_digest

    path = plan_of(tmp_path, **facts)
    reason = reason_for(path, weights=weights_digest(shapes_model))
    assert expected in reason
    rebuild = f"sca engine build --model {shapes_folder} --backend openvino --precision fp32"
    assert f"Rebuild it: {rebuild}" in reason


def test_a_plan_for_another_gpu_is_refused(plan_of, tmp_path):
    path = plan_of(tmp_path, capabilities=("sm80", "sm86"))
    machine = Machine("sm90", this_machine(CPU).versions)
    assert "built for sm80 and sm86, need sm90" in reason_for(path, machine=machine)


def test_a_plan_whose_library_is_missing_says_what_to_install(plan_of, tmp_path):
    path = plan_of(tmp_path)
    reason = reason_for(path, machine=Machine("cpu", {"openvino": None}))
    assert "openvino is not installed. Install it: pip install '.[cpu]'" in reason


def test_other_bytes_are_used_on_trust_and_cut_off_ones_are_not(plan_of, tmp_path):
    path = plan_of(tmp_path)
    whole = path.read_bytes()
    path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    assert "--trust-engine" in reason_for(path)
    assert reason_for(path, trusted=True) is None
    path.write_bytes(whole[:-1])
    assert "cut off or replaced" in reason_for(path, trusted=True)


def test_a_foreign_file_is_refused(plan_of, tmp_path):
    foreign = tmp_path / "downloaded.plan"
    foreign.write_bytes(b"vtrt")
    assert "no downloaded.plan.json beside it" in reason_for(foreign)
    (tmp_path / "downloaded.plan.json").write_text(json.dumps({"graph": "encoder"}))
    assert "is no side-car of a plan" in reason_for(foreign)


def test_what_was_not_finished_leaves_nothing(tmp_path):
    def interrupted():
        with building_folder(tmp_path) as building:
            (building / "encoder.onnx").write_bytes(b"half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert list(tmp_path.iterdir()) == []


def test_auto_takes_torch_where_nothing_fits_and_says_why(plan_of, tmp_path, shapes_model):
    plan_of(tmp_path, version="2020.1")
    chosen = use_engines(shapes_model, "auto", tmp_path, precisions=("fp32",))
    assert chosen.engine == chosen.label == "torch"
    assert "no fp32 plan" in chosen.why
    assert "openvino is 2020.1" in chosen.refused[0]
    assert shapes_model.engines == {}


def test_an_engine_by_name_that_cannot_be_used_is_an_error(plan_of, tmp_path, shapes_model):
    def use(engine, precision="fp32"):
        return use_engines(
            shapes_model, engine, tmp_path, precisions=(precision,), model_name="toy"
        )

    with pytest.raises(ScaError, match=r"no fp32 plan of this model in .* Build it: sca engine"):
        use("openvino")
    plan_of(tmp_path, version="2020.1")
    with pytest.raises(ScaError, match=r"openvino is 2020\.1, need .* Rebuild it"):
        use("openvino")
    with pytest.raises(ScaError, match="--backend openvino --precision bf16"):
        use("openvino", "bf16")
    with pytest.raises(ScaError, match="tensorrt runs on cuda devices, and this run is on cpu"):
        use("tensorrt")


def test_graphs_without_a_plan_stay_in_torch_and_are_named(plan_of, tmp_path, shapes_model):
    plan_of(tmp_path, "upscale")
    try:
        chosen = use_engines(shapes_model, "auto", tmp_path, precisions=("fp32",))
        assert chosen.engine == "openvino"
        assert chosen.label == "openvino-fp32[upscale]"
        assert "torch for encoder, decoder, mixer: no plan" in chosen.why
        assert set(shapes_model.engines) == {"upscale"}
    finally:
        shapes_model.engines = {}
