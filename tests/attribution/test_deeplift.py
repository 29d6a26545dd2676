"""DeepLIFT adds up to the difference of scores, also through pooling, skip connections and PReLU."""

from typing import Any

import captum.attr
import pytest
import torch
from captum.attr._core.deep_lift import SUPPORTED_NON_LINEAR
from monai.networks import nets
from monai.networks.blocks import activation
from small import Shallow, Summing, unet
from torch import Tensor, nn
from torch.nn import functional as F

from unoise_monai.attribution.backpropagation import RESCALED, DeepLift, DeepLiftShap, rescale
from unoise_monai.attribution.base import baselines
from unoise_monai.attribution.targets import Region

SIZE = (12, 8)
IMAGE = torch.randn(1, 1, *SIZE, generator=torch.Generator().manual_seed(2))
TARGET = Region(torch.ones(1, 1, *SIZE), 1, mean=False)


def by_hand(network: Shallow, start: Tensor) -> Tensor:
    """The slope of the activation between the image and the baseline, in place of its gradient."""
    with torch.no_grad():
        after, before = network.first(IMAGE), network.first(start)
        slope = (network.act(after.clone()) - network.act(before.clone())) / (after - before)
        top = torch.zeros(1, 2, *SIZE)
        top[:, 1] = 1
        upstream = F.conv_transpose2d(top, network.last.weight, padding=1)
        upstream = upstream * (slope + 1 if network.skip else slope)
        return (IMAGE - start) * F.conv_transpose2d(upstream, network.first.weight, padding=1)


def notes_of(maps: Any) -> dict[str, Any]:
    return maps.meta["attribution"][0]


ACTS = [nn.ReLU(), nn.ReLU(inplace=True), nn.ELU(), nn.Sigmoid(), nn.PReLU(), nn.GELU(), activation.Swish()]


@pytest.mark.parametrize("act", ACTS, ids=str)
@pytest.mark.parametrize("skip", [False, True])
def test_equals_the_rescale_rule_by_hand(act: nn.Module, skip: bool) -> None:
    network = Shallow(act, skip=skip)
    maps = DeepLift(network, baseline=0.5, substitute=True, sign="signed")(IMAGE, TARGET)
    torch.testing.assert_close(maps.as_tensor(), by_hand(network, torch.full_like(IMAGE, 0.5)), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("depth", [2, 3])
@pytest.mark.parametrize("kind", ["zero", "noise"])
def test_the_sum_is_the_difference_of_scores(depth: int, kind: str) -> None:
    network = unet(2, depth=depth)
    (start,) = baselines(IMAGE, (kind,))
    with torch.no_grad():
        difference = float(TARGET(network(IMAGE)) - TARGET(network(start)))
    maps = DeepLift(network, kind, sign="signed")(IMAGE, TARGET)
    assert float(maps.sum()) == pytest.approx(difference, abs=1e-4 * float(maps.as_tensor().abs().sum()))
    assert notes_of(maps)["score_difference"] == pytest.approx(difference, abs=1e-4)
    expected = float(maps.sum()) - difference
    assert notes_of(maps)["convergence_delta"] == pytest.approx(expected, abs=1e-4)


def test_several_baselines_are_the_mean_of_each_s_map() -> None:
    network, kinds = unet(2), ("zero", "blur", -1.0)
    singles = [DeepLift(network, kind, sign="signed")(IMAGE, TARGET) for kind in kinds]
    maps = DeepLiftShap(network, kinds, sign="signed")(IMAGE, TARGET)
    torch.testing.assert_close(maps.as_tensor(), torch.stack([each.as_tensor() for each in singles]).mean(dim=0))
    for key in ("convergence_delta", "score_difference"):
        mean = sum(notes_of(each)[key] for each in singles) / 3
        assert notes_of(maps)[key] == pytest.approx(mean, abs=1e-6 * abs(notes_of(maps)["score_difference"]))


def test_equals_captum_s_where_that_is_right() -> None:
    network, stack = Shallow(nn.ReLU()), torch.randn(3, 1, *SIZE)
    method = captum.attr.DeepLiftShap(nn.Sequential(network, Summing()))
    with pytest.warns(UserWarning, match="Setting forward, backward hooks"):
        expected = method.attribute(IMAGE.clone().requires_grad_(), stack)
    maps = DeepLiftShap(network, stack, sign="signed")(IMAGE, TARGET)
    torch.testing.assert_close(maps.as_tensor(), expected.detach())


@pytest.mark.parametrize("method", [DeepLift, DeepLiftShap])
def test_substitutes_say_so(method: type[DeepLift]) -> None:
    torch.manual_seed(0)
    network = nets.UNet(2, 1, 2, (2, 4, 8), (2, 2), norm="BATCH")
    with pytest.raises(ValueError, match=rf"{method.name} has a rule for, got PReLU x 4, the first at"):
        method(network)(IMAGE, TARGET)
    maps = method(network, substitute=True, sign="signed")(IMAGE, TARGET)
    assert notes_of(maps)["substituted"] == {"PReLU": 4}
    assert abs(notes_of(maps)["convergence_delta"]) < 1e-4 * float(maps.as_tensor().abs().sum())


@pytest.mark.parametrize("substitute", [False, True])
def test_refuses_what_captum_would_get_wrong(substitute: bool) -> None:
    class Pooled(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return F.interpolate(F.max_pool2d(x, 2), scale_factor=2)

    relu = nn.ReLU()
    refused = {
        "activations as modules for deep_lift, got functional relu x 1": [Shallow(F.relu)],
        "its pooling and gates as modules for deep_lift, got max_pool x 1": [Shallow(Pooled())],
        r"gates as modules for deep_lift, got (sigmoid|tanh|softmax) x 1": [
            Shallow(gate) for gate in (torch.sigmoid, torch.tanh, lambda x: x.softmax(dim=1))
        ],
        r"module once for deep_lift, got 1 .* the first at 'act\.0'": [
            Shallow(nn.Sequential(relu, nn.Conv2d(3, 3, 1), relu))
        ],
        "must call each activation and pooling module once for deep_lift, got 3": [
            nets.SegResNet(2, init_filters=8, in_channels=1, blocks_down=(1, 1), blocks_up=(1,))
        ],
    }
    for says, networks in refused.items():
        for network in networks:
            with pytest.raises(ValueError, match=says):
                DeepLift(network, substitute=substitute)(IMAGE, TARGET)


@pytest.mark.parametrize(
    ("pool", "overlaps"),
    [
        (nn.MaxPool2d(2), False),
        (nn.MaxPool2d((1, 2), (2, 2)), False),
        (nn.MaxPool2d(3, 2, padding=1), True),
        (nn.MaxPool2d((2, 3), 2, padding=(0, 1)), True),
        (nn.MaxPool2d(2, (2, 1)), True),
        (nn.MaxPool2d(2, 2, dilation=2, padding=1), True),
        (nn.MaxPool2d(1), False),
    ],
    ids=str,
)
def test_pooling_adds_up_or_is_refused(pool: nn.MaxPool2d, overlaps: bool) -> None:
    # Of windows that share a voxel, Captum keeps the share of one.
    network = Shallow(nn.Sequential(pool, nn.Upsample(SIZE)))
    if overlaps:
        with pytest.raises(ValueError, match=r"no larger than their stride for deep_lift, got MaxPool2d.* at 'act\.0'"):
            DeepLift(network)(IMAGE, TARGET)
    else:
        maps = DeepLift(network, sign="signed")(IMAGE, TARGET)
        assert abs(notes_of(maps)["convergence_delta"]) < 1e-4 * float(maps.as_tensor().abs().sum())


def test_a_subclass_of_relu_is_none_to_captum() -> None:
    class MyReLU(nn.ReLU):
        pass

    with pytest.raises(ValueError, match="got MyReLU x 1"):
        DeepLift(Shallow(MyReLU()))(IMAGE, TARGET)
    maps = DeepLift(Shallow(MyReLU()), substitute=True)(IMAGE, TARGET)
    torch.testing.assert_close(maps.as_tensor(), DeepLift(Shallow(nn.ReLU()))(IMAGE, TARGET).as_tensor())


def test_nothing_is_kept_on_modules_that_the_target_does_not_reach() -> None:
    class Branching(Shallow):
        def forward(self, x: Tensor) -> Tensor:
            self.dead(x)
            return super().forward(x)

    network = Branching(nn.ReLU())
    network.dead = nn.ReLU()
    before = [sorted(vars(module)) for module in network.modules()]
    DeepLift(network)(IMAGE, TARGET)
    assert [sorted(vars(module)) for module in network.modules()] == before


def test_the_rules_are_captum_s() -> None:
    assert set(RESCALED) == set(SUPPORTED_NON_LINEAR)


def test_where_nothing_differs_the_gradient_stays() -> None:
    inputs, output = torch.tensor([1.0, 2.0, 1.0, 0.0]), torch.tensor([1.0, 4.0, 1.0, 0.0])
    result = rescale(inputs, output)(torch.tensor([5.0, 6.0, 7.0, 8.0]), torch.tensor([10.0, 10.0, 10.0, 10.0]))
    assert result.tolist() == [5.0, 20.0, 7.0, 20.0]
