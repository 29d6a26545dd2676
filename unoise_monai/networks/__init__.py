"""Segmentation and noise networks, and their weights."""

from unoise_monai.networks.unet import UNet, UNetMSS
from unoise_monai.networks.weights import copy_matching_layers, load_state, load_utility

__all__ = ["UNet", "UNetMSS", "copy_matching_layers", "load_state", "load_utility"]
