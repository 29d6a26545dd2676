"""Everything that is measured of one map of one case."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from unoise_monai.attribution.base import Attributor, baselines
from unoise_monai.attribution.targets import Target
from unoise_monai.metrics.faithfulness import infidelity, max_sensitivity
from unoise_monai.metrics.overlap import MEASURES, check_measures
from unoise_monai.metrics.randomisation import randomisation
from unoise_monai.metrics.regions import truth_scores
from unoise_monai.metrics.visibility import Hiding, VisibilityScorer, VisibilityScores
from unoise_monai.types import Image, LabelMap, VoxelMap

MODES = ("insertion", "deletion")
HIDINGS: Mapping[str, Hiding] = {
    "zero": Hiding("zero"),
    "mean": Hiding("mean"),
    "noise": Hiding("noise", sigma=5.0),
    "blur": Hiding("blur", sigma=4.0),
}
"""The four operators: zero, the mean, noise of sigma 5 in normalised intensity, a Gaussian blur of 4 voxels."""


@dataclass(frozen=True)
class MapScorer:
    """What is measured of a map; the same for every method.

    Args:
        hidings: by name, what hidden voxels become.
        shares: of the voxels, visible; 0 and 1 are among them.
        measures: of the segmentation, names of `MEASURES`; the first one's area is ranked.
        infidelity_samples: perturbations, 0 for none; it is measured of the map with its signs.
        infidelity_sigma: of the perturbations, in units of normalised intensity.
        infidelity_box: side, in voxels, of the box that a perturbation fills; None for every voxel.
        sensitivity_samples: maps of slightly changed images, 0 for none.
        sensitivity_radius: of the changes, in units of normalised intensity.
        randomisation_steps: maps of networks that are random from the last layer down, 0 for none.
        seed: of all draws; every method meets the same.

    Raises:
        ValueError: when there is no hiding, the shares lack 0 or 1, a measure is unknown, or of the first one low is
            good, as of a distance.
    """

    hidings: Mapping[str, Hiding] = field(default_factory=lambda: dict(HIDINGS))
    shares: Sequence[float] = (0.0, 0.05, 0.1, 0.2, 0.3, 0.5, 1.0)
    measures: Sequence[str] = ("dice", "soft_dice", "iou", "surface_distance")
    infidelity_samples: int = 32
    infidelity_sigma: float = 0.5
    infidelity_box: int | None = 8
    sensitivity_samples: int = 2
    sensitivity_radius: float = 0.05
    randomisation_steps: int = 3
    seed: int = 0

    def __post_init__(self) -> None:
        if not self.hidings:
            raise ValueError("hidings must be at least one, got none")
        check_measures(self.measures, spacing_mm=(1.0,))
        if not MEASURES[self.measures[0]].higher_is_better:
            better = tuple(name for name, measure in MEASURES.items() if measure.higher_is_better)
            raise ValueError(f"the first of measures must be one of {better}, high is good, got {self.measures[0]!r}")
        if not {0.0, 1.0} <= {float(share) for share in self.shares}:
            raise ValueError(f"shares must hold 0 and 1, got {tuple(self.shares)}")

    def visibility(
        self, network: nn.Module, image: Image, label: LabelMap, spacing_mm: Sequence[float]
    ) -> Callable[[VoxelMap], tuple[dict[str, Any], dict[str, float]]]:
        """A function from a map of this image to its curves and the areas under them."""
        scorers = {
            name: VisibilityScorer(network, image, label, hiding, self.measures, spacing_mm)
            for name, hiding in self.hidings.items()
        }

        def score(importance: VoxelMap) -> tuple[dict[str, Any], dict[str, float]]:
            curves: dict[str, Any] = {}
            areas = {}
            for name, scorer in scorers.items():
                for mode in MODES:
                    found = scorer(importance, self.shares, mode)
                    curves.setdefault(name, {})[mode] = as_lists(found)
                    areas[f"{mode}_{name}"] = found.curve(self.measures[0]).area
            return curves, areas

        return score

    def faithfulness(self, score: nn.Module, image: Image, contribution: VoxelMap) -> dict[str, float]:
        """Infidelity of a map with its signs, relative to the score's own changes: 0 to 1."""
        if not self.infidelity_samples:
            return {}
        generator = torch.Generator().manual_seed(self.seed)
        found = infidelity(
            score,
            image,
            contribution,
            self.infidelity_sigma,
            self.infidelity_samples,
            generator=generator,
            box=self.infidelity_box,
        )
        return {"infidelity": float(found.unexplained)}

    def robustness(self, attributor: Attributor, image: Image, target: Target, where: VoxelMap) -> dict[str, float]:
        """How the map changes with the image and, in the voxels of ``where``, if any, with the network's weights."""
        scores = {}
        if self.sensitivity_samples:
            generator = torch.Generator().manual_seed(self.seed)
            scores["sensitivity"] = float(
                max_sensitivity(
                    attributor,
                    image,
                    target,
                    self.sensitivity_radius,
                    self.sensitivity_samples,
                    generator=generator,
                )
            )
        if self.randomisation_steps and bool(where.any()):
            found = randomisation(attributor, image, target, where, seed=self.seed, steps=self.randomisation_steps)
            scores["randomisation_correlation"] = float(found.correlation[-1, 0])
            scores["randomisation_ssim"] = float(found.ssim[-1, 0])
            scores["unchanged"] = float(found.unchanged[0])
        return scores


def truth_figures(importance: VoxelMap, truth: LabelMap) -> dict[str, float]:
    """What a map says of a phantom, where the answer is known: see `truth_scores`."""
    found = truth_scores(importance, truth)
    tops = {f"truth_top_{name}": float(found.top[0, column]) for column, name in enumerate(_TISSUES)}
    return {"truth_average_precision": float(found.average_precision), **tops}


_TISSUES = ("outside", "target", "landmark", "distractor", "irrelevant")


def as_lists(found: VisibilityScores) -> dict[str, list[float | None]]:
    """Shares and the mean over classes of every measure, as JSON takes them: None for what could not be measured."""
    curves = {"share": found.share[0], **{name: value[0].nanmean(dim=1) for name, value in found.score.items()}}
    return {name: [float(v) if math.isfinite(v) else None for v in values.tolist()] for name, values in curves.items()}


def per_intensity(values: VoxelMap, image: Image, attributor: Attributor | None = None) -> VoxelMap:
    """Contributions against a baseline as changes of the score per intensity; 0 where the image is as the baseline.

    Args:
        values: ``(1, 1, *spatial)``.
        image: ``(1, C, *spatial)``.
        attributor: whose they are, with its ``baseline``, or the mean of its ``baselines``, or those of the method that
            it is made of; None for zero.
    """
    method = getattr(attributor, "inner", attributor)
    kinds = getattr(method, "baselines", None) or (getattr(method, "baseline", "zero"),)
    plain = image.as_subclass(Tensor)
    reference = torch.stack(baselines(plain, kinds, getattr(method, "seed", 0))).mean(dim=0)
    steps = (plain - reference).sum(dim=1, keepdim=True)
    return torch.where(steps.abs() > 1e-3, values / steps, torch.zeros_like(values))
