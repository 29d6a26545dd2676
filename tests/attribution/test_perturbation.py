"""Occlusion and RISE against loops and formulas; what holds for every method that hides parts of the image."""

import itertools
import logging
import re
import time
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from monai.data import MetaTensor
from small import picture, region, unet
from torch import Tensor, nn

from unoise_monai.attribution import base
from unoise_monai.attribution.base import Baseline, Score, baseline
from unoise_monai.attribution.features import FeatureAblation, KernelShap, Lime
from unoise_monai.attribution.perturbation import RISE, Occlusion, PerturbationAttributor
from unoise_monai.attribution.targets import SoftDice, Target, foreground_sum, unperturbed_dice
from unoise_monai.networks import UNet

CHEAP: dict[type[PerturbationAttributor], dict[str, Any]] = {
    Occlusion: {"window": 6, "stride": 3},
    FeatureAblation: {"size": 5},
    RISE: {"masks": 9, "cells": 3},
    Lime: {"size": 5, "samples": 30},
    KernelShap: {"size": 5, "samples": 30},
}
METHODS = pytest.mark.parametrize("method", CHEAP)


class Constant(nn.Module):
    """A network whose pass takes a while."""

    def forward(self, image: Tensor) -> Tensor:
        time.sleep(0.01)
        return image


class Counting(PerturbationAttributor):
    """Marks which copies it came to."""

    name = "counting"

    def perturb(self, image: Tensor, hidden: Tensor, score: Score) -> Tensor:
        seen = torch.zeros(image[:, :1].numel())
        for batch in self.batches(seen.numel(), score):
            score(image)
            seen[batch.start : batch.stop] += 1
        return seen.reshape(image[:, :1].shape)


@METHODS
def test_a_target_needs_no_gradient_and_the_network_makes_no_graph(method: type[PerturbationAttributor]) -> None:
    network, image = unet(2), picture(24, 20)
    graphs = []
    network.register_forward_hook(lambda *arguments: graphs.append(arguments[2].requires_grad))
    with torch.no_grad():
        target = unperturbed_dice(network.eval()(image), int(network(image).argmax(dim=1).mode().values.mode().values))
    values = method(network, **CHEAP[method])(image, target)
    assert not any(graphs)
    assert bool(values.isfinite().all())
    assert len(network._forward_hooks) == 1


@METHODS
def test_at_the_time_limit_the_map_so_far(method: type[PerturbationAttributor], caplog: Any) -> None:
    options = {**CHEAP[method], **({"masks": 10**6} if method is RISE else {})}
    with caplog.at_level(logging.WARNING):
        result = method(Constant(), time_limit_s=0.05, **options)(
            picture(40, 40), lambda logits: logits.flatten(1).sum(dim=1)
        )
    notes = result.meta["attribution"][0]
    assert 1 <= notes["evaluated"] < notes["planned"]
    assert notes["stopped_after_s"] >= 0.05
    assert re.search(rf"{method.name}: stopped after .* with {notes['evaluated']} of {notes['planned']}", caplog.text)
    assert bool(result.isfinite().all())
    assert bool((result != 0).any())


@pytest.mark.parametrize(
    ("fitting", "limit", "expected"),
    [(100, 10.0, [1, 9]), (4, 10.0, [1, 4, 4, 1]), (100, 0.5, [1]), (100, 2.5, [1, 1, 1]), (100, None, [30])],
)
def test_no_more_copies_at_once_than_the_time_allows(
    fitting: int, limit: float | None, expected: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a clock that goes on by a second a copy."""
    clock = SimpleNamespace(seconds=0.0, monotonic=lambda: clock.seconds)
    monkeypatch.setattr(base, "time", clock)
    score: Any = SimpleNamespace(copies=fitting, notes={})
    sizes = []
    for batch in Counting(nn.Identity(), time_limit_s=limit).batches(30, score):
        assert batch.start == sum(sizes)
        sizes.append(len(batch))
        clock.seconds += len(batch)
    assert sizes == expected
    assert score.notes["evaluated"] == sum(expected)
    assert ("stopped_after_s" in score.notes) == (limit is not None)


def test_progress_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    image, target = picture(4, 4), foreground_sum(torch.ones(1, 1, 4, 4))
    Counting(nn.Identity())(image, target)
    assert capsys.readouterr().err == ""
    Counting(nn.Identity(), progress=True)(image, target)
    assert "counting: 100%" in capsys.readouterr().err


@pytest.mark.parametrize("kind", ["zero", "mean", "blur", "noise", -1.5, torch.tensor([1.0, 2]).reshape(1, 2, 1, 1)])
def test_hidden_is_the_baseline_of_the_item(kind: Baseline) -> None:
    class Showing(PerturbationAttributor):
        name = "showing"

        def perturb(self, image: Tensor, hidden: Tensor, score: Score) -> Tensor:
            assert not image.requires_grad
            return hidden

    image = picture(12, 10, batch=2, channels=2)
    maps = Showing(nn.Identity(), baseline=kind, seed=5)(image, region(12, 10))
    expected = torch.cat([baseline(item[None], kind, seed=5) for item in image])
    torch.testing.assert_close(maps.as_tensor(), expected.sum(dim=1, keepdim=True))


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


class Recording(nn.Module):
    """The identity, which keeps what went through it."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[Tensor] = []

    def forward(self, image: Tensor) -> Tensor:
        self.seen.append(image.clone())
        return image


def weigher(*size: int) -> Any:
    weights = torch.randn(1, 1, *size, generator=torch.Generator().manual_seed(5))
    return lambda logits: 100 + (weights * logits).flatten(1).sum(dim=1) ** 2


@pytest.mark.parametrize("size", [(12, 10), (9, 8, 7)])
def test_equals_its_formula(size: tuple[int, ...]) -> None:
    """The network sees the masks themselves: what they leave of an image of ones against zeros."""
    network, target = Recording(), weigher(*size)
    maps = RISE(network, masks=20, cells=3)(torch.ones(1, 1, *size), target)
    masks = [seen for seen in network.seen if float(seen.min()) < 1]
    assert len(masks) == 20
    scores = [float(target(mask)) for mask in masks]
    mean = sum(scores) / 20
    expected = sum(s * mask for s, mask in zip(scores, masks, strict=True)) / sum(masks) - mean
    torch.testing.assert_close(maps.as_tensor(), expected, rtol=1e-4, atol=1e-3)
    assert maps.meta["attribution"][0]["mean_score"] == pytest.approx(mean)


def test_hidden_by_degrees_to_the_baseline() -> None:
    image, other = torch.randn(1, 2, 8, 8), torch.randn(1, 2, 8, 8)
    plain, masked = Recording(), Recording()
    RISE(plain, masks=3)(torch.ones(1, 1, 8, 8), weigher(8, 8))
    RISE(masked, masks=3, baseline=other)(image, weigher(8, 8))
    for mask, seen in zip(plain.seen[1:], masked.seen[1:], strict=True):
        torch.testing.assert_close(seen, mask * image + (1 - mask) * other)


@pytest.mark.parametrize(("size", "cells"), [((14, 9), 4), ((14, 9), (2, 5)), ((10, 7, 8), (3, 2, 4))])
@pytest.mark.parametrize("visible", [0.5, 0.2])
def test_masks_are_visible_alike_everywhere(size: tuple[int, ...], cells: Any, visible: float) -> None:
    torch.manual_seed(0)
    attributor = RISE(nn.Identity(), cells=cells, visible=visible)
    masks = torch.cat([attributor.mask(size) for _ in range(4000)])
    assert masks.shape == (4000, 1, *size)
    assert float(masks.min()) >= 0
    assert float(masks.max()) <= 1
    # Five standard errors of a mean of 4000 draws that are at most those of a coin.
    assert float((masks.mean(dim=0) - visible).abs().max()) < 5 * (visible * (1 - visible) / 4000) ** 0.5


def test_cells_are_of_their_size_and_shifted() -> None:
    """Of a linear interpolation at random offsets, the correlation over a distance in cells is a cubic B-spline."""
    torch.manual_seed(0)
    attributor = RISE(nn.Identity(), cells=(4, 1))
    lines = torch.cat([attributor.mask((24, 3)) for _ in range(4000)])[:, 0, :, 1]
    together = torch.corrcoef(lines.T)
    for voxels, expected in ((3, 0.719), (6, 0.25), (9, 0.031), (12, 0)):
        assert float(together.diagonal(voxels).mean()) == pytest.approx(expected, abs=0.03)
    # The offset moves the cells: no two neighbours are always of one cell.
    assert float((lines[:, 1:] - lines[:, :-1]).abs().amax(dim=0).min()) > 0


def test_it_finds_what_the_score_needs_and_nothing_in_a_constant() -> None:
    image = torch.ones(1, 1, 21, 21)
    maps = RISE(nn.Identity(), masks=400)(image, lambda logits: logits[:, :, 12:15, 3:6].flatten(1).sum(dim=1))
    x, y = divmod(int(maps.argmax()), 21)
    assert 10 <= x <= 16
    assert 1 <= y <= 7
    assert float(maps[0, 0, 13, 4]) > 5 * float(maps[0, 0, :, 12:].abs().max())
    nothing = RISE(nn.Identity(), masks=20)(image, lambda logits: torch.full((len(logits),), 1e6))
    assert not bool(nothing.any())


def test_cells_of_another_number_of_axes_are_refused() -> None:
    with pytest.raises(ValueError, match=re.escape("cells must be one number or 2, one an axis, got (3, 3, 3)")):
        RISE(nn.Identity(), cells=(3, 3, 3))(torch.zeros(1, 1, 8, 8), weigher(8, 8))
