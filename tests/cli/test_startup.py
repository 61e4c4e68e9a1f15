"""Commands that need no model do not wait for the libraries that run one."""

import subprocess
import sys
from pathlib import Path

import pytest

import sca_batch

ROOT = Path(__file__).parents[2]
SLOW = ["torch", "torchvision", "transformers"]
RUN = f"""
import atexit, sys
atexit.register(lambda: print("loaded", sorted(set({SLOW}) & set(sys.modules)), file=sys.stderr))
from sca_batch.cli import main
main(sys.argv[1:])
"""


def started(*arguments, code=0):
    """What a command says, once it is known to have loaded nothing slow."""
    done = subprocess.run(
        [sys.executable, "-c", RUN, *map(str, arguments)], capture_output=True, text=True, cwd=ROOT
    )
    assert done.returncode == code, done.stderr
    assert done.stderr.splitlines()[-1] == "loaded []"
    return done.stdout + done.stderr


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        pytest.param(["--help"], 0, "Find every region", id="help"),
        pytest.param(["caption", "--help"], 0, "--points-per-side", id="help of caption"),
        pytest.param(["engine", "build", "--help"], 0, "--recipe", id="help of engine build"),
        pytest.param(["model", "list"], 0, "sca-tiny", id="model list"),
        pytest.param(["model", "info", "sca-tiny"], 0, "caption heads", id="model info"),
        pytest.param(["model", "info", "sca-tinny"], 2, "Did you mean sca-tiny", id="no model"),
        pytest.param(["manifest", "check", "manifests/sample.jsonl"], 0, "", id="manifest check"),
        pytest.param(["stats", "manifests/sample-regions.jsonl"], 0, "regions", id="stats"),
        pytest.param(["verify", "nowhere"], 2, "does not exist", id="a wrong path"),
        pytest.param(["completion", "fish"], 0, "_SCA_COMPLETE", id="completion"),
    ],
)
def test_a_command_without_a_model_loads_nothing_slow(arguments, code, said):
    assert said in started(*arguments, code=code)


def test_doctor_looks_at_torch_in_a_process_of_its_own():
    from sca_batch.cli.doctor import examine

    assert "cpu: " in started("doctor", code=1 if examine().problems else 0)


def test_what_a_run_left_is_read_without_the_slow_libraries(shapes_images, tmp_path):
    out = tmp_path / "dataset"
    request = sca_batch.CaptionRequest.of(
        str(shapes_images), output=str(out), points_per_side=4, workers=0
    )
    assert sca_batch.caption_corpus(request).exit_code == 0
    assert "all is well" in started("verify", out)
    assert "Wrote" in started("draw", out, "shapes-1.png", "-o", tmp_path / "picture.png")
    assert "samples" in started("stats", out)
