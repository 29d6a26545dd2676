"""What a map is worth, in numbers."""

from unoise_monai.metrics.bootstrap import Interval, bootstrap_difference, bootstrap_mean
from unoise_monai.metrics.cost import Cost, measure_cost
from unoise_monai.metrics.curve import VisibilityCurve, VisibilityScores
from unoise_monai.metrics.dice import foreground_dice, segmentation_pair
from unoise_monai.metrics.hiding import Hiding
from unoise_monai.metrics.infidelity import Infidelity, infidelities, infidelity
from unoise_monai.metrics.randomisation import Randomisation, randomisation
from unoise_monai.metrics.ranking import distance_map, random_map
from unoise_monai.metrics.region_cohort import regions_over_cases
from unoise_monai.metrics.regions import RegionRow, region_importance
from unoise_monai.metrics.scorer import VisibilityScorer
from unoise_monai.metrics.sensitivity import max_sensitivity
from unoise_monai.metrics.tolerance import MeanTolerance
from unoise_monai.metrics.truth import TruthScores, average_precision, truth_scores
from unoise_monai.metrics.visibility import VisibleDice

__all__ = [
    "Cost",
    "Hiding",
    "Infidelity",
    "Interval",
    "MeanTolerance",
    "Randomisation",
    "RegionRow",
    "TruthScores",
    "VisibilityCurve",
    "VisibilityScorer",
    "VisibilityScores",
    "VisibleDice",
    "average_precision",
    "bootstrap_difference",
    "bootstrap_mean",
    "distance_map",
    "foreground_dice",
    "infidelities",
    "infidelity",
    "max_sensitivity",
    "measure_cost",
    "random_map",
    "randomisation",
    "region_importance",
    "regions_over_cases",
    "segmentation_pair",
    "truth_scores",
]
