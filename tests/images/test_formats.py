"""What is opened at all: pictures in known formats, whatever else Pillow could make of a file."""

from __future__ import annotations

import io
import os
import struct

import numpy as np
import pytest
from PIL import Image

from sca_batch.errors import ImageError
from sca_batch.images.decode import decode
from sca_batch.images.formats import looks_like_image
from sca_batch.images.size import read_size_hw


def encoded(image, form="PNG", **options):
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


POSTSCRIPT = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 20 20\n%%EndComments\nshowpage\n%%EOF\n"


def test_a_program_in_a_picture_is_not_run(tmp_path, monkeypatch):
    ghostscript = tmp_path / "bin/gs"
    ghostscript.parent.mkdir()
    ghostscript.write_text(f"#!/bin/sh\ntouch {tmp_path}/ran\n")
    ghostscript.chmod(0o755)
    monkeypatch.setenv("PATH", f"{ghostscript.parent}:{os.environ['PATH']}")
    evil = tmp_path / "evil.jpg"
    evil.write_bytes(POSTSCRIPT)
    assert not looks_like_image(evil)
    assert read_size_hw(evil) is None
    with pytest.raises(ImageError) as refused:
        decode(POSTSCRIPT)
    assert refused.value.code == "not_an_image"
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("form", ["ICO", "PCX", "SGI", "DDS", "PDF", "EPS"])
def test_formats_that_are_not_listed_are_no_images(form, tmp_path):
    content = encoded(Image.new("RGB", (32, 32), (9, 99, 200)), form)
    path = tmp_path / f"a.{form.lower()}"
    path.write_bytes(content)
    assert not looks_like_image(path)
    with pytest.raises(ImageError, match="in none of the formats"):
        decode(content)


def test_a_head_that_a_reader_chokes_on_is_no_image_and_no_traceback(tmp_path):
    texture = tmp_path / "texture.dds"
    texture.write_bytes(b"DDS " + struct.pack("<7I", 124, 0x1007, 16, 16, 0, 0, 0) + bytes(160))
    assert not looks_like_image(texture)


def test_a_heic_picture_says_what_to_install():
    content = struct.pack(">I", 24) + b"ftypheic" + bytes(400)
    with pytest.raises(ImageError, match="pip install pillow-heif") as refused:
        decode(content)
    assert refused.value.code == "not_an_image"


def test_damaged_exif_leaves_the_picture_as_it_is(tmp_path):
    content = encoded(Image.new("RGB", (9, 5), (200, 30, 40)), exif=b"garbage that is no EXIF")
    assert decode(content).shape == (5, 9, 3)
    (tmp_path / "a.png").write_bytes(content)
    assert read_size_hw(tmp_path / "a.png") == (5, 9)


@pytest.mark.parametrize(
    ("samples", "expected"),
    [
        pytest.param(np.array([[0, 252]], np.int32), [0, 252], id="bytes in 32 bits"),
        pytest.param(np.array([[0, 65535]], np.int32), [0, 255], id="16 bits in 32"),
        pytest.param(np.array([[-1000, 1000]], np.int32), [0, 255], id="signed"),
        pytest.param(np.array([[0, 0.5, 1]], np.float32), [0, 128, 255], id="fractions"),
        pytest.param(np.array([[0, 128, 255]], np.float32), [0, 128, 255], id="bytes as floats"),
        pytest.param(np.array([[-2, 0, 2]], np.float32), [0, 128, 255], id="around zero"),
        pytest.param(np.array([[7, 7]], np.int32), [7, 7], id="one value"),
    ],
)
def test_integers_and_floats_are_scaled_by_what_they_are(samples, expected):
    rgb = decode(encoded(Image.fromarray(samples), "TIFF"))
    assert rgb[0, :, 0].tolist() == expected


def test_pixels_that_are_no_numbers_are_refused_by_name():
    with pytest.raises(ImageError, match="not finite") as refused:
        decode(encoded(Image.fromarray(np.array([[0, np.nan]], np.float32)), "TIFF"))
    assert refused.value.code == "decode"


def test_the_limit_on_pixels_is_ours_in_both_directions():
    before = Image.MAX_IMAGE_PIXELS
    # A head that says 20,000 x 20,000: more than twice Pillow's own limit.
    ppm = b"P6 20000 20000 255\n"
    with pytest.raises(ImageError, match="more than --max-pixels 100") as refused:
        decode(ppm, max_pixels=100)
    assert refused.value.code == "too_large"
    with pytest.raises(ImageError) as cut:
        decode(ppm, max_pixels=500_000_000)
    assert cut.value.code in ("truncated", "decode")
    assert before == Image.MAX_IMAGE_PIXELS
