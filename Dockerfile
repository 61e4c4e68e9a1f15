# For NVIDIA GPUs: CUDA torch and standard TensorRT. Written, not yet built: no machine with a GPU or
# with NVIDIA's package index was at hand.
#   docker build -t sca . && docker run --gpus all -v $PWD:/data sca caption ./images
FROM python:3.12-slim

WORKDIR /opt/sca
COPY setup.py pyproject.toml README.md LICENSE sca.py ./
COPY sca_batch ./sca_batch
COPY manifests ./manifests
COPY engines/*.toml ./engines/
# tensorrt-cu13 takes its libraries from pypi.nvidia.com by itself.
RUN pip install --no-cache-dir '.[trt]'

WORKDIR /data
# Plans belong to one GPU and one version: they are built where they are used, and kept outside.
ENV SCA_ENGINE_DIR=/engines
ENTRYPOINT ["sca"]
