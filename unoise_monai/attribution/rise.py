"""RISE: the score under random masks, averaged over those that leave a voxel visible. Captum has none."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from unoise_monai.attribution.base import Score
from unoise_monai.attribution.perturbation import PerturbationAttributor
from unoise_monai.checks import check_fraction
from unoise_monai.types import Image, VoxelMap


class RISE(PerturbationAttributor):
    """How much higher the score is under random masks that leave a voxel visible than under all of them.

    Petsiuk, Das, Saenko, "RISE: randomized input sampling for explanation of black-box models", 2018, in 2D and 3D: a
    coarse grid of cells, each visible with a probability, is interpolated linearly and cut out at a random offset;
    masked voxels become ``baseline`` by degrees. The map is the mean of the scores, weighted by the mask at the voxel.
    Two things differ from the paper's equation 6, neither of which changes what the map tends to but for a constant:
    the sum is divided by the masks' sum at the voxel in place of what they are expected to sum to, so that uneven
    coverage is no part of the map; and the mean of all scores (``notes["mean_score"]``) is taken off, so that 0 is a
    voxel that does not matter.

    Costs a pass forward for each mask, and one. The map is a sample mean, blurred by a cell and noisy with few masks: a
    ranking of voxels, neither their contributions nor a change of the score per intensity.

    Args:
        network: see `Attributor`.
        masks: how many.
        cells: of the grid along each axis, one number or one an axis.
        visible: the probability of a cell to stay visible, the paper's p.
        **options: see `PerturbationAttributor`.

    Raises:
        ValueError: when ``masks`` or ``cells`` is below 1, or ``visible`` is not above 0 and below 1; in the call, when
            ``cells`` is not one number an axis.
    """

    name = "rise"

    def __init__(
        self,
        network: nn.Module,
        masks: int = 500,
        cells: int | Sequence[int] = 7,
        visible: float = 0.5,
        **options: Any,
    ) -> None:
        super().__init__(network, **options)
        if masks < 1:
            raise ValueError(f"masks must be at least 1, got {masks}")
        if any(number < 1 for number in ([cells] if isinstance(cells, int) else cells)):
            raise ValueError(f"cells must be at least 1 on each axis, got {cells}")
        check_fraction("visible", visible)
        if visible == 1:
            raise ValueError("visible must be below 1, or nothing is hidden, got 1")
        self.masks, self.cells, self.visible = masks, cells, visible

    def perturb(self, image: Image, hidden: Image, score: Score) -> Tensor:
        whole = score(image)
        weighted, weights = torch.zeros(2, *image.shape[2:], device=image.device).unbind()
        changes = []
        for batch in self.batches(self.masks, score):
            masks = torch.cat([self.mask(image.shape[2:]) for _ in batch]).to(image.device)
            # The score's own level is no part of the map; taken off at once, it costs no digits of the sums.
            changes.append(score(torch.lerp(hidden, image, masks)) - whole)
            weighted += torch.einsum("n,n...->...", changes[-1], masks[:, 0])
            weights += masks[:, 0].sum(dim=0)
        mean = torch.cat(changes).mean()
        score.notes["mean_score"] = float(whole + mean)
        seen = weights > 0
        return torch.where(seen, weighted / weights.where(seen, 1.0) - mean, 0.0)[None, None]

    def mask(self, size: Sequence[int]) -> VoxelMap:
        """A random mask, ``(1, 1, *spatial)`` in [0, 1], 1 where the image stays visible."""
        cells = [self.cells] * len(size) if isinstance(self.cells, int) else list(self.cells)
        if len(cells) != len(size):
            raise ValueError(f"cells must be one number or {len(size)}, one an axis, got {self.cells}")
        sides = [-(-side // number) for side, number in zip(size, cells, strict=True)]
        # One cell more than fits the volume, for the offset.
        grid = (torch.rand(1, 1, *[number + 1 for number in cells]) < self.visible).float()
        whole = [(number + 1) * side for number, side in zip(cells, sides, strict=True)]
        mask = F.interpolate(grid, whole, mode="bilinear" if len(size) == 2 else "trilinear", align_corners=False)
        offsets = [int(torch.randint(side, ())) for side in sides]
        for axis, (offset, side) in enumerate(zip(offsets, size, strict=True)):
            mask = mask.narrow(axis + 2, offset, side)
        return mask
