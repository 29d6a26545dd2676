"""The one definition of how a volume becomes a network's input, and how its output goes back."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import numpy as np
import torch
from monai.transforms import (
    EnsureTyped,
    Lambdad,
    NormalizeIntensityd,
    Orientationd,
    RandAdjustContrastd,
    RandAffined,
    RandCropByPosNegLabeld,
    RandFlipd,
    RandGaussianNoised,
    RandScaleIntensityd,
    RandShiftIntensityd,
    RandSpatialCropSamplesd,
    ScaleIntensityRanged,
    Spacingd,
    SpatialPadd,
    Transform,
)

from unoise_monai.checks import check_choice
from unoise_monai.data.bias import N4BiasCorrectiond
from unoise_monai.data.task import SegmentationTask
from unoise_monai.data.validation import CaseCompose, LoadCased

SAMPLINGS = ("foreground", "uniform")


def preprocessing(task: SegmentationTask, with_label: bool = True) -> CaseCompose:
    """From a case's files to normalised volumes: RAS, the task's spacing, intensities near zero mean, unit variance.

    Shape:
        a dict with paths under ``image`` (and ``label``) to one with `MetaTensor` ``(1, X, Y, Z)``, float32.

    Raises:
        CaseError: when a volume is bad, see `LoadCased`.
    """
    keys = ["image", "label"] if with_label else ["image"]
    steps: list[Transform] = [
        LoadCased(keys, labels=len(task.labels)),
        Orientationd(keys, axcodes="RAS", labels=None, allow_missing_keys=True),
        *([N4BiasCorrectiond("image")] if task.bias_correction else []),
        Spacingd(keys, pixdim=task.spacing_mm, mode=["bilinear", "nearest"][: len(keys)], allow_missing_keys=True),
        normalisation(task),
    ]
    if task.merge_labels and with_label:
        steps.append(Lambdad("label", func=merged, allow_missing_keys=True))
    return CaseCompose([*steps, EnsureTyped(keys, dtype=torch.float32, allow_missing_keys=True)])


def normalisation(task: SegmentationTask) -> Transform:
    """CT window to [-2, 2], top percentile to [-1, 3], or the z-score over the voxels that are not 0."""
    if task.top_percentile is not None:
        return Lambdad("image", func=partial(scaled_to_percentile, percentile=task.top_percentile))
    if task.ct_window_hu is None:
        return NormalizeIntensityd("image", nonzero=True, channel_wise=True)
    low, high = task.ct_window_hu
    return ScaleIntensityRanged("image", a_min=low, a_max=high, b_min=-2.0, b_max=2.0, clip=True)


def scaled_to_percentile(image: torch.Tensor, percentile: float) -> torch.Tensor:
    """From the lowest intensity to a percentile of all voxels, mapped linearly to [-1, 3] and clipped.

    Where nearly every voxel has the lowest intensity, so that the percentile has it too, the highest stands for it;
    where all have it, all are -1.
    """
    low, high = float(image.min()), float(np.percentile(np.asarray(image), percentile))
    high = high if high > low else float(image.max())
    return ((image - low) * (4 / (high - low or 1)) - 1).clamp(max=3)


def merged(label: torch.Tensor) -> torch.Tensor:
    """All labels above 0 as one foreground."""
    return (label > 0).to(label.dtype)


def training_transforms(
    task: SegmentationTask,
    patch_size: Sequence[int] | None = None,
    samples: int = 1,
    augment: bool = True,
    flip_axes: Sequence[int] = (),
    sampling: str = "foreground",
) -> CaseCompose:
    """`preprocessing`, then random crops, then augmentation.

    Args:
        task: the task's definition.
        patch_size: the crops, in voxels; the task's own by default.
        samples: crops a volume.
        augment: small rotations, scalings, noise and changes of intensity.
        flip_axes: axes whose direction means nothing in this task (anatomy left and right usually does).
        sampling: ``"foreground"`` centres every other crop on a voxel of the foreground, ``"uniform"`` none.

    Raises:
        ValueError: when ``sampling`` is unknown.
    """
    check_choice("sampling", sampling, SAMPLINGS)
    keys = ["image", "label"]
    size = task.patch_size if patch_size is None else tuple(patch_size)
    steps: list[Transform] = [
        # Outside the volume lies what the normalisation makes of air or of the mean: the image's own edge value.
        SpatialPadd(keys, size, mode=["edge", "constant"]),
        RandSpatialCropSamplesd(keys, size, num_samples=samples, random_size=False)
        if sampling == "uniform"
        else RandCropByPosNegLabeld(keys, "label", size, pos=1, neg=1, num_samples=samples, allow_smaller=True),
    ]
    if augment:
        steps += [
            RandAffined(
                keys,
                prob=0.5,
                rotate_range=(0.26, 0.26, 0.26),
                scale_range=(0.15, 0.15, 0.15),
                translate_range=(4, 4, 4),
                mode=["bilinear", "nearest"],
                padding_mode="border",
            ),
            *(RandFlipd(keys, prob=0.5, spatial_axis=axis) for axis in flip_axes),
            RandGaussianNoised("image", prob=0.2, std=0.1),
            RandScaleIntensityd("image", factors=0.2, prob=0.5),
            RandShiftIntensityd("image", offsets=0.2, prob=0.5),
            RandAdjustContrastd("image", prob=0.3, gamma=(0.8, 1.25), retain_stats=True),
        ]
    # One flat chain: CacheDataset keeps the result of the steps before the first random one.
    chain = [*preprocessing(task).transforms, *steps]
    return CaseCompose([*chain, EnsureTyped(keys, dtype=torch.float32, track_meta=False)])
