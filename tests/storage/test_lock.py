"""The lock of a folder: one run at a time, also where a file system has no locks to give."""

from __future__ import annotations

import errno
import fcntl
import os

import pytest

from sca_batch.errors import ScaError
from sca_batch.storage.atomic import writing
from sca_batch.storage.lock import locked


def test_a_second_run_is_refused_and_the_lock_ends_with_its_block(tmp_path):
    with locked(tmp_path / "out"), pytest.raises(ScaError, match="another run"):
        locked(tmp_path / "out", wait_s=0.1).__enter__()
    with locked(tmp_path / "out") as lock:
        assert not lock.lost


@pytest.mark.parametrize("code", [errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP])
def test_a_file_system_without_locks_is_told_of_and_written_to(tmp_path, monkeypatch, caplog, code):
    def refuse(file, operation):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(fcntl, "flock", refuse)
    with locked(tmp_path / "out"):
        assert "no locks" in caplog.text


def test_a_file_system_whose_folders_cannot_be_flushed_is_written_to(tmp_path, monkeypatch):
    flush = os.fsync

    def refuse(descriptor):
        if os.path.isdir(f"/proc/self/fd/{descriptor}"):
            raise OSError(errno.EINVAL, "Invalid argument")
        flush(descriptor)

    monkeypatch.setattr(os, "fsync", refuse)
    with writing(tmp_path / "a") as file:
        file.write(b"whole")
    assert (tmp_path / "a").read_bytes() == b"whole"
