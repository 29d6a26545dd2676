"""Segmentation and noise networks, their weights, and what any network gives."""

from unoise_monai.networks.outputs import ClassLogits
from unoise_monai.networks.unet import UNet, UNetMSS
from unoise_monai.networks.weights import copy_matching_layers, load_state, load_utility

__all__ = ["ClassLogits", "UNet", "UNetMSS", "copy_matching_layers", "load_state", "load_utility"]
