"""Lets tests import the helpers beside them, and shares one run among the files."""

import pytest


@pytest.fixture(scope="session")
def data(tmp_path_factory):
    """A manifest of five painted pictures with three regions each."""
    from caption_runs import write_data

    return write_data(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="session")
def unbroken(tmp_path_factory, data):
    """The folder of a run that nothing stopped."""
    from caption_runs import QUICK, run

    out = tmp_path_factory.mktemp("run") / "unbroken"
    run(QUICK, out, data, validation=data, trackers=("tensorboard",))
    return out
