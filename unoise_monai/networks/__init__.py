"""Segmentation and noise networks, and their weights."""

from unoise_monai.networks.pretrained import copy_matching_layers
from unoise_monai.networks.unet import UNet
from unoise_monai.networks.unet_mss import UNetMSS
from unoise_monai.networks.weights import load_state, load_utility

__all__ = ["UNet", "UNetMSS", "copy_matching_layers", "load_state", "load_utility"]
