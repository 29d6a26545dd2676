"""The U-Nets of U-Noise and of DS6."""

from collections.abc import Sequence

import torch
from monai.networks.layers.factories import Conv, Norm, Pool
from torch import Tensor, nn


class ConvBlock(nn.Sequential):
    """3x3(x3) convolution with bias, batch norm, ReLU, ``repeats`` times."""

    def __init__(self, spatial_dims: int, in_channels: int, out_channels: int, repeats: int = 2) -> None:
        layers: list[nn.Module] = []
        for index in range(repeats):
            layers += [
                Conv[Conv.CONV, spatial_dims](in_channels if index == 0 else out_channels, out_channels, 3, padding=1),
                Norm[Norm.BATCH, spatial_dims](out_channels),
                nn.ReLU(inplace=False),
            ]
        super().__init__(*layers)


class UpBlock(nn.Module):
    """Nearest upsampling x2, convolution, concatenation of the skip connection, two convolutions."""

    def __init__(self, spatial_dims: int, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.up = nn.Sequential(
            nn.Upsample(scale_factor=2.0, mode="nearest"), ConvBlock(spatial_dims, in_channels, out_channels, repeats=1)
        )
        self.conv = ConvBlock(spatial_dims, 2 * out_channels, out_channels)

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        return self.conv(torch.cat([skip, self.up(x)], dim=1))


class UNetBody(nn.Module):
    """Encoder and decoder of a U-Net, without a head.

    Args:
        spatial_dims: 2 or 3.
        in_channels: channels of the image.
        channels: of each resolution level, the finest first.

    Raises:
        ValueError: when ``spatial_dims`` is not 2 or 3, there is no level, or a number of channels is below 1.
    """

    def __init__(self, spatial_dims: int, in_channels: int, channels: Sequence[int]) -> None:
        super().__init__()
        if spatial_dims not in (2, 3):
            raise ValueError(f"spatial_dims must be 2 or 3, got {spatial_dims}")
        if in_channels < 1:
            raise ValueError(f"in_channels must be at least 1, got {in_channels}")
        if not channels or min(channels) < 1:
            raise ValueError(f"channels must hold at least 1 for each of one or more levels, got {list(channels)}")
        depth = len(channels)
        self.stride = 2 ** (depth - 1)
        """The grid, in voxels, that every side of the input must be a multiple of."""
        self.halo = receptive_halo(depth)
        """The voxels of context that a block on that grid needs beyond each of its faces."""

        # One for each level: DeepLIFT remembers what went through a module, and can remember one call.
        self.pools = nn.ModuleList(
            nn.Identity() if level == 0 else Pool[Pool.MAX, spatial_dims](2) for level in range(depth)
        )
        self.encoder = nn.ModuleList(
            ConvBlock(spatial_dims, in_channels if level == 0 else channels[level - 1], channels[level])
            for level in range(depth)
        )
        # From the coarsest to the finest, in the order of the forward pass.
        self.decoder = nn.ModuleList(
            UpBlock(spatial_dims, channels[level + 1], channels[level]) for level in reversed(range(depth - 1))
        )

    def features(self, x: Tensor) -> list[Tensor]:
        """The decoder's features of every level, the finest first."""
        skips: list[Tensor] = []
        for pool, block in zip(self.pools, self.encoder):  # noqa: B905 - TorchScript knows no strict=
            x = block(pool(x))
            skips.append(x)
        found = [skips.pop()]
        for up in self.decoder:
            found.insert(0, up(found[0], skips.pop()))
        return found


class UNet(UNetBody):
    """U-Net sized by depth and channel factor, for the utility and for the noise model.

    Koker et al., "U-Noise: Learnable noise masks for interpretable image segmentation", 2021, Table 1: Small is
    ``(depth, channel_factor) = (2, 4)``, Medium ``(3, 4)``, Large ``(4, 4)``, Utility ``(5, 6)``.

    Args:
        spatial_dims: 2 or 3.
        in_channels: channels of the image.
        out_channels: channels of the logits.
        depth: resolution levels, at least 1.
        channel_factor: the first level has ``2**channel_factor`` channels, each further one twice as many.

    Shape:
        ``(B, in_channels, *spatial)`` to ``(B, out_channels, *spatial)``, each side a multiple of ``stride``.

    Raises:
        ValueError: when ``spatial_dims`` is not 2 or 3, or a size is below 1.
    """

    def __init__(
        self, spatial_dims: int, in_channels: int, out_channels: int, depth: int = 4, channel_factor: int = 4
    ) -> None:
        for name, value, least in (
            ("out_channels", out_channels, 1),
            ("depth", depth, 1),
            ("channel_factor", channel_factor, 0),
        ):
            if value < least:
                raise ValueError(f"{name} must be at least {least}, got {value}")
        super().__init__(spatial_dims, in_channels, [2 ** (channel_factor + level) for level in range(depth)])
        self.head = Conv[Conv.CONV, spatial_dims](2**channel_factor, out_channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.features(x)[0])


def receptive_halo(depth: int) -> int:
    """Voxels that a block on the stride's grid sees beyond its faces, for a U-Net of this depth.

    Walks the widest path from a face, down the decoder to the coarsest level and back up the encoder: a level's two
    convolutions take 2 voxels of its own grid, the convolution after upsampling 1.
    """
    margin = 0
    for _ in range(depth - 1):
        margin = -(-(margin + 3) // 2)
    halo = margin + 2
    for _ in range(depth - 1):
        halo = 2 * halo + 2
    return halo


class UNetMSS(UNetBody):
    """U-Net with multi-scale supervision: in training, heads at 1/2 and 1/4 of the resolution learn the labels, too.

    Chatterjee et al., "DS6, Deformation-aware semi-supervised learning: Application to small vessel segmentation with
    noisy training data", 2022, after Zeng et al. 2017 and Zhao et al. 2018. The published extra heads end in a ReLU
    before the sigmoid, so that no probability is below 0.5, and are resized to 64x64x64; these are plain logits.

    Args:
        spatial_dims: 2 or 3.
        in_channels: channels of the image.
        out_channels: channels of the logits; 1 for vessels.
        channels: of each resolution level, the finest first; fewer than three levels have fewer heads.

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
        self.side_heads = nn.ModuleList(convolution(width, out_channels, 1) for width in channels[1:3])

    def forward(self, x: Tensor) -> Tensor:
        features = self.features(x)
        full = self.head(features[0])
        # TorchScript knows one return type: a scripted network is served, not trained.
        if torch.jit.is_scripting():
            return full
        if not self.training:
            return full
        heads = zip(self.side_heads, features[1:], strict=False)
        return [full, *(head(level) for head, level in heads)]  # type: ignore[return-value]
