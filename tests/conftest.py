"""A small model that finds real masks on coloured shapes, and pictures of such shapes."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest

# One thread in this process and in those that it starts: tests run side by side.
os.environ["OMP_NUM_THREADS"] = "1"

import torch
from PIL import Image, ImageDraw

GOLDEN = Path(__file__).parent / "golden"

torch.set_num_threads(1)


@pytest.fixture(scope="session")
def golden():
    """Recordings of the published implementation; their README says how they were made."""
    return GOLDEN


@pytest.fixture(scope="session")
def shapes_folder():
    """A checkpoint folder, 128 pixels, whose SAM was trained on coloured shapes."""
    return GOLDEN / "anything"


@pytest.fixture(scope="session")
def shapes_model(shapes_folder):
    from sca_batch.model.checkpoint import load_checkpoint

    return load_checkpoint(shapes_folder)


@pytest.fixture(scope="session")
def shapes_settings(shapes_folder):
    """The arguments of automatic mask generation that this model was recorded with."""
    from sca_batch.regions.settings import AutomaticMaskSettings

    arguments = json.loads((shapes_folder / "annotations.json").read_text())["arguments"]
    return AutomaticMaskSettings(**{k: v for k, v in arguments.items() if k != "output_mode"})


def draw_shapes(seed, size=(150, 110)):
    """An RGB picture (width, height) of a few coloured shapes."""
    random = np.random.default_rng(seed)
    image = Image.new("RGB", size, tuple(random.integers(0, 255, 3).tolist()))
    draw = ImageDraw.Draw(image)
    for _ in range(4):
        x, y = random.integers(0, size[0] - 40), random.integers(0, size[1] - 40)
        w, h = random.integers(15, 60, 2)
        shape = [draw.ellipse, draw.rectangle][int(random.integers(2))]
        shape((x, y, x + w, y + h), fill=tuple(random.integers(0, 255, 3).tolist()))
    return image


@pytest.fixture
def shapes_images(tmp_path):
    """A folder of three pictures of shapes, of different sizes."""
    folder = tmp_path / "images"
    folder.mkdir()
    for i, size in enumerate([(150, 110), (90, 140), (128, 128)]):
        draw_shapes(i, size).save(folder / f"shapes-{i}.png")
    return folder
