"""Whole runs by the product's own function, small enough to be killed a hundred times."""

from __future__ import annotations

import multiprocessing
import os
from dataclasses import replace
from pathlib import Path

from sca_batch.errors import ScaError
from sca_batch.job.caption import PRELOAD, caption_corpus
from sca_batch.job.request import CaptionRequest, Failures
from sca_batch.runners.spawn import main_module_hidden, start_fork_server

SHAPES = Path(__file__).parents[1] / "golden" / "anything"


def small_request(source, out, **options):
    """A run with the shapes model in this process, one short greedy caption a region.

    Regions are captioned one by one, so that not even last bits depend on where a run was stopped.
    """
    small = {
        "model": str(SHAPES),
        "workers": 0,
        "num_beams": 1,
        "max_new_tokens": 2,
        "shard_size": 3,
        "commit_every": 0.0,
        "caption_batch": 1,
        "max_failures": Failures(count=1000),
    }
    return CaptionRequest.of(source, **{**small, "output": str(out), **options})


def forked(request):
    """The request with workers forked from the process that asks: it has loaded the libraries."""
    return replace(request, running=replace(request.running, start_method="fork"))


def whole_job(source, out, environment, options, said=None):
    """A run in a process of its own: its exit code is the run's, its error goes to `said`."""
    os.setpgid(0, 0)
    os.environ.update(environment)
    try:
        outcome = caption_corpus(forked(small_request(source, out, **options)))
    except ScaError as error:
        if said is not None:
            Path(said).write_text(str(error))
        raise SystemExit(error.exit_code) from None
    raise SystemExit(outcome.exit_code)


def start_job(source, out, environment=None, said=None, preload=(), **options):
    """Starts `whole_job` from a fork server that has loaded what a run loads."""
    start_fork_server([*PRELOAD, *preload])
    arguments = (str(source), str(out), environment or {}, {"workers": 1, **options}, said)
    process = multiprocessing.get_context("forkserver").Process(target=whole_job, args=arguments)
    with main_module_hidden():
        process.start()
    return process


def ended(process):
    """How the process ended: an exit code, or minus a signal."""
    process.join(120)
    assert process.exitcode is not None
    return process.exitcode
