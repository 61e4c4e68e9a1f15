"""Completion scripts, read by the shell that they are for."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from sca_batch.cli import cli

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_each_shell_has_a_script(shell):
    result = CliRunner().invoke(cli, ["completion", shell], prog_name="sca")
    assert result.exit_code == 0
    assert f"_SCA_COMPLETE={shell}_complete" in result.stdout


@pytest.mark.skipif(shutil.which("bash") is None, reason="apt install bash")
def test_bash_offers_commands_and_options(tmp_path):
    (tmp_path / "sca").write_text(f'#!/bin/sh\nexec {sys.executable} {ROOT / "sca.py"} "$@"\n')
    (tmp_path / "sca").chmod(0o755)
    script = """
        eval "$(sca completion bash)"
        complete -p sca
        for words in "sca ver" "sca completion z" "sca draw --max"; do
            COMP_WORDS=($words) COMP_CWORD=$(($(wc -w <<< "$words") - 1)) COMPREPLY=()
            _sca_completion sca
            echo "${COMPREPLY[@]}"
        done
    """
    done = subprocess.run(
        ["bash", "-c", script],
        capture_output=True,
        text=True,
        check=True,
        cwd=ROOT,
        env={"PATH": f"{tmp_path}:/usr/bin:/bin", "PYTHONPATH": str(ROOT)},
    )
    lines = done.stdout.splitlines()
    assert lines[0].endswith("-F _sca_completion sca")
    assert lines[1:] == ["verify", "zsh", "--max-regions"]
