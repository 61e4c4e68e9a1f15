"""Plans on disk: names, side-cars, and which of them may be used here.

A plan is one graph of one model, built for one library version and one kind of device. The side-car
JSON beside it says what it is; all of it is compared before a plan is given to its library, since
plans are native code and say nothing useful themselves when they do not fit.
"""

from __future__ import annotations

import importlib
import json
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from uuid import uuid4

import torch

from sca_batch.engines.onnx import files_digest, onnx_files
from sca_batch.errors import install_hint

__all__ = [
    "BACKENDS", "RTX_CAPABILITIES", "Machine", "PlanFacts", "building_folder", "keep_plan",
    "read_plans", "refusal", "suffix_of", "tensorrt_flavour", "this_machine",
]  # fmt: skip

# Backend -> the module whose version a plan belongs to, and the extra that brings it. Those for a
# device stand in the order in which `--engine auto` prefers them.
BACKENDS = {
    "openvino": ("openvino", "cpu"),
    "onnx": ("onnxruntime", "cpu"),
    "tensorrt": ("tensorrt", "trt"),
    "tensorrt-rtx": ("tensorrt_rtx", "trt-rtx"),
}
# What ComputeCapability has in TensorRT-RTX 1.7; the standard flavour serves every GPU.
RTX_CAPABILITIES = ("sm75", "sm80", "sm86", "sm89", "sm120", "sm121")


@dataclass(frozen=True, slots=True)
class PlanFacts:
    """The side-car. Digests are SHA-256; `weights` is the model's `weights_digest`.

    `capabilities` are `cpu`, compute capabilities such as `sm90`, or nothing: any GPU that the
    library serves. `shapes` has least, usual and largest sizes of the open axes; `calibration` the
    number of images that int8 ranges are from, and the digest of their pixels. `error` is what
    the parity gate measured; where the plan could not be executed where it was built, its ONNX file
    was, and `executed` is false.
    """

    graph: str
    backend: str
    version: str
    precision: str
    weights: str
    graph_digest: str
    plan_digest: str
    plan_bytes: int
    capabilities: tuple[str, ...] = ("cpu",)
    keep_fp32: tuple[str, ...] = ()
    shapes: dict[str, list[list[int]]] = field(default_factory=dict)
    memory_bytes: int | None = None
    calibration: dict[str, int | str] = field(default_factory=dict)
    error: dict[str, float] = field(default_factory=dict)
    executed: bool = True
    model: str = ""

    @property
    def stem(self) -> str:
        """`encoder-1a2b3c4d-fp32-openvino2026.4.1-cpu`, and so for every plan."""
        where = "+".join(self.capabilities) or "any"
        return (
            f"{self.graph}-{self.weights[:8]}-{self.precision}-{self.backend}{self.version}-{where}"
        )

    @property
    def rebuild(self) -> str:
        """The command that builds this plan for the machine that it is typed on."""
        return (
            f"sca engine build --model {self.model or 'MODEL'} --backend {self.backend} "
            f"--precision {self.precision}"
        )


@dataclass(frozen=True, slots=True)
class Machine:
    """The side plans are compared with: `cpu` or a compute capability, and libraries' versions."""

    capability: str
    versions: dict[str, str | None]


def this_machine(device: torch.device, backends: Sequence[str] = tuple(BACKENDS)) -> Machine:
    """The device that the model is on, and which versions of the backends' libraries are here."""
    capability = "cpu"
    if device.type == "cuda":
        major, minor = torch.cuda.get_device_capability(device)
        capability = f"sm{major}{minor}"
    return Machine(capability, {name: _version(BACKENDS[name][0]) for name in backends})


def tensorrt_flavour(machine: Machine) -> str:
    """The backend that builds TensorRT plans for a machine's GPU, or anywhere where there is none.

    TensorRT-RTX where it serves the GPU; the standard flavour for the others (H100, H200, B200),
    and where it is the one that is installed.
    """
    if machine.capability == "cpu":
        return "tensorrt-rtx"
    served = machine.capability in RTX_CAPABILITIES
    only_standard = machine.versions["tensorrt-rtx"] is None and machine.versions["tensorrt"]
    return "tensorrt-rtx" if served and not only_standard else "tensorrt"


def suffix_of(backend: str) -> str:
    """CPU backends read ONNX files; TensorRT has plans of its own."""
    return ".onnx" if backend in ("onnx", "openvino") else ".plan"


def read_plans(folder: Path) -> list[tuple[Path, PlanFacts | str]]:
    """Every plan of a folder with its side-car, or with what is wrong with that."""
    files = [p for p in sorted(folder.glob("*")) if p.suffix in (".plan", ".onnx")]
    return [(path, _read_facts(path)) for path in files if not path.name.startswith(".")]


def refusal(
    path: Path,
    facts: PlanFacts | str,
    machine: Machine,
    *,
    weights: str | None = None,
    trusted: bool = False,
) -> str | None:
    """The reason why a plan may not be used here, with what to type next; None where it may.

    Nothing is deserialised. `trusted` accepts a plan whose bytes are not those of its side-car.
    """
    if isinstance(facts, str):
        return facts
    differing = []
    if weights is not None and facts.weights != weights:
        differing.append(f"weights are {facts.weights[:8]}, need {weights[:8]}")
    version = machine.versions.get(facts.backend)
    if version is None:
        module, extra = BACKENDS[facts.backend]
        return f"{path.name}: {module} is not installed. Install it: {install_hint(extra)}"
    if facts.version != version:
        differing.append(f"{facts.backend} is {facts.version}, need {version}")
    if facts.capabilities and machine.capability not in facts.capabilities:
        differing.append(f"built for {' and '.join(facts.capabilities)}, need {machine.capability}")
    elif not facts.capabilities and machine.capability == "cpu":
        differing.append("built for GPUs, need cpu")
    if differing:
        return f"{path.name}: {', '.join(differing)}. Rebuild it: {facts.rebuild}"
    num_bytes = sum(file.stat().st_size for file in onnx_files(path))
    if num_bytes != facts.plan_bytes:
        return (
            f"{path.name}: {num_bytes:,} bytes, need {facts.plan_bytes:,}: cut off or replaced. "
            f"Rebuild it: {facts.rebuild}"
        )
    if not trusted and files_digest(path) != facts.plan_digest:
        return (
            f"{path.name}: its bytes are not those that were built, and a plan is native code. "
            f"Rebuild it: {facts.rebuild}; or, knowing where it is from, --trust-engine"
        )
    return None


@contextmanager
def building_folder(folder: Path) -> Iterator[Path]:
    """A folder of its own beside the plans; what is not kept from it goes."""
    building = folder / f".building-{os.getpid()}-{uuid4().hex[:8]}"
    building.mkdir(parents=True)
    try:
        yield building
    finally:
        shutil.rmtree(building)


def keep_plan(built: Path, facts: PlanFacts, folder: Path) -> Path:
    """Moves a plan from its building folder among the plans, side-car last.

    A plan without a side-car is refused, so that none is ever taken for whole before it is.
    """
    path = folder / f"{facts.stem}{suffix_of(facts.backend)}"
    side_car = path.with_name(f"{path.name}.json")
    side_car.unlink(missing_ok=True)
    for compiled in folder.glob(f"{path.name}.*.cache"):  # by TensorRT-RTX, from the plan before
        compiled.unlink()
    for file in onnx_files(built):
        file.replace(path.with_name(path.name + file.name.removeprefix(built.name)))
    writing = built.parent / "side-car.json"
    with writing.open("w", encoding="utf-8") as opened:
        json.dump(asdict(facts), opened, indent=2)
        opened.write("\n")
        opened.flush()
        os.fsync(opened.fileno())
    writing.replace(side_car)
    return path


def _read_facts(path: Path) -> PlanFacts | str:
    side_car = path.with_name(f"{path.name}.json")
    if not side_car.is_file():
        return (
            f"{path.name}: no {side_car.name} beside it, so it was not built by sca engine build, "
            "or not to its end. Remove it"
        )
    try:
        raw = json.loads(side_car.read_text(encoding="utf-8"))
        known = {item.name for item in fields(PlanFacts)}
        raw |= {key: tuple(raw[key]) for key in ("capabilities", "keep_fp32") if key in raw}
        facts = PlanFacts(**{key: value for key, value in raw.items() if key in known})
        if facts.backend not in BACKENDS or not isinstance(facts.plan_bytes, int):
            raise ValueError(facts.backend)
    except (ValueError, TypeError, AttributeError) as error:
        return f"{side_car.name} is no side-car of a plan ({error}). Remove both, and build again"
    return facts


def _version(module: str) -> str | None:
    try:
        found = importlib.import_module(module)
    except (ImportError, OSError):
        return None
    # OpenVINO's has its build number behind a dash.
    return str(found.__version__).split("-")[0]
