"""Controls say what they say without a network."""

from __future__ import annotations

import pytest
import torch
from monai.data import MetaTensor
from torch import Tensor, nn

from unoise_monai.attribution.learned import EdgeMagnitude, Intensity, Random

CONTROLS = (Random, Intensity, EdgeMagnitude)


class Forbidden(nn.Module):
    """Fails when it is asked, though it tells what is needed to measure what a pass takes."""

    stride, halo = 1, 0

    def forward(self, x: Tensor) -> Tensor:
        raise RuntimeError("asked")


def target(logits: Tensor) -> Tensor:
    raise RuntimeError("asked")


@pytest.mark.parametrize("control", CONTROLS)
@pytest.mark.parametrize("size", [(7, 6), (5, 4, 6), (5, 1, 4)])
def test_a_map_without_a_pass(control: type, size: tuple[int, ...]) -> None:
    image = torch.randn(2, 2, *size, generator=torch.Generator().manual_seed(0))
    maps = control(Forbidden())(MetaTensor(image), target)
    assert maps.shape == (2, 1, *size)
    assert float(maps.min()) >= 0
    assert maps.std() > 0
    singles = torch.cat([control(Forbidden())(image[index : index + 1], target) for index in range(2)])
    torch.testing.assert_close(maps.as_tensor(), singles.as_tensor())


def test_random_is_seeded_and_uniform() -> None:
    image = torch.zeros(1, 1, 40, 50)
    torch.manual_seed(3)
    untouched = torch.rand(2)
    torch.manual_seed(3)
    first, second, other = (Random(Forbidden(), seed=seed)(image, target).as_tensor() for seed in (0, 0, 1))
    assert torch.equal(torch.rand(2), untouched)
    assert torch.equal(first, second)
    assert not torch.equal(first, other)
    assert abs(float(first.mean()) - 0.5) < 0.02
    torch.manual_seed(3)
    drawn = Random(Forbidden(), seed=None)(image, target).as_tensor()
    assert torch.equal(drawn.flatten()[:2], untouched)


def test_intensity_is_the_distance_from_0() -> None:
    image = torch.tensor([[[[1.0, -2.0]], [[-3.0, 0.5]]]])
    assert Intensity(Forbidden())(image, target).flatten().tolist() == [4.0, 2.5]


def test_edges_of_a_slope_are_its_slope() -> None:
    x, y, z = torch.meshgrid(*map(torch.arange, (5, 6, 7)), indexing="ij")
    image = (3.0 * x - 4.0 * y + 12.0 * z)[None, None]
    torch.testing.assert_close(EdgeMagnitude(Forbidden())(image, target).as_tensor(), torch.full((1, 1, 5, 6, 7), 13.0))
    two = torch.cat([image, -image], dim=1)
    torch.testing.assert_close(EdgeMagnitude(Forbidden())(two, target).as_tensor(), torch.full((1, 1, 5, 6, 7), 26.0))


def test_edges_lie_on_both_sides_of_a_step() -> None:
    image = torch.zeros(1, 1, 4, 8)
    image[..., 4:] = 2
    row = EdgeMagnitude(Forbidden())(image, target)[0, 0, 1].tolist()
    assert row == [0, 0, 0, 1, 1, 0, 0, 0]
