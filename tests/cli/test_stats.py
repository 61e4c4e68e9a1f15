"""`sca stats` as it is typed."""

from __future__ import annotations

import json

import pytest
from click.testing import CliRunner
from PIL import Image

from sca_batch.cli.stats import stats
from sca_batch.errors import ScaError


@pytest.fixture
def run(monkeypatch, tmp_path):
    """Runs the command with an empty hub cache."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))

    def invoke(*arguments):
        result = CliRunner().invoke(stats, [str(argument) for argument in arguments])
        if isinstance(result.exception, ScaError):
            raise result.exception
        assert result.exit_code == 0, result.output
        return result

    return invoke


@pytest.fixture
def manifest(tmp_path):
    path = tmp_path / "vg-train.jsonl"
    row = {
        "uri": "a.jpg",
        "image_id": 1,
        "width": 50,
        "height": 40,
        "boxes_xyxy": [[0, 0, 5, 5], [1, 1, 40, 40]],
        "references": [["a cat"], ["the grey cat."]],
        "source": "vg",
        "split": "train",
    }
    path.write_text(json.dumps(row) + "\n")
    return path


def test_the_table_stands_on_stdout_with_the_papers_row(run, manifest):
    lines = run(manifest).stdout.splitlines()
    head = lines[0].split()
    assert head == ["data", "set", "type", *["samples", "regions", "sentences", "tokens", "words"]]
    assert lines[1].endswith("6")
    assert "no vocabulary" in lines[1]
    assert lines[2].startswith("Visual Genome, the paper")
    assert lines[2].endswith("21,392,494  19,740,221")


def test_without_a_vocabulary_the_cell_and_a_line_say_so(run, manifest):
    out = run(manifest).stdout
    assert "no vocabulary" in out
    assert "--tokenizer gpt2" in out
    assert json.loads(run(manifest, "--json").stdout)["table_4"]["tokens"] is None


def test_another_tokenizer_is_used_and_named(run, manifest, golden):
    tokenizer = golden / "data-pipeline/tokenizer.json"
    out = run(manifest, "--tokenizer", tokenizer).stdout
    assert "no vocabulary" not in out
    assert "is not GPT-2's" in out
    content = json.loads(run(manifest, "--tokenizer", tokenizer, "--json").stdout)
    assert content["table_4"]["tokens"] > 0
    assert content["tokenizer_is_gpt2"] is False


def test_json_is_one_object_and_nothing_else(run, manifest):
    content = json.loads(run(manifest, "--json", "--words", 1).stdout)
    assert content["table_4"]["regions"] == 2
    assert content["paper_table_4"]["regions"] == 3_684_063
    assert content["vocabulary"] == {"size": 4, "words": 5, "most_frequent": [["cat", 2]]}


def test_a_picture_is_written_beside_the_table(run, manifest, tmp_path):
    result = run(manifest, "--picture", tmp_path / "charts.png")
    assert "Drew" in result.stderr
    assert "Drew" not in result.stdout
    with Image.open(tmp_path / "charts.png") as image:
        assert image.format == "PNG"


def test_a_wrong_line_is_named(run, tmp_path):
    path = tmp_path / "m.jsonl"
    path.write_text('{"uri": "a.jpg"}\n{"uri": "b.jpg", "boxes_xyxy": [[5, 0, 1, 1]]}\n')
    with pytest.raises(ScaError, match=r"line 2: boxes_xyxy\[0\]"):
        run(path)


def test_a_folder_of_images_says_what_to_type(run, shapes_images):
    with pytest.raises(ScaError, match="sca manifest build"):
        run(shapes_images)
