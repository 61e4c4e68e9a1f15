"""Two processes that share every step: plain data parallelism over gloo, on a CPU."""

import dataclasses
import shutil
import signal

import pytest
import torch

pytest.importorskip("accelerate")
pytest.importorskip("pycocoevalcap")

from caption_runs import QUICK, command_of, losses, rows_of, run, start_two, write_data

from sca_batch.model.checkpoint import load_checkpoint, published_state
from sca_batch.train.state import Checkpoints


def two(recipe, out, data, *options, **environment):
    return start_two([*command_of(recipe, out, data), *options], out.with_suffix(".said"),
                     **environment)  # fmt: skip


def endings(processes):
    codes = [process.ended(120) for process in processes]
    return codes, [process.said.read_text() for process in processes]


def assert_same_model(out, other):
    ours, theirs = (published_state(load_checkpoint(folder / "model")) for folder in (out, other))
    assert ours.keys() == theirs.keys()
    for name, value in ours.items():
        # A key's bias moves all logits of a query alike: its gradient is zero but for rounding,
        # which AdamW makes as large as any other.
        if not name.endswith("k_proj.bias"):
            torch.testing.assert_close(value, theirs[name], msg=name, rtol=1e-3, atol=1e-5)


def test_two_devices_take_the_steps_of_one(unbroken, data, tmp_path):
    out = tmp_path / "out"
    codes, said = endings(two(QUICK, out, data, "--validation", str(data)))

    assert codes == [0, 0], said
    assert "on 2 x cpu" in said[0]
    assert said[1] == "", "one process speaks"
    for ours, theirs in zip(rows_of(out), rows_of(unbroken), strict=True):
        for name in ("loss", "grad_norm", "lr", "images_without_region"):
            assert ours[name] == pytest.approx(theirs[name], rel=1e-6), (ours["step"], name)
        scores, expected = ours.get("validation", {}), theirs.get("validation", {})
        assert scores == pytest.approx(expected, rel=1e-6)
    assert_same_model(out, unbroken)


@pytest.mark.parametrize("resumed_by", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_a_signal_to_one_process_stops_both_and_any_number_goes_on(
    unbroken, data, tmp_path, resumed_by
):
    out = tmp_path / "out"
    slow = dataclasses.replace(QUICK, checkpoint_every=1000)
    processes = two(slow, out, data, "--validation", str(data))
    processes[0].wait_for_rows(out, 2)
    processes[1].send(signal.SIGTERM)
    codes, said = endings(processes)
    assert codes == [75, 75], said
    steps = Checkpoints(out).steps()
    assert len(steps) == 1
    assert 2 <= steps[0] < QUICK.steps

    if resumed_by == 2:
        codes, said = endings(two(slow, out, data, "--validation", str(data), "--resume"))
        assert codes == [0, 0], said
    else:
        run(slow, out, data, validation=data, resume=True)

    assert losses(out) == pytest.approx(losses(unbroken), rel=1e-6)
    assert Checkpoints(out).best().step == Checkpoints(unbroken).best().step


def test_a_batch_that_one_process_cannot_make_stops_both_with_a_checkpoint(tmp_path):
    data = write_data(tmp_path / "data", images=8)
    recipe = dataclasses.replace(QUICK, checkpoint_every=1000)
    # The second process's image of some later step: alone in its batch, so that only it knows.
    order = [key for row in keys_by_step(recipe, data) for key in row]
    step = next(s for s in range(1, recipe.steps) if order[2 * s + 1] not in order[: 2 * s + 1])
    (tmp_path / "data" / order[2 * step + 1]).unlink()

    codes, said = endings(two(recipe, tmp_path / "out", data))

    assert codes == [1, 1], said
    assert f"step {step}: {order[2 * step + 1]}: no file" in said[0]
    assert Checkpoints(tmp_path / "out").steps() == [step]


# What accelerate's launcher sets for an FSDP configuration.
FSDP = {
    "ACCELERATE_USE_FSDP": "true",
    "FSDP_VERSION": "2",
    "FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP",
    "FSDP_TRANSFORMER_CLS_TO_WRAP": "GPT2Block,SamVisionLayer",
    "FSDP_CPU_RAM_EFFICIENT_LOADING": "false",
}


@pytest.mark.slow
def test_shards_take_the_steps_of_whole_parameters_and_are_saved_whole(unbroken, data, tmp_path):
    out = tmp_path / "out"
    sharded = FSDP | {"PRETEND_GPUS": "1"}
    slow = dataclasses.replace(QUICK, checkpoint_every=1000)
    processes = two(slow, out, data, "--validation", str(data), **sharded)
    processes[0].wait_for_rows(out, 2)
    processes[0].send(signal.SIGTERM)
    codes, said = endings(processes)
    assert codes == [75, 75], said
    [step] = Checkpoints(out).steps()
    assert 2 <= step < QUICK.steps
    shutil.copytree(out, tmp_path / "by-one")

    codes, said = endings(two(slow, out, data, "--validation", str(data), "--resume", **sharded))
    assert codes == [0, 0], said
    run(slow, tmp_path / "by-one", data, validation=data, resume=True)

    for folder in (out, tmp_path / "by-one"):
        for ours, theirs in zip(rows_of(folder), rows_of(unbroken), strict=True):
            assert ours["loss"] == pytest.approx(theirs["loss"], rel=1e-4), ours["step"]
            assert ours["grad_norm"] == pytest.approx(theirs["grad_norm"], rel=1e-4)
            scores, expected = ours.get("validation", {}), theirs.get("validation", {})
            assert scores == pytest.approx(expected, rel=1e-4)
        assert_same_model(folder, unbroken)


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        (FSDP, "accelerate gives MULTI_CPU"),
        ({"ACCELERATE_USE_DEEPSPEED": "true"}, "DEEPSPEED is on in accelerate's configuration"),
    ],
    ids=["FSDP on CPUs", "DeepSpeed"],
)
def test_sharding_is_refused_rather_than_left_out_without_a_word(
    data, tmp_path, environment, message
):
    codes, said = endings(two(QUICK, tmp_path / "out", data, **environment))

    assert codes == [2, 2]
    assert message in said[0]
    assert not (tmp_path / "out" / "checkpoints").exists()


def keys_by_step(recipe, data):
    """The images of every step."""
    from sca_batch.manifests.references import read_captioned
    from sca_batch.train.order import SampleOrder

    source = read_captioned(data)
    order = SampleOrder([len(source)], [1.0], recipe.seed)
    for step in range(recipe.steps):
        slots = range(step * recipe.images_per_step, (step + 1) * recipe.images_per_step)
        yield [source[order(slot)[1]].key for slot in slots]
