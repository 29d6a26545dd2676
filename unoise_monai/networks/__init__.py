"""Segmentation and noise networks."""

from unoise_monai.networks.unet import UNet

__all__ = ["UNet"]
