"""The plan of a run on disk: what comes back from it, and what is refused."""

import json

import polars as pl
import pytest

from sca_batch.boxes import mask_to_rle
from sca_batch.errors import ScaError
from sca_batch.manifests.read import read_manifest
from sca_batch.plan.plan import make_plan, plan_refs
from sca_batch.plan.run_plan import gone_ids, open_run_plan, run_plan_frames, write_run_plan
from sca_batch.records import Prompt


def planned(folder, *rows):
    (folder / "m.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return make_plan([read_manifest(str(folder / "m.jsonl"))])


def test_given_regions_of_every_kind_come_back_from_the_file(tmp_path):
    import numpy as np

    mask = mask_to_rle(np.eye(9, 7, dtype=bool))
    plan = planned(
        tmp_path,
        {"uri": "a", "boxes_xywh": [[1, 2, 3.5, 4], None], "points": [None, [[5, 6], [7, 8]]],
         "point_labels": [None, [1, 0]], "prompt_ids": ["left", None]},
        {"uri": "b", "masks_rle": [mask]},
        {"uri": "c", "boxes_xyxy": []},
        {"uri": "d", "references": ["a street"]},
    )  # fmt: skip
    refs = write_run_plan(run_plan_frames(plan, 8), tmp_path).refs(0)
    assert refs == list(plan_refs(plan))
    assert [ref.prompts for ref in refs] == [
        (
            Prompt((1, 2, 4.5, 6), prompt_id="left"),
            Prompt(points_xy=((5, 6), (7, 8)), labels=(1, 0)),
        ),
        (Prompt(mask_rle=mask),),
        (),
        None,
    ]
    assert refs[3].extra == {"references": ["a street"]}


def test_a_plan_of_an_older_version_is_refused_where_its_rows_are_needed(tmp_path):
    path = write_run_plan(run_plan_frames(planned(tmp_path, {"uri": "a"}), 8), tmp_path).path
    older = pl.read_parquet(path).with_columns(pl.lit('[{"box":[0,0,1,1]}]').alias("prompts"))
    older.write_parquet(path, metadata=pl.read_parquet_metadata(path))
    plan = open_run_plan(tmp_path)
    for look in (plan.check, lambda: plan.refs(0)):
        with pytest.raises(ScaError, match="made by an older version; finish it with that one"):
            look()
    assert gone_ids(tmp_path) == frozenset()
