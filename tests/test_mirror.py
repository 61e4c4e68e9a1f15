"""`tests/` mirrors the tree: a file has tests of its own name, or stands here beside others."""

from __future__ import annotations

from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

# Tests -> files that are tested there and have no tests of their own name. A new file gets its own.
TESTED_IN = {
    "checks/test_checks.py": [
        "checks/compare.py", "checks/generation.py", "checks/record.py", "checks/recordings.py",
        "checks/stages.py",
    ],
    "checks/test_training.py": [
        "train/captioning.py",
    ],
    "cli/test_caption.py": [
        "cli/datasets.py", "cli/doctor.py", "cli/draw.py", "reports/draw.py",
    ],
    "cli/test_manifest.py": [
        "cli/values.py", "manifests/check.py", "manifests/write.py", "plan/as_manifest.py",
    ],
    "cli/test_nightly.py": [
        "cli/progress.py", "cli/verify.py",
    ],
    "cli/test_options.py": [
        "options.py",
    ],
    "cli/test_signals.py": [
        "cli/stopping.py",
    ],
    "dataset/test_shards.py": [
        "dataset/schema.py", "storage/digests.py",
    ],
    "engines/test_command.py": [
        "checks/pictures.py", "cli/engine.py", "engines/int8.py", "engines/recipes.py",
    ],
    "engines/test_execution.py": [
        "captioners/sca.py", "captioners/settings.py", "engines/onnx.py",
    ],
    "engines/test_graphs.py": [
        "engines/openvino.py", "model/sca.py",
    ],
    "images/test_decode.py": [
        "images/pixels.py", "images/policy.py",
    ],
    "images/test_fetch.py": [
        "records.py",
    ],
    "job/test_caption.py": [
        "job/load.py", "job/sources.py",
    ],
    "job/test_domain.py": [
        "job/events.py",
    ],
    "job/test_drive.py": [
        "job/run.py", "job/worker.py", 
    ],
    "job/test_kill.py": [
        "faults.py",
    ],
    "job/test_store_output.py": [
        "dataset/verify.py", "storage/stores.py",
    ],
    "manifests/annotations/test_build.py": [
        "manifests/listing.py",
    ],
    "manifests/annotations/test_coco_instances.py": [
        "manifests/annotations/coco.py",
    ],
    "manifests/annotations/test_refcoco.py": [
        "manifests/annotations/refer_pickle.py", "manifests/annotations/sample.py",
    ],
    "manifests/test_read.py": [
        "manifests/formats.py", "manifests/row.py", "manifests/values.py",
    ],
    "model/test_checkpoint.py": [
        "model/config.py", "model/parts.py", "model/weight_files.py", "model/weight_names.py",
    ],
    "model/test_golden.py": [
        "model/mixer.py",
    ],
    "model/test_load.py": [
        "errors.py", "model/hub.py", "model/names.py",
    ],
    "pipeline/test_memory.py": [
        "pipeline/ahead.py", "pipeline/settings.py", "pipeline/waiting.py",
    ],
    "pipeline/test_pipeline.py": [
        "captioners/captioner.py", "regions/settings.py",
    ],
    "plan/test_run_plan.py": [
        "plan/plan.py",
    ],
    "plan/test_sources.py": [
        "plan/listings.py",
    ],
    "regions/test_automatic.py": [
        "regions/fused.py", "regions/proposal.py",
    ],
    "reports/test_stats.py": [
        "reports/gpt2.py", "reports/stats_picture.py", "reports/table4.py",
    ],
    "runners/test_local.py": [
        "runners/protocol.py", "runners/serve.py", "runners/slots.py", "runners/spawn.py",
    ],
    "sca_tiny/scenes/test_compose.py": [
        "sca_tiny/scenes/backgrounds.py", "sca_tiny/scenes/phrases.py",
        "sca_tiny/scenes/words.py",
    ],
    "sca_tiny/scenes/test_concept_table.py": [
        "sca_tiny/scenes/art.py", "sca_tiny/scenes/colours.py", "sca_tiny/scoring.py",
    ],
    "sca_tiny/test_command.py": [
        "sca_tiny/__main__.py", "sca_tiny/recipes.py",
    ],
    "sca_tiny/test_stages.py": [
        "model/pyramid.py", "model/sam.py", "sca_tiny/caption/task.py", "sca_tiny/domain.py",
        "sca_tiny/estimate.py", "sca_tiny/language/documents.py", "sca_tiny/language/task.py",
        "sca_tiny/reading/task.py", "sca_tiny/sam/batches.py", "sca_tiny/sam/calibration.py",
        "sca_tiny/sam/geometry.py", "sca_tiny/sam/imagenet.py", "sca_tiny/sam/initial.py",
        "sca_tiny/sam/losses.py", "sca_tiny/sam/task.py",
    ],
    "storage/test_disk_full.py": [
        "storage/atomic.py", "storage/spool.py",
    ],
    "test_docs.py": [
        "cli/reference.py",
    ],
    "train/test_bad_runs.py": [
        "train/state.py",
    ],
    "train/test_batches.py": [
        "train/task.py",
    ],
    "train/test_caption_task.py": [
        "train/recipes.py",
    ],
    "train/test_export.py": [
        "train/initial.py",
    ],
    "train/test_loop.py": [
        "train/optimization.py",
    ],
    "train/test_processes.py": [
        "train/sharding.py",
    ],
    "train/test_request.py": [
        "cli/train.py",
    ],
}  # fmt: skip


def _sources() -> list[str]:
    ours = [p.relative_to(ROOT / "sca_batch") for p in ROOT.glob("sca_batch/**/*.py")]
    makers = [p.relative_to(ROOT) for p in ROOT.glob("sca_tiny/**/*.py")]
    return sorted(str(path) for path in [*ours, *makers] if path.name != "__init__.py")


@pytest.mark.parametrize("source", _sources())
def test_a_file_has_tests_of_its_own_or_is_listed(source):
    path = Path(source)
    has_own = (ROOT / "tests" / path.parent / f"test_{path.stem}.py").exists()
    listed = [tests for tests, sources in TESTED_IN.items() if source in sources]
    assert has_own != bool(listed), "its own tests, or one entry in the table; not both"


@pytest.mark.parametrize("tests", sorted(TESTED_IN))
def test_the_table_names_what_is_there(tests):
    assert (ROOT / "tests" / tests).is_file()
    assert set(TESTED_IN[tests]) <= set(_sources())
