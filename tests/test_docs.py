"""The documents say what the program does."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from sca_batch.cli import COMMANDS

ROOT = Path(__file__).parents[1]


def test_the_command_reference_is_what_the_commands_say():
    # A process of its own: click keeps the help option that a command was first asked with.
    command = [sys.executable, "-m", "sca_batch.cli.reference"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT)
    assert (ROOT / "docs/CLI.md").read_text(encoding="utf-8") == done.stdout, (
        "python -m sca_batch.cli.reference > docs/CLI.md"
    )


DOCUMENTS = [
    "README.md",
    "docs/DATASETS.md",
    "docs/FORMAT.md",
    "docs/NIGHTLY.md",
    "docs/PYTHON.md",
    "docs/TRAINING.md",
    "manifests/README.md",
]


@pytest.mark.parametrize("document", DOCUMENTS)
def test_every_command_in_the_documents_exists(document):
    text = (ROOT / document).read_text(encoding="utf-8")
    named = set(re.findall(r"^\s*(?:\$ )?(?:\S*/bin/)?sca ([a-z]+)", text, re.M))
    assert named <= set(COMMANDS), named - set(COMMANDS)


def test_the_examples_of_the_python_page_run_one_after_the_other(tmp_path):
    """In one process, as a reader would: the first makes the dataset that the last one reads."""
    text = (ROOT / "docs/PYTHON.md").read_text(encoding="utf-8")
    (tmp_path / "manifests").symlink_to(ROOT / "manifests")
    script = tmp_path / "page.py"
    script.write_text("\n".join(re.findall(r"```python\n(.*?)```", text, re.S)))
    command = [sys.executable, str(script)]
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0] == "0 3 18"
    assert any(line.startswith("[###] ") for line in lines)  # the listener's own bar, at its end
    assert any(line.startswith("shape: (3, 3)") for line in lines)


def test_every_file_that_the_readme_names_is_there():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)#:]+)\)", text):
        assert (ROOT / target).exists(), target


def test_help_answers_without_the_slow_libraries():
    code = (
        "import sys\nfrom sca_batch.cli import cli\n"
        "try:\n    cli.main(['--help'], standalone_mode=False)\nfinally:\n"
        "    slow = {'torch', 'transformers', 'polars', 'pyarrow', 'numpy'} & set(sys.modules)\n"
        "    print('slow:', sorted(slow))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT
    )
    assert "Find the regions of every image" in done.stdout
    assert "slow: []" in done.stdout


def test_the_entry_script_is_the_command():
    run = [sys.executable, "sca.py", "--version"]
    done = subprocess.run(run, capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.startswith("sca, version ")
