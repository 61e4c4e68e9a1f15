"""Log lines: one per message, without secrets, for people or for machines."""

from __future__ import annotations

import json
import logging
import sys

import pytest

from sca_batch.cli.logs import set_up_logging


@pytest.fixture
def logged(monkeypatch, capsys):
    """What a message looks like on standard error."""
    root = logging.getLogger()
    before = root.handlers[:], root.level

    def log(form, *message, **options):
        root.handlers[:] = []
        set_up_logging(logging.INFO, form)
        logging.getLogger("sca").warning(*message, **options)
        return capsys.readouterr().err

    yield log
    root.handlers[:], root.level = before


@pytest.mark.parametrize("form", ["text", "json"])
def test_a_file_name_cannot_forge_a_line_or_reach_the_terminal(logged, form):
    line = logged(form, "%s: broken", "a\nERROR forged\x1b[31m\u202egnp.png")
    assert line.count("\n") == 1
    assert "\x1b" not in line
    assert "\u202e" not in line
    assert "forged" in line


def test_json_lines_hold_time_level_and_message(logged):
    line = json.loads(logged("json", "took %d s", 3))
    assert (line["level"], line["logger"], line["message"]) == ("WARNING", "sca", "took 3 s")
    assert line["time"].endswith("+00:00")


def test_secrets_are_not_logged(logged):
    assert "hush" not in logged("text", "%s failed", "https://me:hush@x.org/?sig=hush")


def test_a_trace_keeps_its_lines(logged):
    try:
        raise ZeroDivisionError("oh")
    except ZeroDivisionError:
        text = logged("text", "bug", exc_info=sys.exc_info())
    assert text.splitlines()[-1] == "ZeroDivisionError: oh"
    assert json.loads(logged("json", "bug", extra={"trace": "a\nb"}))["traceback"] == "a\nb"


@pytest.mark.parametrize("form", ["text", "json"])
def test_what_a_command_tells_is_a_line_of_the_log_where_that_is_for_machines(
    monkeypatch, capsys, form
):
    from sca_batch.cli.logs import tell

    root = logging.getLogger()
    before = root.handlers[:], root.level
    try:
        root.handlers[:] = []
        set_up_logging(logging.WARNING, form)
        tell("Captioned 3 images\n  out/: run.json", logging.INFO)
        assert capsys.readouterr().err == ""  # -q: only warnings and errors
        tell("\nStopped;\n  the same command goes on.")
        said = capsys.readouterr().err
    finally:
        root.handlers[:], root.level = before
    if form == "json":
        told = [json.loads(line)["message"] for line in said.splitlines()]
        assert told == ["Stopped;", "the same command goes on."]
    else:
        assert said == "\nStopped;\n  the same command goes on.\n"
