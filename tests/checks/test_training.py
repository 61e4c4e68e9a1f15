"""The recorded training step of the published implementation, repeated."""

import dataclasses
import json

import pytest
import torch

from sca_batch.checks import read_recording, verdict
from sca_batch.checks.training import check_training
from sca_batch.cli import main
from sca_batch.errors import ScaError
from sca_batch.model.checkpoint import load_checkpoint

SETS = ["gpt2-box", "gpt2-point", "llama-box", "timm-box"]
STAGES = ["decay", "no_decay", "loss", "losses", "total_grad_norms", "grad_norms", "weights"]


@pytest.mark.parametrize("name", SETS)
def test_three_steps_of_adamw_are_those_of_the_published_implementation(golden, name):
    model = load_checkpoint(golden / name)
    before = {key: value.clone() for key, value in model.state_dict().items()}

    results = check_training(model, golden / name)

    assert [result.stage for result in results] == [f"train.{stage}" for stage in STAGES]
    assert [result for result in results if not result.ok] == []
    assert verdict(results)[0]
    for key, value in model.state_dict().items():
        assert torch.equal(value, before[key]), f"{key} of the checked model has changed"


def test_a_wrong_gradient_is_named(golden):
    recording = read_recording(golden / "gpt2-box")
    info = json.loads(json.dumps(dict(recording.info)))
    info["train_step"]["grad_norms_first_step"]["task_tokens.weight"] *= 1.05
    wrong = dataclasses.replace(recording, info=info)

    results = {r.stage: r for r in check_training(load_checkpoint(golden / "gpt2-box"), wrong)}

    assert results["train.grad_norms"].ok is False
    assert "task_tokens.weight" in results["train.grad_norms"].note
    assert results["train.loss"].ok is True


def test_a_recording_without_a_training_step_says_so(golden):
    with pytest.raises(ScaError, match="no train_step"):
        check_training(load_checkpoint(golden / "gpt2-heads2"), golden / "gpt2-heads2")


def test_the_command_adds_the_training_step_to_the_table(golden, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["model", "check", str(golden / "gpt2-point"), "--train", "--device", "cpu"])

    assert stopped.value.code == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines if line.startswith("train.")] == [
        f"train.{stage}" for stage in STAGES
    ]
    assert lines[-1].startswith("OK: ")
