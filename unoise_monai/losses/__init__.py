"""Losses that train the noise model."""

from unoise_monai.losses.noise_ratio import DualNoiseRatio
from unoise_monai.losses.unoise import UNoiseLoss

__all__ = ["DualNoiseRatio", "UNoiseLoss"]
