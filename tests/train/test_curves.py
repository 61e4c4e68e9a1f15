"""Learning curves, read from any recipe's log."""

import json

import numpy as np
import pytest
from PIL import Image

from sca_batch.cli import main
from sca_batch.errors import ScaError
from sca_batch.train.tracking import draw_curves, read_curves


def write_log(folder, rows, tail=""):
    path = folder / "log.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows) + tail)
    return path


ROWS = [
    {"step": 0, "loss": 3.0, "dice": 0.5, "lr": 0.0, "grad_norm": None, "images_per_s": 4.0},
    {"step": 1, "loss": 2.0, "dice": 0.4, "lr": 1e-4, "grad_norm": 1.0, "images_per_s": 4.0,
     "validation": {"loss": 2.5, "cider_d": 0.1, "regions": 6.0}},
    {"step": 2, "validation": {"loss": 2.0, "cider_d": 0.7, "regions": 6.0}},
]  # fmt: skip


def test_every_number_is_read_with_its_step(tmp_path):
    curves = read_curves(write_log(tmp_path, ROWS))

    assert curves.training["loss"] == [(0, 3.0), (1, 2.0)]
    assert curves.training["grad_norm"] == [(1, 1.0)]
    assert curves.validation["cider_d"] == [(1, 0.1), (2, 0.7)]


def test_a_line_that_a_kill_cut_short_is_left_out_and_another_is_an_error(tmp_path):
    whole = read_curves(write_log(tmp_path, ROWS))
    assert read_curves(write_log(tmp_path, ROWS, tail='{"step": 3, "lo')) == whole

    with pytest.raises(ScaError, match="line 4: not a row"):
        read_curves(write_log(tmp_path, ROWS, tail="nonsense\n" + json.dumps(ROWS[0])))


def test_a_log_without_rows_and_no_log_are_told(tmp_path):
    with pytest.raises(ScaError, match="no rows yet"):
        read_curves(write_log(tmp_path, []))
    with pytest.raises(ScaError, match="expected the log of a run"):
        read_curves(tmp_path / "none.jsonl")


def test_the_picture_shows_what_the_log_says(tmp_path):
    log = write_log(tmp_path, ROWS)
    draw_curves(log, tmp_path / "curves.png")
    five = np.asarray(Image.open(tmp_path / "curves.png").convert("RGB"))
    # A log without validations and parts has fewer panels.
    draw_curves(write_log(tmp_path, [{"step": 0, "loss": 3.0}, {"step": 1, "loss": 2.0}]),
                tmp_path / "less.png")  # fmt: skip
    one = np.asarray(Image.open(tmp_path / "less.png").convert("RGB"))

    assert five.shape[1] == one.shape[1]
    assert five.shape[0] == 5 * one.shape[0]
    assert (one != 255).any()


def test_the_command_draws_a_runs_curves(tmp_path):
    write_log(tmp_path, ROWS)

    with pytest.raises(SystemExit) as stopped:
        main(["train", "--curves", str(tmp_path)])

    assert stopped.value.code == 0
    with Image.open(tmp_path / "curves.png") as picture:
        assert picture.format == "PNG"
