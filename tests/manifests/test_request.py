"""A manifest's request: what its options must be, and what it is written to."""

from __future__ import annotations

from pathlib import Path

import pytest

from sca_batch.errors import ScaError
from sca_batch.manifests.annotations import SOURCES
from sca_batch.manifests.request import KINDS, BuildRequest, Request
from sca_batch.options import option_fields


def test_there_is_a_reader_of_every_kind():
    assert list(SOURCES) == list(KINDS)


@pytest.mark.parametrize(
    ("sources", "target"),
    [
        (["photos"], "photos.jsonl"),
        (["photos/*.jpg"], "photos.jsonl"),
        (["-"], "manifest.jsonl"),
        (["a/b.csv", "c"], "b.jsonl"),
    ],
)
def test_a_manifest_is_named_after_its_first_source(sources, target):
    assert BuildRequest.of(*sources).target == Path(target)


def test_a_manifest_of_a_data_set_is_named_after_it_and_its_split(tmp_path):
    request = BuildRequest.of(str(tmp_path), **{"from": "refcoco+", "split": "testA"})
    assert request.target == Path("refcoco+-testA.jsonl")
    assert request.data_set == Request(tmp_path, "testA")
    assert BuildRequest.of(str(tmp_path), output=Path("m.parquet")).target == Path("m.parquet")


@pytest.mark.parametrize("name", [found.name for found in option_fields(Request)])
def test_what_describes_a_data_set_needs_one(name):
    value = {"task": "caption", "ref_protocol": "clean", "min_confidence": 0.5}.get(name, "x")
    with pytest.raises(ScaError, match=f"--{name.replace('_', '-')} describes a data set"):
        BuildRequest.of("photos", **{name: value})


def test_a_choice_that_there_is_not_is_refused(tmp_path):
    with pytest.raises(ScaError, match="--from 'imagenet'"):
        BuildRequest.of(str(tmp_path), **{"from": "imagenet"})
    with pytest.raises(ScaError, match="--task 'detect'"):
        BuildRequest.of(str(tmp_path), **{"from": "vg", "task": "detect"})
