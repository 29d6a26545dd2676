"""Losses that train the utility: segmentation, several scales, deformation-aware learning."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from monai.losses import DiceLoss, TverskyLoss
from monai.networks.blocks import DVF2DDF, Warp
from monai.networks.utils import one_hot
from torch import Tensor, nn
from torch.nn import functional as F

from unoise_monai.networks.weights import probabilities
from unoise_monai.types import Image, LabelMap, Logits

SMALLEST_LOSS = 1e-6
"""The power of a loss of 0 has an infinite slope; below this the slope is 0."""

ROUNDING = 1e-4
"""How far interpolation may have carried a share out of [0, 1]."""


def soft_labels(target: LabelMap | Tensor, classes: int) -> Tensor:
    """The share of every class in each voxel, as float32.

    Shape:
        class indices ``(B, 1, *spatial)``, or shares ``(B, K, *spatial)`` which come back as they are, to
        ``(B, K, *spatial)``; for one class, the foreground's share.

    Raises:
        ValueError: when ``target`` has neither one channel nor ``classes``, or shares outside [0, 1].
    """
    if target.shape[1] not in (1, classes):
        raise ValueError(f"target must have 1 channel or {classes}, got shape {tuple(target.shape)}")
    if target.shape[1] != classes:
        return one_hot(target.long(), num_classes=classes)
    shares = target.float()
    if shares.numel() and not (shares.min() >= -ROUNDING and shares.max() <= 1 + ROUNDING):
        raise ValueError(f"target must hold shares in [0, 1], got {float(shares.min())} to {float(shares.max())}")
    return shares


def full_resolution(pred: Any) -> Logits:
    """The first tensor of what a network gives in training: a tensor, or lists of tensors within one another."""
    while not isinstance(pred, Tensor):
        pred = pred[0]
    return pred


class FocalTverskyLoss(nn.Module):
    """``(1 - Tversky index) ** power``, which looks for small structures: a missed voxel weighs more than a false one.

    Abraham and Khan, "A novel focal Tversky loss function with improved attention U-Net for lesion segmentation", 2019,
    with the values of Chatterjee et al., "DS6", 2022. Sums run over the whole batch; of several classes the foreground
    ones are averaged.

    Args:
        false_negatives: weight of the voxels that are missed.
        false_positives: weight of the voxels that are wrongly found.
        power: of the loss of each class.
        smooth: added to the numerator and the denominator of the index.

    Shape:
        logits ``(B, K, *spatial)``, and class indices ``(B, 1, *spatial)`` or shares ``(B, K, *spatial)``. A scalar.

    Raises:
        ValueError: when an argument is not a finite number above 0.
    """

    def __init__(
        self, false_negatives: float = 0.7, false_positives: float = 0.3, power: float = 0.75, smooth: float = 1.0
    ) -> None:
        super().__init__()
        weights = {"false_negatives": false_negatives, "false_positives": false_positives}
        for name, value in {**weights, "power": power, "smooth": smooth}.items():
            if not 0 < value < math.inf:
                raise ValueError(f"{name} must be a finite number above 0, got {value}")
        self.power = power
        # MONAI's alpha weighs the false positives. With soft labels the loss of a label against itself is 0.
        self.tversky = TverskyLoss(
            alpha=false_positives,
            beta=false_negatives,
            smooth_nr=smooth,
            smooth_dr=smooth,
            batch=True,
            soft_label=True,
            reduction="none",
        )

    def forward(self, logits: Logits, target: LabelMap | Tensor) -> Tensor:
        loss = self.tversky(*_foreground(probabilities(logits), soft_labels(target, logits.shape[1])))
        return (loss.clamp_min(SMALLEST_LOSS) ** self.power).mean()


class BCEIoUDiceLoss(nn.Module):
    """Cross-entropy + (1 - IoU) + (1 - Dice), in equal weights.

    Fazel et al., "Interpretability of U-Net model in the segmentation of medical images", Eq. 5. IoU and Dice are those
    of each image, averaged. Of several classes the foreground ones are averaged; the cross-entropy is of the softmax.

    Shape:
        logits ``(B, K, *spatial)``, and class indices ``(B, 1, *spatial)`` or shares ``(B, K, *spatial)``. A scalar.
    """

    def __init__(self) -> None:
        super().__init__()
        self.dice = DiceLoss()
        self.iou = DiceLoss(jaccard=True)

    def forward(self, logits: Logits, target: LabelMap | Tensor) -> Tensor:
        logits = logits.float()
        shares = soft_labels(target, logits.shape[1])
        binary = logits.shape[1] == 1
        entropy = F.binary_cross_entropy_with_logits(logits, shares) if binary else F.cross_entropy(logits, shares)
        pair = _foreground(probabilities(logits), shares)
        return entropy + self.iou(*pair) + self.dice(*pair)


class MultiScaleLoss(nn.Module):
    """The weighted sum of a loss over the scales that a network gives in training, finest first.

    Chatterjee et al., "DS6", 2022. Coarse logits are interpolated to the label's grid: a thin vessel would not survive
    the way down to theirs. A single tensor, which a network gives in evaluation mode, counts as the finest scale.

    Args:
        loss: of logits and labels on one grid.
        weights: of the scales.

    Shape:
        logits ``(B, K, *spatial)``, or a list of them at several resolutions; labels as ``loss`` takes them. A scalar.

    Raises:
        ValueError: when a weight is negative or not finite; in ``forward``, when there are more scales than weights.
    """

    def __init__(self, loss: nn.Module, weights: Sequence[float] = (1.0, 0.66, 0.34)) -> None:
        super().__init__()
        if not weights or not all(math.isfinite(weight) and weight >= 0 for weight in weights):
            raise ValueError(f"weights must be finite numbers of at least 0, one or more, got {list(weights)}")
        self.loss, self.weights = loss, tuple(weights)

    def forward(self, pred: Logits | Sequence[Logits], target: LabelMap | Tensor) -> Tensor:
        scales = [pred] if isinstance(pred, Tensor) else list(pred)
        if len(scales) > len(self.weights):
            raise ValueError(f"weights must hold one for each of {len(scales)} scales, got {len(self.weights)}")
        size = target.shape[2:]
        mode = "bilinear" if len(size) == 2 else "trilinear"
        total = torch.zeros((), device=target.device)
        for weight, logits in zip(self.weights, scales, strict=False):
            finest = logits.float() if logits.shape[2:] == size else F.interpolate(logits.float(), size, mode=mode)
            total = total + weight * self.loss(finest, target)
        return total


def _foreground(*maps: Tensor) -> tuple[Tensor, ...]:
    return tuple(each[:, 1:] if each.shape[1] > 1 else each for each in maps)


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
