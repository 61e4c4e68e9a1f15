"""Bad files of every kind: each has its code, and none changes what becomes of the others."""

from __future__ import annotations

import io
import json
import os
import struct
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
from jobs import small_request
from PIL import Image

from sca_batch.dataset.shards import iter_rows
from sca_batch.errors import ERROR_CODES
from sca_batch.images.decode import decode
from sca_batch.job.caption import caption_corpus


def picture(size=(32, 24), mode="RGB"):
    pixels = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    return Image.fromarray(pixels).convert(mode)


def encoded(form="PNG", image=None, **options):
    buffer = io.BytesIO()
    (image or picture()).save(buffer, form, **options)
    return buffer.getvalue()


def chunk(name, content):
    checksum = zlib.crc32(name + content)
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", checksum)


def png_header(width, height, depth=8, kind=2):
    return b"\x89PNG\r\n\x1a\n" + chunk(
        b"IHDR", struct.pack(">IIBBBBB", width, height, depth, kind, 0, 0, 0)
    )


def flipped(content, at):
    changed = bytearray(content)
    changed[at] ^= 0xFF
    return bytes(changed)


PNG, JPEG, GIF = encoded(), encoded("JPEG", quality=95), encoded("GIF", picture(mode="P"))
BMP, TIFF, WEBP = encoded("BMP"), encoded("TIFF"), encoded("WEBP")
BODY = len(PNG) // 2
TEXT_BOMB = chunk(b"zTXt", b"k\0\0" + zlib.compress(b"x" * (80 << 20), 9))

# name -> content, and the codes that it may have: libraries differ in how they call a damage.
TRUNCATED, DECODE, NONE = {"truncated"}, {"decode"}, {"not_an_image"}
CUT = {"truncated", "decode"}
CUT_OR_NONE = {"truncated", "decode", "not_an_image"}
BAD = {
    "empty.png": (b"", {"empty_file"}),
    "one-byte.png": (b"\x89", NONE),
    "newline.jpg": (b"\n", NONE),
    "text.jpg": (b"this is a letter\n" * 99, NONE),
    "html.jpg": (b"<html><body>404 Not Found</body></html>", NONE),
    "json.png": (b'{"error": "rate limited"}', NONE),
    "zeros.png": (bytes(5000), NONE),
    "random.jpg": (np.random.default_rng(1).bytes(5000), CUT_OR_NONE),
    "elf.png": (b"\x7fELF" + bytes(200), NONE),
    "zip.png": (b"PK\x03\x04" + bytes(200), NONE),
    "pdf.png": (b"%PDF-1.7\n" + bytes(200), NONE),
    "svg.png": (b"<svg xmlns='http://www.w3.org/2000/svg'/>", NONE),
    "pickle.png": (b"\x80\x04cos\nsystem\n(S'touch pwned'\ntR.", NONE),
    "png-signature.png": (PNG[:8], CUT_OR_NONE),
    "png-header-only.png": (PNG[:33], CUT_OR_NONE),
    "png-half.png": (PNG[:BODY], TRUNCATED),
    "png-no-end.png": (PNG[:-40], CUT),
    "png-flipped-header.png": (flipped(PNG, 17), CUT_OR_NONE | {"too_large"}),
    "png-flipped-body.png": (flipped(PNG, BODY), CUT),
    "png-zero-width.png": (png_header(0, 5) + chunk(b"IEND", b""), CUT_OR_NONE),
    "png-no-data.png": (png_header(5, 5) + chunk(b"IEND", b""), CUT_OR_NONE),
    "png-short-data.png": (
        png_header(50, 50) + chunk(b"IDAT", zlib.compress(b"\0" * 20)) + chunk(b"IEND", b""),
        CUT_OR_NONE,
    ),
    "png-bomb.png": (png_header(60_000, 60_000) + chunk(b"IDAT", b""), {"too_large"}),
    "png-bomb-2.png": (png_header(2**31 - 1, 2**31 - 1), {"too_large"} | CUT_OR_NONE),
    "png-text-bomb.png": (png_header(5, 5) + TEXT_BOMB + PNG[33:], CUT_OR_NONE),
    "png-trns-wrong.png": (
        png_header(4, 4) + chunk(b"IDAT", b"no zlib") + chunk(b"IEND", b""), CUT_OR_NONE,
    ),
    "jpeg-start.jpg": (JPEG[:2], CUT_OR_NONE),
    "jpeg-magic.jpg": (JPEG[:4], CUT_OR_NONE),
    "jpeg-header-only.jpg": (JPEG[:200], CUT_OR_NONE),
    "jpeg-half.jpg": (JPEG[: len(JPEG) // 2], TRUNCATED),
    "jpeg-no-quantization.jpg": (JPEG.replace(b"\xff\xdb", b"\xff\xfe"), CUT_OR_NONE),
    "jpeg-bad-segment.jpg": (JPEG[:20] + b"\xff\xc4\x00\x00" + JPEG[20:], CUT_OR_NONE),
    "jpeg-as-text.jpg": (JPEG.decode("latin-1").encode("utf-8"), NONE),
    "gif-header.gif": (GIF[:6], CUT_OR_NONE),
    "gif-half.gif": (GIF[: len(GIF) // 2], CUT_OR_NONE),
    "bmp-half.bmp": (BMP[: len(BMP) // 2], CUT),
    "bmp-header.bmp": (BMP[:20], CUT_OR_NONE),
    "bmp-huge.bmp": (BMP[:18] + struct.pack("<ii", 70_000, 70_000) + BMP[26:], {"too_large"}),
    "tiff-header.tif": (TIFF[:8], CUT_OR_NONE),
    "tiff-half.tif": (TIFF[: len(TIFF) // 2], CUT_OR_NONE),
    "webp-half.webp": (WEBP[: len(WEBP) // 2], CUT_OR_NONE),
    "webp-header.webp": (WEBP[:16], CUT_OR_NONE),
    "ppm-short.ppm": (b"P6 100 100 255\n" + bytes(30), CUT),
    "ppm-huge.ppm": (b"P6 90000 90000 255\n", {"too_large"}),
    "ppm-letters.ppm": (b"P6 many many 255\n", CUT_OR_NONE),
    "tga-empty.tga": (bytes(18), CUT_OR_NONE),
}  # fmt: skip


@pytest.fixture
def caption(tmp_path):
    """Captions every file, from a box in it."""

    def run(names, out):
        lines = [{"uri": f"corpus/{n}", "boxes_xyxy": [[0, 0, 9, 9]]} for n in names]
        manifest = tmp_path / f"{out}.jsonl"
        manifest.write_text("\n".join(map(json.dumps, lines)))
        caption_corpus(small_request(manifest, tmp_path / out, shard_size=16))
        return {row["key"].removeprefix("corpus/"): row for row in iter_rows(tmp_path / out)}

    return run


def test_each_bad_file_has_its_code_and_good_images_do_not_notice(caption, tmp_path):
    folder = tmp_path / "corpus"
    folder.mkdir()
    for name, (content, _) in BAD.items():
        (folder / name).write_bytes(content)
    good = [f"good-{i}.png" for i in range(9)]
    for i, name in enumerate(good):
        picture((20 + i, 15)).save(folder / name)
    (folder / "is-a-folder.png").mkdir()
    (folder / "dangling.png").symlink_to(folder / "nobody.png")
    (folder / "circle.png").symlink_to(folder / "circle.png")
    os.mkfifo(folder / "pipe.png")
    special = {
        "is-a-folder.png": NONE,
        "dangling.png": {"missing"},
        "circle.png": {"unreadable"},
        "pipe.png": {"unreadable"},
        "never-there.png": {"missing"},
    }
    expected = {name: codes for name, (_, codes) in BAD.items()} | special
    assert len(expected) >= 40
    mixed = sorted([*good, *expected])
    rows = caption(mixed, "mixed")
    assert list(rows) == mixed
    wrong = {
        name: (rows[name]["error_code"], rows[name]["error"], codes)
        for name, codes in expected.items()
        if rows[name]["error_code"] not in codes
    }
    assert not wrong
    assert all("\n" not in rows[name]["error"] for name in expected)
    assert {rows[name]["error_code"] for name in expected} <= set(ERROR_CODES)
    alone = caption(good, "alone")
    for name in good:
        assert {**rows[name], "image_id": 0} == {**alone[name], "image_id": 0}
    assert not (tmp_path / "pwned").exists()
    assert not Path("pwned").exists()


def test_a_text_bomb_takes_no_memory_to_speak_of():
    import resource

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(Exception, match=r".*"):
        decode(BAD["png-text-bomb.png"][0])
    with pytest.raises(Exception, match=r".*"):
        decode(BAD["png-bomb.png"][0])
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 80 * 1024


def frames(*colours):
    images = [Image.new("RGB", (9, 7), colour) for colour in colours]
    return images[0], images[1:]


@pytest.mark.parametrize("form", ["GIF", "WEBP", "TIFF", "PNG", "MPO"])
def test_of_several_frames_the_first_is_read(form):
    first, rest = frames((250, 0, 0), (0, 250, 0))
    options = {"lossless": True} if form == "WEBP" else {}
    content = encoded(form, first, save_all=True, append_images=rest, **options)
    red, green, _ = decode(content)[3, 4].astype(int)
    assert (red > 200, green < 60) == (True, True)


@pytest.mark.parametrize(
    ("mode", "form", "options"),
    [
        ("CMYK", "JPEG", {}),
        ("L", "PNG", {}),
        ("1", "PNG", {}),
        ("P", "PNG", {}),
        ("P", "GIF", {}),
        ("LA", "PNG", {}),
        ("RGBA", "PNG", {}),
        ("YCbCr", "JPEG", {"progressive": True}),
        ("RGB", "JPEG", {"progressive": True}),
        ("RGB", "JPEG", {"icc_profile": b"not a profile"}),
        ("RGB", "PNG", {"icc_profile": b"not a profile"}),
        ("F", "TIFF", {}),
        ("LAB", "TIFF", {}),
    ],
)
def test_every_mode_becomes_rgb(mode, form, options):
    image = picture().convert("RGB")
    image = image if mode == "RGB" else _as(image, mode)
    rgb = decode(encoded(form, image, **options))
    assert rgb.shape == (24, 32, 3)
    assert rgb.dtype == np.uint8


def _as(image, mode):
    if mode == "LAB":
        return Image.new("LAB", image.size)
    return image.convert("L").convert(mode) if mode in ("LA", "F") else image.convert(mode)


@pytest.mark.parametrize("size", [(1, 1), (1, 300), (300, 1), (20_000, 3), (3, 20_000)])
def test_the_smallest_and_the_longest_sides_are_read(size):
    assert decode(encoded(image=Image.new("RGB", size))).shape == (size[1], size[0], 3)


def test_sixteen_bits_keep_their_upper_eight():
    samples = np.array([[0, 256, 0x7FFF], [0x8000, 0xFF00, 0xFFFF]], dtype=np.uint16)
    rgb = decode(encoded(image=Image.fromarray(samples)))
    assert rgb[..., 0].tolist() == [[0, 1, 127], [128, 255, 255]]


if sys.platform == "win32":
    pytest.skip("pipes and links", allow_module_level=True)
