"""Deformation-aware learning: a segmentation that is deformed with its image."""

from __future__ import annotations

import math
from typing import Any

import torch
from monai.networks.blocks import DVF2DDF, Warp
from torch import Tensor, nn

from unoise_monai.losses.segmentation import FocalTverskyLoss, full_resolution, soft_labels
from unoise_monai.networks.modes import probabilities
from unoise_monai.types import Image, LabelMap

FIXED_PLANES = 2
"""Planes at each end of the first two axes that stay where they are."""


class RandomDeformation(nn.Module):
    """Draws smooth random deformations that do not fold.

    A velocity field, cubic B-splines on control points, is integrated by scaling and squaring (Arsigny et al. 2006), so
    that the deformation is a diffeomorphism. Each call draws the spacing of the control points and the bound of their
    displacements anew, as Chatterjee et al., "DS6", 2022 do. Towards the fixed planes the velocity falls to 0.

    Args:
        control_spacing: lowest and highest distance of the control points, in voxels, whole numbers.
        max_displacement: lowest and highest bound of the displacements, as a share of half the extent of an axis.
        steps: squarings.

    Shape:
        an image ``(B, C, *spatial)`` to its displacement field ``(B, D, *spatial)``, D axes, in voxels, float32; the
        same for all channels, another for each item.

    Raises:
        ValueError: when a range is not in rising order, a spacing is below 2, or a displacement is negative or above 1;
            in ``forward``, when the image is so large that the bound, in voxels, exceeds the lowest spacing.
    """

    def __init__(
        self,
        control_spacing: tuple[int, int] = (5, 7),
        max_displacement: tuple[float, float] = (0.01, 0.03),
        steps: int = 10,
    ) -> None:
        super().__init__()
        if not 2 <= control_spacing[0] <= control_spacing[1]:
            raise ValueError(f"control_spacing must be a rising range of at least 2, got {tuple(control_spacing)}")
        if not 0 <= max_displacement[0] <= max_displacement[1] <= 1:
            raise ValueError(f"max_displacement must be a rising range inside [0, 1], got {tuple(max_displacement)}")
        self.control_spacing, self.max_displacement = control_spacing, max_displacement
        self.integrate = DVF2DDF(num_steps=steps, padding_mode="border")

    @torch.no_grad()
    def forward(self, x: Image) -> Tensor:
        # Half precision would round displacements of a few voxels.
        with torch.autocast(x.device.type, enabled=False):
            return self.integrate(self.velocity(x))

    def velocity(self, x: Image) -> Tensor:
        """The stationary velocity that is integrated, ``(B, D, *spatial)``, in voxels."""
        size, device = x.shape[2:], x.device
        low, high = self.control_spacing
        most_voxels = self.max_displacement[1] * (max(size) - 1) / 2
        if most_voxels > low:
            raise ValueError(
                f"max_displacement must be at most control_spacing, {low} voxels, got {most_voxels:.3g} voxels on an"
                f" image of {tuple(size)}"
            )
        spacing = int(torch.randint(low, high + 1, ()))
        least, most = self.max_displacement
        share = least + (most - least) * float(torch.rand(()))
        bases = [spline_basis(side, spacing).to(device) for side in size]
        velocity = 2 * torch.rand(x.shape[0], len(size), *(basis.shape[1] for basis in bases), device=device) - 1
        for axis, basis in enumerate(bases):
            velocity = torch.movedim(torch.tensordot(velocity, basis, ([axis + 2], [1])), -1, axis + 2)
        half_extent = torch.tensor([(side - 1) / 2 for side in size], device=device)
        velocity = velocity * share * half_extent.view(1, -1, *[1] * len(size))
        for axis in (0, 1):
            ramp = _ramp(size[axis], spacing).to(device)
            velocity = velocity * ramp.view(1, 1, *(-1 if other == axis else 1 for other in range(len(size))))
        return velocity


class DeformationAware(nn.Module):
    """Segments an image and a random deformation of it: the training wrapper of a segmentation network.

    Args:
        network: it is trained in place.
        deformation: gives the displacement field.

    Shape:
        ``(B, C, *spatial)`` to three: what the network gives for the image, what it gives for the warped image, and the
        displacement field ``(B, D, *spatial)``, in voxels.
    """

    def __init__(self, network: nn.Module, deformation: RandomDeformation | None = None) -> None:
        super().__init__()
        self.network = network
        self.deformation = RandomDeformation() if deformation is None else deformation
        self.warp = Warp(padding_mode="border")

    def forward(self, x: Image) -> tuple[Any, Any, Tensor]:
        field = self.deformation(x)
        with torch.autocast(x.device.type, enabled=False):
            # In the memory layout of x, which says how fast convolutions are.
            warped = torch.empty_like(x).copy_(self.warp(x.float(), field))
        return self.network(x), self.network(warped), field


class DeformationAwareLoss(nn.Module):
    """``L(U(x), y) + L(U(warp x), warp y) + consistency(U(warp x), warp(sigmoid(U(x))))``.

    Chatterjee et al., "DS6", 2022. Their published code warps raw logits for the target of the consistency, which has
    no meaning for a loss of probabilities; here it is probabilities that are warped. The consistency is the focal
    Tversky loss at full resolution, with gradients through both sides. Labels are warped as shares of their classes.

    Args:
        loss: of what the network gives and a label, which may be soft.

    Shape:
        ``pred`` is what `DeformationAware` returns, ``target`` class indices ``(B, 1, *spatial)``. A scalar.
    """

    def __init__(self, loss: nn.Module) -> None:
        super().__init__()
        self.loss = loss
        self.consistency = FocalTverskyLoss()
        self.warp = Warp(padding_mode="border")

    def forward(self, pred: tuple[Any, Any, Tensor], target: LabelMap) -> Tensor:
        plain, warped, field = pred
        logits = full_resolution(plain)
        label = self.warp(soft_labels(target, logits.shape[1]), field)
        expected = self.warp(probabilities(logits), field)
        consistency = self.consistency(full_resolution(warped), expected)
        return self.loss(plain, target) + self.loss(warped, label) + consistency


def spline_basis(side: int, spacing: int) -> Tensor:
    """The weight of each control point of a uniform cubic B-spline in each voxel, ``(side, control points)``.

    The control points lie at ``-spacing, 0, spacing, ...``, in voxels, one beyond either end at least.
    """
    count = math.ceil((side - 1) / spacing) + 3
    distance = (torch.arange(side)[:, None] / spacing - (torch.arange(count) - 1)).abs()
    near = 2 / 3 - distance**2 + distance**3 / 2
    far = (2 - distance).clamp_min(0) ** 3 / 6
    return torch.where(distance < 1, near, far)


def _ramp(side: int, width: int) -> Tensor:
    """0 in the fixed planes at both ends of an axis, rising to 1 over ``width`` voxels."""
    index = torch.arange(side)
    inwards = torch.minimum(index, side - 1 - index) - (FIXED_PLANES - 1)
    return (inwards / width).clamp(0, 1)
