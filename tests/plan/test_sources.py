"""Sources: what is listed, in which order, under which names, and what is refused."""

import io
import json
import os

import pytest
from PIL import Image

from sca_batch.errors import ScaError
from sca_batch.plan.plan import Plan
from sca_batch.plan.sources import (
    list_folder,
    plan_sources,
    refuse_output_inside,
)


def image(path, kind="png"):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (3, 2)).save(path, format=kind)
    return path


def text(path, content="not an image"):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content)
    return path


def plan(*sources, **options) -> Plan:
    return plan_sources([str(source) for source in sources], **options)


def names(planned):
    return planned.frame["file_name"].to_list()


def test_a_folder_is_listed_at_any_depth_sorted_by_content_and_suffix(tmp_path):
    for name in ["z.jpg", "cats/b.png", "cats/a", "cats/deep/er/c.notes"]:
        image(tmp_path / name)
    text(tmp_path / "readme.md")
    text(tmp_path / "cats/lies.jpg")
    found = plan(tmp_path)
    listed = ["cats/a", "cats/b.png", "cats/deep/er/c.notes", "cats/lies.jpg", "z.jpg"]
    assert names(found) == listed
    assert found.frame["uri"].to_list() == [str(tmp_path / name) for name in names(found)]
    assert found.frame["image_id"].to_list() == [1, 2, 3, 4, 5]
    assert found.frame["key"].to_list() == names(found)
    assert found.frame["prompts"].null_count() == 5
    assert found.skipped_files == 1


def test_a_broken_file_with_an_images_suffix_counts_as_an_image(tmp_path):
    text(tmp_path / "broken.jpg")
    text(tmp_path / "notes.txt")
    found = list_folder(tmp_path)
    assert found.files.to_list() == ["broken.jpg"]
    assert found.skipped_files == 1


def test_hidden_files_and_folders_are_not_looked_at(tmp_path):
    for name in ["a.png", ".b.png", ".cache/c.png", "d/.e/f.png"]:
        image(tmp_path / name)
    found = plan(tmp_path)
    assert names(found) == ["a.png"]
    assert found.skipped_files == 0


def test_links_are_followed_and_loops_end(tmp_path):
    image(tmp_path / "photos/a.png")
    image(tmp_path / "elsewhere/b.png")
    (tmp_path / "photos/again").symlink_to(tmp_path / "photos")
    (tmp_path / "photos/itself").symlink_to(tmp_path / "photos/itself")
    (tmp_path / "photos/gone.png").symlink_to(tmp_path / "nothing")
    (tmp_path / "photos/more").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "photos/z.png").symlink_to(tmp_path / "elsewhere/b.png")
    (tmp_path / "elsewhere/back").symlink_to(tmp_path / "photos")
    assert names(plan(tmp_path / "photos")) == ["a.png", "more/b.png", "z.png"]


def test_a_folder_with_two_names_is_listed_under_its_own(tmp_path):
    image(tmp_path / "real/a.png")
    (tmp_path / "an-alias").symlink_to(tmp_path / "real")
    assert names(plan(tmp_path)) == ["real/a.png"]


def test_a_named_pipe_does_not_stop_the_listing(tmp_path):
    image(tmp_path / "a.png")
    os.mkfifo(tmp_path / "pipe")
    assert names(plan(tmp_path)) == ["a.png"]


def test_a_file_name_that_is_not_utf8_is_refused_by_name(tmp_path):
    path = os.path.join(os.fsencode(tmp_path), b"caf\xe9.png")
    with open(path, "wb") as file:
        file.write(image(tmp_path / "a.png").read_bytes())
    with pytest.raises(ScaError, match=r"caf\\xe9\.png.*rename it"):
        plan(tmp_path)


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        pytest.param([], "looked at 0 files in 1 folder", id="empty"),
        pytest.param(["a.txt", "b/c.md"], "looked at 2 files in 2 folders", id="no images"),
    ],
)
def test_a_folder_without_images_says_what_was_looked_at(tmp_path, files, expected):
    for name in files:
        text(tmp_path / name)
    with pytest.raises(ScaError, match=expected):
        plan(tmp_path)


def test_single_images_keep_the_order_they_were_given_in(tmp_path):
    b, a = image(tmp_path / "b.png"), image(tmp_path / "a.png")
    assert names(plan(b, a)) == ["b.png", "a.png"]


def test_a_named_file_with_an_images_suffix_is_taken_at_its_word(tmp_path):
    assert names(plan(text(tmp_path / "broken.JPG", ""))) == ["broken.JPG"]


def test_a_named_file_that_is_neither_image_nor_manifest_is_refused(tmp_path):
    with pytest.raises(ScaError, match="neither an image nor a manifest"):
        plan(text(tmp_path / "notes.docx"))


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        pytest.param("p/*.png", ["a.png", "b.png"], id="one folder"),
        pytest.param("p/**/*.png", ["a.png", "b.png", "q/c.png"], id="any depth"),
        pytest.param("p/*", ["a.png", "b.png", "q/c.png"], id="folders too"),
        pytest.param("p/**", ["a.png", "b.png", "q/c.png"], id="everything"),
        pytest.param("*/q/c.*", ["p/q/c.png"], id="wildcard above"),
        pytest.param("p/[ab].png", ["a.png", "b.png"], id="a choice"),
    ],
)
def test_a_pattern_lists_its_images_below_its_fixed_part(tmp_path, monkeypatch, pattern, expected):
    for name in ["a.png", "b.png", "q/c.png"]:
        image(tmp_path / "p" / name)
    text(tmp_path / "p/notes.txt", "nowhere.png\n")
    monkeypatch.chdir(tmp_path)
    assert names(plan(pattern)) == expected
    assert names(plan(tmp_path / pattern)) == expected


def test_a_pattern_of_manifests_reads_them_all(tmp_path):
    text(tmp_path / "1.jsonl", '{"uri": "a.jpg"}\n')
    text(tmp_path / "2.jsonl", '{"uri": "b.jpg"}\n')
    assert names(plan(tmp_path / "*.jsonl")) == ["a.jpg", "b.jpg"]


def test_a_file_whose_name_looks_like_a_pattern_is_that_file(tmp_path):
    assert names(plan(image(tmp_path / "a[1].png"))) == ["a[1].png"]


def test_several_folders_are_named_from_the_folder_they_share(tmp_path):
    for name in ["x/1.png", "y/1.png"]:
        image(tmp_path / name)
    assert names(plan(tmp_path / "y", tmp_path / "x")) == ["y/1.png", "x/1.png"]


def test_sources_of_all_kinds_make_one_plan(tmp_path):
    image(tmp_path / "folder/1.png")
    one = image(tmp_path / "files/2.png")
    text(tmp_path / "m/list.jsonl", json.dumps({"uri": "3.png", "id": 7}))
    stdin = io.BytesIO(json.dumps({"uri": str(tmp_path / "4.png")}).encode())
    found = plan(tmp_path / "folder", one, tmp_path / "m/list.jsonl", "-", stdin=stdin)
    assert found.frame["image_id"].to_list() == [1, 2, 3, 4]
    assert found.frame["key"].to_list()[2] == "7"
    assert found.frame["uri"].to_list() == [
        str(tmp_path / name) for name in ["folder/1.png", "files/2.png", "m/3.png", "4.png"]
    ]


def test_an_image_listed_by_two_sources_is_refused_with_both_places(tmp_path):
    path = image(tmp_path / "photos/a.png")
    with pytest.raises(ScaError) as error:
        plan(tmp_path / "photos", path)
    assert str(error.value) == (
        f"{path} (listed by the command line): a.png stands already in "
        f"{path} (listed by the folder {tmp_path / 'photos'}); "
        "list each image once, or give every row an image_id"
    )


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        pytest.param("nothing", "no such file or folder", id="path"),
        pytest.param("nothing.jsonl", "no such file or folder", id="manifest"),
        pytest.param("*.none", "0 files match this pattern", id="pattern"),
        pytest.param("https://example.org/a.jpg", "a URL is no source", id="URL"),
    ],
)
def test_a_source_that_is_not_there_is_refused(tmp_path, monkeypatch, source, expected):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ScaError, match=expected):
        plan(source)


def test_no_source_at_all_is_refused():
    with pytest.raises(ScaError, match="no source"):
        plan()


def test_the_plan_does_not_depend_on_where_the_command_is_run(tmp_path, monkeypatch):
    image(tmp_path / "photos/a.png")
    frame = plan(tmp_path / "photos").frame
    monkeypatch.chdir(tmp_path / "photos")
    assert plan(".").frame.equals(frame)
    assert plan("../photos").frame.equals(frame)


@pytest.mark.parametrize(
    ("out", "refused"),
    [
        pytest.param("photos", True, id="the source"),
        pytest.param("photos/out", True, id="inside"),
        pytest.param("photos/deep/../out", True, id="inside by detour"),
        pytest.param("link/out", True, id="inside through a link"),
        pytest.param("photos-captions", False, id="beside"),
        pytest.param("photos/../out", False, id="beside by detour"),
    ],
)
def test_an_output_inside_a_source_folder_is_refused(tmp_path, out, refused):
    image(tmp_path / "photos/a.png")
    (tmp_path / "link").symlink_to(tmp_path / "photos")
    sources = [str(tmp_path / "photos"), "-", str(tmp_path / "photos/a.png")]
    if refused:
        with pytest.raises(ScaError, match=r"inside the source .*-captions"):
            refuse_output_inside(sources, tmp_path / out)
    else:
        refuse_output_inside(sources, tmp_path / out)
