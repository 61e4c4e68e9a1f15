"""Sizes of images, from the heads of their files."""

from __future__ import annotations

import zipfile

import pytest
from PIL import Image

from sca_batch.images.size import read_size_hw
from sca_batch.storage.archives import MEMBER


@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
def test_a_size_is_that_of_the_image_as_it_is_seen(tmp_path, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.new("RGB", (40, 30)).save(tmp_path / "a.jpg", exif=exif)
    assert read_size_hw(tmp_path / "a.jpg") == ((40, 30) if orientation > 4 else (30, 40))


def test_a_member_of_an_archive_has_a_size(tmp_path):
    Image.new("RGB", (40, 30)).save(tmp_path / "a.png")
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.write(tmp_path / "a.png", "a.png")
    assert read_size_hw(tmp_path / f"a.zip{MEMBER}a.png") == (30, 40)


def test_what_is_no_image_has_no_size(tmp_path):
    (tmp_path / "a.jpg").write_text("no image")
    assert read_size_hw(tmp_path / "a.jpg") is None
    assert read_size_hw(tmp_path / "gone.jpg") is None
