"""`sca doctor`: what this machine has, and what to install for what is missing."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import os
import platform
import shutil
from typing import Any

import click

from sca_batch.errors import ScaError

# package -> what it is for, and how to get it; None where nothing needs it to run.
PACKAGES = {
    "torch": "runs the model",
    "torchvision": "non-maximum suppression of masks",
    "transformers": "SAM's and the language models' modules",
    "segment-anything": "the grid and filters of automatic mask generation",
    "pycocotools": "COCO run-length masks",
    "polars": "datasets and manifests",
    "pyarrow": "Parquet shards",
    "opencv-python-headless": "small-region removal, outlines in pictures",
}
# Distribution -> the backend of `sca engine build` that it is, and the extra that brings it.
ENGINES = {
    "openvino": ("openvino", "cpu"),
    "onnxruntime": ("onnx", "cpu"),
    "tensorrt-rtx-cu13": ("tensorrt-rtx", "trt-rtx"),
    "tensorrt-cu13": ("tensorrt", "trt"),
}


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of text.")
def doctor(as_json: bool) -> None:
    """Report devices, packages and the bundled model, and what to do about what is missing.

    Exits with 1 when something that captioning needs is missing.
    """
    report = examine()
    if as_json:
        click.echo(json.dumps(report, indent=2))
    else:
        for line in as_text(report):
            click.echo(line)
    raise SystemExit(1 if report["problems"] else 0)


def examine() -> dict[str, Any]:
    """Everything that is reported, as plain values."""
    from sca_batch import __version__

    packages: dict[str, str | None] = {}
    problems: list[str] = []
    for name, purpose in PACKAGES.items():
        packages[name] = _version(name)
        if packages[name] is None:
            problems.append(f"{name} is missing ({purpose}): pip install {name}")
    engines = {backend: _version(name) for name, (backend, _) in ENGINES.items()}
    devices, device_problems = _devices() if packages["torch"] else ([], [])
    bundled, model_problems = _bundled_model()
    free = shutil.disk_usage(".").free
    return {
        "sca": __version__,
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "cpus": len(os.sched_getaffinity(0))
        if hasattr(os, "sched_getaffinity")
        else os.cpu_count(),
        "free_disk_gb": round(free / 1e9, 1),
        "devices": devices,
        "packages": packages,
        "engines": engines,
        "bundled_model": bundled,
        "problems": problems + device_problems + model_problems,
    }


def as_text(report: dict[str, Any]) -> list[str]:
    """The report for a reader, the verdict last."""
    lines = [
        f"sca {report['sca']}, Python {report['python']}, {report['system']}, "
        f"{report['cpus']} CPUs, {report['free_disk_gb']:,} GB free here",
        "",
        "Devices (choose with --device)",
        *(f"  {device}" for device in report["devices"]),
        "",
        "Packages",
    ]
    for name, version in report["packages"].items():
        lines.append(f"  {name:24} {version or 'MISSING':12} {PACKAGES[name]}")
    lines += ["", "Engines, none of which is needed (sca engine build)"]
    for backend, extra in ENGINES.values():
        version = report["engines"][backend]
        missing = f"not here: pip install 'sca[{extra}]'"
        lines.append(f"  {backend:24} {version or missing}")
    lines += ["", f"Bundled model: {report['bundled_model']}", ""]
    if report["problems"]:
        lines += [f"Problem: {problem}" for problem in report["problems"]]
    else:
        lines.append("Ready: sca caption ./images")
    return lines


def _version(distribution: str) -> str | None:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def _devices() -> tuple[list[str], list[str]]:
    try:
        import torch
    except (ImportError, OSError) as error:
        return [], [
            f"torch is installed but does not load ({error}): pip install --force-reinstall torch"
        ]
    found = [f"cpu: {torch.get_num_threads()} threads"]
    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            properties = torch.cuda.get_device_properties(index)
            found.append(
                f"cuda:{index}: {properties.name}, {properties.total_memory / 2**30:.0f} GiB, "
                f"compute capability {properties.major}.{properties.minor}"
            )
    elif torch.version.cuda:
        found.append(f"no CUDA device is visible (torch is built for CUDA {torch.version.cuda})")
    try:
        import torchvision.ops  # noqa: F401
    except (ImportError, RuntimeError) as error:
        return found, [
            f"torchvision does not fit torch {torch.__version__} ({error}): "
            "pip install --upgrade torch torchvision"
        ]
    return found, []


def _bundled_model() -> tuple[str, list[str]]:
    from sca_batch.model.names import bundled_folder

    try:
        weights = bundled_folder("sca-tiny") / "model.safetensors"
        return f"sca-tiny, {weights.stat().st_size / 1e6:.1f} MB", []
    except (ScaError, OSError) as error:
        return "missing", [str(error)]
