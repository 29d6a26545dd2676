"""Regions that a network falls back on when what it looked at first is hidden."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch
from monai.data import MetaTensor
from torch import Tensor, nn

from unoise_monai.attribution.base import Attributor, Score
from unoise_monai.attribution.baselines import Baseline, baseline, check_baseline
from unoise_monai.attribution.fine_tuning import FineTuning, check_classes, check_truth
from unoise_monai.attribution.probability import ClassProbability
from unoise_monai.attribution.roi import RegionOfInterest
from unoise_monai.attribution.smoothing import SmoothGrad
from unoise_monai.attribution.targets import Target, class_sum
from unoise_monai.checks import check_finite
from unoise_monai.inference.volume import VolumeNetwork
from unoise_monai.networks.modes import attributing
from unoise_monai.networks.outputs import segmentation
from unoise_monai.types import Image, LabelMap, Logits, VoxelMap

logger = logging.getLogger(__name__)


class Round(NamedTuple):
    """A region that the network relied on while the regions of all earlier rounds were hidden."""

    roi: VoxelMap
    """Its voxels, ``(1, 1, *spatial)``, bool; none of them is of an earlier round."""
    saliency: VoxelMap
    """The map that it was made from, ``(1, 1, *spatial)``, 0 where voxels were hidden."""
    probability: float
    """Of the class, once this region is hidden, too: the mean over the voxels that the whole image gave to it."""


class IterativeROI(Attributor):
    """Hides the region that the network looks at, asks where it looks now, and so on, until it finds the class no more.

    Bordes et al., "Iteratively unveiling new regions of interest in deep learning models", 2018. Voxels of the first
    region get the importance 1, those of each further round ``1 / max_rounds`` less, all others 0. The paper
    classifies; in a segmentation, the predicted probability is the mean over the voxels that the unperturbed image gave
    to the class: of a `Region` target its own, of others with a ``label`` those of that class, else all foreground
    ones with the class of each.

    Costs, for each of up to ``max_rounds`` rounds, one saliency map (by default 25 passes forward and back) and one
    pass forward, with ``fine_tune`` its steps as well. Within a region it ranks no voxel above another; what it shows
    depends on the hidden value, of which the network may make an edge.

    Args:
        network: see `Attributor`.
        saliency: an attributor's class or a `functools.partial` of it, called with a network, ``memory_gb`` and
            ``precision``; None for SmoothGrad of guided backpropagation, as in the paper, which refuses networks with
            other activations than ReLU unless a partial says ``method_options={"substitute": True}``.
        region: how a saliency map becomes a region; None for `RegionOfInterest` with its defaults.
        max_rounds: the most rounds, in the paper 5.
        min_probability: stops after the round that brings the class's probability below it.
        hidden: what hidden voxels become, see `baseline`.
        fine_tune: trains a copy of the network on the masked image after each round, towards its own segmentation of
            the unperturbed image; the paper's future work. The network itself stays as it is.
        seed: of the default saliency, and of noise as ``hidden``.
        **options: see `Attributor`.

    Raises:
        ValueError: when ``max_rounds`` is below 1, ``min_probability`` outside [0, 1] or ``hidden`` no baseline; in the
            call, when no voxel was given to the class, an image as ``hidden`` does not expand to the volume, or the
            default saliency refuses the network.
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
        if max_rounds < 1:
            raise ValueError(f"max_rounds must be at least 1, got {max_rounds}")
        if not 0 <= min_probability <= 1:
            raise ValueError(f"min_probability must lie in [0, 1], got {min_probability}")
        check_baseline(hidden, "hidden")
        self.saliency = partial(SmoothGrad, method="guided_backprop", seed=seed) if saliency is None else saliency
        self.region = RegionOfInterest() if region is None else region
        self.max_rounds, self.min_probability, self.hidden = max_rounds, min_probability, hidden
        self.fine_tune, self.seed = fine_tune, seed
        self._place: MetaTensor | None = None

    def __call__(self, image: Image, target: Target) -> MetaTensor:
        self._place = _place(image)
        return super().__call__(image, target)

    def rounds(self, image: Image, label: int, truth: LabelMap | None = None) -> list[Round]:
        """The regions of a class, one a round, the first the one that the network relied on most.

        Args:
            image: one item, ``(1, C, *spatial)``.
            label: the class.
            truth: what ``fine_tune`` trains towards, class indices ``(1, 1, *spatial)``; None for the network's own
                segmentation of the unperturbed image.

        Raises:
            ValueError: when the image is not one item or holds NaN or infinite voxels, no voxel was given to the class,
                the truth is not on the image's grid, holds no class of the network, or is given without ``fine_tune``.
        """
        plain = _plain(image).detach().float()
        if len(plain) != 1:
            raise ValueError(f"image must be one item (1, C, *spatial), got {tuple(plain.shape)}")
        check_finite(plain, "image")
        if truth is not None:
            if self.fine_tune is None:
                raise ValueError("truth is what fine_tune trains towards, it must be None where fine_tune is")
            check_truth(truth, plain)
        self._place = _place(image)
        with attributing(self.network):
            logits = self._logits(self.volume, plain)
            if truth is not None:
                check_classes(truth, logits)
            return self._unveil(plain, logits, class_sum(logits, label), truth)

    def attribute(self, image: Image, score: Score) -> Tensor:
        plain = image.detach()
        logits = self._logits(score.volume, plain)
        rounds = self._unveil(plain, logits, score.target)
        score.notes["probability"] = ClassProbability.of(score.target, logits)(logits)
        score.notes["rounds"] = [{"voxels": int(each.roi.sum()), "probability": each.probability} for each in rounds]
        if not rounds:
            logger.warning("%s: the saliency outlines no region, so the map is 0 everywhere", self.name)
        values = torch.zeros_like(plain[:, :1])
        for index, each in enumerate(rounds):
            values[each.roi] = 1 - index / self.max_rounds
        return values

    def _unveil(self, image: Image, logits: Logits, target: Target, truth: LabelMap | None = None) -> list[Round]:
        probability = ClassProbability.of(target, logits)
        network = self.network if self.fine_tune is None else copy.deepcopy(self.network)
        volume = VolumeNetwork(network, self.volume.memory_gb, self.volume.precision)
        explain = self.saliency(network, memory_gb=volume.memory_gb, precision=volume.precision)
        hidden = baseline(image, self.hidden, seed=self.seed)
        visible = torch.ones_like(image[:, :1], dtype=torch.bool)
        rounds: list[Round] = []
        while len(rounds) < self.max_rounds and not (rounds and rounds[-1].probability < self.min_probability):
            masked = torch.where(visible, image, hidden)
            placed = masked if self._place is None else MetaTensor(masked).copy_meta_from(self._place)
            saliency = _plain(explain(placed, target)).abs() * visible
            roi = self.region(saliency, visible)
            if not bool(roi.any()):
                break
            visible = visible & ~roi
            masked = torch.where(visible, image, hidden)
            if self.fine_tune is not None:
                self.fine_tune(network, masked, segmentation(logits) if truth is None else truth, volume.memory_gb)
            rounds.append(Round(roi, saliency, probability(self._logits(volume, masked))))
        return rounds

    @staticmethod
    def _logits(volume: VolumeNetwork, image: Image) -> Logits:
        with torch.no_grad():
            return volume(image)


def _place(image: Image) -> MetaTensor | None:
    """Where an image lies, without its voxels: a saliency may count in mm."""
    return MetaTensor(torch.empty(0)).copy_meta_from(image) if isinstance(image, MetaTensor) else None


def _plain(volume: Tensor) -> Tensor:
    return volume.as_tensor() if isinstance(volume, MetaTensor) else volume
