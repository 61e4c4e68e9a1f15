import dataclasses
import json
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import numpy as np
import pytest
import torch

cv2 = pytest.importorskip("cv2")
pytest.importorskip("skimage")

from sca_batch.errors import ScaError  # noqa: E402
from sca_batch.model.checkpoint import load_checkpoint  # noqa: E402
from sca_batch.model.config import read_config  # noqa: E402
from sca_batch.train.art import TRAIN_STYLES, Art, Concept, Pictogram  # noqa: E402
from sca_batch.train.loop import learning_rate, train  # noqa: E402
from sca_batch.train.recipes import RECIPES, TINY, ModelSizes, Recipe  # noqa: E402

SHAPES = {"disc": (225, 30, 30), "plank": (30, 200, 30), "ring": (30, 40, 225)}

SMALL = ModelSizes(
    image_size=64,
    encoder_width=32,
    encoder_layers=2,
    encoder_heads=2,
    encoder_mlp=64,
    window_size=2,
    global_layers=(1,),
    prompt_width=16,
    decoder_heads=2,
    decoder_mlp=32,
    mixer_layers=1,
    caption_tokens=2,
    task_tokens=2,
    text_width=32,
    text_layers=1,
    text_heads=2,
)
QUICK = dataclasses.replace(
    TINY,
    name="quick",
    sizes=SMALL,
    steps=12,
    images_per_step=2,
    lr=3e-3,
    warmup_steps=2,
    tokenizer_scenes=20,
    vocab_size=330,
    validate_every=6,
    validation_scenes=1,
    calibration_scenes=1,
    checkpoint_every_s=1e9,
    bf16=False,
)


def small_art() -> Art:
    def draw(label: str) -> np.ndarray:
        alpha = np.zeros((128, 128), np.uint8)
        if label == "plank":
            alpha[40:90] = 255
        else:
            cv2.circle(alpha, (64, 64), 50, 255, -1 if label == "disc" else 20)
        return np.dstack([*(np.full_like(alpha, c) for c in SHAPES[label]), alpha])

    return Art(
        concepts=tuple(Concept(label) for label in SHAPES),
        pictograms=tuple(
            Pictogram(label, TRAIN_STYLES[0], label, None, draw(label)) for label in SHAPES
        ),
    )


def run(recipe: Recipe, out: Path, *, resume: bool = False, stop_after: int | None = None) -> None:
    train(
        recipe,
        out,
        resume=resume,
        report=lambda line: None,
        art=small_art(),
        workers=0,
        stop_after=stop_after,
    )


def losses(out: Path) -> dict[int, float]:
    rows = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    steps = [row["step"] for row in rows if "loss" in row]
    assert len(steps) == len(set(steps)), "a step is logged once"
    return {row["step"]: row["loss"] for row in rows if "loss" in row}


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("train") / "unbroken"
    run(QUICK, out)
    return out


def test_the_loss_falls_within_a_few_steps(unbroken):
    by_step = losses(unbroken)

    assert sorted(by_step) == list(range(QUICK.steps))
    first, last = (np.mean([by_step[s] for s in steps]) for steps in (range(3), range(9, 12)))
    assert last < first - 1


def test_a_run_that_was_stopped_goes_on_with_the_losses_of_an_unbroken_one(unbroken, tmp_path):
    run(QUICK, tmp_path / "out", stop_after=5)
    assert sorted(losses(tmp_path / "out")) == list(range(5))

    run(QUICK, tmp_path / "out", resume=True)

    assert losses(tmp_path / "out") == pytest.approx(losses(unbroken), rel=1e-6)
    weights = [load_checkpoint(out / "model").state_dict() for out in (unbroken, tmp_path / "out")]
    for name, value in weights[0].items():
        torch.testing.assert_close(weights[1][name], value, msg=name)


def test_a_run_that_was_killed_goes_on_with_the_losses_of_an_unbroken_one(unbroken, tmp_path):
    out = tmp_path / "out"
    program = textwrap.dedent(
        """
        import dataclasses, sys
        from pathlib import Path
        sys.path.insert(0, sys.argv[1])
        from test_loop import QUICK, small_art
        from sca_batch.train.loop import train
        # A checkpoint after every step; its recipe must be the unbroken run's own otherwise.
        recipe = dataclasses.replace(QUICK, checkpoint_every_s=0.0, validate_every=1000)
        train(recipe, Path(sys.argv[2]), resume=False, report=print, art=small_art(), workers=0)
        """
    )
    command = [sys.executable, "-c", program, str(Path(__file__).parent), str(out)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while not (out / "checkpoint.pt").exists():
        assert process.poll() is None, "it ended before there was a checkpoint"
        assert time.monotonic() < deadline
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()

    recipe = dataclasses.replace(QUICK, checkpoint_every_s=0.0, validate_every=1000)
    run(recipe, out, resume=True)

    assert losses(out) == pytest.approx(losses(unbroken), rel=1e-6)


def test_log_rows_after_the_checkpoint_are_written_once_and_a_cut_line_is_dropped(tmp_path):
    run(QUICK, tmp_path, stop_after=3)
    with (tmp_path / "log.jsonl").open("a") as log:
        log.write('{"step": 3, "loss": 1.0}\n{"step": 4, "lo')

    run(QUICK, tmp_path, resume=True, stop_after=4)

    by_step = losses(tmp_path)
    assert sorted(by_step) == [0, 1, 2, 3]
    assert by_step[3] != 1.0


def test_a_checkpoint_that_cannot_be_written_leaves_the_last_one(tmp_path, monkeypatch):
    run(QUICK, tmp_path, stop_after=2)
    before = (tmp_path / "checkpoint.pt").read_bytes()

    def full_disk(state: object, file: object) -> None:
        file.write(b"half")  # type: ignore[attr-defined]
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full_disk)
    with pytest.raises(OSError, match="No space left"):
        run(QUICK, tmp_path, resume=True, stop_after=3)

    assert (tmp_path / "checkpoint.pt").read_bytes() == before
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


def test_a_folder_with_a_run_is_not_overwritten(unbroken):
    with pytest.raises(ScaError, match="--resume"):
        run(QUICK, unbroken)


def test_a_run_is_not_continued_with_another_recipe(tmp_path):
    run(QUICK, tmp_path, stop_after=1)

    with pytest.raises(ScaError, match="another recipe"):
        run(dataclasses.replace(QUICK, lr=1e-4), tmp_path, resume=True)


def test_the_result_is_a_checkpoint_in_the_published_format_that_captions(unbroken):
    folder = unbroken / "model"

    assert {path.name for path in folder.iterdir()} == {
        "config.json",
        "model.safetensors",
        "tokenizer.json",
    }
    raw = json.loads((folder / "config.json").read_text())
    assert raw["architectures"] == ["ScaMultitaskV2Model"]
    assert read_config(folder).image_size == SMALL.image_size
    model = load_checkpoint(folder)
    assert model.tokenizer is not None
    assert model.tokenizer.decode(model.tokenizer.encode("a plank")) == "a plank"
    embedding = model.encode_image(torch.zeros(1, 3, 64, 64))
    found = model.region_queries(
        embedding, boxes_R4=torch.tensor([[4.0, 4.0, 30.0, 30.0]]), with_masks=True
    )
    assert found.masks is not None
    assert found.masks.shape == (1, 4, 16, 16)
    assert len(model.generate(found.queries, num_beams=3)) == 1


def test_validation_reports_masks_and_names(unbroken):
    rows = [json.loads(line) for line in (unbroken / "log.jsonl").read_text().splitlines()]
    scores = [row["validation"] for row in rows if "validation" in row]

    assert len(scores) == 2
    assert all(0 <= row[name] <= 1 for row in scores for name in ("box_iou", "named"))


def test_the_learning_rate_warms_up_and_ends_at_zero():
    rates = [learning_rate(QUICK, step) for step in range(QUICK.steps + 1)]

    assert rates[0] == pytest.approx(QUICK.lr / 2)
    assert max(rates) == rates[1] == rates[2] == QUICK.lr
    assert rates[-1] == pytest.approx(0)


def test_every_recipe_gives_a_model_configuration():
    for recipe in RECIPES.values():
        config = recipe.sizes.config(vocab_size=500, eos_token_id=0)
        assert config.grid_size == recipe.sizes.image_size // recipe.sizes.patch_size
