"""The loop on a task of a few numbers: any task is trained, logged and saved alike."""

from dataclasses import dataclass

import pytest
import torch
from torch import nn

pytest.importorskip("accelerate")

from caption_runs import rows_of

from sca_batch.errors import ScaError, TrainingError
from sca_batch.train.loop import RunOptions, run_task
from sca_batch.train.optimization import ParameterGroup
from sca_batch.train.processes import open_accelerator
from sca_batch.train.recipes import CaptionRecipe
from sca_batch.train.request import RunRequest
from sca_batch.train.state import Checkpoints
from sca_batch.train.task import BatchFailure, Losses, RunSettings, Validation

RECIPE = CaptionRecipe(
    name="line", steps=10_000, warmup_steps=0, weight_decay=0.0, precision="no", seed=3,
    validate_every=4, checkpoint_every=3, report_every=1,
)  # fmt: skip
# So far from the end of its cosine the rate is all but constant.
SETTINGS = RunSettings(
    RECIPE, lr=0.05, images_per_step=4, images_per_device=2, ranked_by="fit", last_step=12
)


@dataclass
class Numbers:
    """Points on a line."""

    keys: tuple[str, ...]
    x: torch.Tensor

    @property
    def counts(self):
        return {"images": len(self.x), "odd": sum(int(key) % 2 for key in self.keys)}

    def to(self, device):
        return Numbers(self.keys, self.x.to(device))


class Line(nn.Module):
    """Learns y = 2x + 1, with noise from torch's own generator."""

    def __init__(self, spoil):
        super().__init__()
        self.slope, self.offset = nn.Parameter(torch.zeros(1)), nn.Parameter(torch.zeros(1))
        self.spoil = spoil

    def forward(self, batch):
        noise = 0.01 * torch.randn(len(batch.x))
        error = self.slope * batch.x + self.offset - (2 * batch.x + 1 + noise)
        square = error.square().mean()
        if "7" in batch.keys and self.spoil == "gradient":
            # Of a value that is finite: the slope of the root at zero is not.
            square = square + (self.slope * 0).abs().sqrt().sum()
        if "7" in batch.keys and self.spoil == "loss":
            square = square / 0
        return Losses(square, {"bias": error.mean().abs()})


class LineTask:
    name = "line"
    can_validate = True

    def __init__(self, spoil="", seed=0):
        self.module = Line(spoil)
        self.spoil, self.seed, self.seen = spoil, seed, 0
        self.asked = []

    def groups(self):
        return [
            ParameterGroup({"slope": self.module.slope}, decays=True),
            ParameterGroup({"offset": self.module.offset}, decays=False, lr_factor=0.5),
        ]

    def batches(self, numbers):
        for number in numbers:
            self.asked.append(number)
            if number == 5 and self.spoil == "batch":
                yield BatchFailure("number 5 is gone")
            first = 2 * number
            x = torch.tensor([first % 5 - 2.0, (first + 1) % 5 - 2.0])
            yield Numbers((str(first), str(first + 1)), x)

    def fingerprint(self):
        return {"seed": self.seed}

    def state(self):
        return {"validations": self.seen}

    def load_state(self, state):
        self.seen = state["validations"]

    def validate(self, accelerator, should_stop):
        self.seen += 1
        error = (self.module.slope - 2).abs() + (self.module.offset - 1).abs()
        return Validation({"loss": error.item(), "fit": -error.item(), "seen": float(self.seen)})

    def export(self, folder):
        folder.mkdir()
        (folder / "slope").write_text(str(self.module.slope.item()))


def train(out, task=None, *, resume=False, **options):
    task = task or LineTask()
    accelerator = open_accelerator(SETTINGS, cpu=True)
    told = RunOptions(lambda line: None, RunRequest(resume=resume), **options)
    return task, run_task(task, SETTINGS, out, told, accelerator)


def test_a_task_is_trained_logged_validated_saved_and_exported(tmp_path):
    task, outcome = train(tmp_path)

    rows = rows_of(tmp_path)
    assert (outcome.step, outcome.stopped) == (12, False)
    assert task.asked == list(range(24))
    assert rows[-1]["loss"] < rows[0]["loss"]
    assert rows[0].keys() == {
        "step", "loss", "bias", "lr", "grad_norm", "odd", "images_per_s",
    }  # fmt: skip
    assert all(row["odd"] == 2 for row in rows)
    assert [row["step"] for row in rows if "validation" in row] == [3, 7, 11]
    assert Checkpoints(tmp_path).best().step == 12
    assert Checkpoints(tmp_path).steps() == [8, 9, 12]
    exported = float((tmp_path / "model/slope").read_text())
    assert exported == task.module.slope.item() != 0


@pytest.mark.parametrize("stop", [1, 4, 7])
def test_any_task_goes_on_with_the_losses_of_an_unbroken_run(tmp_path, stop):
    unbroken, _ = train(tmp_path / "unbroken")
    train(tmp_path / "out", stop_after=stop)
    task, _ = train(tmp_path / "out", resume=True)

    pairs = zip(rows_of(tmp_path / "out"), rows_of(tmp_path / "unbroken"), strict=True)
    for ours, theirs in pairs:
        assert {k: v for k, v in ours.items() if k != "images_per_s"} == {
            k: v for k, v in theirs.items() if k != "images_per_s"
        }
    assert torch.equal(task.module.slope, unbroken.module.slope)
    assert task.seen == 3, "what the task itself remembers"


def test_a_group_has_its_own_learning_rate(tmp_path):
    task, _ = train(tmp_path, stop_after=1)

    # AdamW's first step is as long as the rate, whatever the gradient.
    assert task.module.slope.item() == pytest.approx(0.05, rel=1e-3)
    assert abs(task.module.offset.item()) == pytest.approx(0.025, rel=1e-3)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [("loss", "the loss is inf on images 4, 5, 6, 7"),
     ("gradient", "the gradient's norm is nan on images 4, 5, 6, 7")],
)  # fmt: skip
def test_what_is_not_finite_never_reaches_the_weights(tmp_path, spoil, message):
    task = LineTask(spoil)
    with pytest.raises(TrainingError, match=f"step 1: {message}. There is no checkpoint yet"):
        train(tmp_path, task)

    assert torch.isfinite(task.module.slope).all()
    assert [row["step"] for row in rows_of(tmp_path)] == [0]


def test_a_batch_that_cannot_be_made_stops_with_a_checkpoint_of_that_step(tmp_path):
    with pytest.raises(TrainingError, match="step 2: number 5 is gone") as told:
        train(tmp_path, LineTask("batch"))

    assert told.value.exit_code == 1
    assert Checkpoints(tmp_path).steps() == [2]


def test_a_run_of_another_task_is_not_taken_up(tmp_path):
    train(tmp_path, stop_after=1)

    with pytest.raises(ScaError, match="another run: seed was 0, is 1"):
        train(tmp_path, LineTask(seed=1), resume=True)
