"""Whether runs work in a store that the tests do not reach: stopped, resumed, verified, compared.

    python benchmarks/store_run.py gs://bucket/prefix

What is below the URL is the script's to write and to remove. Credentials and endpoints are
fsspec's, as for the command: environment variables, or ~/.config/fsspec.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path

from PIL import Image

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests/helpers")]


def main() -> None:
    from jobs import small_request

    from sca_batch.dataset.shards import iter_rows
    from sca_batch.dataset.verify import verify_dataset
    from sca_batch.errors import ScaError
    from sca_batch.images.decode import read_image
    from sca_batch.job.caption import caption_corpus
    from sca_batch.job.events import ImageDone
    from sca_batch.plan.sources import plan_sources
    from sca_batch.storage.lock import locked
    from sca_batch.storage.stores import any_path

    place = any_path(sys.argv[1])
    folder = Path(tempfile.mkdtemp())
    lines = []
    for i in range(4):
        Image.new("RGB", (12, 10), (i * 20, 5, 9)).save(folder / f"{i}.png")
        (place / f"images/{i}.png").write_bytes((folder / f"{i}.png").read_bytes())
        lines.append(json.dumps({"uri": f"{i}.png", "boxes_xyxy": [[0, 0, 6, 5]]}))
    (folder / "m.jsonl").write_text("\n".join(lines))

    def run(out, **listening):
        return caption_corpus(small_request(folder / "m.jsonl", out), **listening).tally

    out, seen = place / "run", []
    stopped = run(
        out,
        listen=lambda event: seen.append(event) if isinstance(event, ImageDone) else None,
        should_stop=lambda: len(seen) == 2,
    )
    assert stopped.stopped
    with locked(out):
        try:
            locked(out).__enter__()
        except ScaError as error:
            print(f"a second run is refused: {error}")
        else:
            raise AssertionError("a second run was let in")
    assert run(out).resumed_images == 2
    assert list(verify_dataset(out)) == []
    run(folder / "local")
    assert list(iter_rows(out)) == list(iter_rows(folder / "local"))
    print("stopped, resumed, whole, and the same rows as in a folder")
    plan = plan_sources([f"{sys.argv[1]}/images"])
    (batch,) = plan.batches()
    assert len(plan) == 4
    print(f"listed with {batch['etag'].count()} etags; read {read_image(batch['uri'][1]).size_hw}")
    for path in place.find():
        (any_path(f"{sys.argv[1].partition('://')[0]}://{path}")).unlink()


if __name__ == "__main__":
    main()
