"""The one reader of COCO's format: annotations grouped by image, on disk while it reads."""

import json
import subprocess
import sys

from sca_batch.manifests.coco import read_coco


def kept(entry, where):
    return entry.get("image_id", entry["id"]), [where, entry["id"]]


def test_annotations_come_with_their_image_in_the_order_of_the_file(tmp_path):
    path = tmp_path / "a.json"
    annotations = [{"id": i, "image_id": of} for i, of in enumerate(["1", 1, 7, "1", 1])]
    images = [{"id": 1}, {"id": "1"}, {"id": 2}]
    path.write_text(json.dumps({"annotations": annotations, "images": images}))
    file = read_coco(path, kept, kept, form="a COCO file")
    assert [
        (image_id, image[1], [(i, annotation[1]) for i, annotation in of_image])
        for image_id, image, of_image in file.groups()
    ] == [(1, 1, [(1, 1), (4, 4)]), ("1", "1", [(0, 0), (3, 3)]), (2, 2, [])]
    assert list(file.strays()) == [(2, 7)]


def test_a_full_folder_for_temporary_files_is_named(tmp_path):
    """Runs everywhere: the system refuses in the middle of a write, as a full disk does."""
    entry = json.dumps({"id": 1, "image_id": 1, "k": "x" * 5000})
    path = tmp_path / "a.json"
    path.write_text(f'{{"images": [{{"id": 1}}], "annotations": [{", ".join([entry] * 2000)}]}}')
    code = (
        "import resource, signal, sys\n"
        "from pathlib import Path\n"
        "from sca_batch.manifests.coco import coco_rows\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))\n"
        "list(coco_rows(Path(sys.argv[1])))\n"
    )
    ended = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True)
    assert "OutputError" in ended.stderr
    assert "no space left for temporary files; free some, or set TMPDIR" in ended.stderr
