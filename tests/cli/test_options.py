"""Options of `sca caption`: made from the request's fields, each in its group."""

from __future__ import annotations

import re
from pathlib import Path

import click
import pytest

from sca_batch.cli.caption import caption
from sca_batch.cli.options import Duration
from sca_batch.errors import ERROR_CODES
from sca_batch.job.request import FORMATS, CaptionRequest, Failures
from sca_batch.options import option_fields, option_values

FIELDS = {found.name: found for found in option_fields(CaptionRequest)}
PARAMS = {param.name: param for param in caption.params if isinstance(param, click.Option)}
# What the command has beside the request's fields, and why: it asks for a preview instead.
OF_THE_COMMAND = {"dry_run"}


def test_every_option_is_a_field_and_every_field_an_option():
    assert PARAMS.keys() - OF_THE_COMMAND == FIELDS.keys()
    assert len(FIELDS) == len(list(option_fields(CaptionRequest)))  # no name stands there twice


@pytest.mark.parametrize("name", sorted(FIELDS))
def test_an_option_has_its_fields_name_default_choices_and_help(name):
    found, param = FIELDS[name], PARAMS[name]
    assert found.flag in param.opts
    assert param.default == found.default
    assert param.help == found.option.help
    if found.choices:
        assert tuple(param.type.choices) == found.choices


def test_choices_are_those_of_their_registries():
    from sca_batch.engines import ENGINES

    assert set(FIELDS["engine"].choices) == {"torch", *ENGINES}
    assert all(name in FIELDS["format"].option.help for name in FORMATS)
    assert "timeout" in ERROR_CODES


def test_help_shows_options_in_their_groups():
    context = click.Context(caption, info_name="sca caption", max_content_width=100)
    titles = re.findall(r"^(\w[\w ]*):$", caption.get_help(context), re.M)
    assert titles == [
        "Source", "Model", "Regions", "Captions", "Output", "Running", "Updating", "Speed",
        "Other options",
    ]  # fmt: skip


def test_typed_options_become_the_request(monkeypatch):
    typed = [
        "a.jpg", "--num-beams", "2", "--root", "here", "--image-timeout", "1h30m", "--format",
        "parquet", "--retry-failed", "timeout,oom", "--max-failures", "2%", "--min-area", "0.1",
    ]  # fmt: skip
    with caption.make_context("caption", typed) as ctx:
        from sca_batch.cli.options import given_options

        given = given_options(ctx, CaptionRequest)
    request = CaptionRequest.of(*ctx.params["sources"], **given)
    assert request.given == {
        "num_beams", "root", "image_timeout", "format", "retry_failed", "max_failures", "min_area",
    }  # fmt: skip
    values = option_values(request)
    assert (values["num_beams"], values["root"]) == (2, Path("here"))
    assert (values["image_timeout"], values["format"]) == (5400.0, ("parquet",))
    assert values["retry_failed"] == ("timeout", "oom")
    assert values["max_failures"] == Failures(share=0.02)
    assert request.regions.limits.min_area == 0.1


def test_the_environment_gives_an_option_too(monkeypatch):
    monkeypatch.setenv("SCA_ENGINE_DIR", "plans")
    with caption.make_context("caption", ["a.jpg"]) as ctx:
        from sca_batch.cli.options import given_options

        assert given_options(ctx, CaptionRequest) == {"engine_dir": Path("plans")}


@pytest.mark.parametrize("text", ["7h45", "h", "", "1d", "5m3", "-3s"])
def test_a_duration_that_is_none_is_refused(text):
    with pytest.raises(click.BadParameter, match="7h45m"):
        Duration().convert(text, None, None)
