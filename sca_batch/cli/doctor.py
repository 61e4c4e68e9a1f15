"""`sca doctor`: what this machine has, and what to install for what is missing."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import os
import platform
import shutil
import subprocess
import sys
from dataclasses import asdict, dataclass

import click

from sca_batch.errors import ScaError, install_hint

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
    """Report devices, packages and the bundled model, and how to get what is missing.

    Exits with 1 when something that captioning needs is missing.
    """
    report = examine()
    if as_json:
        click.echo(json.dumps(asdict(report), indent=2))
    else:
        for line in as_text(report):
            click.echo(line)
    raise SystemExit(1 if report.problems else 0)


@dataclass(frozen=True, kw_only=True)
class Report:
    """Everything that is reported; versions are None where a package is missing."""

    sca: str
    python: str
    system: str
    cpus: int | None
    free_disk_gb: float
    devices: list[str]
    packages: dict[str, str | None]
    engines: dict[str, str | None]
    bundled_model: str
    problems: list[str]


def examine() -> Report:
    """The state of this machine. torch is looked at in a process of its own."""
    from sca_batch import __version__

    packages = {name: _version(name) for name in PACKAGES}
    problems = [
        f"{name} is missing ({purpose}): pip install {name}"
        for name, purpose in PACKAGES.items()
        if packages[name] is None
    ]
    devices, device_problems = _devices_apart() if packages["torch"] else ([], [])
    bundled, model_problems = _bundled_model()
    return Report(
        sca=__version__,
        python=platform.python_version(),
        system=f"{platform.system()} {platform.machine()}",
        cpus=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        free_disk_gb=round(shutil.disk_usage(".").free / 1e9, 1),
        devices=devices,
        packages=packages,
        engines={backend: _version(name) for name, (backend, _) in ENGINES.items()},
        bundled_model=bundled,
        problems=problems + device_problems + model_problems,
    )


def as_text(report: Report) -> list[str]:
    """The report for a reader, the verdict last."""
    lines = [
        f"sca {report.sca}, Python {report.python}, {report.system}, "
        f"{report.cpus} CPUs, {report.free_disk_gb:,} GB free here",
        "",
        "Devices (choose with --device)",
        *(f"  {device}" for device in report.devices),
        "",
        "Packages",
    ]
    for name, version in report.packages.items():
        lines.append(f"  {name:24} {version or 'MISSING':12} {PACKAGES[name]}")
    lines += ["", "Engines, none of which is needed (sca engine build)"]
    for backend, extra in ENGINES.values():
        version = report.engines[backend]
        lines.append(f"  {backend:24} {version or f'not here: {install_hint(extra)}'}")
    lines += ["", f"Bundled model: {report.bundled_model}", ""]
    problems = [f"Problem: {problem}" for problem in report.problems]
    return lines + (problems or ["Ready: sca caption ./images"])


def _devices_apart() -> tuple[list[str], list[str]]:
    """The result of `devices` in a process of its own: a torch that crashes must not end this one.

    Nor does the report's own process load torch, which takes seconds and much memory.
    """
    code = f"import json; from {__name__} import devices; print(json.dumps(devices()))"
    done = subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    if done.returncode:
        return [], [
            f"torch is installed but does not load (exit code {done.returncode}): "
            "pip install --force-reinstall torch"
        ]
    found, problems = json.loads(done.stdout.splitlines()[-1])
    return found, problems


def _version(distribution: str) -> str | None:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def devices() -> tuple[list[str], list[str]]:
    """Devices that torch finds here, and what is wrong with it."""
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
