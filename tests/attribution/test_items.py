"""A target is of one item, or of as many as the image."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from unoise_monai.attribution import Difference, Foreground, HardDice, Region, SoftDice, Target, voxel
from unoise_monai.attribution.targets import check_grid, check_items, check_voxels, item_of


@dataclass
class Weighted:
    """Somebody's target, of no items."""

    weights: Tensor

    def __call__(self, logits: Tensor) -> Tensor:
        return (logits * self.weights).flatten(1).sum(dim=1)


def targets(items: int) -> list[Target]:
    volume = torch.ones(items, 1, 4, 4)
    one = voxel((1, 2), 1, (4, 4))
    return [
        Region(volume, 1),
        SoftDice(volume, 1),
        HardDice(volume, 1),
        Foreground(volume),
        Difference(one, Region(volume, 1)),
        Difference(Difference(SoftDice(volume, 1), one), one),
    ]


def test_refuses_another_number_of_items() -> None:
    for target in targets(3):
        check_items(target, 3)
        for items in (1, 2, 4):
            with pytest.raises(ValueError, match=f"of one item or of the image's {items}, got one of 3"):
                check_items(target, items)


def test_one_item_serves_all_and_so_does_what_knows_no_items() -> None:
    for target in (*targets(1), Weighted(torch.ones(3, 1, 1, 1)), lambda logits: logits.flatten(1).sum(dim=1)):
        for items in (1, 2, 5):
            check_items(target, items)


def test_an_item_is_a_copy() -> None:
    with torch.inference_mode():
        volumes = torch.arange(6.0).view(3, 1, 2, 1)
    for index in range(3):
        assert torch.equal(item_of(volumes, index), volumes[index : index + 1])
        assert torch.equal(item_of(volumes[:1], index), volumes[:1])
        for item in (item_of(volumes, index), item_of(volumes[:1], index)):
            assert not item.is_inference()


def test_checks_of_voxels_and_grid() -> None:
    region = torch.ones(3, 1, 2, 2)
    check_voxels("it", region)
    region[1] = 0
    with pytest.raises(ValueError, match="it must hold at least one voxel of every item, got none of item 1"):
        check_voxels("it", region)
    logits = torch.zeros(3, 4, 2, 2)
    check_grid("it", region, logits)
    check_grid("it", region[:1], logits)
    for wrong in (region[:2], region[:, :, :1], region.expand(3, 4, 2, 2)):
        with pytest.raises(ValueError, match=r"it must lie on the grid of the logits \(3, 4, 2, 2\), got"):
            check_grid("it", wrong, logits)
