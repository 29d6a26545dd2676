"""RISE: masks as the paper has them, and the map as their formula says."""

import re
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from unoise_monai.attribution.perturbation import RISE


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
