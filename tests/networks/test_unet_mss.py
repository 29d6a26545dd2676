"""The network of DS6: supervised at three scales in training, one ordinary network afterwards."""

import re

import pytest
import torch

from unoise_monai.networks import UNet, UNetMSS


def test_parameter_count_of_the_paper_s_widths() -> None:
    with torch.device("meta"):
        net = UNetMSS(3, 1, 1)
        plain = UNet(3, 1, 1, depth=5, channel_factor=6)
    heads = sum(parameter.numel() for parameter in net.side_heads.parameters())
    assert heads == 128 + 1 + 256 + 1
    assert sum(parameter.numel() for parameter in net.parameters()) == 103_536_449 + heads
    assert sum(parameter.numel() for parameter in plain.parameters()) == 103_536_449


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
    ("changed", "says"),
    [
        ({"spatial_dims": 4}, "spatial_dims must be 2 or 3, got 4"),
        ({"in_channels": 0}, "in_channels must be at least 1, got 0"),
        ({"out_channels": 0}, "out_channels must be at least 1, got 0"),
        ({"channels": []}, "channels must hold at least 1 for each of one or more levels, got []"),
        ({"channels": [4, 0]}, "channels must hold at least 1 for each of one or more levels, got [4, 0]"),
    ],
)
def test_refuses_bad_sizes(changed: dict, says: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(says)}$"):
        UNetMSS(**{"spatial_dims": 2, "in_channels": 1, "out_channels": 1, **changed})
