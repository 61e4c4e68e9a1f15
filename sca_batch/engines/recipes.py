"""Recipes of plans: the TOML files of `engines/`, and single values that replace theirs."""

from __future__ import annotations

import tomllib
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from sca_batch.engines.graphs import GRAPHS
from sca_batch.engines.plans import BACKENDS, Machine, tensorrt_flavour
from sca_batch.errors import ScaError
from sca_batch.overrides import with_settings

__all__ = ["PRECISIONS", "Recipe", "read_recipe", "recipe_names"]

PRECISIONS = {
    "openvino": ("fp32", "bf16", "int8"),
    "onnx": ("fp32", "fp16", "int8"),
    "tensorrt": ("fp32", "fp16", "bf16"),
    "tensorrt-rtx": ("fp32", "fp16", "bf16"),
}
# What may stand for a backend until the device is known.
_LATER = {"auto": ("fp32", "fp16", "bf16", "int8"), "gpu": PRECISIONS["tensorrt"]}


@dataclass(frozen=True, slots=True)
class Recipe:
    """Everything a plan depends on beside the model. Sizes are least, usual and most.

    The backend `gpu` is TensorRT in the flavour for the GPU that is here, and TensorRT-RTX where
    there is none; `auto` is OpenVINO on a CPU and the same as `gpu` elsewhere. No `graphs` means
    all that the precision has.

    Sizes and capabilities are TensorRT's; ONNX Runtime and OpenVINO take any size. `tolerance`
    replaces the graphs' own limits on the relative error. Without `capabilities`
    TensorRT-RTX builds for every GPU that it serves by default.

    Raises:
        ScaError: for a value that makes no sense, with what was expected.
    """

    backend: str = "auto"
    precision: str = "fp32"
    graphs: tuple[str, ...] = ()
    keep_fp32: tuple[str, ...] = ()
    tolerance: float | None = None
    images: tuple[int, ...] = (1, 1, 4)
    regions: tuple[int, ...] = (1, 64, 64)
    prompt_tokens: tuple[int, ...] = (2, 2, 4)
    capabilities: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        allowed = {**_LATER, **PRECISIONS}.get(self.backend)
        if allowed is None:
            raise ScaError(
                f"backend {self.backend!r}: expected one of {', '.join([*_LATER, *BACKENDS])}"
            )
        if self.precision not in allowed:
            raise ScaError(
                f"precision {self.precision!r} with backend {self.backend}: expected "
                f"{' or '.join(allowed)}"
            )
        unknown = [graph for graph in self.graphs if graph not in GRAPHS]
        if unknown:
            raise ScaError(f"graphs {list(self.graphs)}: expected some of {', '.join(GRAPHS)}")
        exact = [graph for graph in self.graphs if self.precision not in GRAPHS[graph].tolerance]
        if exact:
            raise ScaError(
                f"precision {self.precision!r} is for the encoder, not for {', '.join(exact)}: add "
                "--set graphs=encoder"
            )
        for name in ("images", "regions", "prompt_tokens"):
            sizes = getattr(self, name)
            whole = all(isinstance(n, int) and n > 0 for n in sizes)
            if len(sizes) != 3 or not whole or list(sizes) != sorted(sizes):
                raise ScaError(f"{name} {list(sizes)}: expected least, usual and most, [1, 4, 8]")
        if self.keep_fp32 and (
            self.precision not in ("fp16", "bf16") or self.backend == "openvino"
        ):
            raise ScaError(
                f"keep_fp32 with precision {self.precision}: it belongs to fp16 and TensorRT's bf16"
            )

    @property
    def parts(self) -> tuple[str, ...]:
        """The graphs to build."""
        every = tuple(name for name, facts in GRAPHS.items() if self.precision in facts.tolerance)
        return self.graphs or every

    @property
    def exported_precision(self) -> str:
        """That of the ONNX file: OpenVINO runs a float32 one in bf16, and int8 is made from one."""
        is_float32 = self.precision == "int8" or self.backend == "openvino"
        return "fp32" if is_float32 else self.precision

    def on(self, machine: Machine) -> Recipe:
        """The recipe with the backend that a machine has.

        Raises:
            ScaError: where that has no such precision.
        """
        if self.backend == "auto" and machine.capability == "cpu":
            return replace(self, backend="openvino")
        if self.backend in _LATER:
            return replace(self, backend=tensorrt_flavour(machine))
        return self


def recipe_names() -> list[str]:
    """The recipes that come with this package."""
    return sorted(path.stem for path in _folder().glob("*.toml"))


def read_recipe(name_or_path: str | None, overrides: Sequence[str] = ()) -> Recipe:
    """A recipe by name or file, or the default one, with values replaced: `regions=1,32,64`.

    Raises:
        ScaError: for a recipe that is not there or makes no sense.
    """
    recipe = Recipe() if name_or_path is None else _read(name_or_path)
    return with_settings(recipe, overrides)


def _read(name_or_path: str) -> Recipe:
    path = Path(name_or_path)
    if path.suffix != ".toml":
        path = _folder() / f"{name_or_path}.toml"
    if not path.is_file():
        raise ScaError(
            f"no recipe {name_or_path!r}: expected a .toml file or one of "
            f"{', '.join(recipe_names())}"
        )
    try:
        raw = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ScaError(f"{path}: not TOML: {error}") from None
    unknown = sorted(raw.keys() - _FIELDS)
    if unknown:
        raise ScaError(f"{path}: unknown {unknown[0]!r}; expected {', '.join(sorted(_FIELDS))}")
    given: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in raw.items()}
    return Recipe(**given)


_FIELDS = {field.name for field in fields(Recipe)}


def _folder() -> Path:
    package = Path(__file__).parents[1]
    shipped = package / "assets/engines"
    return shipped if shipped.is_dir() else package.parent / "engines"
