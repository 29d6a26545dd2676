"""Occlusion: how far the score falls where a window hides the image.

Captum's knows no millimetres, keeps to no time limit and cuts the last windows of a side short; where windows fit the
volume, the map is the same.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from monai.data import MetaTensor
from monai.data.utils import dense_patch_slices
from nibabel.affines import voxel_sizes
from torch import Tensor, nn

from unoise_monai.attribution.base import Score
from unoise_monai.attribution.perturbation import PerturbationAttributor
from unoise_monai.attribution.targets import Target
from unoise_monai.checks import check_choice
from unoise_monai.types import Image

UNITS = ("voxels", "mm")


class Occlusion(PerturbationAttributor):
    """How far the score falls when a window around a voxel is hidden.

    Zeiler and Fergus, "Visualizing and understanding convolutional networks", 2014. Each voxel gets the mean fall over
    the windows that cover it. The last windows of a side are moved back into the volume, so that all are of one size
    and every voxel is covered. Koker et al., "U-Noise", 2021, section 4.2, slide a window of 15 with a stride of 2 over
    2D images and report the Dice that is left, which is ``window=15, stride=2`` with the target `unperturbed_dice`: the
    fall is 1 minus that Dice.

    Costs a pass forward for each window, and one: about the volume over ``stride ** 3``. It cannot tell voxels closer
    than the stride apart, and sees nothing of a structure that another, outside the window, makes up for.

    Args:
        network: see `Attributor`.
        window: sides of the window, one number or one an axis.
        stride: from one window to the next, at most the window.
        unit: of both, ``"voxels"`` or ``"mm"``; millimetres are rounded to whole voxels, at least one, by the affine of
            the image.
        **options: see `PerturbationAttributor`.

    Raises:
        ValueError: when ``window`` or ``stride`` is not above 0, or no whole number of voxels, or the stride above the
            window, or ``unit`` unknown; in the call, when they are not one number an axis, or ``unit`` is ``"mm"`` and
            the image has no affine or its items different voxel sizes.
    """

    name = "occlusion"
    contributes = True

    def __init__(
        self,
        network: nn.Module,
        window: float | Sequence[float] = 16,
        stride: float | Sequence[float] = 8,
        unit: str = "voxels",
        **options: Any,
    ) -> None:
        super().__init__(network, **options)
        check_choice("unit", unit, UNITS)
        for name, sides in (("window", window), ("stride", stride)):
            for side in _each(sides):
                if not (math.isfinite(side) and side > 0):
                    raise ValueError(f"{name} must be above 0, got {sides}")
                if unit == "voxels" and side != int(side):
                    raise ValueError(f"{name} must be whole voxels, got {sides}")
        lengths = {len(_each(sides)) for sides in (window, stride)} - {1}
        axes = max(lengths, default=1)
        if len(lengths) > 1 or any(s > w for s, w in zip(_each(stride, axes), _each(window, axes), strict=True)):
            raise ValueError(f"stride must be at most the window on each axis, got {stride} and {window}")
        self.window, self.stride, self.unit = window, stride, unit
        self._voxel_sizes: Sequence[float] | None = None

    def __call__(self, image: Image, target: Target) -> MetaTensor:
        self._voxel_sizes = _voxel_sizes_mm(image) if self.unit == "mm" else None
        return super().__call__(image, target)

    def perturb(self, image: Image, hidden: Image, score: Score) -> Tensor:
        windows = self.windows(image.shape[2:])
        # Over the whole volume from the start, so that a time limit leaves no half of it out.
        order = torch.randperm(len(windows)).tolist()
        whole = score(image)
        falls, covers = torch.zeros(2, *image.shape[2:], device=image.device).unbind()
        for batch in self.batches(len(windows), score):
            chosen = [windows[order[number]] for number in batch]
            copies = image.repeat(len(chosen), *[1] * (image.ndim - 1))
            for copy, window in zip(copies, chosen, strict=True):
                copy[(..., *window)] = hidden[(0, ..., *window)]
            for window, fall in zip(chosen, whole - score(copies), strict=True):
                falls[window] += fall
                covers[window] += 1
        return (falls / covers.clamp_min(1))[None, None]

    def windows(self, size: Sequence[int]) -> list[tuple[slice, ...]]:
        """All windows of a volume, in voxels."""
        for name, sides in (("window", self.window), ("stride", self.stride)):
            if len(_each(sides)) not in (1, len(size)):
                raise ValueError(f"{name} must be one number or {len(size)}, one an axis, got {sides}")
        scale = self._voxel_sizes or [1.0] * len(size)
        window, stride = (
            [max(1, round(side / unit)) for side, unit in zip(_each(sides, len(size)), scale, strict=True)]
            for sides in (self.window, self.stride)
        )
        window = [min(side, whole) for side, whole in zip(window, size, strict=True)]
        return dense_patch_slices(size, window, [min(pair) for pair in zip(window, stride, strict=True)])


def _each(sides: float | Sequence[float], axes: int = 1) -> list[float]:
    """One number an axis."""
    numbers = list(sides) if isinstance(sides, Sequence) else [sides]
    return numbers * axes if len(numbers) == 1 else numbers


def _voxel_sizes_mm(image: Image) -> list[float]:
    if not isinstance(image, MetaTensor):
        raise ValueError(f"unit 'mm' needs an image with an affine, a MetaTensor, got {type(image).__name__}")
    affines = image.affine.reshape(-1, *image.affine.shape[-2:]).cpu().double()
    sizes = [voxel_sizes(affine.numpy())[: image.ndim - 2].tolist() for affine in affines]
    if any(not math.isclose(a, b, rel_tol=1e-3) for item in sizes for a, b in zip(item, sizes[0], strict=True)):
        raise ValueError(f"the images of a batch must have one voxel size for unit 'mm', got {sizes}")
    return sizes[0]
