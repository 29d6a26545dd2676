"""What a map is worth, in numbers."""

from unoise_monai.metrics.dice import foreground_dice, segmentation_pair
from unoise_monai.metrics.tolerance import MeanTolerance
from unoise_monai.metrics.visibility import VisibilityCurve, VisibleDice

__all__ = [
    "MeanTolerance",
    "VisibilityCurve",
    "VisibleDice",
    "foreground_dice",
    "segmentation_pair",
]
