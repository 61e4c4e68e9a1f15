"""Where images may be read from: jails, devices, archives with hostile names, stores, secrets."""

from __future__ import annotations

import io
import json
import os
import tarfile
import zipfile

import fsspec
import pytest
from PIL import Image

from sca_batch.errors import ImageError, ScaError
from sca_batch.images.decode import read_image
from sca_batch.images.fetch import read_bytes
from sca_batch.images.policy import ReadPolicy, check_schemes
from sca_batch.plan.sources import plan_sources
from sca_batch.records import redacted
from sca_batch.storage.archives import split_member


def png(colour=(10, 200, 30), size=(6, 4)):
    buffer = io.BytesIO()
    Image.new("RGB", size, colour).save(buffer, "PNG")
    return buffer.getvalue()


def code_of(uri, **limits):
    with pytest.raises(ImageError) as caught:
        read_bytes(str(uri), ReadPolicy(**limits))
    return caught.value.code


@pytest.fixture
def jail(tmp_path):
    (tmp_path / "root/inside").mkdir(parents=True)
    (tmp_path / "root/inside/a.png").write_bytes(png())
    (tmp_path / "secret.png").write_bytes(png())
    (tmp_path / "root/link.png").symlink_to(tmp_path / "secret.png")
    (tmp_path / "root/fine.png").symlink_to("inside/a.png")
    (tmp_path / "root/folder").symlink_to(tmp_path)
    (tmp_path / "root-beside").mkdir()
    (tmp_path / "root-beside/a.png").write_bytes(png())
    return tmp_path / "root"


@pytest.mark.parametrize(
    "path",
    [
        pytest.param("../secret.png", id="dots"),
        pytest.param("inside/../../secret.png", id="dots in the middle"),
        pytest.param("/etc/hostname", id="absolute"),
        pytest.param("link.png", id="a link"),
        pytest.param("folder/secret.png", id="a linked folder"),
        pytest.param("../root-beside/a.png", id="a folder whose name begins alike"),
        pytest.param("file:///etc/hostname", id="file URL"),
        pytest.param("inside/%2e%2e/a.png", id="percent signs are themselves"),
    ],
)
def test_nothing_outside_of_the_root_is_read(jail, path):
    uri = path if path.startswith(("file:", "/")) else os.path.join(jail, path)
    assert code_of(uri, root=jail) == ("missing" if "%" in path else "outside_root")


def test_inside_of_the_root_dots_and_links_are_fine(jail):
    for path in ("inside/a.png", "fine.png", "inside/../inside/a.png"):
        assert read_bytes(os.path.join(jail, path), ReadPolicy(root=jail)) == png()


def test_names_with_a_nul_and_devices_are_not_files(jail, tmp_path):
    assert code_of(f"{jail}/a\0.png", root=jail) == "unreadable"
    assert code_of("/dev/zero") == "unreadable"
    os.mkfifo(tmp_path / "pipe.png")
    assert code_of(tmp_path / "pipe.png") == "unreadable"


def test_a_file_longer_than_allowed_is_not_read(tmp_path):
    with (tmp_path / "sparse.png").open("wb") as file:
        file.truncate(1 << 40)
    assert code_of(tmp_path / "sparse.png") == "too_large"


HOSTILE = ["../../etc/passwd.png", "/etc/cron.d/x.png", "a\nb\x1b[31m.png", "C:\\x.png", "ok/1.png"]


def make_zip(path):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        for name in HOSTILE:
            file.writestr(name, png())
        file.writestr("notes.txt", "text")
        file.writestr("bomb.png", b"\0" * (3 << 20))


def make_tar(path):
    with tarfile.open(path, "w") as file:
        for name in [*HOSTILE, "bomb.png"]:
            info = tarfile.TarInfo(name)
            content = b"\0" * (3 << 20) if name == "bomb.png" else png()
            info.size = len(content)
            file.addfile(info, io.BytesIO(content))
        for name, kind, target in [
            ("link.png", tarfile.SYMTYPE, "/etc/hostname"),
            ("hard.png", tarfile.LNKTYPE, "ok/1.png"),
            ("device.png", tarfile.CHRTYPE, ""),
        ]:
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, target
            file.addfile(info)
        info = tarfile.TarInfo("notes.txt")
        file.addfile(info)


@pytest.mark.parametrize("suffix", [".zip", ".tar"])
def test_members_are_read_in_place_whatever_their_names(tmp_path, suffix, monkeypatch):
    archive = tmp_path / "corpus" / f"a{suffix}"
    archive.parent.mkdir()
    (make_zip if suffix == ".zip" else make_tar)(archive)
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    plan = plan_sources([str(archive)])
    names = plan.frame["file_name"].to_list()
    assert names[: len(HOSTILE)] == [f"a{suffix}!/{name}" for name in HOSTILE]
    for uri in plan.frame["uri"][: len(HOSTILE)]:
        assert read_image(uri).size_hw == (4, 6)
    assert sorted(tmp_path.rglob("*")) == before
    assert code_of(f"{archive}!/bomb.png", max_bytes=1 << 20) == "too_large"
    assert code_of(f"{archive}!/nobody.png") == "missing"
    if suffix == ".tar":
        for name in ("link.png", "hard.png", "device.png"):
            assert code_of(f"{archive}!/{name}") == "missing"
    assert code_of(f"{archive}!/ok/1.png", root=tmp_path / "nowhere") == "outside_root"


def test_what_stands_beside_an_image_in_a_tar_comes_along(tmp_path):
    """WebDataset: members of one key, side by side, whatever their order."""
    members = {
        "a/1.txt": b"a grey cat\n", "a/1.jpg": png(), "a/1.json": b'{"w": 3, "sha256": "of old"}',
        "a/1.cls": b"7", "2.png": png(), "2.json": b"not JSON", "2.seg.png": png(), "1.txt": b"x",
        "3.cls": b"dog", "3.txt": b"\xff", "3.png": png(),
        "4.txt": b"y" * (2 << 20), "4.png": png(),
    }  # fmt: skip
    with tarfile.open(tmp_path / "shard.tar", "w") as file:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            file.addfile(info, io.BytesIO(content))
    plan = plan_sources([str(tmp_path / "shard.tar")])
    found = {
        row["key"].partition("!/")[2]: json.loads(row["extra"]) for row in plan.frame.to_dicts()
    }
    assert found == {
        "a/1.jpg": {"txt": "a grey cat", "json": {"w": 3, "sha256": "of old"}, "cls": 7},
        "2.png": {},
        "2.seg.png": {},
        "3.png": {"cls": "dog"},
        "4.png": {},
    }
    assert plan.skipped_files == 4  # not JSON, not beside an image, not UTF-8, too long


def test_a_zip_whose_directory_lies_about_a_size_is_refused(tmp_path):
    path = tmp_path / "lying.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("a.png", b"\0" * (2 << 20))
    content = bytearray(path.read_bytes())
    size = (2 << 20).to_bytes(4, "little")
    while (at := content.find(size)) >= 0:
        content[at : at + 4] = (100).to_bytes(4, "little")
    path.write_bytes(content)
    assert code_of(f"{path}!/a.png", max_bytes=1 << 20) in ("truncated", "too_large")


@pytest.mark.parametrize("content", [b"", b"PK\x05\x06", b"not an archive" * 100])
@pytest.mark.parametrize("suffix", [".zip", ".tar"])
def test_a_broken_archive_is_a_bad_request_or_a_bad_row(tmp_path, content, suffix):
    path = tmp_path / f"a{suffix}"
    path.write_bytes(content)
    with pytest.raises(ScaError):
        plan_sources([str(path)])
    assert code_of(f"{path}!/x.png") in ("truncated", "unreadable", "missing")


def test_an_archive_and_its_member_are_told_apart():
    assert split_member("/x/a.zip!/b/c.png") == ("/x/a.zip", "b/c.png")
    assert split_member("/x/a!/c.png") == ("/x/a!/c.png", None)
    assert split_member("/x/a.tar") == ("/x/a.tar", None)


def test_objects_of_a_store_are_a_source_and_are_read():
    store = fsspec.filesystem("memory")
    try:
        store.pipe({"/corpus/b/2.png": png(), "/corpus/1.png": png(), "/corpus/x.txt": b"-"})
        plan = plan_sources(["memory://corpus"])
        assert plan.frame["key"].to_list() == ["1.png", "b/2.png"]
        assert plan.skipped_files == 1
        assert read_image(plan.frame["uri"][1]).size_hw == (4, 6)
        assert code_of("memory://corpus/nobody.png") == "missing"
        assert code_of("memory://corpus/1.png", max_bytes=10) == "too_large"
        with pytest.raises(ScaError, match="no images"):
            plan_sources(["memory://nowhere"])
    finally:
        store.rm("/corpus", recursive=True)


def test_schemes_that_cannot_be_read_stop_the_request():
    check_schemes(["memory", "file"], ReadPolicy())
    check_schemes(["https"], ReadPolicy(allow_http=True))
    with pytest.raises(ScaError, match="--allow-http"):
        check_schemes(["http"], ReadPolicy())
    with pytest.raises(ScaError, match="ftp://"):
        check_schemes(["ftp"], ReadPolicy())
    with pytest.raises(ScaError, match="pip install gcsfs"):
        check_schemes(["gs"], ReadPolicy())
    assert code_of("http://example.org/a.png") == "forbidden_url"
    assert code_of("ftp://example.org/a.png") == "unreadable"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("https://me:pass@x.org/a.png", "https://***@x.org/a.png"),
        (
            "GET https://b.s3.x/a.png?X-Amz-Signature=abc&x=1 failed",
            "GET https://b.s3.x/a.png?X-Amz-Signature=***&x=1 failed",
        ),
        ("https://x.blob.y/a?sv=1&sig=QQ%3D", "https://x.blob.y/a?sv=***&sig=***"),
        ("https://x/a.png?token=t&w=3", "https://x/a.png?token=***&w=3"),
        ("a plain path?token=t", "a plain path?token=t"),
    ],
)
def test_passwords_and_signatures_are_not_shown(text, shown):
    assert redacted(text) == shown


def test_secrets_of_urls_stay_out_of_records(tmp_path):
    from sca_batch.dataset.schema import record_to_row
    from sca_batch.records import ImageRecord, ImageRef

    (tmp_path / "m.txt").write_text("https://me:pass@x.org/a.png?sig=hush\n")
    plan = plan_sources([str(tmp_path / "m.txt")])
    (row,) = plan.frame.to_dicts()
    assert "pass" in row["uri"]  # the plan alone keeps what is needed to read the image
    ref = ImageRef(1, row["key"], row["uri"], row["file_name"])
    error = "unreadable: https://me:pass@x.org"
    written = str(record_to_row(ImageRecord(ref, "failed", error_code="missing", error=error)))
    assert "pass" not in written
    assert "hush" not in written


def test_the_manifests_digest_is_compared(tmp_path):
    (tmp_path / "a.png").write_bytes(png())
    good = read_image(str(tmp_path / "a.png")).sha256
    assert read_image(str(tmp_path / "a.png"), sha256=good.upper()).sha256 == good
    with pytest.raises(ImageError) as caught:
        read_image(str(tmp_path / "a.png"), sha256="0" * 64)
    assert caught.value.code == "checksum"
