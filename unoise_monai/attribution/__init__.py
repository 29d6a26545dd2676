"""Published explanations of a segmentation: what they explain."""

from unoise_monai.attribution.targets import (
    Difference,
    Region,
    SoftDice,
    Target,
    border,
    border_mean,
    class_logits,
    class_sum,
    voxel,
)

__all__ = [
    "Difference",
    "Region",
    "SoftDice",
    "Target",
    "border",
    "border_mean",
    "class_logits",
    "class_sum",
    "voxel",
]
