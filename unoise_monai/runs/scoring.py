"""Everything that is measured of one map of one case: a list of scores."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from unoise_monai.attribution.base import Attributor, baselines
from unoise_monai.metrics.scores import (
    HIDINGS,
    Infidelity,
    MapScore,
    PhantomTruth,
    Randomisation,
    ScoredMap,
    Sensitivity,
    Visibility,
)
from unoise_monai.metrics.visibility import Hiding
from unoise_monai.types import Image, VoxelMap


@dataclass(frozen=True)
class MapScorer:
    """What is measured of a map; the same for every method.

    The first arguments are short for the options of the scores that are always there, `Visibility` and `PhantomTruth`,
    and of those that can be left out, `Infidelity`, `Sensitivity` and `Randomisation`.

    Args:
        hidings: of `Visibility`, like ``shares`` and ``measures``.
        shares: of the voxels, visible.
        measures: of the segmentation.
        infidelity_samples: of `Infidelity`, like its ``sigma`` and ``box``; 0 leaves it out.
        infidelity_sigma: in units of normalised intensity.
        infidelity_box: in voxels.
        sensitivity_samples: of `Sensitivity`, like its ``radius``; 0 leaves it out.
        sensitivity_radius: in units of normalised intensity.
        randomisation_steps: of `Randomisation`; 0 leaves it out.
        seed: of all draws; every method meets the same.
        scores: further ones; one with the name of a score above takes its place.

    Raises:
        ValueError: as the scores do, or when two of ``scores`` have one name.
    """

    hidings: Mapping[str, Hiding] = field(default_factory=lambda: dict(HIDINGS))
    shares: Sequence[float] = Visibility.shares
    measures: Sequence[str] = Visibility.measures
    infidelity_samples: int = Infidelity.samples
    infidelity_sigma: float = Infidelity.sigma
    infidelity_box: int | None = Infidelity.box
    sensitivity_samples: int = Sensitivity.samples
    sensitivity_radius: float = Sensitivity.radius
    randomisation_steps: int = Randomisation.steps
    seed: int = 0
    scores: Sequence[MapScore] = ()

    def __post_init__(self) -> None:
        names = [score.name for score in self.scores]
        if len(set(names)) < len(names):
            raise ValueError(f"scores must have a name each, got {names}")
        _ = self.all_scores

    @cached_property
    def all_scores(self) -> tuple[MapScore, ...]:
        """The scores in the order of their columns."""
        found: list[MapScore] = [Visibility(self.hidings, self.shares, self.measures)]
        if self.infidelity_samples:
            found.append(Infidelity(self.infidelity_samples, self.infidelity_sigma, self.infidelity_box))
        if self.sensitivity_samples:
            found.append(Sensitivity(self.sensitivity_samples, self.sensitivity_radius))
        if self.randomisation_steps:
            found.append(Randomisation(self.randomisation_steps))
        by_name = {score.name: score for score in (*found, PhantomTruth())}
        return tuple((by_name | {score.name: score for score in self.scores}).values())

    def __call__(self, subject: ScoredMap, many_passes: bool = True) -> dict[str, dict[str, Any]]:
        """All scores of which the subject has what they need, as the record of a case holds them.

        Args:
            subject: the map; its ``seed`` and ``curves`` are not used.
            many_passes: whether scores that need many passes are measured too.

        Returns:
            ``"curves"``, by operator and mode, and ``"scores"``, finite numbers by column.

        Raises:
            ValueError: when a score gives a column that its class does not name.
        """
        subject = replace(subject, seed=self.seed, curves={})
        values: dict[str, float] = {}
        for score in self.all_scores:
            if all(many_passes if need == "many_passes" else subject.has(need) for need in score.needs):
                found = score(subject)
                unknown = [column for column in found if not score.gives(column)]
                if unknown:
                    raise ValueError(f"columns of {score.name} must be {list(score.columns)}, got {unknown}")
                values |= found
        return {"curves": subject.curves, "scores": {name: v for name, v in values.items() if math.isfinite(v)}}


def per_intensity(values: VoxelMap, image: Image, attributor: Attributor | None = None) -> VoxelMap:
    """Contributions against a baseline as changes of the score per intensity; 0 where the image is as the baseline.

    Args:
        values: ``(1, 1, *spatial)``.
        image: ``(1, C, *spatial)``.
        attributor: the method that gave them, with its ``baseline``, or the mean of its ``baselines``, or those of the
            method within it; None for zero.
    """
    method = getattr(attributor, "inner", attributor)
    kinds = getattr(method, "baselines", None) or (getattr(method, "baseline", "zero"),)
    plain = image.as_subclass(Tensor)
    reference = torch.stack(baselines(plain, kinds, getattr(method, "seed", 0))).mean(dim=0)
    steps = (plain - reference).sum(dim=1, keepdim=True)
    return torch.where(steps.abs() > 1e-3, values / steps, torch.zeros_like(values))
