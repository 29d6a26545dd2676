"""Any network's output as class logits, the sizes that it takes, and how far a voxel sees."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from monai.networks import nets
from torch import Tensor, nn

from unoise_monai.networks import ClassLogits, UNet
from unoise_monai.networks.outputs import class_logits, find_halo, find_stride, outputs_of, pick_output

IMAGE = torch.randn(1, 1, 8, 8, 8, generator=torch.Generator().manual_seed(0))


class Gives(nn.Module):
    """Gives what a function makes of the image."""

    def __init__(self, make: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.make = make

    def forward(self, x: Tensor) -> Any:
        return self.make(x)


def painted(regions: Tensor) -> Tensor:
    """Label 0, over which each region that is on is painted in turn."""
    label = torch.zeros_like(regions[:, :1], dtype=torch.long)
    for index, region in enumerate(regions.split(1, dim=1), 1):
        label[region > 0] = index
    return label


@pytest.mark.parametrize("count", [2, 3, 5])
def test_regions_become_the_classes_that_painting_gives(count: int) -> None:
    regions = torch.randn(2, count, 6, 6, 6, generator=torch.Generator().manual_seed(count))
    logits = class_logits(regions, "sigmoid")
    assert logits.shape == (2, count + 1, 6, 6, 6)
    assert torch.equal(logits.argmax(dim=1, keepdim=True), painted(regions))


def test_two_regions_of_which_one_is_never_on_are_one_sigmoid() -> None:
    region = torch.randn(1, 1, 4, 4, 4)
    logits = class_logits(torch.cat([torch.full_like(region, -50.0), region], dim=1), "sigmoid")
    torch.testing.assert_close(logits.softmax(dim=1)[:, 2:], region.sigmoid())


def test_probabilities_become_the_logits_that_they_came_from() -> None:
    logits = torch.randn(1, 3, 4, 4, 4)
    back = class_logits(logits.softmax(dim=1), "probabilities")
    torch.testing.assert_close(back.softmax(dim=1), logits.softmax(dim=1))
    torch.testing.assert_close(class_logits(logits[:, :1].sigmoid(), "region probabilities"), logits[:, :1])


@pytest.mark.parametrize(
    ("make", "regions", "outputs"),
    [
        (lambda x: x, False, "softmax"),
        (lambda x: x, True, "sigmoid"),
        (lambda x: x.softmax(dim=1), False, "probabilities"),
        (lambda x: x.sigmoid(), True, "region probabilities"),
        (lambda x: x[:, :1].sigmoid(), False, "region probabilities"),
    ],
)
def test_what_the_channels_are_is_seen(make: Callable[[Tensor], Tensor], regions: bool, outputs: str) -> None:
    assert outputs_of(make(torch.randn(1, 3, 4, 4, 4)), regions) == outputs


def test_the_output_at_full_resolution_is_picked() -> None:
    small, full = torch.zeros(1, 2, 4, 4, 4), torch.zeros(1, 2, 8, 8, 8)
    assert pick_output(full, (8, 8, 8)) is None
    assert pick_output([small, full], (8, 8, 8)) == 1
    assert pick_output({"deep": small, "out": full}, (8, 8, 8)) == "out"
    with pytest.raises(ValueError, match=r"tensor on its input's grid \(8, 8, 8\), got \{0: \(1, 2, 4, 4, 4\)\}"):
        pick_output([small], (8, 8, 8))
    with pytest.raises(ValueError, match="got str"):
        pick_output("logits", (8, 8, 8))


def test_class_logits_of_a_list() -> None:
    network = ClassLogits(Gives(lambda x: [x[..., ::2], torch.cat([x, -x], dim=1)]), pick=1, stride=1, halo=0)
    torch.testing.assert_close(network(IMAGE), torch.cat([IMAGE, -IMAGE], dim=1))
    with pytest.raises(ValueError, match=r"tensor at pick=None, got list"):
        ClassLogits(Gives(lambda x: [x]))(IMAGE)
    with pytest.raises(ValueError, match="outputs must be one of"):
        ClassLogits(nn.Identity(), "logits")


def test_class_logits_are_scriptable() -> None:
    network = ClassLogits(nn.Conv3d(1, 3, 3, padding=1), "sigmoid").eval()
    torch.testing.assert_close(torch.jit.script(network)(IMAGE), network(IMAGE))


@pytest.mark.parametrize(
    ("network", "stride"),
    [
        (nn.Conv3d(1, 2, 3, padding=1), 1),
        (UNet(3, 1, 2, depth=3, channel_factor=1), 4),
        (nets.UNet(3, 1, 2, (2, 2, 2, 2), (2, 2, 2), num_res_units=2), 8),
        (nets.SegResNet(3, 8, 1, 2), 8),
        (nets.DynUNet(3, 1, 2, [3, 3, 3], [1, 2, 2], [2, 2], filters=[4, 8, 8]), 4),
    ],
    ids=["conv", "unet", "monai-unet", "segresnet", "dynunet"],
)
def test_stride_is_the_one_of_the_network(network: nn.Module, stride: int) -> None:
    network.train()
    assert find_stride(network) == stride
    assert network.training


@pytest.mark.slow
def test_stride_of_a_transformer() -> None:
    pytest.importorskip("einops", reason="SwinUNETR needs einops")
    assert find_stride(nets.SwinUNETR(1, 2, feature_size=12)) == 32


def test_a_network_that_takes_no_size_says_its_own_reason() -> None:
    with pytest.raises(ValueError, match=r"sides of a multiple of one of .*expected input.* to have 2 channels"):
        find_stride(nn.Conv3d(2, 1, 1))


@pytest.mark.parametrize(("kernels", "dilation", "halo"), [((3,), 1, 1), ((5, 3), 1, 3), ((3, 3), 4, 8)])
def test_halo_of_convolutions_is_the_sum_of_what_they_see(kernels: tuple[int, ...], dilation: int, halo: int) -> None:
    layers = [nn.Conv3d(1, 1, size, padding="same", dilation=dilation) for size in kernels]
    assert find_halo(nn.Sequential(*layers), 1) == halo


def test_halo_of_a_unet_is_within_the_one_that_it_tells() -> None:
    network = UNet(3, 1, 2, depth=3, channel_factor=2)
    found = find_halo(network, network.stride)
    assert found is not None
    assert network.halo - network.stride < found <= network.halo + network.stride


def test_a_network_that_sees_everything_has_no_halo() -> None:
    assert find_halo(Gives(lambda x: x * x.mean()), 1) is None
