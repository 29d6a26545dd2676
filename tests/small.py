"""The small network, picture, region and geometry that tests of attributions share."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from unoise_monai.attribution.targets import Region
from unoise_monai.networks import UNet

AFFINE = torch.tensor([[-0.5, 0.1, 0.0, 3.0], [0.1, 0.7, 0.0, -2.0], [0.0, 0.2, 2.0, 1.0], [0.0, 0.0, 0.0, 1.0]])
"""Oblique, anisotropic and left-handed."""


def unet(dims: int, classes: int = 3, channels: int = 1, depth: int = 2) -> UNet:
    """With features that are alive at every layer, and a batch norm that does something."""
    torch.manual_seed(dims)
    network = UNet(dims, channels, classes, depth, channel_factor=2).eval()
    for module in network.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            assert module.running_mean is not None
            assert module.running_var is not None
            module.running_mean.normal_(0, 0.2)
            module.running_var.uniform_(0.02, 0.1)
    return network


class Shallow(nn.Module):
    """Convolution, activation, convolution, optionally with the activation's input added to what it gives."""

    def __init__(self, act: Callable[[Tensor], Tensor], dims: int = 2, skip: bool = False, channels: int = 1) -> None:
        super().__init__()
        torch.manual_seed(1)
        conv = nn.Conv2d if dims == 2 else nn.Conv3d
        self.first, self.last = conv(channels, 3, 3, padding=1), conv(3, 2, 3, padding=1)
        self.act, self.skip = act, skip

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        return self.last(self.act(x) + x if self.skip else self.act(x))


class Summing(nn.Module):
    """The sum of class 1's logits."""

    def forward(self, logits: Tensor) -> Tensor:
        return logits[:, 1].flatten(1).sum(dim=1)


def picture(*size: int, batch: int = 1, channels: int = 1) -> Tensor:
    return torch.randn(batch, channels, *size, generator=torch.Generator().manual_seed(1))


def gradient(network: nn.Module, image: Tensor, target: Callable[[Tensor], Tensor]) -> Tensor:
    copy = image.clone().requires_grad_()
    return torch.autograd.grad(target(network.eval()(copy)).sum(), copy)[0]


def region(*size: int) -> Region:
    return Region(torch.rand(1, 1, *size, generator=torch.Generator().manual_seed(2)) < 0.4, 1)
