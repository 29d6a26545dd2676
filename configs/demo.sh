#!/usr/bin/env bash
# From nothing to importance volumes: a synthetic cohort, a noise model trained on it, inference. No download.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
python="${PYTHON:-python3}"
preset=configs/phantom_demo.yaml

rm -rf runs/demo
echo "1/3  A synthetic abdominal CT cohort"
"$python" -m unoise_monai.cli phantom runs/demo/phantoms --count 12 --test_count 2
echo "2/3  Training the noise model against the shipped utility network"
"$python" -m monai.bundle run training --args_file "$preset"
echo "3/3  Importance of the two unlabelled volumes"
"$python" -m monai.bundle run --args_file "$preset" \
    --config_file bundles/pancreas_ct_unoise/configs/inference.yaml --output_dir runs/demo/importance

echo
echo "Open these in 3D Slicer, the importance over the scan:"
for importance in runs/demo/importance/*/*_importance.nii.gz; do
    case=$(basename "$(dirname "$importance")")
    echo "  scan        runs/demo/phantoms/imagesTs/$case.nii.gz"
    echo "  importance  $importance"
    echo "  outline     ${importance%_importance.nii.gz}_seg.nii.gz"
    echo "  pictures    ${importance%_importance.nii.gz}_{montage,mip}.png"
done
echo "Training curves: runs/demo/metrics.csv, or tensorboard --logdir runs/demo/tensorboard"
