"""JSON in pieces gives what `json.load` gives, and stops where the file is wrong."""

from __future__ import annotations

import json
import random

import pytest

from sca_batch.errors import ScaError
from sca_batch.manifests.json_stream import stream_array, stream_members


def make_value(rng, depth=0):
    kinds = ["number", "text", "literal", *(["list", "dict"] if depth < 3 else [])]
    kind = rng.choice(kinds)
    if kind == "number":
        return rng.choice([rng.randint(-(10**18), 10**18), rng.uniform(-1, 1), 1e-300, 0])
    if kind == "text":
        return "".join(
            rng.choice('ab"\\\n\u00e9\u20ac\U0001f600 ,]}') for _ in range(rng.randint(0, 40))
        )
    if kind == "literal":
        return rng.choice([True, False, None])
    if kind == "list":
        return [make_value(rng, depth + 1) for _ in range(rng.randint(0, 4))]
    return {make_key(rng): make_value(rng, depth + 1) for _ in range(rng.randint(0, 4))}


def make_key(rng):
    return rng.choice(["a", "images", "annotations", "]"]) + str(rng.randint(0, 9))


@pytest.mark.parametrize("chunk", [1, 7, 64, 1 << 20])
@pytest.mark.parametrize("ascii_only", [True, False])
def test_an_array_gives_its_elements(tmp_path, chunk, ascii_only):
    rng = random.Random(3)
    elements = [make_value(rng) for _ in range(150)]
    path = tmp_path / "a.json"
    text = json.dumps(elements, ensure_ascii=ascii_only, indent=rng.choice([None, 2]))
    path.write_text(f"\n {text} \n", encoding="utf-8")
    assert list(stream_array(path, expected="", chunk=chunk)) == list(enumerate(elements))


@pytest.mark.parametrize("chunk", [1, 16, 1 << 20])
def test_an_object_gives_the_elements_of_the_wanted_arrays(tmp_path, chunk):
    path = tmp_path / "a.json"
    document = {
        "info": {"images": [9, 9]},
        "images": [1, 22, 333, 1.5],
        "other": [[1], [2]],
        "empty": [],
        "annotations": [{"a": []}],
        "last": 12345,
    }
    path.write_text(json.dumps(document))
    wanted = ("annotations", "images", "empty")
    found = list(stream_members(path, wanted, expected="", chunk=chunk))
    assert found == [
        *(("images", i, value) for i, value in enumerate(document["images"])),
        ("annotations", 0, {"a": []}),
    ]


@pytest.mark.parametrize("chunk", [1, 8, 1 << 20])
@pytest.mark.parametrize(
    "content",
    [
        *("", "[", "[1", "[1,", "[1,]", "[1 2]", "[1]]", '["a', '["\\u12', "[tru", "[-", "[{]"),
        *("[1] x", "{}", "null", '[{"a": 1]', "[1.5.5]", '["\x01"]', "[nul]"),
    ],
)
def test_what_is_not_an_array_is_refused(tmp_path, chunk, content):
    path = tmp_path / "a.json"
    path.write_text(content)
    with pytest.raises(ScaError, match=r"a.json, line 1, character \d+ of the file: .* expected X"):
        list(stream_array(path, expected="X", chunk=chunk))


def test_a_broken_element_is_not_searched_for_through_the_whole_file(tmp_path):
    path = tmp_path / "a.json"
    path.write_text("[" + "1," * 50 + "oops," + "1," * 100_000 + "1]")
    read = []
    elements = stream_array(
        path, expected="", progress=lambda _, position: read.append(position), chunk=100
    )
    with pytest.raises(ScaError, match="character 101"):
        list(elements)
    assert read[-1] < 50_000


def test_deep_nesting_is_an_error_and_not_a_crash(tmp_path):
    path = tmp_path / "a.json"
    path.write_text("[" * 200_000)
    with pytest.raises(ScaError):
        list(stream_array(path, expected=""))
