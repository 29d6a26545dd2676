"""Occlusion and RISE: hide parts of the image, and see what becomes of the target."""

import math
from abc import abstractmethod
from collections.abc import Iterator, Sequence
from typing import Any, TypeAlias

import torch
from monai.data import MetaTensor
from monai.data.utils import dense_patch_slices
from nibabel.affines import voxel_sizes
from torch import Tensor, nn
from torch.nn import functional as F

from unoise_monai.attribution import base
from unoise_monai.attribution.base import Attributor, Baseline, Score, register
from unoise_monai.checks import check_choice, check_fraction
from unoise_monai.types import Image, VoxelMap


class PerturbationAttributor(Attributor):
    """An attribution from the scores of copies of the image of which parts are hidden: no pass back.

    Positive is what speaks for the target: hiding it lowers the score. The target may be without a gradient, such as
    `HardDice`. The notes hold how many copies were ``planned`` and ``evaluated``; at a time limit these are spread over
    the volume. A ValueError where ``baseline`` is none or ``time_limit_s`` not above 0.
    """

    differentiates = False
    default_sign = "signed"

    def __init__(
        self,
        network: nn.Module,
        baseline: Baseline = "zero",
        seed: int | None = 0,
        progress: bool = False,
        time_limit_s: float | None = None,
        **options: Any,
    ) -> None:
        super().__init__(network, **options)
        base.check_baseline(baseline)
        base.check_time_limit(time_limit_s)
        self.baseline, self.seed, self.progress, self.time_limit_s = baseline, seed, progress, time_limit_s

    def maps(self, images: Image, score: Score) -> Tensor:
        with torch.no_grad(), base.seeded(self.seed, images.device):
            plain = images.detach()
            return self.perturb(plain, base.baseline(plain, self.baseline, seed=self.seed), score)

    @abstractmethod
    def perturb(self, image: Image, hidden: Image, score: Score) -> Tensor:
        """The map of one item, ``(1, 1, *spatial)``, without a gradient; ``hidden`` is what its voxels become."""

    def batches(self, planned: int, score: Score) -> Iterator[range]:
        """The numbers of ``planned`` copies, as many at once as fit memory and time; see `batches`."""
        return base.batches(planned, score.copies, self.name, score.notes, self.progress, self.time_limit_s)


UNITS = ("voxels", "mm")
Sides: TypeAlias = float | Sequence[float]
"""Of a window: one number, or one an axis."""


@register
class Occlusion(PerturbationAttributor):
    """How far the score falls when a window around a voxel is hidden.

    Zeiler and Fergus, "Visualizing and understanding convolutional networks", 2014. Each voxel gets the mean fall over
    the windows that cover it; the last ones of a side are moved back into the volume. Koker et al., "U-Noise", 2021,
    section 4.2, take ``window=15, stride=2`` in 2D and report the Dice that is left: with the target
    `unperturbed_dice`, 1 minus the fall.

    Costs a pass forward for each window, and one: about the volume over ``stride ** 3``. It cannot distinguish
    voxels closer than the stride, and misses a structure that another, outside the window, makes up for.

    Args:
        stride: from one window to the next, at most the window.
        unit: of both, ``"voxels"`` or ``"mm"``; millimetres are rounded to whole voxels, at least one, by the image's
            affine.

    Raises:
        ValueError: when ``window`` or ``stride`` is not above 0, or no whole number of voxels, or the stride above the
            window, or ``unit`` unknown; in the call, when they are not one number an axis, or ``unit`` is ``"mm"`` and
            the image has no affine or its items different voxel sizes.
    """

    name = "occlusion"
    contributes = True

    def __init__(
        self, network: nn.Module, window: Sides = 16, stride: Sides = 8, unit: str = "voxels", **options: Any
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

    def perturb(self, image: Image, hidden: Image, score: Score) -> Tensor:
        windows = self.windows(image.shape[2:], _voxel_sizes_mm(score.place) if self.unit == "mm" else None)
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

    def windows(self, size: Sequence[int], voxel_sizes: Sequence[float] | None = None) -> list[tuple[slice, ...]]:
        """All windows of a volume, in voxels; of sides in mm, by the sizes of voxels."""
        for name, sides in (("window", self.window), ("stride", self.stride)):
            if len(_each(sides)) not in (1, len(size)):
                raise ValueError(f"{name} must be one number or {len(size)}, one an axis, got {sides}")
        scale = voxel_sizes or [1.0] * len(size)
        window, stride = (
            [max(1, round(side / unit)) for side, unit in zip(_each(sides, len(size)), scale, strict=True)]
            for sides in (self.window, self.stride)
        )
        window = [min(side, whole) for side, whole in zip(window, size, strict=True)]
        return dense_patch_slices(size, window, [min(pair) for pair in zip(window, stride, strict=True)])


def _each(sides: Sides, axes: int = 1) -> list[float]:
    """One number an axis."""
    numbers = list(sides) if isinstance(sides, Sequence) else [sides]
    return numbers * axes if len(numbers) == 1 else numbers


def _voxel_sizes_mm(image: MetaTensor | None) -> list[float]:
    if image is None:
        raise ValueError("unit 'mm' needs an image with an affine, a MetaTensor, got Tensor")
    affines = image.affine.reshape(-1, *image.affine.shape[-2:]).cpu().double()
    sizes = [voxel_sizes(affine.numpy())[: image.ndim - 2].tolist() for affine in affines]
    if any(not math.isclose(a, b, rel_tol=1e-3) for item in sizes for a, b in zip(item, sizes[0], strict=True)):
        raise ValueError(f"the images of a batch must have one voxel size for unit 'mm', got {sizes}")
    return sizes[0]


@register
class RISE(PerturbationAttributor):
    """How much higher the score is under random masks that leave a voxel visible than under all of them.

    Petsiuk, Das, Saenko, "RISE: randomized input sampling for explanation of black-box models", 2018, in 2D and 3D: a
    coarse grid of cells, each visible with a probability, is interpolated linearly and cut out at a random offset;
    masked voxels become ``baseline`` by degrees. The map is the mean of the scores, weighted by the mask at the voxel.
    Two things differ from the paper's equation 6, and change what the map tends to by a constant at most: the sum is
    divided by the masks' own sum at the voxel, not the expected one, so that uneven coverage is no part of the map; and
    the mean of all scores (``notes["mean_score"]``) is taken off, so that 0 is a voxel that does not matter.

    Costs a pass forward for each mask, and one. The map is blurred by a cell and noisy with few masks: a ranking of
    voxels, neither their contributions nor a change of the score per intensity.

    Args:
        cells: of the grid along each axis, one number or one an axis.
        visible: the probability of a cell to stay visible, the paper's p.

    Raises:
        ValueError: when ``masks`` or ``cells`` is below 1, or ``visible`` is not above 0 and below 1; in the call, when
            ``cells`` is not one number an axis.
    """

    name = "rise"

    def __init__(
        self, network: nn.Module, masks: int = 500, cells: int | Sequence[int] = 7, visible: float = 0.5, **options: Any
    ) -> None:
        super().__init__(network, **options)
        base.check_at_least("masks", masks, 1)
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
            # Taken off here, the score's own level costs the sums no digits.
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
