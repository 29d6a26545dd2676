"""Scores of a map: each class has a name, a direction, what it needs and its columns; `MapScorer` is a list of them."""

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from unoise_monai.attribution.base import Attributor, baselines
from unoise_monai.attribution.base import Score as TargetScore
from unoise_monai.attribution.targets import Target
from unoise_monai.checks import check_choice
from unoise_monai.metrics.faithfulness import infidelity, max_sensitivity, randomisation
from unoise_monai.metrics.overlap import MEASURES, check_measures
from unoise_monai.metrics.regions import truth_scores
from unoise_monai.metrics.visibility import MODES, Hiding, VisibilityScorer
from unoise_monai.phantoms.abdomen import Truth
from unoise_monai.types import Image, LabelMap, Logits, VoxelMap

NEEDS = ("label", "contribution", "attributor", "truth", "many_passes")
"""What a score may need beyond the map and the network, see `MapScore`."""


@dataclass(frozen=True)
class ScoredMap:
    """One map of one case, and all that a score may ask for. Volumes are of one item, on one grid and device."""

    importance: VoxelMap
    """Large where a voxel matters, ``(1, 1, *spatial)``: what ranks the voxels."""
    image: Image
    """Normalised, ``(1, C, *spatial)``."""
    network: nn.Module
    """Images ``(n, C, *spatial)`` to logits ``(n, K, *spatial)``, such as a `VolumeNetwork`."""
    logits: Logits
    """The network's output for the image, ``(1, K, *spatial)``."""
    label: LabelMap
    """Class indices, ``(1, 1, *spatial)``: the case's label, or the network's own segmentation where it has none."""
    where: VoxelMap
    """The voxels that the network segments, bool, ``(1, 1, *spatial)``."""
    target: Target
    """What the map explains: logits to one number an item."""
    spacing_mm: Sequence[float]
    """Voxel sizes, one an axis."""
    labelled: bool = True
    """Whether the label is the case's own."""
    contribution: VoxelMap | None = None
    """The method's values with their signs, as changes of the target per intensity; None of a map without a method."""
    attributor: Attributor | None = None
    """The method, to be run again: called with an image and a target, it gives a map."""
    truth: LabelMap | None = None
    """What every voxel of a phantom is, the values of `Truth`."""
    seed: int = 0
    """Of all random draws; the same for every method and case."""
    curves: dict[str, Any] = field(default_factory=dict, repr=False)
    """Filled by scores that have curves to plot: operator, mode, then ``"share"`` and measures with a list each."""
    case_cache: dict[str, Any] = field(default_factory=dict, repr=False)
    """What the maps of a case share: pass the same dictionary to all of them."""

    @property
    def score(self) -> TargetScore:
        """The target as a function of images, ``(n, C, *spatial)`` to ``(n,)``."""
        return TargetScore(self.network, self.target)  # type: ignore[arg-type]

    def generator(self) -> torch.Generator:
        """A new generator on the CPU, in the state that ``seed`` gives."""
        return torch.Generator().manual_seed(self.seed)

    def has(self, need: str) -> bool:
        """Whether one of `NEEDS` is there; many passes are for the caller to allow."""
        return self.labelled if need == "label" else need == "many_passes" or getattr(self, need) is not None

    def required(self, need: str) -> Any:
        """The contribution, attributor or truth; a ValueError when it is None."""
        if not self.has(need):
            raise ValueError(f"{need} must be given for a score that needs it, got None")
        return getattr(self, need)


class MapScore(ABC):
    """A score of a map: subclass it, as a dataclass if it has options, and tables and ranks know its columns.

    Called with a `ScoredMap`, it gives one number a column; columns that it leaves out were not measured.

    Raises:
        ValueError: on the definition of a subclass whose name is missing, whose ``better`` or ``needs`` are unknown, or
            that shares a column with a score of another name.
    """

    name: ClassVar[str] = ""
    better: ClassVar[str] = "high"
    """``"high"`` or ``"low"``: which values are good, of the columns whose direction is not given."""
    faithfulness: ClassVar[bool] = False
    """Whether its ranks count for the overall rank, since it measures how faithful a map is to the network."""
    needs: ClassVar[Sequence[str]] = ()
    """Some of `NEEDS`. Where one is missing the score is left out: ``"label"``, the case's own label;
    ``"contribution"``, values with signs; ``"attributor"``, the method again; ``"truth"``, that of a phantom;
    ``"many_passes"``, time: it runs the method or the network often, so on the first cases of a run only."""
    columns: ClassVar[Mapping[str, str] | Sequence[str]] = ()
    """The numbers that it gives: names, or names with directions; ``*`` stands for any text. By default its name."""

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        if not cls.name:
            raise ValueError(f"name must be given by a score, got none in {cls.__name__}")
        columns = cls.columns or (cls.name,)
        cls.columns = dict(columns) if isinstance(columns, Mapping) else dict.fromkeys(columns, cls.better)
        for better in (cls.better, *cls.columns.values()):
            check_choice("better", better, ("high", "low"))
        for need in cls.needs:
            check_choice("needs", need, NEEDS)
        for column in cls.columns:
            other = direction(column)
            if other is not None and other.score.name != cls.name:
                raise ValueError(f"columns must be of one score, got {column!r} in {cls.name} and {other.score.name}")
        for column in [column for column, found in _COLUMNS.items() if found.score.name == cls.name]:
            del _COLUMNS[column]
        _COLUMNS.update({column: Direction(cls, better) for column, better in cls.columns.items()})

    @abstractmethod
    def __call__(self, subject: ScoredMap) -> dict[str, float]:
        """One number a column."""

    def __repr__(self) -> str:
        # Results depend on it, so it holds no address.
        return f"{type(self).__name__}({', '.join(f'{name}={value!r}' for name, value in sorted(vars(self).items()))})"


class Direction(NamedTuple):
    """How to read a column of a scoreboard."""

    score: type[MapScore]
    better: str
    """``"high"`` or ``"low"``: which values are good."""


_COLUMNS: dict[str, Direction] = {}
"""By name or pattern; a class that is defined again takes the place of the former."""


def direction(column: str) -> Direction | None:
    """Which score gives a column, and which values are good; None where no score that was imported does."""
    return next((found for pattern, found in _COLUMNS.items() if fnmatchcase(column, pattern)), None)


HIDINGS: Mapping[str, Hiding] = {
    "zero": Hiding("zero"),
    "mean": Hiding("mean"),
    "noise": Hiding("noise", sigma=5.0),
    "blur": Hiding("blur", sigma=4.0),
}
"""Noise of sigma 5 in normalised intensity, a Gaussian blur of 4 voxels."""


@dataclass(frozen=True)
class Visibility(MapScore):
    """Areas under Dice against the visible share, as the top voxels are shown or hidden (`VisibilityScorer`).

    Args:
        hidings: by name, what hidden voxels become.
        shares: of the voxels, visible; 0 and 1 are among them.
        measures: of the segmentation, names of `MEASURES`, all kept as curves; the first one's area is the score.

    Raises:
        ValueError: when there is no hiding, the shares lack 0 or 1, a measure is unknown, or of the first one low is
            good, as of a distance.
    """

    hidings: Mapping[str, Hiding] = field(default_factory=lambda: dict(HIDINGS))
    shares: Sequence[float] = (0.0, 0.05, 0.1, 0.2, 0.3, 0.5, 1.0)
    measures: Sequence[str] = ("dice", "soft_dice", "iou", "surface_distance")

    name = "visibility"
    faithfulness = True
    columns: ClassVar = {"insertion_*": "high", "deletion_*": "low"}

    def __post_init__(self) -> None:
        if not self.hidings:
            raise ValueError("hidings must be at least one, got none")
        check_measures(self.measures, spacing_mm=(1.0,))
        if not MEASURES[self.measures[0]].higher_is_better:
            better = tuple(name for name, measure in MEASURES.items() if measure.higher_is_better)
            raise ValueError(f"the first of measures must be one of {better}, high is good, got {self.measures[0]!r}")
        if not {0.0, 1.0} <= {float(share) for share in self.shares}:
            raise ValueError(f"shares must hold 0 and 1, got {tuple(self.shares)}")

    def __call__(self, subject: ScoredMap) -> dict[str, float]:
        if repr(self) not in subject.case_cache:
            given = (subject.network, subject.image, subject.label)
            subject.case_cache[repr(self)] = {
                name: VisibilityScorer(*given, hiding, self.measures, subject.spacing_mm)
                for name, hiding in self.hidings.items()
            }
        areas = {}
        for name, scorer in subject.case_cache[repr(self)].items():
            for mode in MODES:
                found = scorer(subject.importance, self.shares, mode)
                curves = {"share": found.share[0], **{key: each[0].nanmean(dim=1) for key, each in found.score.items()}}
                # As JSON takes them: None for what could not be measured.
                subject.curves.setdefault(name, {})[mode] = {
                    key: [value if math.isfinite(value) else None for value in each.tolist()]
                    for key, each in curves.items()
                }
                areas[f"{mode}_{name}"] = found.curve(self.measures[0]).area
        return areas


@dataclass(frozen=True)
class Infidelity(MapScore):
    """What the map leaves unexplained of the target's changes, 0 to 1 (`infidelity`).

    Args:
        samples: perturbations; 0 leaves the score out.
        sigma: of the perturbations, in units of normalised intensity.
        box: side, in voxels, of the box that a perturbation fills; None for every voxel.
    """

    samples: int = 32
    sigma: float = 0.5
    box: int | None = 8

    name = "infidelity"
    better = "low"
    faithfulness = True
    needs = ("contribution",)

    def __call__(self, subject: ScoredMap) -> dict[str, float]:
        if self.samples == 0:
            return {}
        given = (subject.score, subject.image, subject.required("contribution"), self.sigma, self.samples)
        return {"infidelity": float(infidelity(*given, generator=subject.generator(), box=self.box).unexplained)}


@dataclass(frozen=True)
class Sensitivity(MapScore):
    """The largest change of the map over small changes of the image (`max_sensitivity`).

    Args:
        samples: maps of changed images; 0 leaves the score out.
        radius: of the changes, in units of normalised intensity.
    """

    samples: int = 2
    radius: float = 0.05

    name = "sensitivity"
    better = "low"
    needs = ("attributor", "many_passes")

    def __call__(self, subject: ScoredMap) -> dict[str, float]:
        if self.samples == 0:
            return {}
        given = (subject.required("attributor"), subject.image, subject.target, self.radius, self.samples)
        return {"sensitivity": float(max_sensitivity(*given, generator=subject.generator()))}


@dataclass(frozen=True)
class Randomisation(MapScore):
    """How alike the map of a network with random weights is, within the segmented voxels, if any (`randomisation`).

    Args:
        steps: maps of networks that are random from the last layer down; 0 leaves the score out.
    """

    steps: int = 3

    name = "randomisation"
    better = "low"
    needs = ("attributor", "many_passes")
    columns = ("randomisation_correlation", "randomisation_ssim", "unchanged")

    def __call__(self, subject: ScoredMap) -> dict[str, float]:
        if self.steps == 0 or not bool(subject.where.any()):
            return {}
        given = (subject.required("attributor"), subject.image, subject.target, subject.where)
        found = randomisation(*given, seed=subject.seed, steps=self.steps)
        values = (found.correlation[-1, 0], found.ssim[-1, 0], found.unchanged[0])
        return dict(zip(self.columns, map(float, values), strict=True))


@dataclass(frozen=True)
class PhantomTruth(MapScore):
    """How well a map finds the voxels of a phantom that are known to decide (`truth_scores`)."""

    name = "truth"
    needs = ("truth",)
    columns: ClassVar = {
        "truth_average_precision": "high",
        "truth_top_outside": "low",
        "truth_top_target": "high",
        "truth_top_landmark": "high",
        "truth_top_distractor": "low",
        "truth_top_irrelevant": "low",
    }

    def __call__(self, subject: ScoredMap) -> dict[str, float]:
        found = truth_scores(subject.importance, subject.required("truth"))
        tops = {f"truth_top_{tissue.name.lower()}": float(found.top[0, at]) for at, tissue in enumerate(Truth)}
        return {"truth_average_precision": float(found.average_precision), **tops}


def default_scores() -> tuple[MapScore, ...]:
    """The scores of this module, in the order of their columns."""
    return (Visibility(), Infidelity(), Sensitivity(), Randomisation(), PhantomTruth())


@dataclass(frozen=True)
class MapScorer:
    """What is measured of a map; the same for every method.

    Args:
        scores: in the order of their columns; by default those of this module.
        seed: of all draws; every method meets the same.

    Raises:
        ValueError: when two of ``scores`` have one name.
    """

    scores: Sequence[MapScore] = field(default_factory=default_scores)
    seed: int = 0

    def __post_init__(self) -> None:
        names = [score.name for score in self.scores]
        if len(set(names)) < len(names):
            raise ValueError(f"scores must have a name each, got {names}")

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
        for score in self.scores:
            if all(many_passes if need == "many_passes" else subject.has(need) for need in score.needs):
                found = score(subject)
                unknown = [each for each in found if not any(fnmatchcase(each, own) for own in score.columns)]
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
