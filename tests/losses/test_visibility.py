"""Exactly the share is visible, the others are what they should be, and the order that is learned is the network's."""

import math
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor, nn

from unoise_monai.losses import VisibleShare, VisibleShareLoss
from unoise_monai.losses.noise import utility_loss, visible
from unoise_monai.networks import UNet
from unoise_monai.unoise import ExplainedSegmenter


class Twice(nn.Module):
    """Logits that show what the utility was given."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x, 2 * x], dim=1)


class Order(nn.Module):
    """The same tolerance logits for every image."""

    def __init__(self, z: Tensor) -> None:
        super().__init__()
        self.z = nn.Parameter(z)

    def forward(self, x: Tensor) -> Tensor:
        return self.z.expand(len(x), *self.z.shape[1:])


def wrapper(spatial: Sequence[int] = (6, 5), **options: object) -> VisibleShare:
    z = torch.randn(1, 1, *spatial, generator=torch.Generator().manual_seed(3))
    return VisibleShare(ExplainedSegmenter(Twice(), Order(z)), **options)


@pytest.mark.parametrize("spatial", [(6, 5), (4, 3, 5)])
def test_shows_exactly_the_share_with_the_lowest_logits(spatial: tuple[int, ...]) -> None:
    z = torch.randn(4, 1, *spatial, generator=torch.Generator().manual_seed(0))
    shares = [0.0, 0.2, 0.75, 1.0]
    shown = visible(z, torch.tensor(shares))
    for item, share in enumerate(shares):
        lowest = sorted(z[item].flatten().tolist())[: round(share * z[item].numel())]
        assert shown[item].flatten().tolist() == [float(value in lowest) for value in z[item].flatten().tolist()]


def test_of_equal_logits_it_shows_the_share_too() -> None:
    shown = visible(torch.zeros(1, 1, 4, 5, requires_grad=True), torch.tensor([0.3]))
    assert shown.sum() == 6
    shown.sum().backward()


def test_the_gradient_is_the_sigmoids() -> None:
    z = torch.randn(2, 1, 4, 3, dtype=torch.double, generator=torch.Generator().manual_seed(1), requires_grad=True)
    weight = torch.randn(2, 1, 4, 3, dtype=torch.double, generator=torch.Generator().manual_seed(2))
    (weight * visible(z, torch.tensor([0.25, 0.5]))).sum().backward()
    for item, count in enumerate((3, 6)):
        values = z[item].flatten().tolist()
        highest = sorted(values)[count - 1]
        for voxel, value in enumerate(values):
            s = 1 / (1 + math.exp(value - highest))
            expected = -weight[item].flatten()[voxel].item() * s * (1 - s)
            assert z.grad[item].flatten()[voxel].item() == pytest.approx(expected, rel=1e-9)


def test_hidden_voxels_become_the_value() -> None:
    unoise = wrapper(value=-1.0, sigma=None, shares=(0.5, 0.5))
    image = torch.rand(3, 1, 6, 5) + 1
    logits, z = unoise(image)
    shown = z <= z.flatten(1).median(dim=1).values.view(-1, 1, 1, 1)
    assert shown.sum() == 3 * 15
    torch.testing.assert_close(logits[:, :1], torch.where(shown, image, -1.0))
    torch.testing.assert_close(logits[:, 1:], 2 * logits[:, :1])


def test_hidden_voxels_are_noised_and_the_others_not() -> None:
    torch.manual_seed(0)
    unoise = wrapper((40, 50), value=None, sigma=3.0, shares=(0.25, 0.25))
    image = torch.rand(4, 1, 40, 50)
    changes = (unoise(image)[0][:, :1] - image).flatten()
    assert (changes.abs() < 1e-5).sum() == 4 * 500
    assert changes[changes.abs() >= 1e-5].std().item() == pytest.approx(3.0, rel=0.05)


def test_draws_share_and_fill_for_each_item() -> None:
    torch.manual_seed(0)
    unoise = wrapper((20, 20), value=-7.0, shares=(0.1, 0.4))
    image = torch.rand(200, 1, 20, 20)
    found = unoise(image)[0][:, :1]
    shown = ((found - image).abs() < 1e-4).float().mean(dim=(1, 2, 3))
    valued = (found == -7.0).any(dim=3).any(dim=2)[:, 0]
    assert 0.1 - 0.003 <= shown.min() < 0.12
    assert 0.38 < shown.max() <= 0.4 + 0.003
    assert 0.35 < valued.float().mean() < 0.65
    hidden_by_value = (found[valued] == -7.0).float().mean(dim=(1, 2, 3))
    torch.testing.assert_close(hidden_by_value, 1 - shown[valued], atol=1e-6, rtol=0)


def test_learns_which_voxels_the_network_needs() -> None:
    """A utility that marks a voxel by its right neighbour: those of the bright square, one to the right, are needed."""
    torch.manual_seed(0)
    utility = nn.Conv2d(1, 2, 3, padding=1)
    with torch.no_grad():
        utility.weight.zero_()
        utility.weight[1, 0, 1, 2] = 20.0
        utility.bias.copy_(torch.tensor([0.0, -10.0]))
    image = 0.1 * torch.rand(1, 1, 12, 12)
    image[..., 3:7, 4:8] = 1.0
    segmenter = ExplainedSegmenter(utility, Order(torch.zeros(1, 1, 12, 12)))
    unoise = VisibleShare(segmenter, sigma=None, shares=(0.05, 0.3))
    label = utility(image).argmax(dim=1, keepdim=True)
    assert label.sum() == 16
    optimizer = torch.optim.Adam(unoise.segmenter.noise_model.parameters(), 0.05)
    for _ in range(500):
        optimizer.zero_grad()
        VisibleShareLoss()(unoise(image), label).backward()
        optimizer.step()
    importance = segmenter(image)[:, -1:]
    assert importance[..., 3:7, 4:8].min() > importance.flatten().sort().values[-17]


def test_trains_a_u_net_in_three_dimensions_and_leaves_the_utility() -> None:
    segmenter = ExplainedSegmenter(UNet(3, 1, 3, 2, 1), UNet(3, 1, 1, 2, 1))
    before = {name: value.clone() for name, value in segmenter.utility.state_dict().items()}
    unoise = VisibleShare(segmenter).train()
    label = torch.randint(0, 3, (2, 1, 8, 4, 12))
    VisibleShareLoss()(unoise(torch.randn(2, 1, 8, 4, 12)), label).backward()
    gradients = [weight.grad for weight in segmenter.noise_model.parameters()]
    assert all(gradient is not None and bool(gradient.isfinite().all()) for gradient in gradients)
    assert sum(float(gradient.abs().sum()) for gradient in gradients if gradient is not None) > 0
    assert all(torch.equal(value, before[name]) for name, value in segmenter.utility.state_dict().items())


def test_the_loss_is_the_utilitys_and_the_pull_to_the_rank() -> None:
    logits = torch.randn(2, 3, 2, 2, generator=torch.Generator().manual_seed(4))
    label = torch.tensor([[0, 1, 2, 1], [2, 2, 0, 0]]).view(2, 1, 2, 2)
    z = torch.tensor([[0.3, -1.0, 2.0, 0.5], [4.0, 3.0, 2.0, 1.0]]).view(2, 1, 2, 2)
    ranks = [[1, 0, 3, 2], [3, 2, 1, 0]]
    pulls = [
        (value - math.log((rank + 0.5) / (3.5 - rank))) ** 2
        for item, places in zip(z.flatten(1).tolist(), ranks, strict=True)
        for value, rank in zip(item, places, strict=True)
    ]
    expected = utility_loss(logits, label).item() + 0.3 * sum(pulls) / 8
    assert VisibleShareLoss(0.3)((logits, z), label).item() == pytest.approx(expected, rel=1e-6)
    assert VisibleShareLoss(0.0)((logits, z), label).item() == utility_loss(logits, label).item()
    assert VisibleShareLoss(0.3)((logits, z.bfloat16()), label).dtype == torch.float32


def test_the_pull_makes_importance_the_rank() -> None:
    z = torch.randn(1, 1, 10, 20, generator=torch.Generator().manual_seed(5)).requires_grad_()
    order = z.detach().flatten().argsort()
    logits, label = torch.zeros(1, 2, 10, 20), torch.zeros(1, 1, 10, 20)
    optimizer = torch.optim.SGD([z], lr=20.0)
    for _ in range(60):
        optimizer.zero_grad()
        VisibleShareLoss(1.0)((logits, z), label).backward()
        optimizer.step()
    tolerance = torch.sigmoid(z.detach()).flatten()
    torch.testing.assert_close(tolerance[order], (torch.arange(200) + 0.5) / 200, atol=1e-3, rtol=0)


@pytest.mark.parametrize(
    ("options", "rule"),
    [
        ({"value": None, "sigma": None}, "value or sigma must be given, got None for both"),
        ({"value": math.nan}, "value must be a finite number, got nan"),
        ({"sigma": 0.0}, "sigma must be a finite number above 0, got 0.0"),
        ({"sigma": math.inf}, "sigma must be a finite number above 0, got inf"),
        ({"shares": (0.5, 0.2)}, r"shares must be two numbers in order between 0 and 1, got \(0.5, 0.2\)"),
        ({"shares": (0.5, 1.2)}, r"got \(0.5, 1.2\)"),
        ({"shares": (0.5,)}, r"got \(0.5,\)"),
    ],
)
def test_refuses_what_it_cannot_hide_by(options: dict[str, object], rule: str) -> None:
    with pytest.raises(ValueError, match=rule):
        wrapper(**options)


def test_refuses_bad_calibrations_images_and_noise_models() -> None:
    for calibration in (-0.1, math.inf, math.nan):
        with pytest.raises(ValueError, match=f"calibration must be a finite number of at least 0, got {calibration}"):
            VisibleShareLoss(calibration)
    with pytest.raises(ValueError, match="image"):
        wrapper()(torch.full((1, 1, 6, 5), math.nan))
    with pytest.raises(ValueError, match="noise_model must give one channel on the image's grid"):
        wrapper((6, 4))(torch.zeros(1, 1, 6, 5))
