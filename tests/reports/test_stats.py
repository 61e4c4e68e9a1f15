"""Counts that a person can redo, and a picture that is one."""

from __future__ import annotations

import json
import math
import random
import re

import numpy as np
import pytest
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers, trainers

from sca_batch.dataset.shards import ShardMark, shard_path, write_run, write_shard
from sca_batch.errors import ScaError
from sca_batch.records import Caption, CaptionedRegion, ImageRecord, ImageRef, Region
from sca_batch.reports.gpt2 import count_words, load_gpt2
from sca_batch.reports.stats import GRID, collect, quantile, spread
from sca_batch.reports.stats_picture import draw_statistics
from sca_batch.reports.table4 import PAPER_TABLE_4

# GPT-2's own pattern, for ASCII text, where \p{L} is [A-Za-z] and \p{N} is [0-9].
GPT2_PIECE = re.compile(
    r"'s|'t|'re|'ve|'m|'ll|'d| ?[A-Za-z]+| ?[0-9]+| ?[^\sA-Za-z0-9]+|\s+(?!\S)|\s+"
)


@pytest.fixture
def manifest(tmp_path):
    """Writes rows as JSON lines."""

    def write(*rows, name="m.jsonl"):
        path = tmp_path / name
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return path

    return write


@pytest.fixture
def dataset(tmp_path):
    """Three images: one with two regions, one empty, one that failed."""
    folder = tmp_path / "captions"
    folder.mkdir()

    def captioned(i, box, text, logprob, iou):
        region = Region(box, 4, "grid_point", predicted_iou=iou, stability_score=0.96)
        return CaptionedRegion(i, region, Caption(text, logprob))

    def image(i):
        return ImageRef(i, f"{i}.jpg", f"/{i}.jpg", f"{i}.jpg")

    regions = (
        captioned(0, (0.0, 0.0, 10.0, 10.0), "A cat", math.log(0.5), 0.9),
        captioned(1, (5.0, 5.0, 105.0, 105.0), "a dog's bed", math.log(0.25), 0.8),
    )
    records = [
        ImageRecord(image(1), "ok", "x", 120, 200, regions),
        ImageRecord(image(2), "empty", "x", 50, 50),
        ImageRecord(image(3), "failed", error_code="truncated", error="cut off"),
    ]
    write_run(folder, {"fingerprint": {"plan": "x"}, "settings": {}})
    write_shard(records, shard_path(folder, 0), ShardMark(0, 0, 2, "f"))
    return folder


def test_table_4_counts_images_regions_sentences_and_pieces(manifest):
    path = manifest(
        {
            "uri": "a.jpg",
            "image_id": 1,
            "boxes_xyxy": [[0, 0, 5, 5], [1, 1, 1, 9]],
            "references": [["a cat.", "the grey cat"], ["12 cats"]],
        },
        {"uri": "b.jpg", "image_id": 2, "boxes_xyxy": [[0, 0, 9, 9]], "references": ["it's"]},
    )
    row = collect(path).table_4_row()
    assert (row.samples, row.regions, row.sentences) == (2, 3, 4)
    assert row.words == 3 + 3 + 2 + 2  # a| cat|.   the| grey| cat   12| cats   it|'s
    assert row.tokens is None
    assert row.kind == "-"


def test_words_are_the_pieces_of_gpt2s_pattern():
    rng = random.Random(4)
    alphabet = "aB cD 12 .,'-s't're  \n\t"
    texts = ["".join(rng.choice(alphabet) for _ in range(rng.randint(0, 30))) for _ in range(500)]
    for text in [*texts, "the dog's 2nd bowl...", " leading", "trailing ", "don't", ""]:
        assert count_words(text) == len(GPT2_PIECE.findall(text)), text


def test_empty_and_clipped_boxes_are_counted(manifest):
    boxes = [[0, 0, 0, 9], [-50, -50, 20, 20], [0, 0, 32, 32], [0, 0, 200, 200]]
    path = manifest({"uri": "a.jpg", "width": 100, "height": 100, "boxes_xyxy": boxes})
    statistics = collect(path)
    assert statistics.regions == 4
    assert dict(statistics.box_sizes) == {"empty": 1, "small": 1, "medium": 1, "large": 1}
    assert statistics.sentences_per_region == {0: 4}


def test_the_map_counts_the_boxes_over_each_part(manifest):
    row = {"uri": "a.jpg", "width": GRID * 2, "height": GRID, "boxes_xyxy": [[2, 3, 6, 5]]}
    coverage = collect(manifest(row)).coverage
    expected = np.zeros((GRID, GRID), dtype=int)
    expected[3:5, 1:3] = 1
    assert (coverage == expected).all()


def test_rows_without_regions_have_images_and_perhaps_sentences(manifest):
    path = manifest(
        {"uri": "a.jpg", "references": ["a street", "cars in a street"]},
        {"uri": "b.jpg"},
        {"uri": "c.jpg", "boxes_xyxy": []},
    )
    statistics = collect(path)
    assert (statistics.samples, statistics.regions, statistics.sentences) == (3, 0, 2)
    assert statistics.boxes_per_image == {0: 1}


def test_words_of_the_vocabulary_are_what_a_reader_counts(manifest):
    path = manifest(
        {"uri": "a.jpg", "boxes_xyxy": [[0, 0, 1, 1]], "references": [["The dog's bed, the bed"]]}
    )
    statistics = collect(path)
    assert statistics.vocabulary == {"the": 2, "bed": 2, "dog's": 1}
    assert statistics.frequent_words(2) == [("bed", 2), ("the", 2)]
    assert statistics.sentence_words == {5: 1}


def test_a_dataset_has_its_status_and_scores_as_well(dataset):
    content = collect(dataset).to_dict()
    assert content["table_4"]["kind"] == "Captions made by sca"
    assert (content["table_4"]["samples"], content["table_4"]["regions"]) == (2, 2)
    assert content["status"] == {"ok": 1, "empty": 1, "failed": 1}
    assert content["error_codes"] == {"truncated": 1}
    assert content["scores"]["caption_score"]["mean"] == pytest.approx(0.375)
    assert content["scores"]["predicted_iou"]["max"] == 0.9
    assert content["box_side_px"]["max"] == 100
    assert content["boxes_per_image"]["count"] == 2
    assert content["vocabulary"]["most_frequent"][0] == ["a", 2]


def test_a_manifest_in_parquet_counts_the_same(manifest, tmp_path):
    from sca_batch.manifests.write import write_manifest

    row = {
        "uri": "a.jpg",
        "image_id": 5,
        "width": 10,
        "height": 10,
        "boxes_xyxy": [[0, 0, 5, 5]],
        "references": [["a cat"]],
        "source": "vg",
        "split": "train",
    }
    write_manifest([row], tmp_path / "m.parquet")
    assert collect(tmp_path / "m.parquet").to_dict() == collect(manifest(row)).to_dict()


def test_the_papers_row_stands_beside_the_same_split_only(manifest):
    def row(split, source="refcocog", **extra):
        return {"uri": "a.jpg", "source": source, "split": split, **extra}

    paper = PAPER_TABLE_4["refcocog"]
    assert collect(manifest(row("train", ref_protocol="published"))).paper_row() == paper
    assert collect(manifest(row("train", ref_protocol="clean"))).paper_row() is None
    assert collect(manifest(row("val", ref_protocol="published"))).paper_row() is None
    mixed = manifest(row("train", "vg"), row("train", "coco") | {"uri": "b.jpg"})
    assert collect(mixed).paper_row() is None
    assert collect(manifest(row("train", "vg"))).table_4_row().kind == "Region captioning"


def test_memory_does_not_grow_with_the_rows(manifest, tmp_path):
    """What is kept after a thousand equal rows is what is kept after one."""
    row = {"uri": "a.jpg", "boxes_xyxy": [[0, 0, 5, 5]], "references": [["a cat"]]}
    many = collect(manifest(*({**row, "image_id": i} for i in range(1000))))
    one = collect(manifest({**row, "image_id": 1}, name="one.jsonl"))
    for name in ("sentence_words", "vocabulary", "boxes_per_image", "box_sides", "origins"):
        assert len(getattr(many, name)) == len(getattr(one, name))


def test_quantiles_are_values_that_occur():
    from collections import Counter

    values = [random.Random(1).randint(0, 50) for _ in range(101)]
    counter = Counter(values)
    assert quantile(counter, 0.5) == sorted(values)[50]
    assert spread(counter)["mean"] == pytest.approx(sum(values) / 101)
    assert spread(Counter()) is None


# --- tokenizers


@pytest.fixture(scope="module")
def small_bpe():
    """A byte-level BPE of a few words."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(["the cat and the other cat", "the hat"] * 20, trainer)
    return tokenizer


def test_a_tokenizer_is_read_in_each_of_its_forms(small_bpe, tmp_path):
    text = "the cat isn't the hat, 12"
    expected = len(small_bpe.encode(text).ids)
    small_bpe.save(str(tmp_path / "tokenizer.json"))
    hugging_face, openai = tmp_path / "hf", tmp_path / "openai"
    for folder, names in (
        (hugging_face, ("vocab.json", "merges.txt")),
        (openai, ("encoder.json", "vocab.bpe")),
    ):
        folder.mkdir()
        for written, name in zip(small_bpe.model.save(str(folder)), names, strict=True):
            (folder / written).rename(folder / name)
    for where in (tmp_path / "tokenizer.json", tmp_path, hugging_face, openai):
        loaded = load_gpt2(str(where))
        assert loaded.count(text) == expected
        assert not loaded.is_gpt2


def test_tokens_are_counted_without_special_ones_or_a_limit(small_bpe, manifest, tmp_path):
    small_bpe.save(str(tmp_path / "tokenizer.json"))
    content = json.loads((tmp_path / "tokenizer.json").read_text())
    content["truncation"] = {
        "direction": "Right",
        "max_length": 2,
        "strategy": "LongestFirst",
        "stride": 0,
    }
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    tokenizer = load_gpt2(str(tmp_path))
    path = manifest(
        {"uri": "a.jpg", "boxes_xyxy": [[0, 0, 1, 1]], "references": [["the cat the cat the hat"]]}
    )
    assert collect(path, tokenizer=tokenizer).table_4_row().tokens == 6


@pytest.mark.parametrize(
    ("name", "content"),
    [("tokenizer.json", "{}"), ("tokenizer.json", "no json"), ("vocab.json", "{}")],
)
def test_a_broken_tokenizer_is_one_clear_error(tmp_path, name, content):
    (tmp_path / name).write_text(content)
    with pytest.raises(ScaError, match=r"expected tokenizer\.json, vocab\.json with merges\.txt"):
        load_gpt2(str(tmp_path))


def test_a_name_that_is_nothing_says_what_is_expected():
    with pytest.raises(ScaError, match="--tokenizer gpt2 to fetch"):
        load_gpt2("no-such-folder")


# --- pictures


def test_a_picture_is_drawn_of_a_dataset_and_of_a_manifest(dataset, manifest, tmp_path):
    row = {"uri": "a.jpg", "boxes_xyxy": [[0, 0, 5, 5]], "references": [["a $5 \u732b"]]}
    for i, source in enumerate(
        [dataset, manifest(row), manifest({"uri": "a.jpg"}, name="n.jsonl")]
    ):
        target = tmp_path / f"{i}.png"
        draw_statistics(collect(source), target)
        with Image.open(target) as image:
            pixels = np.asarray(image.convert("RGB"))
        assert pixels.shape[1] > 1200
        assert len(np.unique(pixels.reshape(-1, 3), axis=0)) > (100 if i < 2 else 10)


def test_numbers_of_words_are_written_as_numbers(manifest, tmp_path):
    sentence = " ".join(f"word{i}" for i in range(150))
    row = {"uri": "a.jpg", "boxes_xyxy": [[0, 0, 5, 5]], "references": [[sentence]]}
    target = tmp_path / "many.svg"
    draw_statistics(collect(manifest(row)), target)
    # Beside its outlines, an SVG has each text as a comment.
    assert "<!-- 100 -->" in target.read_text()
    assert "mathdefault" not in target.read_text()


def test_a_suffix_that_is_no_picture_is_refused(manifest, tmp_path):
    with pytest.raises(ScaError, match="cannot be written"):
        draw_statistics(collect(manifest({"uri": "a.jpg"})), tmp_path / "x.docx")


def test_a_folder_that_is_no_dataset_says_what_to_do(tmp_path):
    with pytest.raises(ScaError, match="sca manifest build"):
        collect(tmp_path)
