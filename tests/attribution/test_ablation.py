"""Feature ablation against a naive loop and Captum's."""

from __future__ import annotations

import captum.attr
import pytest
import torch
from torch import Tensor, nn

from unoise_monai.attribution.base import Score
from unoise_monai.attribution.features import FeatureAblation, Features, supervoxels
from unoise_monai.attribution.targets import SoftDice
from unoise_monai.inference.memory import LiveTensors
from unoise_monai.networks import UNet


def total(logits: Tensor) -> Tensor:
    return logits.flatten(1).sum(dim=1)


@pytest.mark.parametrize("size", [(16, 12), (8, 10, 6)])
@pytest.mark.parametrize("value", [0.0, -1.0])
def test_equals_a_naive_loop_and_captum(size: tuple[int, ...], value: float) -> None:
    torch.manual_seed(0)
    network, image = UNet(len(size), 2, 3, depth=2, channel_factor=2).eval(), torch.randn(1, 2, *size)
    target = SoftDice(torch.randint(0, 3, (1, 1, *size)), 1)
    labels = supervoxels(image, 4)
    with torch.no_grad():
        whole, expected = target(network(image)), torch.zeros(1, 1, *size)
        for number in range(int(labels.max()) + 1):
            fall = whole - target(network(torch.where(labels == number, value, image)))
            expected[labels == number] = float(fall)
    own = FeatureAblation(network, size=4, baseline=value)(image, target).as_tensor()
    torch.testing.assert_close(own, expected)
    theirs = captum.attr.FeatureAblation(lambda images: target(network(images)))
    captums = theirs.attribute(image, baselines=value, feature_mask=labels)
    torch.testing.assert_close(own, captums[:, :1])


def test_organs_of_a_linear_score_have_what_they_hold() -> None:
    organs = torch.tensor([0, 0, 5, 5, 5, 2]).expand(1, 1, 4, 6)
    image = torch.randn(1, 1, 4, 6)
    maps = FeatureAblation(nn.Identity(), labels=organs)(image, total).as_tensor()
    for label in (0, 2, 5):
        assert maps[organs == label].unique().tolist() == pytest.approx([float(image[organs == label].sum())], abs=1e-5)


def test_many_features_take_no_memory_of_their_own() -> None:
    """All of them hidden at once would be a square of their number, here 400 MB."""
    image = torch.rand(1, 1, 200, 100)
    labels = torch.arange(20000).reshape(1, 1, 200, 100)
    attributor = FeatureAblation(nn.Identity(), labels=labels)
    features, score = Features(image, torch.zeros_like(image), labels, 20000), Score(attributor.volume, total)
    attributor.batches = lambda planned, _: iter([range(0, 2), range(2, 3)])  # type: ignore[method-assign]
    with torch.no_grad(), LiveTensors(existing=[image, labels]) as tensors:
        values = attributor.effects(features, score)
    assert tensors.peak < 4e6
    assert int((values != 0).sum()) == 3
    torch.testing.assert_close(values[values != 0], image.flatten()[values != 0].double(), rtol=0, atol=1e-2)


def test_features_that_the_time_did_not_reach_are_0() -> None:
    labels = torch.arange(24).reshape(1, 1, 4, 6)
    maps = FeatureAblation(nn.Identity(), labels=labels, time_limit_s=1e-9)(
        torch.ones(1, 1, 4, 6), lambda logits: logits.flatten(1).sum(dim=1)
    )
    assert maps.flatten().sort().values.tolist() == [0] * 23 + [1]
    assert maps.meta["attribution"][0]["evaluated"] == 1
