"""The import table of docs/ARCHITECTURE.md, enforced."""

from __future__ import annotations

import ast
import graphlib
import re
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "sca_batch"

CORE = {"errors", "records", "boxes"}
# room -> what it may import from the house, and which third-party packages it may touch.
# Every room may import `errors`, `options`, `faults`, numpy and the standard library.
HOUSE: dict[str, set[str]] = {
    "errors": set(),
    "records": {"boxes"},
    "boxes": {"records"},
    "faults": set(),
    "overrides": set(),
    "storage": {"records"},
    "images": {"records", "boxes", "storage"},
    "model": {"boxes", "records"},
    "engines": {"model", "overrides"},
    "regions": {"records", "boxes", "images", "model"},
    "captioners": {"records", "boxes", "images", "model", "regions"},
    "pipeline": {"records", "boxes", "images", "model", "regions", "captioners"},
    "manifests": {"records", "boxes", "storage", "images"},
    "plan": {"records", "boxes", "storage", "images", "manifests"},
    "dataset": {"records", "boxes", "storage", "manifests", "plan"},
    "runners": set(),
    "job": {
        "records", "images", "model", "engines", "regions", "captioners", "pipeline", "storage",
        "manifests", "plan", "dataset", "runners",
    },
    "reports": {"records", "boxes", "images", "storage", "manifests", "dataset"},
    "train": {
        "records", "boxes", "images", "model", "storage", "manifests", "regions", "overrides",
    },
    "checks": {
        "records", "boxes", "images", "model", "regions", "captioners", "pipeline", "storage",
        "manifests", "plan", "train", "engines",
    },
    "api": {"records", "boxes", "images", "model", "regions", "captioners", "pipeline", "job"},
    "cli": {"*"},
    "options": set(),
    "": {"*"},
}  # fmt: skip
OUTSIDE: dict[str, set[str]] = {
    "errors": set(),
    "records": set(),
    "boxes": {"pycocotools"},
    "faults": set(),
    "overrides": set(),
    "storage": {"fsspec", "polars", "pyarrow"},
    "images": {"PIL", "pillow_heif"},
    "model": {
        "torch", "transformers", "timm", "safetensors", "huggingface_hub", "tokenizers",
        "sentencepiece",
    },
    "engines": {"torch", "transformers"},
    "regions": {"torch", "torchvision", "segment_anything", "cv2", "pycocotools"},
    "captioners": {"torch", "transformers"},
    "pipeline": {"torch"},
    "manifests": {"polars", "pyarrow", "pycocotools"},
    "plan": {"polars", "pyarrow"},
    "dataset": {"pyarrow"},
    "runners": set(),
    "job": {"torch", "transformers", "polars", "prometheus_client"},
    "reports": {"polars", "PIL", "matplotlib", "cv2", "tokenizers", "huggingface_hub"},
    "train": {
        "torch", "transformers", "tokenizers", "safetensors", "accelerate", "matplotlib",
        "pycocoevalcap", "wandb", "cv2", "PIL",
    },
    "checks": {"torch", "safetensors"},
    "api": {"PIL", "torch"},
    "cli": {"click", "tqdm", "torch", "torchvision", "transformers", "PIL"},
    "options": set(),
    "": set(),
}  # fmt: skip
# sca_tiny: room -> what it may import of its own package. Of sca_batch it may import all but the
# command line, of which its own command shares some.
TINY: dict[str, set[str]] = {
    "scenes": set(),
    "recipes": set(),
    "scoring": {"scenes"},
    "domain": {"scenes"},
    "language": {"recipes", "scenes"},
    "sam": {"recipes", "scenes", "scoring"},
    "reading": {"recipes", "scenes", "scoring", "sam", "language"},
    "caption": {"recipes", "scenes", "scoring", "sam", "domain"},
    "estimate": {"recipes", "language", "sam"},
    "stages": {"recipes", "scenes", "language", "sam", "reading", "caption"},
    "__main__": {"recipes", "estimate", "scenes", "stages"},
    "__init__": set(),
}
# Libraries that take seconds to load; asking for help must not wait for them.
SLOW = {"torch", "transformers", "polars", "pyarrow", "segment_anything", "torchvision"}

# What options are made from, and what listeners hear: dataclasses that load nothing slow.
TOLD_IN_HELP = {
    "sca_batch.job", "sca_batch.job.events", "sca_batch.job.request", "sca_batch.manifests.request",
    "sca_batch.train.request",
}  # fmt: skip

FILES = sorted(PACKAGE.rglob("*.py"))
# Ratchets: they may be lowered. Lines with `Any` outside of imports are of the whole package.
LONGEST_FUNCTION, LONGEST_FILE, MOST_PARAMETERS, LINES_WITH_ANY = 80, 500, 10, 15


def imports_of(path: Path) -> set[tuple[str, bool]]:
    """(module, whether at module level outside TYPE_CHECKING) of every import."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    found: set[tuple[str, bool]] = set()

    def visit(node: ast.AST, top: bool) -> None:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.Import):
                found.update((alias.name, top) for alias in child.names)
            elif isinstance(child, ast.ImportFrom):
                assert child.level == 0, f"{path}: relative import"
                if child.module == "sca_batch":
                    found.update((f"sca_batch.{alias.name}", top) for alias in child.names)
                else:
                    found.add((child.module or "", top))
            nested = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
            checking = isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test)
            visit(child, top and not nested and not checking)

    visit(tree, True)
    return found


def room_of(path: Path) -> str:
    first = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    return "" if first == "__init__" else first


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_a_room_imports_only_what_its_row_lists(path):
    import sys

    room = room_of(path)
    assert room in HOUSE, f"{path} is a room that the table does not know"
    for module, _ in imports_of(path):
        parts = module.split(".")
        if parts[0] == "sca_batch":
            target = parts[1] if len(parts) > 1 else ""
            known = (PACKAGE / target).is_dir() or (PACKAGE / f"{target}.py").exists()
            if (
                not target
                or not known
                or target in {room, "errors", "options", "faults"}
                or "*" in HOUSE[room]
            ):
                continue
            assert target in HOUSE[room], f"{room} may not import {target}"
        elif parts[0] not in sys.stdlib_module_names and parts[0] != "numpy":
            assert parts[0] in OUTSIDE[room], f"{room} may not touch {parts[0]}"


@pytest.mark.parametrize(
    "path", [p for p in FILES if room_of(p) in {"cli", ""}], ids=lambda p: p.name
)
def test_the_command_line_loads_nothing_slow_before_it_is_needed(path):
    for module, top in imports_of(path):
        if top:
            assert module.split(".")[0] not in SLOW
            assert not module.startswith("sca_batch.") or (
                module.split(".")[1] in {"errors", "cli", "options", "__version__"}
                or module in TOLD_IN_HELP
            ), f"{path.name} imports {module} at module level"


@pytest.mark.parametrize(
    "path", [p for p in FILES if room_of(p) != "cli"], ids=lambda p: str(p.relative_to(PACKAGE))
)
def test_only_the_command_line_prints_or_exits(path):
    tree = ast.parse(path.read_text(encoding="utf-8"))
    calls = {ast.unparse(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call)}
    assert not calls & {"print", "sys.exit", "exit", "input"}


def module_name(path: Path) -> str:
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts).removesuffix(".__init__")


def test_no_two_files_import_each_other():
    """Imports inside functions and under TYPE_CHECKING count too."""
    modules = {module_name(path): path for path in FILES}
    edges: dict[str, set[str]] = {}
    for name, path in modules.items():
        found: set[str] = set()
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and node.module:
                found.update(f"{node.module}.{alias.name}" for alias in node.names)
                found.add(node.module)
            elif isinstance(node, ast.Import):
                found.update(alias.name for alias in node.names)
        # A package and what is in it are one place.
        edges[name] = {
            other
            for other in found & modules.keys()
            if other != name
            and not name.startswith(f"{other}.")
            and not other.startswith(f"{name}.")
        }
    sorter = graphlib.TopologicalSorter(edges)
    try:
        sorter.prepare()
    except graphlib.CycleError as error:
        pytest.fail(" -> ".join(error.args[1]))


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_files_and_functions_stay_small(path):
    source = path.read_text(encoding="utf-8")
    assert source.count("\n") <= LONGEST_FILE
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            length = node.end_lineno - node.lineno + 1
            assert length <= LONGEST_FUNCTION, f"{node.name}: {length} lines"
            arguments = len(node.args.args) + len(node.args.kwonlyargs)
            assert arguments <= MOST_PARAMETERS, f"{node.name}: {arguments} parameters"


def test_the_house_stays_typed():
    lines = [line for path in FILES for line in path.read_text(encoding="utf-8").splitlines()]
    untyped = [line for line in lines if re.search(r"\bAny\b", line) and "import" not in line]
    assert len(untyped) <= LINES_WITH_ANY


def test_the_product_does_not_know_who_makes_its_bundled_model():
    for path in FILES:
        for module, _ in imports_of(path):
            assert module.split(".")[0] != "sca_tiny", path


TINY_PACKAGE = PACKAGE.parent / "sca_tiny"


@pytest.mark.parametrize(
    "path", sorted(TINY_PACKAGE.rglob("*.py")), ids=lambda p: str(p.relative_to(TINY_PACKAGE))
)
def test_the_maker_of_the_bundled_model_keeps_to_its_table(path):
    room = path.relative_to(TINY_PACKAGE).parts[0].removesuffix(".py")
    for module, _ in imports_of(path):
        package, _, rest = module.partition(".")
        first = rest.partition(".")[0]
        if package == "sca_tiny":
            assert first in TINY[room] | {room}, f"{room} may not import {module}"
        if package == "sca_batch" and first == "cli":
            assert room == "__main__", f"{room} may not import {module}"


def test_a_run_is_opened_by_one_function():
    """Tests and benchmarks walk the product's road: who wants a run asks `caption_corpus`."""
    callers = set()
    root = PACKAGE.parent
    for path in [*FILES, *root.glob("benchmarks/*.py"), *root.glob("tests/**/*.py")]:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and ast.unparse(node.func).endswith("open_run"):
                callers.add(str(path.relative_to(root)))
    assert callers == {"sca_batch/job/caption.py"}
