"""Finds bright vessels without a network: tube filter, hysteresis, half the local contrast."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import itk
import numpy as np
import SimpleITK
from numpy.typing import NDArray

SIGMAS_MM = (0.4, 2.5)
REACH_MM = 1.0
ISLAND_MM3 = 5.0

SCALES = 5
SMALLEST_SIDE = 4
"""Voxels that the recursive filters need."""
ROUNDING = 1e-4
"""Responses below this are the rounding errors of the recursive filters."""
FAINT = 0.2
"""Share of the hysteresis' lower threshold that a vessel's flank must reach."""
LOCAL_MM = 3.0
"""Standard deviation of the neighbourhood over which vessel and surroundings are averaged."""
FLANK_MM = 0.5
"""The part around a vessel that belongs to neither: its voxels hold both."""


def vesselness(
    image: NDArray[Any], spacing_mm: Sequence[float], sigmas_mm: tuple[float, float] = SIGMAS_MM
) -> NDArray[np.float32]:
    """How much each voxel looks like part of a bright tube, whatever the tube's direction and calibre.

    The largest response over scales of ITK's Hessian objectness: Frangi et al. 1998, eq. 13 and 14, as Antiga 2007
    generalises it, with alpha = beta = 0.5. The Hessian is taken in mm and normalised by its scale. Its norm, S in
    eq. 12, is measured in units of the volume's own contrast, which runs from the median to the 99.9th percentile;
    gamma is a quarter of that: half the norm at the middle of a tube of full contrast.

    Args:
        image: intensities ``(X, Y, Z)`` in any unit, bright vessels.
        spacing_mm: voxel sizes.
        sigmas_mm: smallest and largest scale. A tube answers most at 0.7 times its radius.

    Returns:
        ``(X, Y, Z)`` in [0, 1].

    Raises:
        ValueError: when ``image`` is not 3-D, has a side below 4, holds NaN or infinite values, or one value only.
        ValueError: when ``spacing_mm`` is not three positive finite numbers, or ``sigmas_mm`` not positive and rising.
    """
    _check(image, spacing_mm, sigmas_mm)
    median, bright = np.percentile(image, (50, 99.9))
    # Where next to all of the volume is empty, its brightest voxel is the vessels'.
    contrast = (bright if bright > median else image.max()) - median
    if contrast == 0:
        return np.zeros(image.shape, np.float32)
    volume = itk.image_from_array(np.ascontiguousarray(((image - median) / contrast).astype(np.float32).T))
    volume.SetSpacing([float(size) for size in spacing_mm])
    volume_type = itk.Image[itk.F, 3]
    hessian_type = itk.Image[itk.SymmetricSecondRankTensor[itk.D, 3], 3]
    tubes = itk.HessianToObjectnessMeasureImageFilter[hessian_type, volume_type].New(
        ObjectDimension=1, BrightObject=True, Alpha=0.5, Beta=0.5, Gamma=0.25, ScaleObjectnessMeasure=False
    )
    scales = itk.MultiScaleHessianBasedMeasureImageFilter[volume_type, hessian_type, volume_type].New(
        volume, NumberOfSigmaSteps=SCALES, NonNegativeHessianBasedMeasure=True
    )
    scales.SetHessianToMeasureFilter(tubes)
    scales.SetSigmaMinimum(sigmas_mm[0])
    scales.SetSigmaMaximum(sigmas_mm[1])
    scales.SetSigmaStepMethodToLogarithmic()
    scales.Update()
    return np.ascontiguousarray(itk.array_from_image(scales.GetOutput()).T)


def vessel_label(
    image: NDArray[Any],
    spacing_mm: Sequence[float],
    sigmas_mm: tuple[float, float] = SIGMAS_MM,
    reach_mm: float = REACH_MM,
    island_mm3: float = ISLAND_MM3,
) -> NDArray[np.uint8]:
    """Segment the bright vessels of an angiogram, with or without its soft tissue, without a threshold to choose.

    1. `vesselness`, whose responses Otsu's method parts in three: nothing, doubtful, clear.
    2. Cores: what is clear, and what is doubtful and connected to it (hysteresis); small islands go.
    3. Flanks: within ``reach_mm`` of a core, what is tube-like at all and brighter than halfway between the vessel
       and its surroundings, both averaged nearby: the full width at half maximum, wherever the bias field has it.

    Args:
        image: intensities ``(X, Y, Z)`` in any unit, bright vessels.
        spacing_mm: voxel sizes.
        sigmas_mm: smallest and largest scale of `vesselness`.
        reach_mm: how far a vessel's edge may lie from its core.
        island_mm3: connected parts of less volume are removed.

    Returns:
        ``(X, Y, Z)``, 1 in vessels, 0 elsewhere; all 0 where nothing looks like a vessel.

    Raises:
        ValueError: when ``reach_mm`` or ``island_mm3`` is negative, or as in `vesselness`.
    """
    for name, value in (("reach_mm", reach_mm), ("island_mm3", island_mm3)):
        if not 0 <= value < np.inf:
            raise ValueError(f"{name} must be a finite number of at least 0, got {value}")
    response = vesselness(image, spacing_mm, sigmas_mm)
    least = int(np.ceil(island_mm3 / np.prod(spacing_mm)))
    felt = response[response > ROUNDING]
    if felt.size == 0:
        return np.zeros(image.shape, np.uint8)
    otsu = SimpleITK.OtsuMultipleThresholdsImageFilter()
    otsu.SetNumberOfThresholds(2)
    otsu.SetNumberOfHistogramBins(512)
    otsu.Execute(SimpleITK.GetImageFromArray(felt[None]))
    doubtful, clear = otsu.GetThresholds()
    cores = SimpleITK.DoubleThreshold(_to_itk(response, spacing_mm), doubtful, clear, 2.0, 2.0, 1, 0, True)
    cores = _without_islands(cores, least)
    core = _from_itk(cores) > 0
    if not core.any():
        return core.astype(np.uint8)
    distance_mm = _from_itk(SimpleITK.SignedMaurerDistanceMap(cores, False, False, True))
    middle = (_local_mean(image, core, spacing_mm) + _local_mean(image, distance_mm > FLANK_MM, spacing_mm)) / 2
    vessel = (distance_mm <= reach_mm) & (response > FAINT * doubtful) & (image > middle)
    return _from_itk(_without_islands(_to_itk(vessel.astype(np.uint8), spacing_mm), least))


def _check(image: NDArray[Any], spacing_mm: Sequence[float], sigmas_mm: tuple[float, float]) -> None:
    if image.ndim != 3:
        raise ValueError(f"image must be 3-D, got shape {image.shape}")
    if min(image.shape) < SMALLEST_SIDE:
        raise ValueError(f"image must have at least {SMALLEST_SIDE} voxels a side, got shape {image.shape}")
    if np.shape(spacing_mm) != (3,) or any(not 0 < size < np.inf for size in spacing_mm):
        raise ValueError(f"spacing_mm must be three positive finite numbers, got {spacing_mm}")
    if np.shape(sigmas_mm) != (2,) or not 0 < sigmas_mm[0] < sigmas_mm[1] < np.inf:
        raise ValueError(f"sigmas_mm must be two positive numbers in rising order, got {sigmas_mm}")
    if not np.isfinite(image).all():
        raise ValueError(f"image must hold finite voxels only, got {int((~np.isfinite(image)).sum())} NaN or infinite")
    if image.min() == image.max():
        raise ValueError(f"image must hold more than one value, got {image.min()} everywhere")


def _without_islands(mask: SimpleITK.Image, least: int) -> SimpleITK.Image:
    """The parts of a 0/1 image, connected by face, edge or corner, that have at least ``least`` voxels."""
    parts = SimpleITK.RelabelComponent(SimpleITK.ConnectedComponent(mask, True), least)
    return SimpleITK.Cast(parts > 0, SimpleITK.sitkUInt8)


def _local_mean(image: NDArray[Any], where: NDArray[np.bool_], spacing_mm: Sequence[float]) -> NDArray[np.float32]:
    """The mean of ``image`` over ``where``, weighted by a Gaussian around each voxel."""
    weight, total = (
        _from_itk(SimpleITK.SmoothingRecursiveGaussian(_to_itk(each.astype(np.float32), spacing_mm), LOCAL_MM))
        for each in (where, image * where)
    )
    return total / np.maximum(weight, 1e-6)


def _to_itk(array: NDArray[Any], spacing_mm: Sequence[float]) -> SimpleITK.Image:
    volume = SimpleITK.GetImageFromArray(np.ascontiguousarray(array.T))
    volume.SetSpacing([float(size) for size in spacing_mm])
    return volume


def _from_itk(volume: SimpleITK.Image) -> NDArray[Any]:
    return np.ascontiguousarray(SimpleITK.GetArrayFromImage(volume).T)
