"""Published explanations of a segmentation: what they explain."""

from unoise_monai.attribution.borders import border, border_mean
from unoise_monai.attribution.targets import (
    Difference,
    Foreground,
    Region,
    SoftDice,
    Target,
    class_logits,
    class_sum,
    foreground_sum,
    voxel,
)

__all__ = [
    "Difference",
    "Foreground",
    "Region",
    "SoftDice",
    "Target",
    "border",
    "border_mean",
    "class_logits",
    "class_sum",
    "foreground_sum",
    "voxel",
]
