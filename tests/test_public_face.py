"""The names that other people's code may use; another one, or one less, is a decision."""

from __future__ import annotations

import dataclasses
import sys

import sca_batch
from sca_batch.job import events
from sca_batch.job.request import CaptionRequest


def test_the_package_has_these_names_and_no_others():
    assert sorted(sca_batch.__all__) == [
        "CaptionRequest", "Outcome", "__version__", "caption", "caption_corpus", "caption_images",
        "events", "load_model",
    ]  # fmt: skip
    assert all(getattr(sca_batch, name) is not None for name in sca_batch.__all__)
    assert set(dir(sca_batch)) >= set(sca_batch.__all__)  # what completion shows


def test_a_request_has_these_fields():
    parts = {
        field.name: [
            inner.name for inner in dataclasses.fields(getattr(CaptionRequest(), field.name))
        ]
        for field in dataclasses.fields(CaptionRequest)
        if dataclasses.is_dataclass(getattr(CaptionRequest(), field.name))
    }
    assert parts == {
        "source": ["names", "box_format", "limit", "read"],
        "model": [
            "model", "device", "dtype", "engine", "int8", "engine_dir", "trust_engine", "plans",
        ],
        "regions": ["source", "limits", "min_caption_score", "automatic"],
        "captions": ["task", "prompt", "num_beams", "max_new_tokens", "captions_per_region"],
        "output": ["output", "formats"],
        "running": [
            "workers", "image_timeout", "shard_timeout", "time_limit", "commit_every",
            "max_failures", "metrics_file", "start_method",
        ],
        "existing": ["update", "verify_content", "accept_vanished", "retry_failed", "overwrite"],
        "batching": ["shard_size", "encoder_batch", "caption_batch", "mask_memory"],
    }  # fmt: skip


def test_a_listener_hears_these_events():
    told = {
        name: [field.name for field in dataclasses.fields(kind)]
        for name, kind in vars(events).items()
        if dataclasses.is_dataclass(kind)
    }
    assert told == {
        "SourcesUnlisted": ["error"],
        "EngineChosen": ["engine", "why"],
        "SourcesChanged": ["new", "changed", "gone", "back", "unchanged", "followed", "unreadable"],
        "RetryingFailed": ["images"],
        "Planned": ["images"],
        "Resumed": ["images"],
        "ImageDone": ["shard", "key", "status", "regions", "error_code", "error", "logprob"],
        "OutsideDomain": [
            "key", "model", "domain", "logprob", "least_logprob", "share_above", "elsewhere",
        ],
        "StoppingSoon": [],
        "ShardLost": ["shard", "error", "is_bug"],
        "Exporting": [],
        "Finished": ["complete"],
    }  # fmt: skip


def test_a_request_is_made_without_the_slow_libraries():
    import subprocess

    code = (
        "import sys, sca_batch\n"
        "sca_batch.CaptionRequest.of('images', output='out')\n"
        "sca_batch.caption_corpus\n"
        "print(sorted({'torch', 'torchvision', 'transformers'} & set(sys.modules)))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
