#!/bin/sh
# Everything that needs a GPU, as one report:
#   benchmarks/gpu.sh MODEL > report.txt
# MODEL is as in `sca caption` (default: sca-tiny). Where no TensorRT serves this GPU the report says
# so and has what runs in torch.
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

echo "## The published implementation's recordings: float32 on this GPU"
for recording in gpt2-box llama-box timm-box; do
    sca model check "tests/golden/$recording" --train --device cuda --dtype float32
done

echo "## Captions: float32, half precision"
for dtype in float32 auto; do
    sca caption manifests/sample.jsonl --model "$model" --device cuda --engine torch \
        --dtype "$dtype" -o "$out/$dtype"
done

echo "## Published sizes in torch"
python benchmarks/gpu_torch.py

echo "## Plans, in the flavour of TensorRT that serves this GPU: fp16, bf16"
for precision in fp16 bf16; do
    sca engine build --model "$model" --recipe vit-h-fp16 --precision "$precision" \
        --engine-dir "$plans" --device cuda || exit 0
done
sca engine check --model "$model" --engine-dir "$plans" --device cuda
sca engine bench --model "$model" --engine-dir "$plans" --device cuda --batch 1 --batch 4 --batch 64
sca caption manifests/sample.jsonl --model "$model" --device cuda --engine tensorrt \
    --engine-dir "$plans" -o "$out/tensorrt"
# Once more: what TensorRT-RTX compiled lies beside the plans now.
sca caption manifests/sample.jsonl --model "$model" --device cuda --engine tensorrt \
    --engine-dir "$plans" -o "$out/tensorrt-again"
ls -l "$plans"
