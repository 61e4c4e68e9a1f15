"""A full disk: what is said, what is left behind, and that the same command goes on."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from jobs import ended, start_job
from PIL import Image

from sca_batch.boxes import mask_to_rle
from sca_batch.dataset.shards import dataset_shards, iter_rows, read_shard_mark
from sca_batch.errors import OutputError
from sca_batch.storage.atomic import writing
from sca_batch.storage.spool import Scratch


@pytest.fixture
def small_disk(tmp_path):
    """A disk of 2 MiB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=2m", "none", str(disk)]
    if os.geteuid() != 0 or subprocess.run(mount, stderr=subprocess.DEVNULL).returncode:
        pytest.skip("mounting is not permitted here; a limit on file sizes is tested below")
    yield disk
    subprocess.run(["umount", "-l", str(disk)], check=True)


@pytest.fixture
def job(tmp_path):
    """Runs a job over nine small images in a process of its own: how it ended, what it said."""
    images = tmp_path / "images"
    images.mkdir()
    lines = []
    for i in range(9):
        Image.new("RGB", (12, 10), (i * 20, 50, 90)).save(images / f"{i}.png")
        # Masks of noise: their run lengths are long, and a shard takes more than a block.
        mask = np.random.default_rng(i).integers(0, 2, (10, 12)).astype(bool)
        masks = [mask_to_rle(mask)] * 40
        lines.append(json.dumps({"uri": f"images/{i}.png", "masks_rle": masks, "i": "x" * 999}))
    manifest = tmp_path / "m.jsonl"
    manifest.write_text("\n".join(lines))

    def run(out):
        said = tmp_path / "said"
        said.write_text("")
        code = ended(start_job(manifest, out, said=str(said)))
        return code, said.read_text()

    return run


def assert_nothing_half_written(out):
    for path in dataset_shards(out):
        read_shard_mark(path)
    assert not [
        path for path in out.rglob(".*") if path.name != ".lock" and "partial" not in path.name
    ]


def free_bytes(disk):
    status = os.statvfs(disk)
    return status.f_bavail * status.f_frsize


def test_a_disk_that_fills_up_during_a_run(small_disk, job, tmp_path):
    assert job(tmp_path / "whole") == (0, "")
    files = [tmp_path / "whole" / name for name in ("plan/manifest.parquet", "run.json")]
    sizes = [path.stat().st_size for path in [*files, tmp_path / "whole/shard-000000.parquet"]]
    # Room for the plan and for what one shard needs, and not for the second.
    room = sum(-(-size // 4096) * 4096 for size in sizes) + 2 * 4096
    held = small_disk / "held"
    held.write_bytes(bytes(free_bytes(small_disk) - room))

    code, said = job(small_disk / "out")
    assert code == 75
    assert "no space left to write" in said
    assert "it takes" in said
    assert "MiB are free" in said
    assert (small_disk / "out/run.json").exists()
    assert_nothing_half_written(small_disk / "out")
    held.unlink()
    assert job(small_disk / "out") == (0, "")
    assert list(iter_rows(small_disk / "out")) == list(iter_rows(tmp_path / "whole"))


def test_a_disk_that_is_full_before_the_run(small_disk, job):
    held = small_disk / "held"
    (small_disk / "out").mkdir()
    held.write_bytes(bytes(free_bytes(small_disk)))
    code, said = job(small_disk / "out")
    assert code == 75
    assert "no space left to write manifest.parquet" in said
    assert not list((small_disk / "out").rglob("*.parquet*"))
    held.unlink()
    assert job(small_disk / "out") == (0, "")


def test_a_limit_on_the_size_of_files_is_a_full_disk(tmp_path):
    """Runs everywhere: the system refuses in the middle of a write, as a full disk does."""
    path = tmp_path / "shard-000000.parquet"
    code = (
        "import resource, signal, sys; from pathlib import Path\n"
        "from sca_batch.storage.atomic import writing\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (5000, 5000))\n"
        "with writing(Path(sys.argv[1]), 9000) as file: file.write(bytes(9000))\n"
    )
    ended = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True)
    assert "NoRoomError" in ended.stderr
    assert "no space left to write shard-000000.parquet; it takes 0.01 MiB" in ended.stderr
    assert list(tmp_path.iterdir()) == []


def test_other_errors_of_the_disk_are_not_called_a_full_one(tmp_path):
    (tmp_path / "a").mkdir()
    with pytest.raises(IsADirectoryError), writing(tmp_path / "a") as file:
        file.write(b"x")
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_a_full_folder_for_temporary_files_is_named(small_disk, monkeypatch):
    import tempfile

    monkeypatch.setattr(tempfile, "tempdir", str(small_disk))
    scratch = Scratch()
    with pytest.raises(OutputError, match="TMPDIR"):
        scratch.append(bytes(4 << 20))
    assert Path(small_disk).is_dir()
