"""Two processes that share every step: plain data parallelism over gloo, on a CPU."""

import dataclasses
import signal

import pytest
import torch

pytest.importorskip("accelerate")
pytest.importorskip("pycocoevalcap")

from caption_runs import QUICK, command_of, losses, rows_of, run, start_two, write_data

from sca_batch.model.checkpoint import load_checkpoint, published_state
from sca_batch.train.checkpoints import Checkpoints


def two(recipe, out, data, *options, **environment):
    return start_two([*command_of(recipe, out, data), *options], out.with_suffix(".said"),
                     **environment)  # fmt: skip


def endings(processes):
    codes = [process.ended(120) for process in processes]
    return codes, [process.said.read_text() for process in processes]


def test_two_devices_take_the_steps_of_one(unbroken, data, tmp_path):
    out = tmp_path / "out"
    codes, said = endings(two(QUICK, out, data, "--validation", str(data)))

    assert codes == [0, 0], said
    assert "on 2 x cpu" in said[0]
    assert said[1] == "", "one process speaks"
    for ours, theirs in zip(rows_of(out), rows_of(unbroken), strict=True):
        for name in ("loss", "grad_norm", "lr", "images_without_region"):
            assert ours[name] == pytest.approx(theirs[name], rel=1e-4), (ours["step"], name)
        scores, expected = ours.get("validation", {}), theirs.get("validation", {})
        assert scores == pytest.approx(expected, rel=1e-4)
    weights = [published_state(load_checkpoint(folder / "model")) for folder in (unbroken, out)]
    for name, value in weights[0].items():
        torch.testing.assert_close(weights[1][name], value, msg=name, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("resumed_by", [1, 2])
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

    assert losses(out) == pytest.approx(losses(unbroken), rel=1e-4)
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


@pytest.mark.parametrize("kind", ["FSDP", "DEEPSPEED"])
def test_sharding_is_refused_rather_than_left_out_without_a_word(data, tmp_path, kind):
    environment = {f"ACCELERATE_USE_{kind}": "true"}
    codes, said = endings(two(QUICK, tmp_path / "out", data, **environment))

    assert codes == [2, 2]
    assert f"{kind} is on in accelerate's configuration" in said[0]
    assert not (tmp_path / "out" / "checkpoints").exists()


def keys_by_step(recipe, data):
    """The images of every step."""
    from sca_batch.data.captioned import read_captioned
    from sca_batch.train.order import SampleOrder

    source = read_captioned(data)
    order = SampleOrder([len(source)], [1.0], recipe.seed)
    for step in range(recipe.steps):
        slots = range(step * recipe.images_per_step, (step + 1) * recipe.images_per_step)
        yield [source[order(slot)[1]].key for slot in slots]
