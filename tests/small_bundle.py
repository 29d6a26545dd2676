"""A bundle of two tiny networks, in the shape of the shipped ones, for tests of what loads and runs bundles."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from monai.bundle import ConfigWorkflow

from unoise_monai.networks import UNet
from unoise_monai.unoise import ExplainedSegmenter

TRAININGS = (Path(__file__).parents[1] / "bundles").glob("*/configs/train_utility.yaml")
BUNDLES = sorted(path.parents[1] for path in TRAININGS)
"""Those whose networks are ours; `unoise fit` has written the others."""
bundle_parametrize = pytest.mark.parametrize("bundle", BUNDLES, ids=lambda path: path.name)
SMALL: dict[str, Any] = {"task#spacing_mm": [9.0, 9.0, 9.0], "task#patch_size": [16, 16, 16]}
SMALL |= {"device": "cpu", "precision": "fp32"}
SMALL_U_NET: dict[str, Any] = {"utility#depth": 2, "utility#channel_factor": 2}
SMALL_NOISE: dict[str, Any] = {"noise_model#depth": 2, "noise_model#channel_factor": 2}
"""Changes of a shipped bundle that make it small enough for seconds."""
PHANTOMS: dict[str, Any] = {"size": (32, 28, 30), "spacing_mm": (9.0, 9.5, 10.0), "progress": False}
PHANTOMS |= {"oblique_degrees": 12.0, "left_handed": True}
"""Scans on an oblique, anisotropic, left-handed grid."""
CONFIG = """
imports:
- $import torch
bundle_root: .
output_dir: $@bundle_root + '/eval'
ckpt_dir: $@bundle_root + '/models'
weights: $@ckpt_dir + '/model.pt'
device: $torch.device('nowhere')
precision: fp32
memory_gb: null
quantity: importance
sigma_min: 0.0
sigma_max: 5.0
pictures: [montage, mip]
window: [-160, 240]
style: colour
threshold: 0.1
axis: 2
count: 6
crop_mm: null
slab_mm: 30.0
task:
  _target_: unoise_monai.data.SegmentationTask
  name: Task04_Hippocampus
  labels: [background, anterior, posterior]
  spacing_mm: [3.0, 3.0, 3.0]
  patch_size: [48, 64, 48]
utility: {_target_: unoise_monai.networks.UNet, spatial_dims: 3, in_channels: 1, out_channels: $@task.num_classes,
  depth: 2, channel_factor: 2}
noise_model: {_target_: unoise_monai.networks.UNet, spatial_dims: 3, in_channels: 1, out_channels: 1, depth: 2,
  channel_factor: 1}
network_def: {_target_: unoise_monai.ExplainedSegmenter, utility: '@utility', noise_model: '@noise_model'}
network: $@network_def.to(@device)
preprocessing: {_target_: unoise_monai.data.preprocessing, task: '@task', with_label: false}
dataset: $1 / 0
inferer: {_target_: unoise_monai.inference.TiledInferer, memory_gb: '@memory_gb', precision: '@precision'}
postprocessing: {_target_: unoise_monai.inference.postprocessing, preprocess: '@preprocessing'}
savers:
- {_target_: unoise_monai.handlers.ImportanceSaver, output_dir: '@output_dir', quantity: '@quantity',
  sigma_min: '@sigma_min', sigma_max: '@sigma_max'}
- {_target_: unoise_monai.handlers.PictureSaver, output_dir: '@output_dir', pictures: '@pictures', window: '@window',
  style: '@style', threshold: '@threshold', axis: '@axis', count: '@count', crop_mm: '@crop_mm', slab_mm: '@slab_mm'}
evaluator: $@dataset
"""
CHANNELS = {"0": "background", "1": "anterior", "2": "posterior", "3": "importance"}
METADATA = {"version": "0.3.1", "network_data_format": {"outputs": {"pred": {"channel_def": CHANNELS}}}}


def small_segmenter(seed: int = 0) -> ExplainedSegmenter:
    """Networks that fit `CONFIG`; of noise they find all classes, and any importance."""
    torch.manual_seed(seed)
    utility, noise_model = UNet(3, 1, 3, depth=2, channel_factor=2), UNet(3, 1, 1, depth=2, channel_factor=1)
    with torch.no_grad():
        for network in (utility.eval(), noise_model.eval()):
            std, mean = torch.std_mean(network(torch.randn(1, 1, 16, 16, 16)), dim=(0, 2, 3, 4))
            network.head.weight /= std.view(-1, 1, 1, 1, 1)
            network.head.bias.copy_((network.head.bias - mean) / std)
    return ExplainedSegmenter(utility, noise_model)


def write_small_bundle(folder: Path, config: str = CONFIG, seed: int = 0) -> Path:
    """Write a bundle with this ``inference.yaml``; whoever evaluates its data set or its own device gets an error."""
    (folder / "configs").mkdir(parents=True)
    (folder / "models").mkdir()
    (folder / "configs" / "inference.yaml").write_text(config, encoding="utf-8")
    (folder / "configs" / "metadata.json").write_text(json.dumps(METADATA), encoding="utf-8")
    torch.save(small_segmenter(seed).state_dict(), folder / "models" / "model.pt")
    return folder


def workflow(bundle: Path, configs: str | list[str], kind: str | None = None, **changes: object) -> ConfigWorkflow:
    """MONAI's own engine on these configurations of a bundle, laid over each other."""
    names = [configs] if isinstance(configs, str) else configs
    return ConfigWorkflow(
        config_file=[str(bundle / "configs" / f"{name}.yaml") for name in names],
        meta_file=str(bundle / "configs" / "metadata.json"),
        logging_file=False,
        workflow_type=kind,
        bundle_root=str(bundle),
        **changes,
    )


def run(bundle: Path, configs: str | list[str], **changes: object) -> ConfigWorkflow:
    flow = workflow(bundle, configs, **changes)
    flow.initialize()
    flow.run()
    return flow
