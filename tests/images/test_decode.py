"""Image files to the pixels that the model was trained on, and what becomes of bad files."""

import hashlib
import io
import json
import os
import zlib

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from sca_batch.boxes import clip_xyxy, resized_size, to_model_frame, xywh_to_xyxy
from sca_batch.errors import ImageError
from sca_batch.images.decode import decode, read_image
from sca_batch.images.formats import looks_like_image
from sca_batch.images.pixels import preprocess, to_rgb
from sca_batch.images.policy import ReadPolicy
from sca_batch.regions.masks import back_project


@pytest.fixture(scope="module")
def pipeline(golden):
    """What the published data pipeline made of two pictures."""
    return golden / "data-pipeline"


def encoded(image, form="PNG", **options):
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def picture(size=(40, 30), seed=0):
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    return Image.fromarray(pixels)


@pytest.mark.parametrize("index", [0, 1])
def test_pixels_are_those_of_the_published_pipeline_bit_for_bit(pipeline, index):
    batch = load_file(pipeline / f"inference{index}.safetensors")
    image = read_image(str(pipeline / f"image{index}.png"))
    assert list(image.size_hw) == batch["original_sizes"][0].tolist()
    assert list(resized_size(image.size_hw, 128)) == batch["reshaped_input_sizes"][0].tolist()
    pixels = preprocess(image.rgb, 128)
    assert pixels.dtype == np.float32
    assert torch.equal(torch.from_numpy(pixels), batch["pixel_values"][0])


@pytest.mark.parametrize("index", [0, 1])
def test_boxes_are_those_of_the_published_pipeline(pipeline, index):
    sample = json.loads((pipeline / "samples.json").read_text())["samples"][index]
    batch = load_file(pipeline / f"inference{index}.safetensors")
    given = [[r["x"], r["y"], r["width"], r["height"]] for r in sample["regions"]]
    size_hw = sample["height"], sample["width"]
    boxes = to_model_frame(clip_xyxy(xywh_to_xyxy(given), size_hw), size_hw, 128)
    assert np.array_equal(boxes, batch["input_boxes"][0].numpy())


def test_points_are_those_of_the_published_pipeline(pipeline):
    samples = json.loads((pipeline / "samples.json").read_text())["samples"]
    recorded = load_file(pipeline / "points.safetensors")
    for sample, given, expected in zip(
        samples, recorded["points"], recorded["input_points"], strict=True
    ):
        size_hw = sample["height"], sample["width"]
        assert np.array_equal(to_model_frame(given.numpy(), size_hw, 128), expected.numpy())


@pytest.mark.parametrize("index", [0, 1])
def test_masks_come_back_to_the_image_as_in_the_published_pipeline(pipeline, index):
    recorded = load_file(pipeline / "masks.safetensors")
    size_hw = tuple(recorded["original_sizes"][index].tolist())
    low_res = recorded["low_res_masks"][index].flatten(0, 1)
    logits = back_project(low_res, size_hw, 128).reshape(recorded[f"logits{index}"].shape)
    torch.testing.assert_close(logits, recorded[f"logits{index}"], atol=1e-5, rtol=0)
    assert torch.equal((logits > 0).byte(), recorded[f"binary{index}"])


def test_resized_sizes_are_rounded_as_published(pipeline):
    table = json.loads((pipeline / "info.json").read_text())["preprocess_shape_1024"]
    for size, expected in table.items():
        height, width = map(int, size.split("x"))
        assert list(resized_size((height, width), 1024)) == expected


def test_padding_is_right_and_bottom_and_has_the_mean_colour():
    pixels = preprocess(np.asarray(picture((40, 20))), 64)
    assert pixels.shape == (3, 64, 64)
    assert (pixels[:, 32:] == 0).all()
    assert (pixels[:, :32] != 0).any(axis=(0, 2)).all()


def test_a_file_comes_with_the_digest_of_its_bytes(tmp_path):
    content = encoded(picture())
    (tmp_path / "image.dat").write_bytes(content)
    image = read_image(str(tmp_path / "image.dat"))
    assert image.sha256 == hashlib.sha256(content).hexdigest()
    assert image.size_hw == (30, 40)
    assert np.array_equal(image.rgb, np.asarray(picture()))


@pytest.mark.parametrize(
    ("content", "code"),
    [
        pytest.param(b"", "empty_file", id="empty"),
        pytest.param(b"this is a text\n" * 20, "not_an_image", id="text"),
        pytest.param(b"\x89PNG\r\n\x1a\n", "not_an_image", id="only a signature"),
        pytest.param(encoded(picture())[:-800], "truncated", id="a cut PNG"),
        pytest.param(encoded(picture(), "JPEG")[:-300], "truncated", id="a cut JPEG"),
        pytest.param(encoded(picture((200, 100))), "too_large", id="oversized"),
    ],
)
def test_a_bad_file_has_a_code_of_its_own(tmp_path, content, code):
    path = tmp_path / "bad.png"
    path.write_bytes(content)
    with pytest.raises(ImageError) as caught:
        read_image(str(path), policy=ReadPolicy(max_pixels=10_000))
    assert caught.value.code == code
    assert "\n" not in str(caught.value)


def test_a_header_that_promises_too_much_is_refused_before_decoding():
    bomb = bytearray(encoded(picture()))
    bomb[16:24] = (60_000).to_bytes(4, "big") * 2
    checksum = zlib.crc32(bytes(bomb[12:29]))
    bomb[29:33] = checksum.to_bytes(4, "big")
    with pytest.raises(ImageError) as caught:
        decode(bytes(bomb))
    assert caught.value.code == "too_large"


@pytest.mark.parametrize("uri", ["nowhere.png", "."])
def test_a_path_without_a_file_has_a_code(tmp_path, monkeypatch, uri):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ImageError) as caught:
        read_image(uri)
    assert caught.value.code == ("missing" if uri.endswith("png") else "not_an_image")


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_a_file_that_may_not_be_read_has_a_code(tmp_path):
    path = tmp_path / "secret.png"
    path.write_bytes(encoded(picture()))
    path.chmod(0)
    with pytest.raises(ImageError) as caught:
        read_image(str(path))
    assert caught.value.code == "unreadable"


def test_16_bit_samples_keep_their_upper_byte():
    samples = np.arange(0, 65536, 256, dtype=np.uint16).reshape(16, 16) + 7
    rgb = decode(encoded(Image.fromarray(samples)))
    assert np.array_equal(rgb, np.repeat((samples >> 8).astype(np.uint8)[..., None], 3, axis=2))


def test_transparency_lies_over_white():
    image = Image.new("RGBA", (3, 1))
    for x, alpha in enumerate([0, 255, 51]):
        image.putpixel((x, 0), (200, 0, 100, alpha))
    rgb = decode(encoded(image))
    assert rgb[0, :2].tolist() == [[255, 255, 255], [200, 0, 100]]
    assert np.abs(rgb[0, 2].astype(int) - [244, 204, 224]).max() <= 1


def test_a_palette_with_a_transparent_colour_lies_over_white():
    image = Image.new("P", (2, 1))
    image.putpalette([10, 20, 30, 40, 50, 60])
    image.putpixel((1, 0), 1)
    assert decode(encoded(image, transparency=0))[0].tolist() == [[255, 255, 255], [40, 50, 60]]


@pytest.mark.parametrize(
    ("mode", "form"),
    [("L", "PNG"), ("1", "PNG"), ("LA", "PNG"), ("P", "GIF"), ("CMYK", "JPEG"), ("F", "TIFF")],
)
def test_every_mode_becomes_rgb(mode, form):
    grey = Image.new("L", (5, 4), 255)
    rgb = decode(encoded(grey.convert(mode), form))
    assert rgb.shape == (4, 5, 3)
    assert rgb.dtype == np.uint8
    assert (rgb >= 254).all()


@pytest.mark.parametrize("orientation", range(1, 9))
def test_the_orientation_in_exif_is_applied(orientation):
    upright = Image.new("RGB", (32, 16), (0, 0, 0))
    upright.paste((255, 255, 255), (0, 0, 16, 8))
    undo = {2: [0], 3: [3], 4: [1], 5: [5], 6: [2], 7: [6], 8: [4]}.get(orientation, [])
    stored = upright
    for step in undo:
        stored = stored.transpose(Image.Transpose(step))
    exif = Image.Exif()
    exif[0x0112] = orientation
    rgb = decode(encoded(stored, exif=exif.tobytes()))
    assert rgb.shape == (16, 32, 3)
    assert np.array_equal(rgb, np.asarray(upright))


def test_the_first_frame_of_an_animation_is_taken():
    frames = [Image.new("RGB", (4, 4), colour) for colour in ("red", "blue")]
    content = encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert decode(content)[0, 0].tolist() == [255, 0, 0]


def test_an_image_in_memory_is_read_like_a_file():
    image = picture()
    assert np.array_equal(to_rgb(image), decode(encoded(image)))


def test_images_are_told_by_their_content(tmp_path):
    (tmp_path / "notes.png").write_text("not a picture")
    (tmp_path / "picture.txt").write_bytes(encoded(picture()))
    (tmp_path / "empty.jpg").write_bytes(b"")
    found = [path.name for path in tmp_path.iterdir() if looks_like_image(path)]
    assert found == ["picture.txt"]
