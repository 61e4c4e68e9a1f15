"""What trackers get, read back from what they wrote."""

import json
import os
import subprocess
import sys
import textwrap

import pytest

pytest.importorskip("accelerate")
pytest.importorskip("pycocoevalcap")

from caption_runs import REPOSITORY, rows_of

BLOCK = 32 * 1024  # of LevelDB's log format, in which wandb writes


def records(content):
    """The records of a `.wandb` file: blocks of chunks, each (checksum, length, type)."""
    place, record = 7, b""
    while place + 7 <= len(content):
        if BLOCK - place % BLOCK < 7:  # what is left of a block has no room for a header
            place += BLOCK - place % BLOCK
            continue
        length = int.from_bytes(content[place + 4 : place + 6], "little")
        kind = content[place + 6]
        record += content[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # whole, or the last part
            yield record
            record = b""


def test_wandb_has_the_rows_and_pictures_of_a_run_without_a_network(data, tmp_path):
    pytest.importorskip("wandb")
    program = textwrap.dedent(
        """
        import sys
        from pathlib import Path
        sys.path.insert(0, sys.argv[1])
        from caption_runs import QUICK, run
        run(QUICK, Path(sys.argv[2]), Path(sys.argv[3]), validation=Path(sys.argv[3]),
            trackers=("wandb",))
        """
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(REPOSITORY / "tests/helpers"), tmp_path / "vg", data],
        capture_output=True,
        text=True,
        env=os.environ | {"WANDB_MODE": "offline", "OMP_NUM_THREADS": "1"},
        timeout=180,
    )
    assert done.returncode == 0, done.stderr

    from wandb.proto import wandb_internal_pb2

    [folder] = (tmp_path / "vg/wandb").glob("offline-run-*")
    [file] = folder.glob("run-*.wandb")
    assert file.name.startswith("run-vg-")
    logged = {}
    for content in records(file.read_bytes()):
        record = wandb_internal_pb2.Record()
        record.ParseFromString(content)
        if record.WhichOneof("record_type") == "history":
            items = {"/".join(i.nested_key) or i.key: i.value_json for i in record.history.item}
            logged[int(items["_step"])] = items
    rows = rows_of(tmp_path / "vg")
    assert sorted(logged) == [row["step"] for row in rows]
    for row in rows:
        assert json.loads(logged[row["step"]]["train/loss"]) == row["loss"]
        if "validation" in row:
            validation = json.loads(logged[row["step"]]["validation/loss"])
            assert validation == row["validation"]["loss"]
            assert "sample/0" in " ".join(logged[row["step"]])
    assert len(list((folder / "files/media/images").rglob("*.png"))) == 2


def test_tensorboard_has_the_rows_of_a_run(unbroken):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    events = accumulator.EventAccumulator(str(unbroken / "tensorboard"))
    events.Reload()

    rows = rows_of(unbroken)
    losses = {event.step: event.value for event in events.Scalars("train/loss")}
    assert losses == pytest.approx({row["step"]: row["loss"] for row in rows})
    assert {event.step for event in events.Scalars("validation/cider_d")} == {3, 7}
    assert events.Tags()["images"] == ["sample/0"]
