#!/bin/sh
# Everything about a GPU that could not be run where this was written, as one report:
#   benchmarks/gpu.sh MODEL > report.txt
# MODEL is as in `sca caption` (default: sca-tiny). Not yet run on any GPU.
set -u
model=${1:-sca-tiny}
plans=$(mktemp -d)
out=$(mktemp -d)
trap 'rm -rf "$plans" "$out"' EXIT

echo "## $(date -u +%F) $model"
nvidia-smi --query-gpu=name,compute_cap,driver_version,memory.total --format=csv
sca doctor

echo "## Tests"
python -m pytest -m gpu tests/gpu

echo "## Plans, in the flavour of TensorRT that serves this GPU: fp16, bf16"
for precision in fp16 bf16; do
    sca engine build --model "$model" --recipe vit-h-fp16 --precision "$precision" \
        --engine-dir "$plans" --device cuda
done
sca engine check --model "$model" --engine-dir "$plans" --device cuda
sca engine bench --model "$model" --engine-dir "$plans" --device cuda --batch 1 --batch 4 --batch 64

echo "## Captions: float32, half precision, plans"
sca caption manifests/sample.jsonl --model "$model" --device cuda --engine torch --dtype float32 \
    -o "$out/float32"
sca caption manifests/sample.jsonl --model "$model" --device cuda --engine torch -o "$out/half"
sca caption manifests/sample.jsonl --model "$model" --device cuda --engine tensorrt \
    --engine-dir "$plans" -o "$out/tensorrt"
# Once more: what TensorRT-RTX compiled lies beside the plans now.
sca caption manifests/sample.jsonl --model "$model" --device cuda --engine tensorrt \
    --engine-dir "$plans" -o "$out/tensorrt-again"
ls -l "$plans"
