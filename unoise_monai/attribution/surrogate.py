"""LIME and KernelSHAP: linear models of the score in which supervoxels are kept or hidden.

Captum's need scikit-learn for the model, and draw sample by sample from the global random state, without a time limit.
"""

from __future__ import annotations

import logging
import math
from typing import Any

import torch
from torch import Tensor, nn

from unoise_monai.attribution.base import Score
from unoise_monai.attribution.features import FeatureAttributor, Features
from unoise_monai.inference.memory import default_budget

BYTES = 17
"""Of a feature of a sample: what is kept, a bool, and float64 in the model's matrix and in its solver's copy."""

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
        MemoryError: in the call, when the model of so many samples and features exceeds ``memory_gb``.
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
        MemoryError: in the call, when the model of so many samples and features exceeds ``memory_gb``.
    """

    name = "kernel_shap"

    def __init__(self, network: nn.Module, samples: int | None = None, **options: Any) -> None:
        super().__init__(network, **options)
        if samples is not None:
            _check_samples(samples)
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
        # What is left over the even split sums to 0, as do the rows less their mean: so the sum of the values holds.
        root = weights.sqrt()
        observed = root * (scores - design @ even)
        design.sub_(design.mean(dim=1, keepdim=True)).mul_(root[:, None])
        uneven = _least_squares(design, observed)
        score.notes["explained"] = _explained(scores, weights, observed - design @ uneven)
        return even + uneven


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


def check_memory(samples: int, features: int, memory_gb: float | None) -> None:
    """Refuse a linear model that does not fit the memory, half of the free RAM where ``memory_gb`` is None.

    Raises:
        MemoryError: when it does not.
    """
    need = BYTES * samples * features
    budget = default_budget(torch.device("cpu")) if memory_gb is None else memory_gb * 1e9
    if need > budget:
        raise MemoryError(
            f"memory_gb must be at least {math.ceil(need / 1e6) / 1e3} for a model of {samples} samples of {features} "
            f"features, got {budget / 1e9:.3f}: take fewer samples or larger supervoxels"
        )


def _ridge(design: Tensor, observed: Tensor, ridge: float) -> Tensor:
    """The solution with a penalty on its square, from the smaller one of two equal systems; 0 for least squares."""
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
    """The share of the weighted variance that is not ``left``, which is weighted; None where nothing varies."""
    mean = (weights * observed).sum() / weights.sum()
    total = (weights * (observed - mean) ** 2).sum()
    return 1 - float(left.square().sum() / total) if float(total) > 0 else None


def _check_samples(samples: int) -> None:
    if samples < 2:
        raise ValueError(f"samples must be at least 2, got {samples}")
