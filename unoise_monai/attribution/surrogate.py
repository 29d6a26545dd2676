"""LIME and KernelSHAP: linear models of the score in which supervoxels are kept or hidden."""

from __future__ import annotations

import logging
import math
from typing import Any

import torch
from torch import Tensor, nn

from unoise_monai.attribution.base import Score
from unoise_monai.attribution.features import FeatureAttributor, Features

logger = logging.getLogger(__name__)


class Lime(FeatureAttributor):
    """What each supervoxel adds to the score, by a linear model of random combinations that are close to the image.

    Ribeiro, Singh, Guestrin, "Why should I trust you? Explaining the predictions of any classifier", 2016, as its
    authors' code has it for images: each feature is kept with probability 1/2, samples are weighted by
    ``exp(-d**2 / (2 kernel_width**2))`` with ``d`` the cosine distance of the kept features to all of them, and the
    model is a ridge regression with an intercept.

    Costs a pass forward for each sample. The values are those of an additive model: ``notes["explained"]`` is the share
    of the score's (weighted) variance that it accounts for.

    Args:
        network: see `Attributor`.
        samples: how many, the whole image being the first.
        kernel_width: of the weights, in units of the cosine distance.
        ridge: penalty on the squared values; 0 for least squares.
        **options: see `FeatureAttributor`.

    Raises:
        ValueError: when ``samples`` is below 2, ``kernel_width`` is not above 0, or ``ridge`` is negative.
    """

    name = "lime"

    def __init__(
        self, network: nn.Module, samples: int = 1000, kernel_width: float = 0.25, ridge: float = 1.0, **options: Any
    ) -> None:
        super().__init__(network, **options)
        _check_samples(samples)
        if not kernel_width > 0:
            raise ValueError(f"kernel_width must be above 0, got {kernel_width}")
        if not ridge >= 0:
            raise ValueError(f"ridge must be at least 0, got {ridge}")
        self.samples, self.kernel_width, self.ridge = samples, kernel_width, ridge

    def effects(self, features: Features, score: Score) -> Tensor:
        kept = torch.rand(self.samples, features.count) < 0.5
        kept[0] = True
        scores = self.scores(features, kept, score)
        design = kept[: len(scores)].double()
        distance = 1 - design.mean(dim=1).sqrt()
        weights = torch.exp(-(distance**2) / (2 * self.kernel_width**2))
        share = weights / weights.sum()
        # The intercept takes the weighted means and no penalty.
        design, scores = design - share @ design, scores - share @ scores
        # The penalty as observations of its own: of too few samples, the least-squares solution of least norm.
        root, penalty = weights.sqrt()[:, None], math.sqrt(self.ridge) * torch.eye(features.count, dtype=torch.float64)
        values = _least_squares(torch.cat([root * design, penalty]), torch.cat([root[:, 0] * scores, penalty[0] * 0]))
        score.notes["explained"] = _explained(scores, design @ values, weights)
        return values


class KernelShap(FeatureAttributor):
    """What each supervoxel adds to the score: its Shapley value, the mean gain over all orders in which they come.

    Lundberg and Lee, "A unified approach to interpreting model predictions", 2017: a least-squares model of which
    features are kept, weighted by the Shapley kernel; its values add up exactly to the score of the image less that of
    the hidden image. Where ``samples`` reach all combinations, all are taken and the values are exact; else they are
    drawn by the kernel, each with its complement (Covert and Lee, "Improving KernelSHAP", 2021).

    Costs a pass forward for each sample, and two. Pairs say one thing each: with fewer samples than twice the features
    the values are not determined, those nearest to equal ones are given, and a warning is logged; with few more they
    are noisy. Larger supervoxels need fewer samples. ``notes["explained"]`` is the share of the samples' variance that
    an additive model accounts for, which is high, too, where samples are too few.

    Args:
        network: see `Attributor`.
        samples: how many, beside the image and the hidden image; None for 2048 and twice the features, as in its
            authors' code.
        **options: see `FeatureAttributor`.

    Raises:
        ValueError: when ``samples`` is below 2.
    """

    name = "kernel_shap"

    def __init__(self, network: nn.Module, samples: int | None = None, **options: Any) -> None:
        super().__init__(network, **options)
        if samples is not None:
            _check_samples(samples)
        self.samples = samples

    def effects(self, features: Features, score: Score) -> Tensor:
        count = features.count
        whole, nothing = (float(score(image)) for image in (features.image, features.hidden))
        even = torch.full((count,), (whole - nothing) / count, dtype=torch.float64)
        if count == 1:
            return even
        kept, weights = coalitions(count, 2 * count + 2048 if self.samples is None else self.samples)
        scores = self.scores(features, kept, score) - nothing
        design, weights = kept[: len(scores)].double(), weights[: len(scores)]
        if len(scores) < min(2 * count, 2**count) - 2:
            logger.warning("%s: %d samples do not determine %d features", self.name, len(scores), count)
        # What is left over the even split sums to 0, as do the rows less their mean: so the sum of the values holds.
        centred, root = design - design.mean(dim=1, keepdim=True), weights.sqrt()
        values = even + _least_squares(root[:, None] * centred, root * (scores - design @ even))
        score.notes["explained"] = _explained(scores, design @ values, weights)
        return values


def coalitions(count: int, samples: int) -> tuple[Tensor, Tensor]:
    """Which features each sample keeps, ``(n, count)`` bool, neither all nor none, and how much it weighs, ``(n,)``.

    All combinations in random order with the weights of the Shapley kernel, where there are at most ``samples``; else
    ``samples`` drawn by that kernel, complements in pairs, of equal weight.
    """
    if 2**count - 2 <= samples:
        numbers = 1 + torch.randperm(2**count - 2)
        kept = (numbers[:, None] >> torch.arange(count)) % 2 == 1
        held = kept.sum(dim=1).tolist()
        kernel = [(count - 1) / (math.comb(count, size) * size * (count - size)) for size in held]
        return kept, torch.tensor(kernel, dtype=torch.float64)
    sizes = torch.arange(1, count)
    drawn = 1 + torch.multinomial(1.0 / (sizes * (count - sizes)), -(-samples // 2), replacement=True)
    first = torch.rand(len(drawn), count).argsort(dim=1).argsort(dim=1) < drawn[:, None]
    pairs = torch.stack([first, ~first], dim=1).flatten(0, 1)[:samples]
    return pairs, torch.ones(samples, dtype=torch.float64)


def _least_squares(design: Tensor, observed: Tensor) -> Tensor:
    """The solution of least norm."""
    return torch.linalg.lstsq(design, observed[:, None], driver="gelsy").solution[:, 0]


def _explained(observed: Tensor, predicted: Tensor, weights: Tensor) -> float | None:
    """The share of the weighted variance that a prediction accounts for; None where nothing varies."""
    mean = (weights * observed).sum() / weights.sum()
    total = (weights * (observed - mean) ** 2).sum()
    return 1 - float((weights * (observed - predicted) ** 2).sum() / total) if float(total) > 0 else None


def _check_samples(samples: int) -> None:
    if samples < 2:
        raise ValueError(f"samples must be at least 2, got {samples}")
