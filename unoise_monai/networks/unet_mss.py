"""The U-Net with multi-scale supervision of DS6, for vessels."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from monai.networks.layers.factories import Conv
from torch import Tensor, nn

from unoise_monai.networks.unet import UNetBody

SIDE_HEADS = 2
"""Extra heads, at 1/2 and 1/4 of the resolution."""


class UNetMSS(UNetBody):
    """U-Net with multi-scale supervision: in training, heads at 1/2 and 1/4 of the resolution learn the labels, too.

    Chatterjee et al., "DS6, Deformation-aware semi-supervised learning: Application to small vessel segmentation with
    noisy training data", 2022, after Zeng et al. 2017 and Zhao et al. 2018. The published extra heads end in a ReLU
    before the sigmoid, so that they never say less than 0.5, and are resized to 64x64x64; these are plain logits of
    any size.

    Args:
        spatial_dims: 2 or 3.
        in_channels: channels of the image.
        out_channels: channels of the logits; 1 for vessels.
        channels: of each resolution level, the finest first; the default is the paper's. With fewer than three levels
            there are fewer heads.

    Shape:
        ``(B, in_channels, *spatial)``, each side a multiple of ``stride``. In evaluation mode, and scripted, to logits
        ``(B, out_channels, *spatial)``; in training mode to a list of them, at the full resolution, 1/2 and 1/4.

    Raises:
        ValueError: when ``spatial_dims`` is not 2 or 3, or a size is below 1.
    """

    def __init__(
        self,
        spatial_dims: int,
        in_channels: int,
        out_channels: int,
        channels: Sequence[int] = (64, 128, 256, 512, 1024),
    ) -> None:
        if out_channels < 1:
            raise ValueError(f"out_channels must be at least 1, got {out_channels}")
        super().__init__(spatial_dims, in_channels, channels)
        convolution = Conv[Conv.CONV, spatial_dims]
        self.head = convolution(channels[0], out_channels, 1)
        self.side_heads = nn.ModuleList(convolution(width, out_channels, 1) for width in channels[1 : SIDE_HEADS + 1])

    def forward(self, x: Tensor) -> Tensor:
        features = self.features(x)
        full = self.head(features[0])
        # TorchScript knows one return type: a scripted network is served, not trained.
        if torch.jit.is_scripting():
            return full
        if not self.training:
            return full
        sides = [head(level) for head, level in zip(self.side_heads, features[1:], strict=False)]
        return [full, *sides]  # type: ignore[return-value]
