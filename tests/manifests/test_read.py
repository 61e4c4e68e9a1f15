"""Manifests: every format, every column, and what is said about a row that is wrong."""

import io
import json
from pathlib import Path

import jsonschema
import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pycocotools import mask as coco_mask

from sca_batch.boxes import mask_to_rle, rle_area, rle_to_mask
from sca_batch.errors import ScaError
from sca_batch.manifests.coco import coco_rows
from sca_batch.manifests.read import read_manifest
from sca_batch.plan.plan import make_plan, plan_head, plan_refs
from sca_batch.plan.run_plan import open_run_plan, run_plan_frames, write_run_plan
from sca_batch.records import Prompt

# pycocotools' decode answers numpy's new copy protocol with an old signature.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

SCHEMA = json.loads((Path(__file__).parents[2] / "manifests" / "schema.json").read_text())


def jsonl(folder, *rows, name="manifest.jsonl"):
    path = folder / name
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def refs(path, **options):
    plan = make_plan([read_manifest(str(path), **options)])
    return list(plan_refs(plan))


def square(height=6, width=8):
    mask = np.zeros((height, width), dtype=bool)
    mask[1:4, 2:6] = True
    return mask


# -- formats


BOXES = [[0, 0, 10, 20], [5.5, 5, 5.5, 9]]


def write_csv(path, separator=","):
    cell = json.dumps(BOXES) if separator == "\t" else '"' + json.dumps(BOXES) + '"'
    path.write_text(
        separator.join(["file_name", "boxes_xyxy", "note"])
        + "\n"
        + separator.join(["a.jpg", cell, "first"])
        + "\n"
        + separator.join(["b.jpg", "", "second"])
        + "\n"
    )


def write_parquet(path):
    table = pa.table(
        {
            "path": ["a.jpg", "b.jpg"],
            "boxes_xyxy": pa.array([BOXES, None], pa.list_(pa.list_(pa.float64()))),
            "note": ["first", "second"],
        }
    )
    pq.write_table(table, path)


def write_jsonl(path):
    rows = [
        {"uri": "a.jpg", "boxes_xyxy": BOXES, "note": "first"},
        {"image": "b.jpg", "note": "second"},
    ]
    jsonl(path.parent, *rows, name=path.name)


@pytest.mark.parametrize(
    ("name", "write"),
    [
        pytest.param("m.jsonl", write_jsonl, id="jsonl"),
        pytest.param("m.csv", write_csv, id="csv"),
        pytest.param("m.tsv", lambda path: write_csv(path, "\t"), id="tsv"),
        pytest.param("m.parquet", write_parquet, id="parquet"),
    ],
)
def test_the_same_rows_give_the_same_images_in_every_format(tmp_path, name, write):
    write(tmp_path / name)
    first, second = refs(tmp_path / name)
    assert (first.image_id, first.key, first.file_name) == (1, "a.jpg", "a.jpg")
    assert first.uri == str(tmp_path / "a.jpg")
    assert first.prompts == (Prompt(box_xyxy=(0, 0, 10, 20)), Prompt(box_xyxy=(5.5, 5, 5.5, 9)))
    assert first.extra == {"note": "first"}
    assert second.prompts is None
    assert second.extra == {"note": "second"}


def test_a_text_file_lists_one_path_per_line(tmp_path):
    (tmp_path / "list.txt").write_text("a.jpg\r\n\nfolder/b c.jpg\n/elsewhere/d.jpg")
    found = refs(tmp_path / "list.txt")
    assert [ref.file_name for ref in found] == ["a.jpg", "folder/b c.jpg", "/elsewhere/d.jpg"]
    assert [ref.uri for ref in found] == [
        str(tmp_path / "a.jpg"),
        str(tmp_path / "folder/b c.jpg"),
        "/elsewhere/d.jpg",
    ]


def test_a_dash_reads_json_lines_from_standard_input(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (ref,) = refs("-", stdin=io.BytesIO(b'{"path": "a.jpg"}\n'))
    assert ref.uri == str(tmp_path / "a.jpg")


def test_paths_start_at_the_manifests_folder_and_not_at_the_working_folder(tmp_path, monkeypatch):
    (tmp_path / "lists").mkdir()
    jsonl(tmp_path / "lists", {"uri": "../images/a.jpg"}, {"uri": "b.jpg"})
    monkeypatch.chdir(tmp_path)
    above, beside = refs("lists/manifest.jsonl")
    assert Path(above.uri).resolve() == tmp_path / "images" / "a.jpg"
    assert above.file_name == "../images/a.jpg"
    assert beside.file_name == "b.jpg"


@pytest.mark.parametrize(
    ("uri", "expected"),
    [
        pytest.param("https://example.org/a.jpg", "https://example.org/a.jpg", id="URL"),
        pytest.param("file:///photos/a%20b.jpg", "/photos/a b.jpg", id="file URL"),
    ],
)
def test_a_url_stays_and_a_file_url_becomes_a_path(tmp_path, uri, expected):
    (ref,) = refs(jsonl(tmp_path, {"uri": uri}))
    assert ref.uri == expected


def test_a_byte_order_mark_is_no_part_of_the_first_column(tmp_path):
    (tmp_path / "m.csv").write_bytes(b"\xef\xbb\xbfuri\na.jpg\n")
    assert refs(tmp_path / "m.csv")[0].file_name == "a.jpg"


# -- columns


def test_of_two_path_columns_the_first_counts_and_the_other_is_kept(tmp_path):
    (ref,) = refs(jsonl(tmp_path, {"url": "https://example.org/1", "file_name": "a.jpg"}))
    assert ref.file_name == "a.jpg"
    assert ref.extra == {"url": "https://example.org/1"}


@pytest.mark.parametrize(
    ("row", "box_format", "expected"),
    [
        pytest.param({"boxes_xywh": [[1, 2, 3, 4]]}, None, (1, 2, 4, 6), id="boxes_xywh"),
        pytest.param({"bbox": [1, 2, 3, 4]}, "xywh", (1, 2, 4, 6), id="one box"),
        pytest.param({"bbox": [1, 2, 3, 4]}, "xyxy", (1, 2, 3, 4), id="one box of corners"),
        pytest.param({"boxes": [[1, 2, 3, 4]]}, "xywh", (1, 2, 4, 6), id="a list"),
        pytest.param({"boxes_xyxy": [[-5, 4, -5, 4]]}, None, (-5, 4, -5, 4), id="no area, outside"),
    ],
)
def test_boxes_arrive_as_two_corners(tmp_path, row, box_format, expected):
    (ref,) = refs(jsonl(tmp_path, {"uri": "a.jpg"} | row), box_format=box_format)
    assert ref.prompts == (Prompt(box_xyxy=expected),)


def test_an_empty_list_gives_no_regions_and_a_missing_one_asks_for_proposals(tmp_path):
    rows = [{"uri": f"{i}.jpg"} | more for i, more in enumerate([{"boxes_xyxy": []}, {}])]
    given, proposed = refs(jsonl(tmp_path, *rows))
    assert given.prompts == ()
    assert proposed.prompts is None


def test_points_may_stand_alone_or_in_lists_and_labels_default_to_one(tmp_path):
    row = {"uri": "a.jpg", "points": [[3, 4], [[1, 2], [5, 6]]]}
    alone, several = refs(jsonl(tmp_path, row))[0].prompts
    assert (alone.points_xy, alone.labels) == (((3, 4),), (1,))
    assert (several.points_xy, several.labels) == (((1, 2), (5, 6)), (1, 1))
    labelled = refs(jsonl(tmp_path, row | {"point_labels": [0, [1, 0]]}))[0].prompts
    assert [prompt.labels for prompt in labelled] == [(0,), (1, 0)]


def test_a_box_and_its_points_prompt_one_region(tmp_path):
    row = {"uri": "a.jpg", "boxes_xyxy": [[0, 0, 9, 9], None], "points": [None, [[1, 2]]]}
    boxed, pointed = refs(jsonl(tmp_path, row))[0].prompts
    assert (boxed.prompt_type, pointed.prompt_type) == ("box", "points")
    row["points"] = [[3, 3], [1, 2]]
    both = refs(jsonl(tmp_path, row))[0].prompts[0]
    assert both.box_xyxy == (0, 0, 9, 9)
    assert both.points_xy == ((3, 3),)


def test_prompt_ids_are_text_and_references_go_to_extra_one_list_per_region(tmp_path):
    row = {
        "uri": "a.jpg",
        "boxes_xyxy": BOXES,
        "prompt_ids": [7, "left"],
        "references": ["a cat", ["a dog", "a brown dog"]],
    }
    (ref,) = refs(jsonl(tmp_path, row))
    assert [prompt.prompt_id for prompt in ref.prompts] == ["7", "left"]
    assert ref.extra == {"references": [["a cat"], ["a dog", "a brown dog"]]}


@pytest.mark.parametrize("seed", range(20))
def test_a_mask_survives_compressed_and_uncompressed(tmp_path, seed):
    random = np.random.default_rng(seed)
    size = [(6, 8), (1, 1), (300, 211), (640, 480)][seed % 4]
    mask = random.random(size) < [0.5, 0.01, 0.999, 0, 1][seed % 5]
    runs = np.diff(np.flatnonzero(np.diff(mask.T.ravel().astype(int), prepend=0, append=2)))
    first = int(np.argmax(mask.T.ravel())) if mask.any() else mask.size
    uncompressed = [first, *runs.tolist()] if mask.any() else [first]
    rles = [mask_to_rle(mask), {"size": list(size), "counts": uncompressed}]
    (ref,) = refs(jsonl(tmp_path, {"uri": "a.jpg", "masks_rle": rles}))
    for prompt in ref.prompts:
        assert np.array_equal(rle_to_mask(prompt.mask_rle), mask)


def test_dates_and_missing_numbers_of_other_columns_become_json(tmp_path):
    frame = pl.DataFrame({"uri": ["a.jpg"], "score": [float("nan")]}).with_columns(
        pl.lit("2024-05-01").str.to_date().alias("taken")
    )
    frame.write_parquet(tmp_path / "m.parquet")
    assert refs(tmp_path / "m.parquet")[0].extra == {"score": None, "taken": "2024-05-01"}


# -- ids


@pytest.mark.parametrize(
    ("given", "ids", "keys"),
    [
        pytest.param([30, 20], [30, 20], ["30", "20"], id="integers are kept"),
        pytest.param(["b", "a"], [1, 2], ["b", "a"], id="text becomes the key"),
        pytest.param([30, "a"], [1, 2], ["30", "a"], id="one text numbers all"),
        pytest.param([30, None], [1, 2], ["30", "1.jpg"], id="one missing numbers all"),
        pytest.param([2**70, 5], [1, 2], [str(2**70), "5"], id="beyond int64"),
    ],
)
def test_given_ids_are_kept_or_become_keys(tmp_path, given, ids, keys):
    rows = [{"uri": f"{i}.jpg", "image_id": value} for i, value in enumerate(given)]
    found = refs(jsonl(tmp_path, *rows))
    assert [ref.image_id for ref in found] == ids
    assert [ref.key for ref in found] == keys


@pytest.mark.parametrize(
    ("cells", "ids", "keys"),
    [
        pytest.param(["12", "-3"], [12, -3], ["12", "-3"], id="numbers"),
        pytest.param(["007", "8"], [1, 2], ["007", "8"], id="leading zeros make a name"),
    ],
)
def test_ids_of_a_text_table_are_numbers_when_they_read_as_such(tmp_path, cells, ids, keys):
    lines = [f"{cell},{i}.jpg" for i, cell in enumerate(cells)]
    (tmp_path / "m.csv").write_text("\n".join(["id,path", *lines]))
    found = refs(tmp_path / "m.csv")
    assert [ref.image_id for ref in found] == ids
    assert [ref.key for ref in found] == keys


def test_a_cell_of_null_is_an_empty_cell(tmp_path):
    (tmp_path / "m.tsv").write_text("uri\tboxes_xyxy\tpoints\na.jpg\tnull\t[]\n")
    assert refs(tmp_path / "m.tsv")[0].prompts == ()


def test_one_image_may_stand_in_two_rows_that_have_ids(tmp_path):
    rows = [{"uri": "a.jpg", "id": i, "boxes_xyxy": [[0, 0, i, i]]} for i in (1, 2)]
    assert [ref.file_name for ref in refs(jsonl(tmp_path, *rows))] == ["a.jpg", "a.jpg"]


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        pytest.param(
            [{"uri": "a", "id": 4}, {"uri": "b", "id": 5}, {"uri": "c", "id": 4}],
            'm.jsonl, line 3: image_id "4" stands already in {}, line 1; ',
            id="id",
        ),
        pytest.param(
            [{"uri": "a.jpg"}, {"uri": "./a.jpg"}],
            "m.jsonl, line 2: a.jpg stands already in {}, line 1; ",
            id="path",
        ),
    ],
)
def test_a_repeated_row_is_refused_with_both_places(tmp_path, rows, expected):
    path = jsonl(tmp_path, *rows, name="m.jsonl")
    with pytest.raises(ScaError) as error:
        refs(path)
    assert expected.format(path) in str(error.value)


# -- what is wrong


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        pytest.param({"name": "a.jpg"}, "no column with the image's path", id="no uri"),
        pytest.param({"uri": 5}, "uri 5 is not the path", id="uri is a number"),
        pytest.param({"uri": None}, "uri is empty", id="uri is null"),
        pytest.param({"uri": "a\0"}, "is not the path", id="NUL in the path"),
        pytest.param({"uri": "\ud800.jpg"}, "is not the path", id="half a surrogate pair"),
        pytest.param(
            {"uri": "a", "boxes_xyxy": [[40, 10, 12, 90]]},
            "boxes_xyxy[0] [40, 10, 12, 90] has x1 < x0; expected x0, y0, x1, y1 in pixels",
            id="x1 before x0",
        ),
        pytest.param(
            {"uri": "a", "boxes_xyxy": [[0, 0, 1, 1], [0, 9, 1, 1]]},
            "boxes_xyxy[1] [0, 9, 1, 1] has y1 < y0",
            id="y1 before y0",
        ),
        pytest.param(
            {"uri": "a", "boxes_xywh": [[0, 0, -1, 1]]},
            "boxes_xywh[0] [0, 0, -1, 1] has width < 0; expected x, y, width, height in pixels",
            id="negative width",
        ),
        pytest.param(
            {"uri": "a", "boxes_xywh": [[0, 0, 1, -1]]}, "height < 0", id="negative height"
        ),
        pytest.param(
            {"uri": "a", "boxes_xyxy": [[0, 0, 1]]}, "not four finite numbers", id="three numbers"
        ),
        pytest.param(
            {"uri": "a", "boxes_xyxy": [[0, 0, 1, float("nan")]]},
            "boxes_xyxy[0] [0, 0, 1, NaN] is not four finite numbers",
            id="NaN",
        ),
        pytest.param(
            {"uri": "a", "boxes_xyxy": [[0, 0, 1, float("inf")]]}, "finite", id="infinity"
        ),
        pytest.param({"uri": "a", "boxes_xyxy": [[0, 0, 1, 10**400]]}, "finite", id="huge"),
        pytest.param({"uri": "a", "boxes_xyxy": [[0, 0, 1, "2"]]}, "finite", id="text"),
        pytest.param({"uri": "a", "boxes_xyxy": [[0, 0, 1, True]]}, "finite", id="true"),
        pytest.param({"uri": "a", "boxes_xyxy": [1, 2, 3, 4]}, "boxes_xyxy[0] 1", id="not nested"),
        pytest.param({"uri": "a", "boxes_xyxy": {}}, "is not a list", id="an object"),
        pytest.param(
            {"uri": "a", "boxes_xyxy": [None]}, "region 0 has neither", id="nothing for a region"
        ),
        pytest.param({"uri": "a", "bbox": [1, 2, 3, 4]}, "--box-format", id="bare bbox"),
        pytest.param(
            {"uri": "a", "boxes_xyxy": [], "boxes_xywh": []}, "boxes stand in", id="boxes twice"
        ),
        pytest.param(
            {"uri": "a", "boxes_xyxy": [[0, 0, 1, 1]], "points": [[1, 1], [2, 2]]},
            "boxes_xyxy has 1 entries and points has 2",
            id="points do not match",
        ),
        pytest.param(
            {"uri": "a", "boxes_xyxy": [[0, 0, 1, 1]], "prompt_ids": []},
            "boxes_xyxy has 1 entries and prompt_ids has 0",
            id="ids do not match",
        ),
        pytest.param(
            {"uri": "a", "boxes_xyxy": [[0, 0, 1, 1]], "references": ["a", "b"]},
            "references has 2",
            id="references do not match",
        ),
        pytest.param({"uri": "a", "prompt_ids": [1]}, "without regions", id="ids alone"),
        pytest.param({"uri": "a", "points": [[1, 2, 3]]}, "two finite numbers", id="3D point"),
        pytest.param({"uri": "a", "point_labels": [1]}, "without points", id="labels alone"),
        pytest.param(
            {"uri": "a", "points": [[1, 2]], "point_labels": [[1, 0]]},
            "points[0] has 1 points and point_labels[0] has 2",
            id="labels do not match",
        ),
        pytest.param(
            {"uri": "a", "points": [[1, 2]], "point_labels": [2]}, "point_labels[0] 2", id="label 2"
        ),
        pytest.param(
            {"uri": "a", "masks_rle": [{"counts": "0"}]}, "masks_rle[0]", id="mask without size"
        ),
        pytest.param(
            {"uri": "a", "masks_rle": [{"size": [0, 4], "counts": [0]}]},
            "has the size [0, 4]; expected [height, width]",
            id="mask of no height",
        ),
        pytest.param(
            {"uri": "a", "masks_rle": [{"size": [2, 2], "counts": [3]}]},
            "counts that cover 3 pixels; expected 2 x 2 = 4 pixels",
            id="runs too short",
        ),
        pytest.param(
            {"uri": "a", "masks_rle": [{"size": [2, 2], "counts": "\ud800"}]},
            "counts that cannot be read",
            id="counts of half a surrogate pair",
        ),
        pytest.param(
            {"uri": "a", "masks_rle": [{"size": [2, 2], "counts": "~~~~"}]},
            "cannot be read",
            id="not run lengths",
        ),
        pytest.param({"uri": "a", "image_id": [1]}, "image_id [1] is neither", id="a list as id"),
    ],
)
def test_a_wrong_row_is_refused_with_its_line(tmp_path, row, expected):
    path = jsonl(tmp_path, {"uri": "good.jpg"}, row)
    with pytest.raises(ScaError) as error:
        refs(path)
    assert str(error.value).startswith(f"{path}, line 2: ")
    assert expected in str(error.value)


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        pytest.param(
            "m.jsonl", b'{"uri": "a"}\n{"uri" "b"}', "invalid JSON on line 2 column 8", id="JSON"
        ),
        pytest.param("m.jsonl", b"[" * 100_000, "invalid JSON on line 1", id="too deep"),
        pytest.param("m.jsonl", b"[1]", "line 1: not an object", id="a list"),
        pytest.param("m.jsonl", b'{"uri": "a"}\n\xe9\n', "line 2: not UTF-8", id="Latin-1"),
        pytest.param("m.txt", "a.jpg\n".encode("utf-16"), "line 1: not UTF-8", id="UTF-16"),
        pytest.param("m.jsonl", b"\n\n", "no rows", id="empty"),
        pytest.param("m.csv", b"uri,note\n", "no rows", id="header alone"),
        pytest.param("m.csv", b"name\na.jpg\n", "line 2: no column with the image", id="column"),
        pytest.param("m.csv", b"uri,note\na.jpg\n", "line 2: 1 cells under a header", id="short"),
        pytest.param("m.csv", b"uri,uri\na,b\n", "line 1: the column 'uri'", id="twice"),
        pytest.param(
            "m.csv", b'uri,note\na,"x\ny"\nb,"[', "line 4: not a row of a table", id="open quote"
        ),
        pytest.param(
            "m.csv",
            b'uri,boxes_xyxy\na,"x\n"\n',
            "line 2: boxes_xyxy",
            id="a cell over two lines",
        ),
        pytest.param("m.tsv", b"uri\tboxes_xyxy\na\t0 0 1 1\n", "is not JSON", id="bare numbers"),
        pytest.param("m.parquet", b"uri\n", "not a readable Parquet file", id="not Parquet"),
        pytest.param(
            "m.json",
            b'{"images": ',
            "line 1, character 11 of the file: the file ends too early",
            id="COCO JSON",
        ),
        pytest.param("m.json", b'[{"uri": "a"}]', "expected a COCO file", id="not COCO"),
        pytest.param("m.json", b'{"images": []}', "no rows", id="no images"),
        pytest.param("m.xlsx", b"", ".xlsx is not a manifest's", id="suffix"),
    ],
)
def test_a_wrong_file_is_refused_with_the_place(tmp_path, name, content, expected):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(ScaError) as error:
        refs(path)
    assert str(path) in str(error.value)
    assert expected in str(error.value)


@pytest.mark.parametrize("name", ["m.jsonl", "m.csv", "m.parquet", "m.json"])
def test_a_missing_manifest_is_one_clear_line(tmp_path, name):
    with pytest.raises(ScaError, match="No such file"):
        refs(tmp_path / name)


def test_binary_columns_are_refused_and_named_by_row(tmp_path):
    pl.DataFrame({"uri": ["a.jpg"], "content": [b"\xff"]}).write_parquet(tmp_path / "m.parquet")
    with pytest.raises(ScaError, match="row 1: a column holds binary values"):
        refs(tmp_path / "m.parquet")


# -- COCO


def coco(folder, images, annotations, name="instances.json"):
    path = folder / name
    path.write_text(json.dumps({"images": images, "annotations": annotations}))
    return path


IMAGES = [
    {"id": 9, "file_name": "a.jpg", "height": 20, "width": 30, "license": 1},
    {"id": 4, "file_name": "b.jpg", "height": 20, "width": 30},
]


def test_coco_annotations_become_given_regions(tmp_path):
    polygon = [[2, 2, 12, 2, 12, 8, 2, 8], [20, 2, 25, 2, 25, 8]]
    rle = mask_to_rle(square(20, 30))
    annotations = [
        {"id": 5, "image_id": 9, "bbox": [2, 2, 23, 6], "segmentation": polygon, "caption": "a"},
        {"id": 3, "image_id": 9, "bbox": [1, 1, 4.5, 0], "segmentation": []},
        {"id": 8, "image_id": 9, "bbox": [2, 1, 4, 3], "segmentation": rle, "caption": "c"},
    ]
    first, second = refs(coco(tmp_path, IMAGES, annotations))
    assert (first.image_id, first.key, first.file_name) == (9, "9", "a.jpg")
    assert [prompt.prompt_id for prompt in first.prompts] == ["5", "3", "8"]
    assert [prompt.prompt_type for prompt in first.prompts] == ["mask", "box", "mask"]
    assert first.prompts[0].box_xyxy == (2, 2, 25, 8)
    assert first.prompts[1].box_xyxy == (1, 1, 5.5, 1)
    drawn = coco_mask.merge(coco_mask.frPyObjects(polygon, 20, 30))
    assert rle_area(first.prompts[0].mask_rle) == coco_mask.area(drawn)
    assert first.prompts[2].mask_rle == rle
    assert first.extra["references"] == [["a"], [], ["c"]]
    assert first.extra["license"] == 1
    assert second.prompts == ()


def test_the_order_of_the_lists_in_a_coco_file_does_not_matter(tmp_path):
    """Ids that look alike, 1 and "1", are different; annotations keep their order in the file."""
    images = [
        {"id": 1, "file_name": "a"},
        {"id": "1", "file_name": "b"},
        {"id": 2, "file_name": "c"},
    ]
    annotations = [
        {"id": i, "image_id": image_id, "bbox": [i, 0, 1, 1]}
        for i, image_id in enumerate(["1", 2, 1, "1", 1, 2, "1"])
    ]
    found = []
    for keys in (("images", "annotations"), ("annotations", "images")):
        lists = {"images": images, "annotations": annotations}
        document = {"info": {"images": 3}, **{key: lists[key] for key in keys}, "licenses": []}
        path = tmp_path / f"{keys[0]}.json"
        path.write_text(json.dumps(document))
        rows = [row.prompts for _, row in coco_rows(path)]
        found.append([[prompt.prompt_id for prompt in prompts] for prompts in rows])
    assert found == [[["2", "4"], ["0", "3", "6"], ["1", "5"]]] * 2


def test_a_coco_file_may_lack_annotations_but_they_are_a_list(tmp_path):
    path = tmp_path / "m.json"
    for document in ({"images": IMAGES}, {"images": IMAGES, "annotations": None}):
        path.write_text(json.dumps(document))
        assert [ref.prompts for ref in refs(path)] == [None, None]
    path.write_text(json.dumps({"images": IMAGES, "annotations": {"1": 2}}))
    with pytest.raises(ScaError, match="annotations is not a list"):
        refs(path)


def test_coco_images_without_any_regions_are_left_to_proposals(tmp_path):
    found = refs(coco(tmp_path, IMAGES, [{"id": 1, "image_id": 4, "caption": "a street"}]))
    assert [ref.prompts for ref in found] == [None, None]
    assert found[1].extra["references"] == ["a street"]


@pytest.mark.parametrize(
    ("annotation", "expected"),
    [
        pytest.param({"image_id": 1, "bbox": [0, 0, 1, 1]}, "is not the id of any", id="image"),
        pytest.param({"bbox": [0, 0, 1, 1]}, "image_id null is neither", id="no image"),
        pytest.param({"image_id": 9, "bbox": [0, 0, -1, 1]}, "bbox [0, 0, -1, 1] has", id="box"),
        pytest.param(
            {"image_id": 9, "segmentation": [[0, 0, 1, 1]]}, "at least three points", id="polygon"
        ),
        pytest.param(
            {"image_id": 9, "segmentation": [[0, 0, 1, 1, 1, 1e30]]}, "not polygons", id="far away"
        ),
        pytest.param(
            {"image_id": 9, "segmentation": {"counts": [600]}}, "has no size", id="RLE size"
        ),
    ],
)
def test_a_wrong_coco_annotation_is_refused_with_its_index(tmp_path, annotation, expected):
    good = {"image_id": 9, "bbox": [0, 0, 1, 1]}
    path = coco(tmp_path, IMAGES, [good, annotation])
    with pytest.raises(ScaError) as error:
        refs(path)
    assert f"{path}, annotations[1]" in str(error.value)
    assert expected in str(error.value)


# -- schema.json and the reader


@pytest.mark.parametrize(
    "row",
    [
        {"uri": "a.jpg"},
        {"path": "a.jpg", "uri": None},
        {"url": "https://example.org/a.jpg", "anything": {"else": 1}},
        {"uri": "a", "image_id": 1},
        {"uri": "a", "id": "x"},
        {"uri": "a", "boxes_xyxy": [[0, 0, 1, 1.5]], "prompt_ids": ["p"], "references": ["r"]},
        {"uri": "a", "boxes_xyxy": None, "boxes_xywh": [[0, 0, 0, 0]]},
        {"uri": "a", "points": [[1, 2], [[1, 2], [3, 4]]], "point_labels": [1, [1, 0]]},
        {"uri": "a", "boxes_xyxy": [None, [0, 0, 1, 1]], "points": [[1, 1], None]},
        {"uri": "a", "masks_rle": [{"size": [2, 2], "counts": [4]}]},
        {"uri": "a", "masks_rle": [mask_to_rle(square())]},
        {"uri": "a", "references": ["of the whole image"]},
        {"uri": "a", "boxes_xyxy": [[0, 0, 1, 1]], "references": [["a", "b"]]},
    ],
    ids=lambda row: json.dumps(row)[:60],
)
def test_a_good_row_passes_the_schema_and_the_reader(tmp_path, row):
    jsonschema.validate(row, SCHEMA)
    assert len(refs(jsonl(tmp_path, row))) == 1


@pytest.mark.parametrize(
    "row",
    [
        [],
        {},
        {"name": "a.jpg"},
        {"uri": ""},
        {"uri": 1},
        {"uri": "a", "image_id": 1.5},
        {"uri": "a", "image_id": True},
        {"uri": "a", "boxes_xyxy": "[[0, 0, 1, 1]]"},
        {"uri": "a", "boxes_xyxy": [0, 0, 1, 1]},
        {"uri": "a", "boxes_xyxy": [[0, 0, 1]]},
        {"uri": "a", "boxes_xywh": [[0, 0, -1, 1]]},
        {"uri": "a", "boxes_xyxy": [], "boxes_xywh": []},
        {"uri": "a", "points": [[1]]},
        {"uri": "a", "points": [[[1, 2, 3]]]},
        {"uri": "a", "point_labels": [1]},
        {"uri": "a", "points": [[1, 2]], "point_labels": [-1]},
        {"uri": "a", "masks_rle": [{"counts": "04"}]},
        {"uri": "a", "masks_rle": [{"size": [2], "counts": [2]}]},
        {"uri": "a", "masks_rle": [{"size": [2, 2], "counts": [-1, 5]}]},
        {"uri": "a", "masks_rle": [{"size": [2, 2], "counts": ""}]},
        {"uri": "a", "boxes_xyxy": [[0, 0, 1, 1]], "prompt_ids": [1.5]},
        {"uri": "a", "references": [1]},
    ],
    ids=lambda row: json.dumps(row)[:60],
)
def test_a_bad_row_fails_the_schema_and_the_reader(tmp_path, row):
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(row, SCHEMA)
    with pytest.raises(ScaError):
        refs(jsonl(tmp_path, row))


# -- the plan


def plan_digest(plan, folder):
    return write_run_plan(run_plan_frames(plan, 4), folder / "digested").digest


def test_shards_cut_the_plan_without_gap_or_overlap(tmp_path):
    (tmp_path / "m.txt").write_text("".join(f"{i}.jpg\n" for i in range(10)))
    plan = make_plan([read_manifest(str(tmp_path / "m.txt"))])
    cut = write_run_plan(run_plan_frames(plan, 4), tmp_path / "out")
    shards = [cut.refs(i) for i in range(cut.shards)]
    assert [len(shard) for shard in shards] == [4, 4, 2]
    assert [ref.image_id for shard in shards for ref in shard] == list(range(1, 11))


def test_a_plan_comes_back_from_its_file_with_the_same_digest(tmp_path):
    path = jsonl(tmp_path, {"uri": "é.jpg", "boxes_xyxy": BOXES, "n": "ü"}, {"uri": "b"})
    plan = make_plan([read_manifest(str(path))])
    written = write_run_plan(run_plan_frames(plan, 4), tmp_path / "out")
    again = open_run_plan(tmp_path / "out")
    again.check()
    assert again.digest == written.digest
    assert pl.concat(again.batches(plan.frame.columns)).equals(plan.frame)
    assert again.refs(0) == list(plan_refs(plan))


@pytest.mark.parametrize(
    "change",
    [
        pytest.param([{"uri": "a.jpg"}, {"uri": "c.jpg"}], id="another image"),
        pytest.param([{"uri": "a.jpg", "id": 1}, {"uri": "b.jpg", "id": 2}], id="ids"),
        pytest.param([{"uri": "a.jpg", "boxes_xyxy": []}, {"uri": "b.jpg"}], id="an empty list"),
        pytest.param([{"uri": "a.jpg", "n": 1}, {"uri": "b.jpg"}], id="another column"),
    ],
)
def test_the_digest_changes_with_the_rows(tmp_path, change):
    before = jsonl(tmp_path, {"uri": "a.jpg"}, {"uri": "b.jpg"})
    digest = plan_digest(make_plan([read_manifest(str(before))]), tmp_path)
    after = jsonl(tmp_path, *change)
    assert plan_digest(make_plan([read_manifest(str(after))]), tmp_path) != digest


def test_a_damaged_or_missing_plan_is_refused(tmp_path):
    with pytest.raises(ScaError, match="no plan"):
        open_run_plan(tmp_path)
    plan = make_plan([read_manifest(str(jsonl(tmp_path, {"uri": "a"})))])
    path = write_run_plan(run_plan_frames(plan, 4), tmp_path).path
    changed = pl.read_parquet(path).with_columns(pl.lit("b").alias("uri"))
    changed.write_parquet(path, metadata=pl.read_parquet_metadata(path))
    with pytest.raises(ScaError, match="not those that were planned"):
        open_run_plan(tmp_path).check()
    path.write_bytes(b"PAR1")
    with pytest.raises(ScaError, match="not a readable plan"):
        open_run_plan(tmp_path)


def test_the_head_of_a_plan_is_the_plan_of_the_first_rows(tmp_path):
    rows = [{"uri": f"{i}.jpg"} for i in range(5)]
    plan = make_plan([read_manifest(str(jsonl(tmp_path, *rows)))])
    head = plan_head(plan, 2)
    short = make_plan([read_manifest(str(jsonl(tmp_path, *rows[:2])))])
    assert plan_digest(head, tmp_path) == plan_digest(short, tmp_path)
    assert plan_head(plan, 9) is plan
