"""Zips and tars read in place: by many threads, again when they change, and what is refused."""

from __future__ import annotations

import io
import os
import tarfile
import zipfile
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from sca_batch.errors import ImageError
from sca_batch.storage.archives import is_archive, open_archive, read_member, split_member

CONTENTS = {f"{i:03d}.bin": np.random.default_rng(i).bytes(1000 + 97 * i) for i in range(60)}


def make_zip(path, contents, compression=zipfile.ZIP_DEFLATED):
    with zipfile.ZipFile(path, "w", compression) as file:
        for name, content in contents.items():
            file.writestr(name, content)
    return path


def make_tar(path, contents):
    with tarfile.open(path, "w") as file:
        for name, content in contents.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            file.addfile(info, io.BytesIO(content))
    return path


MAKE = {".zip": make_zip, ".tar": make_tar}


def code_of(path, member, max_bytes=1 << 20):
    with pytest.raises(ImageError) as caught:
        read_member(str(path), member, max_bytes)
    return caught.value.code


@pytest.mark.parametrize("suffix", MAKE)
def test_threads_read_one_archive_at_the_same_time(tmp_path, suffix):
    path = str(MAKE[suffix](tmp_path / f"a{suffix}", CONTENTS))
    assert [(m.name, m.size) for m in open_archive(path).members] == [
        (name, len(content)) for name, content in CONTENTS.items()
    ]
    wanted = [*CONTENTS] * 20
    with ThreadPoolExecutor(8) as pool:
        found = pool.map(lambda name: read_member(path, name, 1 << 20), wanted)
        assert list(found) == [CONTENTS[name] for name in wanted]


@pytest.mark.parametrize("suffix", MAKE)
def test_an_archive_is_opened_once_as_long_as_it_does_not_change(tmp_path, suffix):
    path = tmp_path / f"a{suffix}"
    MAKE[suffix](path, {"a": b"before"})
    opened = open_archive(str(path))
    assert read_member(str(path), "a", 99) == b"before"
    assert open_archive(str(path)) is opened
    MAKE[suffix](tmp_path / "other", {"b": b"-", "a": b"and after"})
    os.replace(tmp_path / "other", path)
    assert read_member(str(path), "a", 99) == b"and after"
    assert opened.read(opened.find("a"), 99) == b"before"  # whoever is still reading


@pytest.mark.parametrize("suffix", [*MAKE, ".ZIP", ".Tar"])
def test_names_that_begin_with_a_dot_and_suffixes_in_capitals(tmp_path, suffix):
    path = MAKE[suffix.lower()](tmp_path / f"a{suffix}", {"./b/c.png": b"x"})
    assert is_archive(str(path))
    archive, member = split_member(f"{path}!/b/c.png")
    assert (archive, member) == (str(path), "b/c.png")
    assert read_member(archive, member, 9) == read_member(archive, "./b/c.png", 9) == b"x"


@pytest.mark.parametrize(
    "compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA]
)
def test_a_zip_of_any_compression_is_read_up_to_the_limit(tmp_path, compression):
    content = bytes(5000)
    path = make_zip(tmp_path / "a.zip", {"a": content, "empty": b""}, compression)
    assert read_member(str(path), "a", 5000) == content
    assert read_member(str(path), "empty", 5000) == b""
    assert code_of(path, "a", 4999) == "too_large"


def test_an_encrypted_member_is_unreadable_and_says_why(tmp_path):
    path = make_zip(tmp_path / "a.zip", {"a": b"x"})
    content = bytearray(path.read_bytes())
    for signature, flags in ((b"PK\3\4", 6), (b"PK\1\2", 8)):
        content[content.find(signature) + flags] |= 1
    path.write_bytes(content)
    with pytest.raises(ImageError, match="encrypted") as caught:
        read_member(str(path), "a", 99)
    assert caught.value.code == "unreadable"


def test_damage_inside_of_an_archive_is_a_truncated_member(tmp_path):
    path = make_zip(tmp_path / "a.zip", CONTENTS, zipfile.ZIP_STORED)
    content = bytearray(path.read_bytes())
    content[content.find(CONTENTS["007.bin"]) + 5] ^= 1
    content[content.find(b"PK\3\4")] ^= 1
    path.write_bytes(content)
    assert code_of(path, "007.bin") == "truncated"
    assert code_of(path, "000.bin") == "truncated"
    assert read_member(str(path), "008.bin", 1 << 20) == CONTENTS["008.bin"]


def test_a_tar_that_ends_too_early_is_truncated(tmp_path):
    path = make_tar(tmp_path / "a.tar", {"a": bytes(100), "b": bytes(5000)})
    with path.open("r+b") as file:
        file.truncate(3000)
    assert code_of(path, "b") == "truncated"
