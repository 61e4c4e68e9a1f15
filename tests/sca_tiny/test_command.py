"""`python -m sca_tiny`: its recipes, their numbers, and how it refuses."""

import pytest

from sca_batch.cli import run_command
from sca_tiny.__main__ import cli
from sca_tiny.recipes import TINY, with_workers


def run(capsys, *arguments):
    with pytest.raises(SystemExit) as stopped:
        run_command(cli, "python -m sca_tiny", list(arguments))
    return stopped.value.code, capsys.readouterr()


def test_every_stage_makes_its_batches_with_the_workers_asked_for(capsys):
    assert [stage.workers for stage in with_workers(TINY, 7).stages] == [7] * 5
    assert with_workers(TINY.edges, 7).workers == 7

    code, shown = run(capsys, "train", "--workers", "7", "--dry-run")
    assert code == 0
    assert [line.strip() for line in shown.out.splitlines() if "workers" in line] == (
        ["workers: 7"] * 5
    )


def test_a_recipe_that_there_is_not_is_refused_with_those_there_are(capsys):
    code, shown = run(capsys, "train", "vg", "-o", "run")
    assert code == 2
    assert "no recipe 'vg'; expected one of tiny, tiny-language" in shown.err


def test_a_number_of_one_stage_is_changed(capsys):
    code, shown = run(capsys, "train", "--set", "edges.steps=12", "--dry-run")
    assert code == 0
    assert "12 steps: 0 dense scenes for names alone" in shown.out
