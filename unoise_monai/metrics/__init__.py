"""Scores of maps, and the metrics that they are made of."""

from unoise_monai.metrics.bootstrap import Interval, bootstrap_difference, bootstrap_mean
from unoise_monai.metrics.cost import Cost, measure_cost
from unoise_monai.metrics.faithfulness import (
    InfidelityResult,
    RandomisationResult,
    infidelities,
    infidelity,
    max_sensitivity,
    randomisation,
)
from unoise_monai.metrics.overlap import dice_per_class, foreground_dice, segmentation_pair
from unoise_monai.metrics.regions import (
    MeanTolerance,
    RegionRow,
    TruthScores,
    average_precision,
    region_importance,
    regions_over_cases,
    truth_scores,
)
from unoise_monai.metrics.scores import (
    Infidelity,
    MapScore,
    MapScorer,
    PhantomTruth,
    Randomisation,
    ScoredMap,
    Sensitivity,
    Visibility,
    direction,
)
from unoise_monai.metrics.visibility import (
    Hiding,
    VisibilityCurve,
    VisibilityScorer,
    VisibilityScores,
    VisibleDice,
    distance_map,
)

__all__ = [
    "Cost",
    "Hiding",
    "Infidelity",
    "InfidelityResult",
    "Interval",
    "MapScore",
    "MapScorer",
    "MeanTolerance",
    "PhantomTruth",
    "Randomisation",
    "RandomisationResult",
    "RegionRow",
    "ScoredMap",
    "Sensitivity",
    "TruthScores",
    "Visibility",
    "VisibilityCurve",
    "VisibilityScorer",
    "VisibilityScores",
    "VisibleDice",
    "average_precision",
    "bootstrap_difference",
    "bootstrap_mean",
    "dice_per_class",
    "direction",
    "distance_map",
    "foreground_dice",
    "infidelities",
    "infidelity",
    "max_sensitivity",
    "measure_cost",
    "randomisation",
    "region_importance",
    "regions_over_cases",
    "segmentation_pair",
    "truth_scores",
]
