"""What a segmentation task is, and the one definition of how a volume becomes a network's input."""

import logging
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import SimpleITK
import torch
from monai import transforms as mt
from monai.utils import convert_to_dst_type
from numpy.typing import NDArray

from unoise_monai.checks import check_choice, check_finite
from unoise_monai.data.reading import CaseCompose, LoadCased

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class SegmentationTask:
    """How the volumes of one task are read in training, evaluation and inference; ``task`` of a bundle's configuration.

    Intensities become a z-score on the foreground (the voxels that are not 0) unless ``ct_window_hu`` or
    ``top_percentile`` is given. Sequences become tuples.

    Args:
        name: of a Decathlon task, its folder, as `monai.apps.DecathlonDataset` names it.
        labels: names of the classes, background first; a label map may hold their indices only.
        spacing_mm: voxel size that the networks work on, ``(x, y, z)`` in mm.
        patch_size: training crops, in voxels.
        ct_window_hu: Hounsfield range mapped linearly to [-2, 2] and clipped.
        top_percentile: the range from the lowest intensity to this percentile of all voxels is mapped linearly to
            [-1, 3] and clipped: for angiograms, whose soft tissue may have been removed.
        bias_correction: N4 before the normalisation, see `N4BiasCorrectiond`.
        merge_labels: all labels become one foreground class, as in Koker et al. 2021.

    Raises:
        ValueError: when there are fewer than two labels, a spacing or a side of the patch is not above 0, the CT
            window is not in rising order, the percentile is not above 0 and at most 100, or both are given.
    """

    name: str
    labels: Sequence[str]
    spacing_mm: Sequence[float]
    patch_size: Sequence[int]
    ct_window_hu: Sequence[float] | None = None
    top_percentile: float | None = None
    bias_correction: bool = False
    merge_labels: bool = False

    def __post_init__(self) -> None:
        for name in ("labels", "spacing_mm", "patch_size", "ct_window_hu"):
            if (value := getattr(self, name)) is not None:
                object.__setattr__(self, name, tuple(value))
        if len(self.labels) < 2:
            raise ValueError(f"labels must name the background and at least one class, got {self.labels}")
        for name, values in (("spacing_mm", self.spacing_mm), ("patch_size", self.patch_size)):
            if not min(values) > 0:
                raise ValueError(f"{name} must be above 0, got {values}")
        if self.ct_window_hu is not None and not self.ct_window_hu[0] < self.ct_window_hu[1]:
            raise ValueError(f"ct_window_hu must be in rising order, got {self.ct_window_hu}")
        if self.top_percentile is not None and not 0 < self.top_percentile <= 100:
            raise ValueError(f"top_percentile must be above 0 and at most 100, got {self.top_percentile}")
        if self.ct_window_hu is not None and self.top_percentile is not None:
            both = f"{self.ct_window_hu} and {self.top_percentile}"
            raise ValueError(f"ct_window_hu and top_percentile must not both be given, got {both}")

    @property
    def class_names(self) -> tuple[str, ...]:
        """The classes that a network of this task predicts, background first."""
        return (self.labels[0], "+".join(self.labels[1:])) if self.merge_labels else tuple(self.labels)

    @property
    def num_classes(self) -> int:
        return len(self.class_names)


TISSUE_SHARE = 0.05
"""The least share of voxels above 0 with which N4 does not take vessels for a bias field."""


def n4_bias_correction(
    image: NDArray[Any], shrink: int = 4, iterations: int = 50, levels: int = 4
) -> NDArray[np.float32]:
    """Divide an MR volume ``(X, Y, Z)`` by its bias field (N4: Tustison et al. 2010, IEEE TMI 29).

    The field is estimated on every ``shrink``-th voxel of the head, and evaluated at full resolution. Otsu's method
    separates head and air by the logarithm of the intensities: by the intensities themselves it would separate the fat
    of an angiogram from the brain.

    Args:
        image: magnitudes; voxels of 0 and below are no tissue.
        shrink: in voxels; 1 uses them all and takes ``shrink ** 3`` times as long.
        iterations: at most, at each of the field's ``levels``, each of twice the control points of the one before.

    Raises:
        ValueError: when ``image`` is not 3-D, holds NaN or infinite values, one value only, or none above 0.
    """
    if image.ndim != 3:
        raise ValueError(f"image must be 3-D, got shape {image.shape}")
    check_finite(image, "image")
    if image.min() == image.max() or image.max() <= 0:
        raise ValueError(f"image must hold different magnitudes, got {image.min()} to {image.max()}")
    volume = SimpleITK.GetImageFromArray(image.astype(np.float32))
    # What is empty, or next to it, has one logarithm, so that it makes one class.
    air = 0.01 * float(np.median(image[image > 0]))
    head = SimpleITK.OtsuThreshold(SimpleITK.Log(SimpleITK.Maximum(volume, air)), 0, 1)
    # A spline of the third order needs four samples an axis.
    steps = [min(shrink, max(1, side // 4)) for side in volume.GetSize()]
    n4 = SimpleITK.N4BiasFieldCorrectionImageFilter()
    n4.SetMaximumNumberOfIterations([iterations] * levels)
    n4.Execute(SimpleITK.Shrink(volume, steps), SimpleITK.Shrink(head, steps))
    log_field = SimpleITK.GetArrayFromImage(n4.GetLogBiasFieldAsImage(volume))
    return image.astype(np.float32) / np.exp(log_field, dtype=np.float32)


class N4BiasCorrectiond(mt.MapTransform):
    """`n4_bias_correction` of a case's volumes; deterministic, so data sets cache it.

    A volume whose soft tissue has been removed (fewer than 5 % of its voxels above 0) stays as it is, with a warning:
    what is left are vessels, whose brightness follows their flow rather than the coil.

    Shape:
        each key ``(C, X, Y, Z)`` to the same, float32; a `MetaTensor` keeps its geometry.
    """

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        d = dict(data)
        for key in self.key_iterator(d):
            channels = np.asarray(d[key])
            tissue = float((channels > 0).mean())
            if tissue < TISSUE_SHARE:
                logger.warning("%s: bias not corrected, %.1f %% of its voxels show tissue", d.get("case"), 100 * tissue)
                continue
            corrected = [n4_bias_correction(each) for each in channels]
            d[key] = convert_to_dst_type(np.stack(corrected), d[key], dtype=np.float32)[0]
        return d


def preprocessing(task: SegmentationTask, with_label: bool = True) -> CaseCompose:
    """From a case's files to normalised volumes: RAS, the task's spacing, intensities near zero mean, unit variance.

    Shape:
        a dict with files or DICOM series under ``image`` (and ``label``) to one with `MetaTensor` ``(1, X, Y, Z)``,
        float32.

    Raises:
        CaseError: see `LoadCased`.
    """
    keys = ["image", "label"] if with_label else ["image"]
    steps: list[mt.Transform] = [
        LoadCased(keys, labels=len(task.labels), spacing_mm=task.spacing_mm),
        mt.Orientationd(keys, axcodes="RAS", labels=None, allow_missing_keys=True),
        *([N4BiasCorrectiond("image")] if task.bias_correction else []),
        mt.Spacingd(keys, pixdim=task.spacing_mm, mode=["bilinear", "nearest"][: len(keys)], allow_missing_keys=True),
        normalisation(task),
    ]
    if task.merge_labels and with_label:
        steps.append(mt.AsDiscreted("label", threshold=0.5, allow_missing_keys=True))
    return CaseCompose([*steps, mt.EnsureTyped(keys, dtype=torch.float32, allow_missing_keys=True)])


def normalisation(task: SegmentationTask) -> mt.Transform:
    """CT window to [-2, 2], top percentile to [-1, 3], or the z-score over the voxels that are not 0."""
    if task.top_percentile is not None:
        return mt.Lambdad("image", func=partial(scaled_to_percentile, percentile=task.top_percentile))
    if task.ct_window_hu is None:
        return mt.NormalizeIntensityd("image", nonzero=True, channel_wise=True)
    low, high = task.ct_window_hu
    return mt.ScaleIntensityRanged("image", a_min=low, a_max=high, b_min=-2.0, b_max=2.0, clip=True)


def scaled_to_percentile(image: torch.Tensor, percentile: float) -> torch.Tensor:
    """From the lowest intensity to a percentile of all voxels, mapped linearly to [-1, 3] and clipped.

    Where that percentile is the lowest intensity, too, the highest takes its place; an even image becomes -1.
    """
    low, high = float(image.min()), float(np.percentile(np.asarray(image), percentile))
    high = high if high > low else float(image.max())
    return ((image - low) * (4 / (high - low or 1)) - 1).clamp(max=3)


def _alike(sides: Sequence[int]) -> bool:
    """Whether a plane may be turned: not where its crops are much flatter one way, as of thick slices."""
    return max(sides) <= 2 * min(sides)


def training_transforms(
    preprocess: mt.Compose,
    patch_size: Sequence[int],
    samples: int = 1,
    augment: bool = True,
    flip_axes: Sequence[int] = (),
    sampling: str = "foreground",
) -> CaseCompose:
    """A case's preprocessing, then random crops, then augmentation.

    Args:
        preprocess: from a case's files to ``image`` and ``label``, see `preprocessing`.
        patch_size: the crops, in voxels.
        samples: crops a volume.
        augment: small rotations, scalings, noise and changes of intensity.
        flip_axes: axes whose direction means nothing in this task (that of left and right usually means something).
        sampling: ``"foreground"`` centres every other crop on a voxel of the foreground, ``"uniform"`` none.

    Raises:
        ValueError: when ``sampling`` is unknown.
    """
    check_choice("sampling", sampling, ("foreground", "uniform"))
    keys = ["image", "label"]
    size = tuple(patch_size)
    steps: list[mt.Transform] = [
        # The edge's values: what the normalisation makes of air differs from volume to volume.
        mt.SpatialPadd(keys, size, mode=["edge", "constant"]),
        mt.RandSpatialCropSamplesd(keys, size, num_samples=samples, random_size=False)
        if sampling == "uniform"
        else mt.RandCropByPosNegLabeld(keys, "label", size, pos=1, neg=1, num_samples=samples, allow_smaller=True),
    ]
    if augment:
        steps += [
            mt.RandAffined(
                keys,
                prob=0.5,
                rotate_range=[0.26 if _alike(size[:axis] + size[axis + 1 :]) else 0.0 for axis in range(len(size))],
                scale_range=(0.15, 0.15, 0.15),
                translate_range=(4, 4, 4),
                mode=["bilinear", "nearest"],
                padding_mode="border",
            ),
            *(mt.RandFlipd(keys, prob=0.5, spatial_axis=axis) for axis in flip_axes),
            mt.RandGaussianNoised("image", prob=0.2, std=0.1),
            mt.RandScaleIntensityd("image", factors=0.2, prob=0.5),
            mt.RandShiftIntensityd("image", offsets=0.2, prob=0.5),
            mt.RandAdjustContrastd("image", prob=0.3, gamma=(0.8, 1.25), retain_stats=True),
        ]
    # One flat chain: CacheDataset keeps the result of the steps before the first random one.
    steps = [*preprocess.transforms, *steps]
    return CaseCompose([*steps, mt.EnsureTyped(keys, dtype=torch.float32, track_meta=False)])
