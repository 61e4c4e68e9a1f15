"""Texts on installing: `sca` on PyPI is somebody else's package."""

import re
from pathlib import Path

import pytest

from sca_batch.errors import MissingPackageError, install_hint, optional_package

ROOT = Path(__file__).parents[1]
TEXTS = [
    path
    for pattern in ("*", ".ci/*", "sca_batch/**/*", "sca_tiny/**/*", "tests/**/*", "docs/*",
                    "benchmarks/*", "engines/*", "manifests/*")
    for path in ROOT.glob(pattern)
    if path.is_file() and path.suffix in ("", ".py", ".md", ".toml", ".sh", ".txt")
]  # fmt: skip


def test_no_text_tells_anybody_to_install_the_package_that_is_called_sca():
    assert len(TEXTS) > 200
    for path in TEXTS:
        text = path.read_text(encoding="utf-8", errors="replace")
        assert not re.search(r"sca\\?\[[a-z0-9]+(-[a-z]+)?\\?\]|pip install '?sca\b", text), path


def test_the_distribution_has_a_name_of_its_own_and_every_extra_that_is_named():
    setup = (ROOT / "setup.py").read_text(encoding="utf-8")
    assert 'name="sca-batch"' in setup
    assert '"sca = sca_batch.cli:main"' in setup
    named = {
        extra
        for path in TEXTS
        for extra in re.findall(
            r"pip install .*'\.\[([a-z0-9-]+)\]'",
            path.read_text(encoding="utf-8", errors="replace"),
        )
    }
    assert {"cpu", "train", "trt"} <= named
    assert all(f'"{extra}": ' in setup for extra in named)


def test_a_package_that_is_not_here_is_named_with_its_extra():
    assert install_hint("cpu") == "pip install '.[cpu]' (in a clone of sca)"
    with pytest.raises(MissingPackageError) as caught:
        optional_package("no_such_package", "--engine none", "cpu")
    assert str(caught.value) == (
        "--engine none needs the package no_such_package. Install it: pip install '.[cpu]' "
        "(in a clone of sca)"
    )
    assert str(MissingPackageError("gcsfs", "gs://")).endswith("Install it: pip install gcsfs")
