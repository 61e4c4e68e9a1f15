"""Shards: the schema, the round trip, what is trusted, and run.json."""

import json
import math
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow.parquet as pq
import pytest
from pycocotools import mask as coco_mask

from sca_batch.boxes import mask_to_rle
from sca_batch.dataset.schema import FIELD_NOTES, SCHEMA, record_to_row, row_to_jsonl
from sca_batch.dataset.shards import (
    ShardMark,
    checked_shards,
    differing_keys,
    find_row,
    fingerprint_digest,
    iter_records,
    iter_rows,
    read_run,
    read_shard,
    read_shard_mark,
    shard_path,
    write_run,
    write_shard,
)
from sca_batch.errors import ScaError
from sca_batch.records import Caption, CaptionedRegion, ImageRecord, ImageRef, Region
from sca_batch.storage.atomic import writing
from sca_batch.storage.digests import digest_rows


def rectangle(y0, x0, y1, x1, size=(40, 50)):
    mask = np.zeros(size, dtype=bool)
    mask[y0:y1, x0:x1] = True
    return mask_to_rle(mask)


# All numbers are exact in float32, so that records can be compared with ==.
MASKED = CaptionedRegion(
    0,
    Region(
        box_xyxy=(7, 5, 20, 15),
        area=130,
        prompt_type="grid_point",
        mask_rle=rectangle(5, 7, 15, 20),
        predicted_iou=0.875,
        stability_score=0.96875,
        points_xy=((10.3, 9.7),),
        crop_box_xywh=(0, 0, 50, 40),
    ),
    Caption("a cat", -0.5, (("a cat", -0.5), ("the cat", -0.75))),
)
GIVEN = CaptionedRegion(
    1,
    Region(
        box_xyxy=(0, 1, 2.5, 3),
        area=5,
        prompt_type="box",
        prompt_box_xyxy=(-93.1, 1, 2.5, 3.3),
        prompt_id="r1",
    ),
    Caption("", -2.0, (("", -2.0),)),
)


def record(image_id, *regions, **changes):
    ref = ImageRef(image_id, f"k{image_id}", f"/x/{image_id}.jpg", f"{image_id}.jpg")
    known = ImageRecord(ref, "ok" if regions else "empty", "ab" * 32, 40, 50, regions)
    return replace(known, **changes)


FAILED = record(3, status="failed", error_code="truncated", error="ends early", sha256=None)
FAILED = replace(FAILED, height=None, width=None)
RECORDS = [record(1, MASKED, GIVEN), record(2), FAILED]


def mark(index=0, rows=3, fingerprint="f"):
    return ShardMark(index, index * rows, index * rows + rows - 1, fingerprint)


def test_records_come_back_from_a_shard_as_they_went_in(tmp_path):
    ref = replace(RECORDS[0].ref, extra={"label": "é", "nested": {"n": [1, None]}})
    records = [replace(RECORDS[0], ref=ref), *RECORDS[1:]]
    write_shard(records, shard_path(tmp_path, 0), mark())
    assert (tmp_path / "shard-000000.parquet").exists()
    assert read_shard(tmp_path / "shard-000000.parquet") == records


def test_the_row_of_a_record_is_the_row_in_the_file_and_in_json(tmp_path):
    third = Caption("x", -1 / 3)
    region = replace(MASKED, caption=third, region=replace(MASKED.region, predicted_iou=0.9))
    uneven = record(
        1, region, replace(GIVEN, region=replace(GIVEN.region, box_xyxy=(0.1, 0, 1, 1)))
    )
    write_shard([uneven], shard_path(tmp_path, 0), mark(rows=1))
    (row,) = iter_rows(tmp_path)
    assert row == record_to_row(uneven)
    assert json.loads(row_to_jsonl(row)) == row
    assert '"predicted_iou":0.9,' in row_to_jsonl(row)


def test_the_columns_are_those_that_the_format_promises(tmp_path):
    write_shard(RECORDS, shard_path(tmp_path, 0), mark())
    frame = pl.read_parquet(tmp_path / "*.parquet")
    assert frame.columns == [
        *["image_id", "key", "uri", "file_name", "sha256", "width", "height", "status"],
        *["error_code", "error", "extra", "regions"],
    ]
    assert frame.schema["image_id"] == pl.Int64
    captions = pl.List(pl.Struct({"text": pl.String, "logprob": pl.Float32}))
    assert frame.schema["regions"] == pl.List(
        pl.Struct(
            {
                "region_id": pl.Int32,
                "bbox": pl.List(pl.Float32),
                "area": pl.Int64,
                "segmentation": pl.Struct({"size": pl.List(pl.Int32), "counts": pl.String}),
                "caption": pl.String,
                "caption_logprob": pl.Float32,
                "caption_score": pl.Float32,
                "captions": captions,
                "predicted_iou": pl.Float32,
                "stability_score": pl.Float32,
                "points": pl.List(pl.List(pl.Float64)),
                "crop_box": pl.List(pl.Float32),
                "prompt_type": pl.String,
                "prompt_box_xyxy": pl.List(pl.Float64),
                "prompt_id": pl.String,
            }
        )
    )


def test_missing_values_are_null_and_not_zero(tmp_path):
    write_shard(RECORDS, shard_path(tmp_path, 0), mark())
    first, _, failed = iter_rows(tmp_path)
    assert first["regions"][1]["segmentation"] is None
    assert first["regions"][1]["stability_score"] is None
    assert first["regions"][0]["prompt_box_xyxy"] is None
    assert (failed["width"], failed["sha256"], failed["regions"]) == (None, None, [])


def test_a_masked_region_has_the_masks_own_box_and_area(tmp_path):
    claims = replace(MASKED, region=replace(MASKED.region, box_xyxy=(0, 0, 1, 1), area=1))
    row = record_to_row(record(1, claims))["regions"][0]
    assert row["bbox"] == coco_mask.toBbox(row["segmentation"]).tolist() == [7, 5, 13, 10]
    assert row["area"] == 130


def test_a_score_is_the_exponential_of_the_log_probability():
    regions = record_to_row(RECORDS[0])["regions"]
    for region in regions:
        assert region["caption_score"] == pytest.approx(math.exp(region["caption_logprob"]))


def test_prompts_are_kept_as_given_to_the_last_bit(tmp_path):
    write_shard(RECORDS[:1], shard_path(tmp_path, 0), mark(rows=1))
    (row,) = iter_rows(tmp_path)
    assert row["regions"][1]["prompt_box_xyxy"] == [-93.1, 1, 2.5, 3.3]
    assert row["regions"][0]["points"] == [[10.3, 9.7]]


def field_names(struct, prefix=""):
    for field in struct:
        yield f"{prefix}{field.name}"
        kind = field.type
        if hasattr(kind, "value_type"):
            kind = kind.value_type
        if hasattr(kind, "num_fields") and not hasattr(kind, "value_type"):
            yield from field_names(
                [kind.field(i) for i in range(kind.num_fields)], f"{prefix}{field.name}."
            )


def test_every_field_is_explained_in_the_file_and_in_the_documentation(tmp_path):
    write_shard(RECORDS, shard_path(tmp_path, 0), mark())
    metadata = pq.read_schema(shard_path(tmp_path, 0)).metadata
    assert json.loads(metadata[b"sca.fields"]).keys() == set(field_names(SCHEMA))
    assert b"EXIF" in metadata[b"sca.coordinate_frame"]
    manual = (Path(__file__).parents[2] / "docs" / "FORMAT.md").read_text()
    for name in FIELD_NOTES:
        assert f"`{name.removeprefix('regions.')}`" in manual


@pytest.mark.parametrize(
    ("image", "expected"),
    [
        pytest.param("k2", 2, id="key"),
        pytest.param("2.jpg", 2, id="file name"),
        pytest.param("2", 2, id="image id"),
        pytest.param("1", 3, id="a key goes before an id"),
    ],
)
def test_an_image_is_found_by_key_file_name_or_id(tmp_path, image, expected):
    write_run(tmp_path, RUN)
    third = replace(RECORDS[2], ref=replace(RECORDS[2].ref, key="1"))
    write_shard([RECORDS[0], RECORDS[1]], shard_path(tmp_path, 0), mark(rows=2))
    write_shard([third], shard_path(tmp_path, 1), mark(1, rows=1))
    row = find_row(tmp_path, image)
    assert row == record_to_row([RECORDS[0], RECORDS[1], third][expected - 1])


def test_an_image_that_is_unknown_or_not_unique_is_refused(tmp_path):
    write_run(tmp_path, RUN)
    twice = replace(RECORDS[1], ref=replace(RECORDS[1].ref, file_name="1.jpg"))
    write_shard([RECORDS[0], twice], shard_path(tmp_path, 0), mark(rows=2))
    with pytest.raises(ScaError, match=r"no image 9; expected a key, .* such as k1"):
        find_row(tmp_path, "9")
    with pytest.raises(ScaError, match=r"2 images are 1.jpg; name one by its key: k1, k2"):
        find_row(tmp_path, "1.jpg")


# -- what is trusted


def test_an_intact_shard_of_the_same_run_is_finished(tmp_path):
    for index in (0, 12):
        write_shard(RECORDS, shard_path(tmp_path, index), mark(index))
    assert [found for _, found in checked_shards(tmp_path, "f")] == [mark(0), mark(12)]


def cut_short(path):
    path.write_bytes(path.read_bytes()[:-100])


def flip_a_caption(path):
    table = pq.read_table(path)
    rows = table.to_pylist()
    rows[0]["regions"][0]["caption"] = "a dog"
    changed = type(table).from_pylist(rows, schema=table.schema)
    pq.write_table(changed, path)


def drop_a_row(path):
    pq.write_table(pq.read_table(path).slice(1), path)


def forget_metadata(path):
    pq.write_table(pq.read_table(path).replace_schema_metadata({}), path)


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        pytest.param(cut_short, "not a readable Parquet file", id="cut short"),
        pytest.param(lambda path: path.write_bytes(b""), "not a readable", id="empty"),
        pytest.param(flip_a_caption, "not those that were written", id="another caption"),
        pytest.param(drop_a_row, "2 rows; expected rows 0 to 2", id="a row less"),
        pytest.param(forget_metadata, "not a shard", id="no metadata"),
        pytest.param(
            lambda path: path.rename(path.with_name("shard-000007.parquet")),
            "holds shard 0",
            id="another name",
        ),
    ],
)
def test_a_shard_that_is_not_what_it_should_be_is_not_finished(tmp_path, damage, reason):
    write_shard(RECORDS, shard_path(tmp_path, 0), mark())
    damage(shard_path(tmp_path, 0))
    ((_, text),) = checked_shards(tmp_path, "f")
    assert reason in text


def test_a_shard_of_another_run_is_not_finished(tmp_path):
    write_shard(RECORDS, shard_path(tmp_path, 0), mark(fingerprint="other"))
    ((_, text),) = checked_shards(tmp_path, "f")
    assert "other settings" in text


def test_the_digest_does_not_depend_on_how_parquet_stores_the_rows(tmp_path):
    path = shard_path(tmp_path, 0)
    write_shard(RECORDS, path, mark())
    pq.write_table(
        pq.read_table(path), path, compression="none", row_group_size=1, use_dictionary=False
    )
    assert read_shard_mark(path) == mark()


def test_the_digest_of_a_slice_is_the_digest_of_its_rows(tmp_path):
    write_shard([*RECORDS, *RECORDS], shard_path(tmp_path, 0), mark(rows=6))
    table = pq.read_table(shard_path(tmp_path, 0))
    assert digest_rows(table.slice(3)) == digest_rows(table.slice(0, 3)) != digest_rows(table)


def test_hidden_and_foreign_files_are_no_shards(tmp_path):
    write_shard(RECORDS, tmp_path / ".shard-000001.partial-40.parquet", mark(1))
    write_shard(RECORDS, tmp_path / "shard-1.parquet", mark(1))
    assert list(iter_records(tmp_path)) == []
    assert list(checked_shards(tmp_path, "f")) == []


def test_a_dataset_is_read_in_the_order_of_its_shards(tmp_path):
    for index in (2, 0, 1):
        write_shard([record(index + 1)], shard_path(tmp_path, index), mark(index, rows=1))
    assert [found.ref.image_id for found in iter_records(tmp_path)] == [1, 2, 3]
    assert list(iter_rows(tmp_path, ["key"])) == [{"key": "k1"}, {"key": "k2"}, {"key": "k3"}]


def test_a_damaged_shard_stops_a_reader_with_its_name(tmp_path):
    write_shard(RECORDS, shard_path(tmp_path, 0), mark())
    cut_short(shard_path(tmp_path, 0))
    with pytest.raises(ScaError, match=r"shard-000000\.parquet: not a readable Parquet file"):
        list(iter_records(tmp_path))


def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"old")

    def interrupted():
        with writing(path) as file:
            file.write(b"half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["file"]


def test_two_writers_of_one_shard_leave_one_valid_file(tmp_path):
    path = shard_path(tmp_path, 0)

    def slowly():
        yield RECORDS[0]
        write_shard(RECORDS, path, mark())  # another worker comes first
        yield from RECORDS[1:]

    write_shard(slowly(), path, mark())
    assert read_shard(path) == RECORDS
    assert os.listdir(tmp_path) == [path.name]


# -- run.json


RUN = {"fingerprint": {"task": "caption", "regions": {"nms": 0.7, "ü": [1]}}, "settings": {"n": 2}}


def test_a_run_comes_back_from_its_file(tmp_path):
    assert read_run(write_run(tmp_path, RUN).parent) == RUN


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        pytest.param(None, "not a dataset", id="missing"),
        pytest.param(b"{", "not readable", id="not JSON"),
        pytest.param(b"\xff", "not readable", id="not UTF-8"),
        pytest.param(b"{}", "has no fingerprint", id="no fingerprint"),
    ],
)
def test_a_folder_without_a_good_run_file_is_no_dataset(tmp_path, content, expected):
    if content is not None:
        (tmp_path / "run.json").write_bytes(content)
    with pytest.raises(ScaError, match=expected):
        read_run(tmp_path)


def test_two_fingerprints_differ_where_their_values_do():
    new = {"task": "caption", "regions": {"nms": 0.8, "ü": (1,)}, "beams": 3}
    assert differing_keys(RUN["fingerprint"], new) == {
        "beams": (None, 3),
        "regions.nms": (0.7, 0.8),
    }
    assert differing_keys(new, new) == {}


def test_a_fingerprints_digest_ignores_the_order_of_its_keys():
    turned = {"regions": {"ü": [1], "nms": 0.7}, "task": "caption"}
    assert fingerprint_digest(turned) == fingerprint_digest(RUN["fingerprint"])
    assert fingerprint_digest(turned | {"task": "x"}) != fingerprint_digest(turned)
