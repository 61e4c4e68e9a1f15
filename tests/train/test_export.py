"""What a run leaves: a model in the published format, of the last step or of the best one."""

import json

import pytest
import torch
from safetensors.torch import load_file

pytest.importorskip("accelerate")
pytest.importorskip("pycocoevalcap")

from caption_runs import GOLDEN, QUICK, run

from sca_batch.cli import main
from sca_batch.errors import ScaError
from sca_batch.model.load import load_model
from sca_batch.train.state import Checkpoints

MIXER = "mask_decoder.caption_tokens.weight"


def trained_at(out, step):
    return Checkpoints(out).load(step)["trained"]


def test_the_model_has_exactly_the_names_of_a_published_one(unbroken):
    ours, theirs = (
        load_file(folder / "model.safetensors")
        for folder in (unbroken / "model", GOLDEN / "anything")
    )
    assert {name: value.shape for name, value in ours.items()} == {
        name: value.shape for name, value in theirs.items()
    }


def test_the_last_step_or_the_best_validation_is_exported(data, tmp_path):
    run(QUICK, tmp_path, data, validation=data)
    best = Checkpoints(tmp_path).best()
    assert best.step < QUICK.steps, "nothing to tell apart"
    last_weights, best_weights = (trained_at(tmp_path, s)[MIXER] for s in (QUICK.steps, best.step))
    assert not torch.equal(last_weights, best_weights)
    assert torch.equal(load_file(tmp_path / "model/model.safetensors")[MIXER], last_weights)

    # A run that is finished is exported again, without another step.
    said = []
    log = (tmp_path / "log.jsonl").read_bytes()
    run(QUICK, tmp_path, data, validation=data, resume=True, export="best", said=said)

    assert (tmp_path / "log.jsonl").read_bytes() == log
    assert any(f"Wrote the model of step {best.step}, the best validation" in s for s in said)
    exported = load_file(tmp_path / "model/model.safetensors")
    for name, value in trained_at(tmp_path, best.step).items():
        assert torch.equal(exported[name], value), name


def test_the_best_of_nothing_is_refused(data, tmp_path):
    run(QUICK, tmp_path, data)

    with pytest.raises(ScaError, match="nothing was validated"):
        run(QUICK, tmp_path, data, resume=True, export="best")


def test_a_runs_folder_is_a_model(unbroken, data, tmp_path, capsys):
    model = load_model(unbroken, device="cpu")
    assert torch.equal(
        model.mixer.queries.weight, load_file(unbroken / "model/model.safetensors")[MIXER]
    )

    with pytest.raises(SystemExit) as stopped:
        main(["caption", str(data), "--model", str(unbroken), "--regions", "given",
              "--format", "jsonl", "-o", "-", "--device", "cpu"])  # fmt: skip
    assert stopped.value.code == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [len(row["regions"]) for row in rows] == [3] * 5


def test_a_run_that_has_not_ended_is_no_model_yet(data, tmp_path):
    run(QUICK, tmp_path, data, stop_after=1)

    with pytest.raises(ScaError, match="has not ended"):
        load_model(tmp_path, device="cpu")
