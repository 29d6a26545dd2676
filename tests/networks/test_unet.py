"""The U-Nets have their papers' sizes, and their grid and context are what they declare."""

import re

import pytest
import torch
from torch import Tensor

from unoise_monai.networks import UNet, UNetMSS

SIZES = {"small": (2, 4), "medium": (3, 4), "large": (4, 4), "utility": (5, 6)}


@pytest.mark.parametrize(
    ("size", "spatial_dims", "in_channels", "count"),
    [
        ("small", 2, 3, 28_529),
        ("medium", 2, 3, 130_577),
        ("large", 2, 3, 537_425),
        ("utility", 2, 3, 34_527_041),
        ("small", 3, 1, 83_825),
        ("medium", 3, 1, 388_625),
        ("large", 3, 1, 1_606_481),
        ("utility", 3, 1, 103_536_449),
    ],
)
def test_parameter_counts(size: str, spatial_dims: int, in_channels: int, count: int) -> None:
    with torch.device("meta"):
        net = UNet(spatial_dims, in_channels, 1, *SIZES[size])
    assert sum(parameter.numel() for parameter in net.parameters()) == count


@pytest.mark.parametrize("spatial_dims", [2, 3])
@pytest.mark.parametrize("depth", [1, 2, 3])
def test_stride_is_the_grid_of_the_sides(spatial_dims: int, depth: int) -> None:
    net = UNet(spatial_dims, 2, 3, depth, channel_factor=1).eval()
    assert net.stride == 2 ** (depth - 1)
    sides = [net.stride * factor for factor in (3, 1, 2)[:spatial_dims]]
    assert net(torch.zeros(2, 2, *sides)).shape == (2, 3, *sides)
    if depth > 1:
        with pytest.raises(RuntimeError):
            net(torch.zeros(2, 2, sides[0] - net.stride // 2, *sides[1:]))


def all_paths_open(net: UNet) -> UNet:
    """Random positive weights: no ReLU is closed, so whatever can reach an output voxel does."""
    for parameter in net.parameters():
        torch.nn.init.uniform_(parameter, 0.1, 1.0)
    return net.double().eval()


def support(net: UNet, spatial_dims: int, axis: int, centre: int, length: int) -> Tensor:
    """Which slabs of the input across ``axis`` have a gradient of the output slab at ``centre``."""
    size = [net.stride] * spatial_dims
    size[axis] = length
    image = torch.rand(3, 1, *size, dtype=torch.double, requires_grad=True)
    (gradient,) = torch.autograd.grad(net(image).select(axis + 2, centre).sum(), image)
    return (gradient != 0).movedim(axis + 2, 0).flatten(1).any(dim=1)


@pytest.mark.parametrize("spatial_dims", [2, 3])
@pytest.mark.parametrize("depth", [1, 2, 3, 4])
def test_halo_holds_the_gradient_and_is_not_wasteful(spatial_dims: int, depth: int) -> None:
    torch.manual_seed(depth)
    net = all_paths_open(UNet(spatial_dims, 1, 1, depth, channel_factor=1))
    # A block of one stride, on the stride's grid, with room for more than the halo around it.
    first = -(-(net.halo + 1) // net.stride) * net.stride
    last = first + net.stride - 1
    farthest = 0
    for axis in range(spatial_dims):
        for centre in range(first, last + 1):
            slabs = support(net, spatial_dims, axis, centre, 2 * first + net.stride).nonzero().flatten()
            farthest = max(farthest, first - int(slabs.min()), int(slabs.max()) - last)
    assert farthest == net.halo


@pytest.mark.parametrize("depth", [1, 3])
def test_scripted_equals_eager(depth: int) -> None:
    net = UNet(3, 1, 2, depth, channel_factor=1).eval()
    scripted = torch.jit.script(net)
    image = torch.randn(1, 1, 8, 4, 8)
    torch.testing.assert_close(scripted(image), net(image))
    assert (scripted.stride, scripted.halo) == (net.stride, net.halo)


def test_parameter_count_of_the_paper_s_widths() -> None:
    with torch.device("meta"):
        net = UNetMSS(3, 1, 1)
    heads = sum(parameter.numel() for parameter in net.side_heads.parameters())
    assert heads == 128 + 1 + 256 + 1
    assert sum(parameter.numel() for parameter in net.parameters()) == 103_536_449 + heads


@pytest.mark.parametrize("spatial_dims", [2, 3])
def test_training_gives_three_scales_and_evaluation_the_first(spatial_dims: int) -> None:
    net = UNetMSS(spatial_dims, 1, 2, channels=(2, 3, 5, 4))
    size = (16, 8, 24)[:spatial_dims]
    image = torch.randn(3, 1, *size)
    scales = net.train()(image)
    assert [tuple(scale.shape) for scale in scales] == [
        (3, 2, *(side // factor for side in size)) for factor in (1, 2, 4)
    ]
    net.eval()
    torch.testing.assert_close(net(image), net.head(net.features(image)[0]))


@pytest.mark.parametrize(("channels", "count"), [((4,), 1), ((4, 4), 2), ((4, 4, 4), 3), ((2, 2, 2, 2, 2), 3)])
def test_as_many_heads_as_there_are_levels(channels: tuple[int, ...], count: int) -> None:
    net = UNetMSS(2, 1, 1, channels)
    assert net.stride == 2 ** (len(channels) - 1)
    assert len(net(torch.zeros(2, 1, 32, 32))) == count


def test_every_head_gives_plain_logits_with_no_activation_behind_it() -> None:
    torch.manual_seed(0)
    net, image = UNetMSS(2, 1, 1, channels=(4, 4, 4)).train(), torch.randn(2, 1, 32, 32)
    scales = net(image)
    with torch.no_grad():
        for parameter in [*net.head.parameters(), *net.side_heads.parameters()]:
            parameter.neg_()
    for scale, negated in zip(scales, net(image), strict=True):
        torch.testing.assert_close(negated, -scale)


def test_it_is_the_u_net_of_u_noise_beneath_its_heads() -> None:
    torch.manual_seed(0)
    mss, plain = UNetMSS(3, 1, 2, channels=(4, 8, 16)), UNet(3, 1, 2, depth=3, channel_factor=2)
    plain.load_state_dict({name: value for name, value in mss.state_dict().items() if "side_heads" not in name})
    image = torch.randn(1, 1, 8, 8, 8)
    torch.testing.assert_close(mss.eval()(image), plain.eval()(image))
    assert (mss.stride, mss.halo) == (plain.stride, plain.halo)


@pytest.mark.parametrize("training", [True, False])
def test_scripted_it_gives_the_full_resolution_in_every_mode(training: bool) -> None:
    net = UNetMSS(3, 1, 1, channels=(2, 3, 4)).eval()
    image = torch.randn(2, 1, 8, 8, 8)
    scripted = torch.jit.script(net)
    torch.testing.assert_close(scripted(image), net(image))
    assert scripted.train(training)(image).shape == (2, 1, 8, 8, 8)


@pytest.mark.parametrize(
    ("kind", "changed", "says"),
    [
        (UNet, {"depth": 0}, "depth must be at least 1, got 0"),
        (UNet, {"channel_factor": -1}, "channel_factor must be at least 0, got -1"),
        (UNetMSS, {"channels": []}, "channels must hold at least 1 for each of one or more levels, got []"),
        (UNetMSS, {"channels": [4, 0]}, "channels must hold at least 1 for each of one or more levels, got [4, 0]"),
        *((kind, {"spatial_dims": 1}, "spatial_dims must be 2 or 3, got 1") for kind in (UNet, UNetMSS)),
        *((kind, {"in_channels": 0}, "in_channels must be at least 1, got 0") for kind in (UNet, UNetMSS)),
        *((kind, {"out_channels": 0}, "out_channels must be at least 1, got 0") for kind in (UNet, UNetMSS)),
    ],
)
def test_refuses_bad_sizes(kind: type[UNet | UNetMSS], changed: dict, says: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(says)}$"):
        kind(**{"spatial_dims": 2, "in_channels": 1, "out_channels": 1, **changed})
