"""What a hidden voxel becomes. No choice is neutral, so a score says which one it hid with."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from unoise_monai.attribution.baselines import baseline
from unoise_monai.checks import check_choice
from unoise_monai.types import Image, VoxelMap

OPERATORS = ("zero", "mean", "value", "noise", "blur")
_NEEDS = {"noise": "sigma", "blur": "sigma", "value": "value"}


@dataclass(frozen=True)
class Hiding:
    """Hides voxels of an image; hashable, so that results can be kept by it.

    - ``"zero"``: 0 of normalised intensity. Koker et al., "U-Noise", 2021, section 4.3.
    - ``"mean"``: each item's and channel's own mean intensity.
    - ``"value"``: a constant, such as the -1 of tasks whose background is -1.
    - ``"noise"``: ``x + sigma * eps``, eps ~ N(0, 1), as U-Noise noises (Eq. 1); the voxel's own value shines through.
    - ``"blur"``: the Gaussian mean around the voxel, of the voxels inside the volume; coarse structure stays.

    The noise comes from a seed of its own, one volume of it for all items: every share, every map and every size of the
    batch meets the same noise.

    Args:
        operator: one of these.
        sigma: of the noise, in units of normalised intensity; of the blur, in voxels.
        value: in units of normalised intensity.
        seed: of the noise.

    Raises:
        ValueError: when ``operator`` is unknown, what it needs is missing, or it is given what it has no use for.
        ValueError: when ``sigma`` is not a finite number above 0, or ``value`` is not finite.
    """

    operator: str = "zero"
    sigma: float | None = None
    value: float | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        check_choice("operator", self.operator, OPERATORS)
        for name, given in (("sigma", self.sigma), ("value", self.value)):
            needed = _NEEDS.get(self.operator) == name
            if needed != (given is not None):
                rule = "given" if needed else "left out"
                raise ValueError(f"{name} must be {rule} for operator {self.operator!r}, got {given}")
        if self.sigma is not None and not 0 < self.sigma < math.inf:
            raise ValueError(f"sigma must be a finite number above 0, got {self.sigma}")
        if self.value is not None and not math.isfinite(self.value):
            raise ValueError(f"value must be a finite number, got {self.value}")

    def __call__(self, image: Image, visible: VoxelMap) -> Image:
        """The image with its other voxels hidden, in every channel.

        Shape:
            ``image`` ``(B, C, *spatial)`` and ``visible``, bool, ``(B, 1, *spatial)``, to ``(B, C, *spatial)``.
        """
        image = image.as_subclass(Tensor)
        return torch.where(visible.as_subclass(Tensor), image, self.fill(image))

    def fill(self, image: Image) -> Image:
        """What every voxel of the image would become, ``(B, C, *spatial)``, or of one value an item and channel."""
        image = image.as_subclass(Tensor)
        if self.operator == "noise":
            # Drawn on the CPU: the same noise on every device.
            eps = torch.randn(image.shape[1:], generator=torch.Generator().manual_seed(self.seed))
            return image + float(self.sigma or 0) * eps.to(image)
        if self.operator == "blur":
            return baseline(image, "blurred", sigma=float(self.sigma or 0))
        if self.operator == "mean":
            return image.mean(dim=tuple(range(2, image.ndim)), keepdim=True)
        return image.new_full((1,) * image.ndim, self.value or 0.0)


ZERO = Hiding("zero")
