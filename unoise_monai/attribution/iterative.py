"""Iterative unveiling of regions (Bordes et al.), with and without fine-tuning."""

import copy
import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import torch
from monai.data import MetaTensor
from monai.utils import ensure_tuple_rep
from torch import Tensor, nn
from torch.nn import functional as F

from unoise_monai.attribution import base
from unoise_monai.attribution.base import Attributor, Baseline, Score, register
from unoise_monai.attribution.composed import SmoothGrad
from unoise_monai.attribution.targets import ClassProbability, Target, class_sum
from unoise_monai.checks import check_finite, check_fraction
from unoise_monai.inference.tiling import VolumeNetwork
from unoise_monai.networks.weights import attributing, segmentation
from unoise_monai.types import Image, LabelMap, Logits, VoxelMap

logger = logging.getLogger(__name__)

PAPER_BOX, PAPER_SIDE = 11, 224
"""Voxels a side of the paper's box, and of its pictures."""


@dataclass(frozen=True)
class RegionOfInterest:
    """Outlines what a saliency map points at.

    Bordes et al., "Iteratively unveiling new regions of interest in deep learning models", 2018, section 2: "computes
    iteratively a score (mean over a neighborhood of pixels) and assigns a threshold". The paper leaves the thresholds
    open. Here a voxel is in at first where its saliency reaches ``level`` times the ``quantile`` of those above 0;
    then, in each pass, where at least ``threshold`` of the visible voxels in the box around it are in.

    Args:
        level: share of the full saliency.
        quantile: which saliency counts as full: 1 for the largest, which in the long tails of gradients is an outlier.
        box: odd number of voxels, one or one an axis; None for the paper's 11 in proportion, see `proportional_box`.
        passes: how often the mean and the threshold are taken, in the paper three times.
        threshold: of the mean. With 0.5, a voxel takes the value of most of its neighbours, as the paper words it: what
            is thinner than about half the box vanishes. Below, regions grow with every pass and with the box, as in the
            paper; above, they shrink.

    Raises:
        ValueError: when a share is not above 0 and at most 1, a side of the box not odd and above 0, or ``passes``
            negative.
    """

    level: float = 0.25
    quantile: float = 0.99
    box: int | Sequence[int] | None = None
    passes: int = 3
    threshold: float = 0.5

    def __post_init__(self) -> None:
        for name in ("level", "quantile", "threshold"):
            check_fraction(name, getattr(self, name))
        sides = [] if self.box is None else [self.box] if isinstance(self.box, int) else self.box
        if not all(side > 0 and side % 2 for side in sides):
            raise ValueError(f"box must hold odd numbers above 0, got {self.box}")
        base.check_at_least("passes", self.passes, 0)

    def __call__(self, saliency: VoxelMap, visible: VoxelMap) -> VoxelMap:
        """The region, ``(1, 1, *spatial)``, bool, of the saliency, at least 0, of one item's visible voxels."""
        box = proportional_box(saliency.shape[2:]) if self.box is None else self.box
        seeds = binarised(saliency * visible, self.level, self.quantile)
        return smoothed(seeds, visible, box, self.passes, self.threshold)


def proportional_box(size: Sequence[int]) -> tuple[int, ...]:
    """The paper's box in proportion to a volume: for each side the odd number next to 11/224 of it, from 3 to 11.

    Eleven voxels are about half a hippocampus: in three crops of some 35 x 51 x 35, that box left nothing of SmoothGrad
    maps, and one of 3 left 2200 to 2600 voxels. The paper, too, asks for small boxes where small things are looked for.
    """
    return tuple(min(max(2 * round((side * PAPER_BOX / PAPER_SIDE - 1) / 2) + 1, 3), PAPER_BOX) for side in size)


def binarised(saliency: VoxelMap, level: float, quantile: float) -> VoxelMap:
    """Where a saliency reaches ``level`` times the ``quantile`` of what is above 0, bool."""
    found = saliency[saliency > 0]
    if not found.numel():
        return torch.zeros_like(saliency, dtype=torch.bool)
    return saliency >= level * found.kthvalue(math.ceil(quantile * found.numel())).values


def smoothed(mask: VoxelMap, visible: VoxelMap, box: Sequence[int] | int, passes: int, threshold: float) -> VoxelMap:
    """Let each visible voxel be in where enough of the visible ones in the box around it are, ``passes`` times.

    Both masks are ``(B, 1, *spatial)``, the result is bool of the same shape.
    """
    sides = ensure_tuple_rep(box, mask.ndim - 2)
    within = visible.float()
    # In float64: a quotient of exact sums is then on the right side of a threshold.
    neighbours = _box_sum(within, sides).double().clamp_min(1)
    found = mask * within
    for _ in range(passes):
        found = (_box_sum(found, sides).double() / neighbours >= threshold) * within
    return found > 0


def _box_sum(volume: Tensor, sides: Sequence[int]) -> Tensor:
    """The sum over a box, one axis after the other; beyond the volume there is 0."""
    pool = F.avg_pool2d if volume.ndim == 4 else F.avg_pool3d
    for axis, side in enumerate(sides):
        window = [side if other == axis else 1 for other in range(len(sides))]
        volume = pool(volume, window, stride=1, padding=[width // 2 for width in window], divisor_override=1)
    return volume


OUTSIDE = -1
"""Marks the padding, which has no label."""


@dataclass(frozen=True)
class FineTuning:
    """Trains a network, in place, on what it still sees of a volume.

    Adam with the learning rate ``lr`` on the mean cross-entropy over all voxels, hidden ones included, in fp32; each of
    its ``steps`` is a pass forward and back. The network stays in its mode: in evaluation mode norms keep the
    statistics that they have learned. The gradients of tiles add up to that of the whole. A ValueError where ``steps``
    is below 1 or ``lr`` no finite number above 0; in the call, where the truth is not one channel on the image's grid,
    or holds what is no class of the network.
    """

    steps: int = 10
    lr: float = 1e-4

    def __post_init__(self) -> None:
        base.check_at_least("steps", self.steps, 1)
        if not (math.isfinite(self.lr) and self.lr > 0):
            raise ValueError(f"lr must be a finite number above 0, got {self.lr}")

    def __call__(self, network: nn.Module, image: Image, truth: LabelMap, memory_gb: float | None = None) -> None:
        """Train ``network`` to segment ``image`` as ``truth``, within ``memory_gb`` beside Adam's own state."""
        check_truth(truth, image)
        volume = VolumeNetwork(network, memory_gb)
        padded = volume.pad(image.detach())
        labels = _padded_labels(truth, padded)
        optimiser = torch.optim.Adam(list(network.requires_grad_().parameters()), self.lr)
        with torch.enable_grad():
            tiles = volume.tiles(padded) or [((slice(None),) * (image.ndim - 2),) * 3]
            try:
                for _ in range(self.steps):
                    for window, core, inner in tiles:
                        logits = volume.predict(padded[(..., *window)])[(..., *inner)]
                        check_classes(truth, logits)
                        (_entropy(logits, labels[(..., *core)]) / truth.numel()).backward()
                    optimiser.step()
                    optimiser.zero_grad()
            finally:
                network.requires_grad_(False)


def check_truth(truth: LabelMap, image: Image) -> None:
    """Refuse labels that are not one channel on the image's grid, with a ValueError."""
    expected = (len(image), 1, *image.shape[2:])
    if tuple(truth.shape) != expected:
        raise ValueError(f"truth must be one channel on the image's grid, {expected}, got {tuple(truth.shape)}")


def check_classes(truth: LabelMap, logits: Logits) -> None:
    """Refuse labels that are no classes of the network, with a ValueError."""
    last, lowest, highest = max(logits.shape[1], 2) - 1, int(truth.min()), int(truth.max())
    if lowest < 0 or highest > last:
        raise ValueError(f"truth must hold classes of the network, 0 to {last}, got {lowest} to {highest}")


def _padded_labels(truth: LabelMap, padded: Image) -> Tensor:
    """The labels on the padded image's device and grid."""
    missing = [wide - side for side, wide in zip(truth.shape[2:], padded.shape[2:], strict=True)]
    labels = truth[:, 0].to(padded.device, torch.long)
    return F.pad(labels, [n for end in reversed(missing) for n in (0, end)], value=OUTSIDE)


def _entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """The sum over voxels that have a label."""
    # A sigmoid of z is a softmax over 0 and z.
    classes = torch.cat([torch.zeros_like(logits), logits], dim=1) if logits.shape[1] == 1 else logits
    return F.cross_entropy(classes, labels, ignore_index=OUTSIDE, reduction="sum")


class Round(NamedTuple):
    """A region that the network relied on while the regions of all earlier rounds were hidden."""

    roi: VoxelMap
    """Its voxels, ``(1, 1, *spatial)``, bool; none of them is of an earlier round."""
    saliency: VoxelMap
    """The map that it was made from, ``(1, 1, *spatial)``, 0 where voxels were hidden."""
    probability: float
    """Of the class, once this region is hidden, too: the mean over the voxels that the whole image gave to it."""


@register
class IterativeROI(Attributor):
    """Hides the region that the network looks at, asks where it looks now, and so on, until it finds the class no more.

    Bordes et al., "Iteratively unveiling new regions of interest in deep learning models", 2018. Voxels of the first
    region get the importance 1, those of each further round ``1 / max_rounds`` less, all others 0. The paper
    classifies; in a segmentation, the predicted probability is a mean over voxels, see `ClassProbability.of`.

    Costs, for each of up to ``max_rounds`` rounds (in the paper 5), one saliency map (by default 25 passes forward and
    back) and one pass forward, with ``fine_tune`` its steps as well. Within a region it ranks no voxel above another;
    what it shows depends on the hidden value, of which the network may make an edge.

    Args:
        saliency: an attributor's class or a `functools.partial` of it, called with a network, ``memory_gb`` and
            ``precision``; None for the paper's SmoothGrad of guided backpropagation, which refuses networks with other
            activations than ReLU unless a partial gives ``method_options={"substitute": True}``.
        region: how a saliency map becomes one; None for `RegionOfInterest` with its defaults.
        min_probability: stops after the round that brings the class's probability below it.
        hidden: what hidden voxels become, as a `baseline`.
        fine_tune: trains a copy of the network on the masked image after each round, towards its own segmentation of
            the unperturbed image; the paper's future work.

    A ValueError where ``max_rounds`` is below 1, ``min_probability`` outside [0, 1] or ``hidden`` no baseline; in the
    call, where no voxel was given to the class, or the saliency refuses the network.
    """

    name = "iterative_roi"
    default_sign = "positive"

    def __init__(
        self,
        network: nn.Module,
        saliency: Callable[..., Attributor] | None = None,
        region: RegionOfInterest | None = None,
        max_rounds: int = 5,
        min_probability: float = 0.5,
        hidden: Baseline = "zero",
        fine_tune: FineTuning | None = None,
        seed: int | None = 0,
        **options: Any,
    ) -> None:
        super().__init__(network, **options)
        base.check_at_least("max_rounds", max_rounds, 1)
        if not 0 <= min_probability <= 1:
            raise ValueError(f"min_probability must lie in [0, 1], got {min_probability}")
        base.check_baseline(hidden, "hidden")
        self.saliency = saliency or partial(SmoothGrad, method="guided_backprop", seed=seed)
        self.region, self.max_rounds, self.min_probability = region or RegionOfInterest(), max_rounds, min_probability
        self.hidden, self.fine_tune, self.seed = hidden, fine_tune, seed

    def rounds(self, image: Image, label: int, truth: LabelMap | None = None) -> list[Round]:
        """The regions of a class in one item, ``(1, C, *spatial)``: one a round, first what the network relied on most.

        ``truth`` is what ``fine_tune`` trains towards, class indices ``(1, 1, *spatial)``; None for the network's own
        segmentation of the unperturbed image. A ValueError where the image is not one item or not finite, no voxel was
        given to the class, or the truth is not on the image's grid, holds no class of the network, or is given without
        ``fine_tune``.
        """
        plain = image.as_subclass(Tensor).detach().float()
        if len(plain) != 1:
            raise ValueError(f"image must be one item (1, C, *spatial), got {tuple(plain.shape)}")
        check_finite(plain, "image")
        if truth is not None:
            if self.fine_tune is None:
                raise ValueError("truth is what fine_tune trains towards, it must be None where fine_tune is")
            check_truth(truth, plain)
        with attributing(self.network), torch.no_grad():
            logits = self.volume(plain)
            if truth is not None:
                check_classes(truth, logits)
            place = image if isinstance(image, MetaTensor) else None
            return self._unveil(plain, logits, class_sum(logits, label), place, truth)

    @torch.no_grad()
    def maps(self, images: Image, score: Score) -> Tensor:
        plain = images.detach()
        logits = score.volume(plain)
        rounds = self._unveil(plain, logits, score.target, score.place)
        score.notes["probability"] = ClassProbability.of(score.target, logits)(logits)
        score.notes["rounds"] = [{"voxels": int(each.roi.sum()), "probability": each.probability} for each in rounds]
        if not rounds:
            logger.warning("%s: the saliency outlines no region, so the map is 0 everywhere", self.name)
        values = torch.zeros_like(plain[:, :1])
        for index, each in enumerate(rounds):
            values[each.roi] = 1 - index / self.max_rounds
        return values

    def _unveil(
        self, image: Image, logits: Logits, target: Target, place: MetaTensor | None, truth: LabelMap | None = None
    ) -> list[Round]:
        probability = ClassProbability.of(target, logits)
        network = self.network if self.fine_tune is None else copy.deepcopy(self.network)
        volume = VolumeNetwork(network, self.volume.memory_gb, self.volume.precision)
        explain = self.saliency(network, memory_gb=volume.memory_gb, precision=volume.precision)
        hidden = base.baseline(image, self.hidden, seed=self.seed)
        visible = torch.ones_like(image[:, :1], dtype=torch.bool)
        rounds: list[Round] = []
        while len(rounds) < self.max_rounds and not (rounds and rounds[-1].probability < self.min_probability):
            masked = torch.where(visible, image, hidden)
            # A saliency may count in mm.
            placed = masked if place is None else MetaTensor(masked).copy_meta_from(place)
            saliency = explain(placed, target).as_tensor().abs() * visible
            roi = self.region(saliency, visible)
            if not roi.any():
                break
            visible = visible & ~roi
            masked = torch.where(visible, image, hidden)
            if self.fine_tune is not None:
                self.fine_tune(network, masked, segmentation(logits) if truth is None else truth, volume.memory_gb)
            rounds.append(Round(roi, saliency, probability(volume(masked))))
        return rounds
