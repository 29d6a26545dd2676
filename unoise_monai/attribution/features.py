"""Ablation, LIME and Kernel SHAP: parts of the image as features."""

import logging
import math
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Integral
from typing import Any

import numpy as np
import SimpleITK as sitk
import torch
from torch import Tensor, nn

from unoise_monai.attribution.base import Score, check_at_least, register
from unoise_monai.attribution.perturbation import PerturbationAttributor
from unoise_monai.checks import check_finite
from unoise_monai.inference.memory import default_budget
from unoise_monai.types import Image, LabelMap

logger = logging.getLogger(__name__)


def supervoxels(
    image: Image, size: int | Sequence[int] = 16, compactness: float = 1.0, within: LabelMap | None = None
) -> LabelMap:
    """Cut a volume into supervoxels of about ``size`` voxels a side, numbered from 0 without gaps.

    SLIC: Achanta et al., "SLIC superpixels compared to state-of-the-art superpixel methods", 2012, as SimpleITK has it,
    over all channels. Background of one intensity is cut, too, into blocks.

    Args:
        image: one item, ``(1, C, *spatial)``; the supervoxels are int64 ``(1, 1, *spatial)`` on its device.
        size: one number or one an axis.
        compactness: how much distance counts, in units of each channel's standard deviation across one supervoxel:
            higher makes them cubes, lower lets them follow fainter edges, and noise.
        within: a label map, ``(1, 1, *spatial)``, such as organs, whose borders no supervoxel crosses.

    Raises:
        ValueError: when the image is not one item or not finite, ``size`` is not a whole number of at least 1 or not
            one number an axis, ``compactness`` is not above 0, or ``within`` lies on another grid.
    """
    check_supervoxels(size, compactness)
    # SimpleITK's SLIC crashes the process on NaN.
    check_finite(image, "image")
    spatial = tuple(image.shape[2:])
    if len(image) != 1:
        raise ValueError(f"image must be one item, (1, C, *spatial), got {tuple(image.shape)}")
    sides = [int(side) for side in (size if isinstance(size, Sequence) else [size] * len(spatial))]
    if len(sides) != len(spatial):
        raise ValueError(f"size must be one number or {len(spatial)}, one an axis, got {size}")
    if within is not None and within.shape != (1, 1, *spatial):
        raise ValueError(f"within must lie on the image's grid {(1, 1, *spatial)}, got {tuple(within.shape)}")
    values = image[0].detach().cpu().double().movedim(0, -1)
    spread = values.flatten(0, -2).std(dim=0, correction=0)
    scaled = (values / spread.where(spread > 0, 1.0)).float().contiguous().numpy()
    # SimpleITK counts axes from the fastest, numpy from the slowest.
    grid = [min(pair) for pair in zip(sides, spatial, strict=True)][::-1]
    slic = sitk.SLIC(sitk.GetImageFromArray(scaled, isVector=True), grid, compactness)
    labels = torch.from_numpy(sitk.GetArrayFromImage(slic).astype(np.int64))[None, None].to(image.device)
    pieces, _ = numbered(labels)
    if within is None:
        return pieces
    regions, count = numbered(within.to(image.device))
    return numbered(pieces * count + regions)[0]


def numbered(labels: LabelMap) -> tuple[LabelMap, int]:
    """A label map with its values numbered from 0 without gaps, int64, and how many there are."""
    values, numbers = torch.unique(torch.as_tensor(labels), return_inverse=True)
    return numbers, len(values)


def check_supervoxels(size: int | Sequence[int], compactness: float) -> None:
    """Refuse sizes that are no whole numbers of at least 1, and a compactness that is not above 0."""
    if not all(isinstance(side, Integral) and side >= 1 for side in (size if isinstance(size, Sequence) else [size])):
        raise ValueError(f"size must be integers of at least 1, one or one an axis, got {size!r}")
    if not compactness > 0:
        raise ValueError(f"compactness must be above 0, got {compactness}")


@dataclass(frozen=True)
class Features:
    """An image ``(1, C, *spatial)`` in ``count`` pieces, each as it is or ``hidden``.

    ``labels``, ``(1, 1, *spatial)``, say to which piece each voxel belongs, from 0 on.
    """

    image: Image
    hidden: Image
    labels: LabelMap
    count: int

    def keeping(self, kept: Tensor) -> Image:
        """Copies with the features ``kept``, bool ``(n, count)``, as they are: ``(n, C, *spatial)``."""
        return torch.where(kept.to(self.labels.device)[:, self.labels[0]], self.image, self.hidden)


class FeatureAttributor(PerturbationAttributor):
    """An attribution that gives every voxel the value of its feature: a supervoxel, or a label of your own.

    The notes hold the number of ``features``.

    Args:
        labels: the features, ``(1, 1, *spatial)`` for every item, such as organs, or `supervoxels` within organs; 0 is
            a feature, too. None for `supervoxels` of each image, of ``size`` and ``compactness``.
        per_voxel: spread a feature's value over its voxels, so that they add up to it: large features then don't
            outrank small ones for their size.

    A ValueError where ``labels`` is not one map, or ``size`` or ``compactness`` out of range; in the call, where
    ``labels`` lie on another grid than the image.
    """

    contributes = True

    def __init__(
        self,
        network: nn.Module,
        labels: LabelMap | None = None,
        size: int | Sequence[int] = 16,
        compactness: float = 1.0,
        per_voxel: bool = False,
        **options: Any,
    ) -> None:
        super().__init__(network, **options)
        check_supervoxels(size, compactness)
        if labels is not None and tuple(labels.shape[:2]) != (1, 1):
            raise ValueError(f"labels must be one map, (1, 1, *spatial), got {tuple(labels.shape)}")
        self.labels, self.size, self.compactness, self.per_voxel = labels, size, compactness, per_voxel

    def perturb(self, image: Image, hidden: Image, score: Score) -> Tensor:
        own = supervoxels(image, self.size, self.compactness) if self.labels is None else self.labels.to(image.device)
        if own.shape[2:] != image.shape[2:]:
            grid, got = tuple(image.shape[2:]), tuple(own.shape[2:])
            raise ValueError(f"labels must lie on the image's grid {grid}, got {got}")
        labels, count = numbered(own)
        score.notes["features"] = count
        values = self.effects(Features(image, hidden, labels, count), score).to(image.device)
        if self.per_voxel:
            values = values / labels.flatten().bincount(minlength=count)
        return values.to(image.dtype)[labels]

    @abstractmethod
    def effects(self, features: Features, score: Score) -> Tensor:
        """One value a feature, ``(count,)``."""

    def scores(self, features: Features, kept: Tensor, score: Score) -> Tensor:
        """The scores of as many rows of ``kept`` as the time allows, float64 on the CPU."""
        batches = self.batches(len(kept), score)
        return torch.cat([score(features.keeping(kept[rows.start : rows.stop])).cpu() for rows in batches]).double()


@register
class FeatureAblation(FeatureAttributor):
    """How far the score falls when a supervoxel, or an organ of a label map, is hidden.

    Zeiler and Fergus, "Visualizing and understanding convolutional networks", 2014, with features in place of windows.
    Captum's ``FeatureAblation``, but with a time limit, in which the features come in random order and those not
    reached get 0.

    Costs a pass forward for each feature, and one. It sees nothing of a feature that another makes up for; `KernelShap`
    does.
    """

    name = "feature_ablation"

    def effects(self, features: Features, score: Score) -> Tensor:
        order = torch.randperm(features.count)
        whole = score(features.image).cpu().double()
        values = torch.zeros(features.count, dtype=torch.float64)
        for batch in self.batches(features.count, score):
            hidden = order[batch.start : batch.stop]
            kept = torch.arange(features.count) != hidden[:, None]
            values[hidden] = whole - score(features.keeping(kept)).cpu().double()
        return values


BYTES = 17
"""For each sample and feature: a bool of what is kept, and float64 in the model's matrix and in its solver's copy."""


@register
class Lime(FeatureAttributor):
    """What each supervoxel adds to the score, by a linear model of random combinations that are close to the image.

    Ribeiro, Singh, Guestrin, "Why should I trust you? Explaining the predictions of any classifier", 2016, as its
    authors' code has it for images: each feature is kept with probability 1/2, samples are weighted by
    ``exp(-d**2 / (2 kernel_width**2))`` with ``d`` the cosine distance of the kept features to all of them, and the
    model is a ridge regression with an intercept.

    Costs a pass forward for each sample. The model is additive: ``notes["explained"]`` is the share of the score's
    (weighted) variance that it accounts for.

    Args:
        samples: how many, the whole image being the first.
        kernel_width: of the weights, in units of the cosine distance.
        ridge: penalty on the squared values; 0 for least squares.

    Raises:
        ValueError: when ``samples`` is below 2, ``kernel_width`` is not above 0, or ``ridge`` is negative.
        MemoryError: in the call, when the model of so many samples and features exceeds ``memory_gb``.
    """

    name = "lime"

    def __init__(
        self, network: nn.Module, samples: int = 1000, kernel_width: float = 0.25, ridge: float = 1.0, **options: Any
    ) -> None:
        super().__init__(network, **options)
        check_at_least("samples", samples, 2)
        check_at_least("ridge", ridge, 0)
        if not kernel_width > 0:
            raise ValueError(f"kernel_width must be above 0, got {kernel_width}")
        self.samples, self.kernel_width, self.ridge = samples, kernel_width, ridge

    def effects(self, features: Features, score: Score) -> Tensor:
        check_memory(self.samples, features.count, self.volume.memory_gb)
        kept = torch.rand(self.samples, features.count) < 0.5
        kept[0] = True
        scores = self.scores(features, kept, score)
        design = kept[: len(scores)].double()
        distance = 1 - design.mean(dim=1).sqrt()
        weights = torch.exp(-(distance**2) / (2 * self.kernel_width**2))
        share, root = weights / weights.sum(), weights.sqrt()
        # The intercept takes the weighted means and no penalty.
        design.sub_(share @ design).mul_(root[:, None])
        scores = scores - share @ scores
        observed = root * scores
        values = _ridge(design, observed, self.ridge)
        score.notes["explained"] = _explained(scores, weights, observed - design @ values)
        return values


@register
class KernelShap(FeatureAttributor):
    """What each supervoxel adds to the score: its Shapley value, the mean gain over all orders in which they come.

    Lundberg and Lee, "A unified approach to interpreting model predictions", 2017: a least-squares model of which
    features are kept, weighted by the Shapley kernel; its values add up exactly to the score of the image less that of
    the hidden image. Where ``samples`` reach all combinations, all are taken and the values are exact; else they are
    drawn by the kernel, each with its complement (Covert and Lee, "Improving KernelSHAP", 2021).

    Costs a pass forward for each sample, and two. Fewer samples than twice the features do not determine the values:
    those nearest to equal ones are given, and a warning is logged. With few more they are noisy; larger supervoxels
    need fewer samples. ``notes["explained"]`` is the share of the samples' variance that an additive model accounts
    for, which is high, too, where samples are too few. ``samples`` come beside the image and the hidden image; None
    takes 2048 and twice the features, as its authors' code does. A ValueError where they are below 2; in the call, a
    MemoryError where the model of so many samples and features exceeds ``memory_gb``.
    """

    name = "kernel_shap"

    def __init__(self, network: nn.Module, samples: int | None = None, **options: Any) -> None:
        super().__init__(network, **options)
        if samples is not None:
            check_at_least("samples", samples, 2)
        self.samples = samples

    def effects(self, features: Features, score: Score) -> Tensor:
        count = features.count
        samples = 2 * count + 2048 if self.samples is None else self.samples
        check_memory(min(samples, 2**count - 2), count, self.volume.memory_gb)
        whole, nothing = (float(score(image)) for image in (features.image, features.hidden))
        even = torch.full((count,), (whole - nothing) / count, dtype=torch.float64)
        if count == 1:
            return even
        kept, weights = coalitions(count, samples)
        scores = self.scores(features, kept, score) - nothing
        design, weights = kept[: len(scores)].double(), weights[: len(scores)]
        if len(scores) < min(2 * count, 2**count) - 2:
            logger.warning("%s: %d samples do not determine %d features", self.name, len(scores), count)
        # The solution of least norm lies in the span of the rows, each of mean 0: so the values keep their sum.
        root = weights.sqrt()
        observed = root * (scores - design @ even)
        design.sub_(design.mean(dim=1, keepdim=True)).mul_(root[:, None])
        uneven = _least_squares(design, observed)
        score.notes["explained"] = _explained(scores, weights, observed - design @ uneven)
        return even + uneven


def coalitions(count: int, samples: int) -> tuple[Tensor, Tensor]:
    """Which features each sample keeps, bool ``(n, count)``, neither all nor none, and how much it weighs, ``(n,)``.

    All combinations, weighted by the Shapley kernel, where there are at most ``samples``; else ``samples`` drawn by
    that kernel, in pairs of complements, of equal weight.
    """
    if 2**count - 2 <= samples:
        numbers = 1 + torch.randperm(2**count - 2)
        kept = (numbers[:, None] >> torch.arange(count)) % 2 == 1
        sizes = kept.sum(dim=1).tolist()
        kernel = [(count - 1) / (math.comb(count, size) * size * (count - size)) for size in sizes]
        return kept, torch.tensor(kernel, dtype=torch.float64)
    each = torch.arange(1, count)
    drawn = 1 + torch.multinomial(1.0 / (each * (count - each)), -(-samples // 2), replacement=True)
    first = torch.rand(len(drawn), count).argsort(dim=1).argsort(dim=1) < drawn[:, None]
    pairs = torch.stack([first, ~first], dim=1).flatten(0, 1)[:samples]
    return pairs, torch.ones(samples, dtype=torch.float64)


def check_memory(samples: int, features: int, memory_gb: float | None) -> None:
    """Refuse a linear model that does not fit the memory (half of the free RAM by default), with a MemoryError."""
    need = BYTES * samples * features
    budget = default_budget(torch.device("cpu")) if memory_gb is None else memory_gb * 1e9
    if need > budget:
        raise MemoryError(
            f"memory_gb must be at least {math.ceil(need / 1e6) / 1e3} for a model of {samples} samples of {features} "
            f"features, got {budget / 1e9:.3f}: take fewer samples or larger supervoxels"
        )


def _ridge(design: Tensor, observed: Tensor, ridge: float) -> Tensor:
    """The solution with a penalty on its square, from the smaller of two equal systems."""
    if ridge == 0:
        return _least_squares(design, observed)
    few = len(design) < design.shape[1]
    gram = design @ design.T if few else design.T @ design
    gram.diagonal().add_(ridge)
    return design.T @ _least_squares(gram, observed) if few else _least_squares(gram, design.T @ observed)


def _least_squares(design: Tensor, observed: Tensor) -> Tensor:
    """The solution of least norm."""
    return torch.linalg.lstsq(design, observed[:, None], driver="gelsy").solution[:, 0]


def _explained(observed: Tensor, weights: Tensor, left: Tensor) -> float | None:
    """The share of the variance that the weighted residuals ``left`` do not hold; None where nothing varies."""
    mean = (weights * observed).sum() / weights.sum()
    total = (weights * (observed - mean) ** 2).sum()
    return 1 - float(left.square().sum() / total) if float(total) > 0 else None
