"""Losses that train the noise model, and those that train the utility."""

from unoise_monai.losses.noise import DualNoiseRatio, UNoiseLoss, VisibleShare, VisibleShareLoss
from unoise_monai.losses.segmentation import (
    BCEIoUDiceLoss,
    DeformationAware,
    DeformationAwareLoss,
    FocalTverskyLoss,
    MultiScaleLoss,
    RandomDeformation,
    full_resolution,
)

__all__ = [
    "BCEIoUDiceLoss",
    "DeformationAware",
    "DeformationAwareLoss",
    "DualNoiseRatio",
    "FocalTverskyLoss",
    "MultiScaleLoss",
    "RandomDeformation",
    "UNoiseLoss",
    "VisibleShare",
    "VisibleShareLoss",
    "full_resolution",
]
