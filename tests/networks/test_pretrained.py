"""A pretrained start copies all layers but the head, or nothing."""

import logging

import pytest
import torch
from torch import Tensor

from unoise_monai.networks import UNet, UNetMSS, copy_matching_layers


def trained(out_channels: int = 3, depth: int = 2, in_channels: int = 1) -> dict[str, Tensor]:
    """The state of a segmentation network whose batch norm has seen data."""
    net = UNet(2, in_channels, out_channels, depth, channel_factor=1)
    net(torch.randn(2, in_channels, 8, 8))
    return net.state_dict()


def snapshot(net: torch.nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in net.state_dict().items()}


@pytest.mark.parametrize("out_channels", [3, 1], ids=["another head", "a head that fits"])
def test_copies_all_but_the_head(out_channels: int, caplog: pytest.LogCaptureFixture) -> None:
    source, target = trained(out_channels), UNet(2, 1, 1, 2, channel_factor=1)
    before = snapshot(target)
    with caplog.at_level(logging.INFO):
        copied = copy_matching_layers(source, target)
    after = target.state_dict()
    assert sorted(copied) == sorted(name for name in after if not name.startswith("head."))
    assert all(torch.equal(after[name], source[name]) for name in copied)
    assert any("running_mean" in name for name in copied)
    assert all(torch.equal(after[name], before[name]) for name in ("head.weight", "head.bias"))
    assert f"copied {len(copied)} tensors" in caplog.text
    # A copy, which shares no memory.
    source["encoder.0.0.weight"].fill_(7)
    assert not bool((target.state_dict()["encoder.0.0.weight"] == 7).any())


def test_another_head_name() -> None:
    source = {"body.weight": torch.ones(2, 2), "final.weight": torch.ones(5, 2)}
    target = torch.nn.Sequential()
    target.add_module("body", torch.nn.Linear(2, 2, bias=False))
    target.add_module("final", torch.nn.Linear(2, 1, bias=False))
    assert copy_matching_layers(source, target, heads=["final"]) == ["body.weight"]


def test_a_noise_model_starts_from_a_network_with_side_heads() -> None:
    source = UNetMSS(2, 1, 3, channels=(2, 4, 8)).state_dict()
    target = UNet(2, 1, 1, 3, channel_factor=1)
    copied = copy_matching_layers(source, target)
    assert set(copied) == {name for name in source if "head" not in name}
    assert all(torch.equal(target.state_dict()[name], source[name]) for name in copied)


@pytest.mark.parametrize(
    ("source", "says"),
    [
        (trained(depth=1), r"\d+ missing \(encoder\.1\.0\.weight; .*; \.\.\.\)"),
        (
            trained(depth=3),
            r"of another shape \(decoder\.0\.up\.1\.0\.weight \(4, 8, 3, 3\) for \(2, 4, 3, 3\); .*; \.\.\.",
        ),
        (trained(in_channels=3), r"1 of another shape \(encoder\.0\.0\.weight \(2, 3, 3, 3\) for \(2, 1, 3, 3\)\)$"),
        ({**trained(), "stray": torch.zeros(1)}, r"1 unexpected \(stray\)$"),
    ],
    ids=["missing", "too deep", "shape", "extra"],
)
def test_refuses_another_shape_and_changes_nothing(source: dict[str, Tensor], says: str) -> None:
    target = UNet(2, 1, 1, 2, channel_factor=1)
    before = snapshot(target)
    with pytest.raises(ValueError, match="the pretrained network must have the noise model's shape.*" + says):
        copy_matching_layers(source, target)
    assert all(torch.equal(value, before[name]) for name, value in target.state_dict().items())
