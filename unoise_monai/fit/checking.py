"""What a model is asked before a noise model is trained for it, in about a minute."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from nibabel.orientations import aff2axcodes
from torch import Tensor, nn
from torch.nn import functional as F

from unoise_monai.data.cases import Case
from unoise_monai.data.nifti import write_nifti
from unoise_monai.data.reading import load_volume
from unoise_monai.fit.loading import TrainedModel
from unoise_monai.inference.explain import Explainer
from unoise_monai.inference.memory import AutocastInferer
from unoise_monai.inference.tiling import tiling_rule
from unoise_monai.losses.noise import utility_loss
from unoise_monai.metrics.overlap import dice_per_class
from unoise_monai.networks.outputs import ClassLogits, class_logits, find_halo, find_stride, outputs_of, pick_output
from unoise_monai.networks.weights import evaluating, segmentation
from unoise_monai.unoise import ExplainedSegmenter, UNoise

Tell = Callable[[str], None]
CHECKED = 5
"""Cases, at most, on which Dice and noise are measured."""
LARGEST_CROP = 96
HALVINGS = 10


class UnfitModel(ValueError):
    """A model that does not do on these data what it was trained for: a map of it would mean nothing."""


@dataclass
class Checked:
    """What was found out about a model on a user's data."""

    utility: ClassLogits
    """The network, with weights, that gives class logits."""
    crop_size: tuple[int, ...]
    """Of training, in voxels of the network's grid, multiples of the stride."""
    dice: dict[str, float] = field(default_factory=dict)
    """Of each checked case, the mean over the classes, on the scan's own grid."""
    sigma_max: float = 5.0
    """Standard deviation of the noise with which Dice falls to half, in the network's units of intensity."""
    hidden_value: float = 0.0
    """The mean intensity that the network gets: what hidden voxels become."""
    seconds_a_step: float = 0.0
    """Of training, for one crop."""

    @property
    def settings(self) -> dict[str, Any]:
        """Arguments of `ClassLogits`, besides the network."""
        names = ("outputs", "pick", "stride", "halo", "labels")
        return {name: getattr(self.utility, name) for name in names}


class NoNoiseModel(nn.Module):
    """In the place of a noise model that is not trained yet: every voxel has the tolerance 1/2."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.zeros_like(x[:, :1])


def check_network(found: TrainedModel, image: Tensor, tell: Tell) -> ClassLogits:
    """What a network takes and gives, from an image ``(1, C, *spatial)`` as its preprocessing makes it.

    Raises:
        UnfitModel: when it takes no size that we try, or gives nothing on its input's grid, or another number of
            channels than there are classes.
    """
    network, model, dims = found.network, found.model, image.ndim - 2
    try:
        stride = find_stride(network, image.shape[1], dims)
        side = [max(stride, min(length, LARGEST_CROP) // stride * stride) for length in image.shape[2:]]
        # A thin volume has fewer slices than the stride.
        part = _padded(_around(image, [length // 2 for length in image.shape[2:]], side), stride, "replicate")
        with evaluating(network):
            output = network(part)
        pick = pick_output(output, side)
    except ValueError as error:
        raise UnfitModel(str(error)) from error
    values: Tensor = output if pick is None else output[pick]
    outputs = outputs_of(values, model.regions)
    several = "" if pick is None else f", at {pick!r} of {len(output)} outputs"
    tell(f"output: {values.shape[1]} channels on the image's grid{several}; they are {_NAMED[outputs]}")
    classes = class_logits(values, outputs).shape[1]
    if model.class_names and max(classes, 2) != len(model.class_names):
        names = ", ".join(model.class_names)
        raise UnfitModel(f"the network must give a channel for each of the classes {names}, got {values.shape[1]}")
    utility = ClassLogits(network, outputs, pick, stride, 0, model.region_labels).to(image.device).eval()
    rule = tiling_rule(utility)
    utility.halo = find_halo(utility, stride, image.shape[1], dims) if rule.exact else None
    sees = rule.reason.removeprefix("blended: ") if not rule.exact else f"a voxel sees {utility.halo} voxels far"
    if rule.exact and utility.halo is None:
        sees = "a voxel sees the whole volume"
    tell(f"sides: any multiple of {stride}; {sees}")
    return utility


_NAMED = {
    "softmax": "logits of exclusive classes",
    "sigmoid": "logits of regions that may overlap",
    "probabilities": "probabilities already (softmax), turned into logits",
    "region probabilities": "probabilities already (sigmoid), turned into logits",
}


def crop_size_of(
    found: TrainedModel, utility: ClassLogits, sizes: Sequence[Sequence[int]], stride: int
) -> tuple[int, ...]:
    """The crops to train on: the model's own patch, or what most cases hold, on the grid of both networks.

    Args:
        found: the model.
        utility: its network.
        sizes: of preprocessed cases, voxels.
        stride: of the noise model.
    """
    both = int(np.lcm(utility.stride or 1, stride))
    usual = np.median(np.asarray(sizes), axis=0)
    patch = found.model.patch_size or (LARGEST_CROP,) * len(usual)
    return tuple(int(-(-min(side, length) // both) * both) for side, length in zip(patch, usual, strict=True))


def explainer_of(found: TrainedModel, utility: nn.Module, noise_model: nn.Module | None = None) -> Explainer:
    """The model's pipeline, to the grid of the file."""
    segmenter = ExplainedSegmenter(utility, NoNoiseModel() if noise_model is None else noise_model)
    preprocess = found.model.preprocessing()
    return Explainer(segmenter, preprocess, found.model.inferer(), found.model.postprocessing(preprocess))


def scan_dice(found: TrainedModel, utility: ClassLogits, cases: Sequence[Case]) -> dict[str, float]:
    """Mean Dice over the classes that a case has, on the grid of its file.

    Raises:
        CaseError: when a case or its label cannot be read.
    """
    explain = explainer_of(found, utility)
    dice = {}
    for case in cases:
        item = case.item()
        pred = explain(item["image"]).segmentation.as_tensor()[None].long()
        label = load_volume(item["label"]).as_tensor()[None, None].round().long()
        classes = len(found.model.class_names)
        # Voxels of no class, such as those that nnU-Net's training ignores, do not count.
        known = label < classes
        dice[case.name] = float(np.nanmean(dice_per_class(pred[known], label[known], classes)))
    return dice


def check_dice(
    found: TrainedModel, dice: Mapping[str, float], item: Mapping[str, Any], least: float, tell: Tell
) -> None:
    """Refuse a model that does not segment these cases.

    Args:
        found: the model.
        dice: of cases with labels by people.
        item: a preprocessed one, for what the network got.
        least: the mean Dice that it must reach.
        tell: takes lines.

    Raises:
        UnfitModel: when it does not; with what it probably expects.
    """
    mean = float(np.mean(list(dice.values())))
    image = item["image"]
    spacing = " x ".join(f"{float(size):.3g}" for size in image.pixdim)
    axes = "".join(aff2axcodes(np.asarray(image.affine)))
    got = f"[{float(image.min()):.3g}, {float(image.max()):.3g}], {axes}, {spacing} mm"
    line = f"Dice {mean:.2f} on {len(dice)} cases, on the scans' own grids"
    if not mean >= least:
        raise UnfitModel(
            f"{line}, below --min-dice {least}: the model probably expects other intensities, orientation or spacing; "
            f"it got {got}"
        )
    tell(f"segmentation: {line}; the network gets {got}")


def write_segmentations(
    found: TrainedModel, utility: ClassLogits, cases: Sequence[Case], folder: Path, tell: Tell
) -> None:
    """The model's own segmentation of each case as ``<case>.nii.gz``, to train on in the place of labels."""
    explain = explainer_of(found, utility)
    folder.mkdir(parents=True, exist_ok=True)
    for number, case in enumerate(cases, 1):
        path = folder / f"{case.name}.nii.gz"
        if path.is_file():
            continue
        segmentation_map = explain(case.item()["image"]).segmentation
        write_nifti(path, segmentation_map[0].numpy().astype(np.uint8), segmentation_map.affine.numpy())
        if number % 10 == 0:
            tell(f"  segmented {number} of {len(cases)} cases")


def measure_noise(utility: nn.Module, pairs: Sequence[tuple[Tensor, Tensor]], classes: int) -> float:
    """The standard deviation of noise on every voxel with which Dice falls to half of what it is without.

    By bisection of its logarithm, from a hundredth to a hundred times that of the images, with the same draws.

    Args:
        utility: gives class logits.
        pairs: crops ``(1, C, *spatial)`` and class indices ``(1, 1, *spatial)``.
        classes: how many there are.
    """
    spread = float(torch.cat([image.flatten() for image, _ in pairs]).std())

    def dice(sigma: float) -> float:
        found = []
        for seed, (image, label) in enumerate(pairs):
            eps = torch.randn(image.shape, generator=torch.Generator().manual_seed(seed)).to(image.device)
            with evaluating(utility):
                found.append(np.nanmean(dice_per_class(segmentation(utility(image + sigma * eps)), label, classes)))
        return float(np.mean(found))

    half = dice(0.0) / 2
    low, high = 0.01 * spread, 100 * spread
    for _ in range(HALVINGS):
        middle = float(np.sqrt(low * high))
        low, high = (middle, high) if dice(middle) > half else (low, middle)
    return float(np.sqrt(low * high))


def foreground_crop(item: Mapping[str, Any], size: Sequence[int], stride: int) -> tuple[Tensor, Tensor]:
    """A crop of a preprocessed case around the middle of its label, padded to multiples of the stride."""
    image, label = (item[key].as_tensor()[None] for key in ("image", "label"))
    where = (label[0, 0] > 0).nonzero().float()
    centre = where.mean(dim=0).round().long().tolist() if len(where) else [side // 2 for side in label.shape[2:]]
    image, label = _around(image, centre, size), _around(label, centre, size)
    return _padded(image, stride, "replicate"), _padded(label, stride, "constant").round().long()


def _padded(volume: Tensor, stride: int, mode: str) -> Tensor:
    """``(B, C, *spatial)`` with ends to multiples of the stride."""
    return F.pad(volume, [n for side in reversed(volume.shape[2:]) for n in (0, -side % stride)], mode)


def _around(volume: Tensor, centre: Sequence[int], size: Sequence[int]) -> Tensor:
    """A crop of ``(B, C, *spatial)`` around a voxel, moved inwards at the borders."""
    place: Any = [...]
    for middle, side, length in zip(centre, size, volume.shape[2:], strict=True):
        start = max(0, min(middle - side // 2, length - side))
        place.append(slice(start, start + side))
    return volume[tuple(place)]


def time_step(
    utility: nn.Module, noise_model: nn.Module, pair: tuple[Tensor, Tensor], sigma_max: float, batch: int
) -> float:
    """Seconds that a step of training takes for each of its crops, forward and back, as the bundle trains."""
    wrapped = UNoise(ExplainedSegmenter(utility, noise_model), 0.0, sigma_max)
    run = AutocastInferer()
    image, label = (torch.cat([each] * batch) for each in pair)
    times = []
    for _ in range(3):
        start = time.perf_counter()
        logits, _ = run(image, wrapped)
        utility_loss(logits, label).backward()
        if pair[0].is_cuda:
            torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    noise_model.zero_grad(set_to_none=True)
    # The first one makes what the others find.
    return float(np.mean(times[1:])) / batch
