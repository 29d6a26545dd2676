"""Occlusion against a naive loop and Captum's, windows at the borders, and millimetres."""

import itertools
import re

import captum.attr
import pytest
import torch
from monai.data import MetaTensor
from torch import Tensor, nn

from unoise_monai.attribution.perturbation import Occlusion
from unoise_monai.attribution.targets import SoftDice, Target, unperturbed_dice
from unoise_monai.networks import UNet

# Voxels of 0.5, 1.2 and 2 mm, turned and left-handed: the rows have other lengths.
AFFINE = torch.tensor([[-0.4, -0.72, 0.0, 3.0], [-0.3, 0.96, 0.0, -2.0], [0.0, 0.0, 2.0, 1.0], [0.0, 0.0, 0.0, 1.0]])


def case(*size: int) -> tuple[nn.Module, Tensor, Target]:
    torch.manual_seed(0)
    network, image = UNet(len(size), 2, 3, depth=2, channel_factor=2).eval(), torch.randn(1, 2, *size)
    return network, image, SoftDice(torch.randint(0, 3, (1, 1, *size)), 1)


def starts(side: int, window: int, stride: int) -> list[int]:
    found = list(range(0, side - window + 1, stride))
    return found if found[-1] == side - window else [*found, side - window]


def naive(
    network: nn.Module, image: Tensor, target: Target, window: list[int], stride: list[int], value: float
) -> Tensor:
    size = image.shape[2:]
    with torch.no_grad():
        whole = target(network(image))
        falls: dict[tuple[int, ...], list[float]] = {at: [] for at in itertools.product(*map(range, size))}
        for corner in itertools.product(*map(starts, size, window, stride)):
            inside = list(itertools.product(*(range(a, a + w) for a, w in zip(corner, window, strict=True))))
            copy = image.clone()
            for at in inside:
                copy[(0, slice(None), *at)] = value
            fall = float(whole - target(network(copy)))
            for at in inside:
                falls[at].append(fall)
    return torch.tensor([sum(values) / len(values) for values in falls.values()]).reshape(1, 1, *size)


@pytest.mark.parametrize(
    ("size", "window", "stride"),
    [
        ((10, 8), [4, 4], [2, 2]),
        ((10, 12), [4, 5], [3, 2]),
        ((8, 6, 10), [3, 4, 5], [2, 4, 3]),
        ((6, 8, 4), [3, 8, 2], [3, 1, 2]),
    ],
)
@pytest.mark.parametrize("value", [0.0, 1.5])
def test_equals_a_naive_loop(size: tuple[int, ...], window: list[int], stride: list[int], value: float) -> None:
    network, image, target = case(*size)
    maps = Occlusion(network, window, stride, baseline=value)(image, target)
    torch.testing.assert_close(maps.as_tensor(), naive(network, image, target, window, stride, value))


def test_equals_captum_where_windows_fit_the_volume() -> None:
    network, image, target = case(10, 8, 12)
    expected = captum.attr.Occlusion(lambda images: target(network(images))).attribute(
        image, sliding_window_shapes=(2, 4, 4, 4), strides=(2, 2, 2, 4)
    )
    maps = Occlusion(network, 4, (2, 2, 4))(image, target)
    torch.testing.assert_close(maps.as_tensor(), expected[:, :1])


def test_an_image_as_baseline() -> None:
    network, image, target = case(8, 8)
    other = torch.randn_like(image)
    maps = Occlusion(network, 8, 8, baseline=other)(image, target).as_tensor()
    fall = target(network(image)) - target(network(other))
    torch.testing.assert_close(maps, fall.reshape(1, 1, 1, 1).expand_as(maps))
    assert not bool(Occlusion(network, 4, 2, baseline=image)(image, target).any())


def test_dice_that_a_window_costs() -> None:
    """A network that fires on what is bright: hiding the only bright voxel takes the whole Dice."""
    image = torch.full((1, 1, 9, 9), -1.0)
    image[0, 0, 4, 4] = 1
    target = unperturbed_dice(image, 1)
    maps = Occlusion(nn.Identity(), 3, 1, baseline=-1.0)(image, target).as_tensor()[0, 0]
    distance = (torch.arange(9) - 4).abs()
    expected = (3 - distance).clamp_min(0) / torch.tensor([1, 2, 3, 3, 3, 3, 3, 2, 1])
    torch.testing.assert_close(maps, expected.outer(expected))


def test_every_voxel_is_covered_by_whole_windows() -> None:
    size = (11, 7, 16)
    windows = Occlusion(nn.Identity(), (4, 9, 5), (3, 2, 5)).windows(size)
    covered = torch.zeros(size)
    for window in windows:
        assert [part.stop - part.start for part in window] == [4, 7, 5]
        covered[window] += 1
    assert bool((covered > 0).all())
    assert len(windows) == len({tuple((part.start, part.stop) for part in window) for window in windows}) == 4 * 1 * 4


@pytest.mark.parametrize("batched", [False, True])
def test_millimetres_by_the_affine(batched: bool) -> None:
    network, image, target = case(10, 8, 6)
    affine = AFFINE.expand(1, 4, 4) if batched else AFFINE
    scan = MetaTensor(image, affine=affine)
    scan.is_batch = batched
    maps = Occlusion(network, 2.2, 1.1, unit="mm")(scan, target)
    expected = Occlusion(network, (4, 2, 1), (2, 1, 1))(image, target)
    torch.testing.assert_close(maps.as_tensor(), expected.as_tensor())


def test_voxel_sizes_are_those_of_the_image_at_hand() -> None:
    network, image, target = case(10, 8, 6)
    attributor = Occlusion(network, 4.0, 4.0, unit="mm")
    for size in (1.0, 2.0):
        scan = MetaTensor(image, affine=torch.diag(torch.tensor([size, size, size, 1.0])))
        voxels = int(4 / size)
        expected = Occlusion(network, voxels, voxels)(image, target).as_tensor()
        torch.testing.assert_close(attributor(scan, target).as_tensor(), expected)


def test_refusals_in_the_call() -> None:
    network, image, target = case(8, 8)
    with pytest.raises(ValueError, match=re.escape("window must be one number or 2, one an axis, got (3, 3, 3)")):
        Occlusion(network, (3, 3, 3), 1)(image, target)
    with pytest.raises(ValueError, match="unit 'mm' needs an image with an affine, a MetaTensor, got Tensor"):
        Occlusion(network, 3, 1, unit="mm")(image, target)
    two = MetaTensor(image.repeat(2, 1, 1, 1), affine=torch.stack([AFFINE, 2 * AFFINE]))
    with pytest.raises(ValueError, match="the images of a batch must have one voxel size for unit 'mm', got"):
        Occlusion(network, 3, 1, unit="mm")(two, target)
