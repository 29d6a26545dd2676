"""Rankings of the voxels against sorting a list and looking for the nearest voxel one by one."""

import math

import pytest
import torch
from monai.data import MetaTensor
from torch import Tensor

from unoise_monai.metrics.visibility import distance_map, importance_order, top_share, visible_voxels


def naive_visible(importance: Tensor, share: float) -> Tensor:
    """The top share of each volume, by sorting a list; equal values in the order of the voxels."""
    visible = torch.zeros_like(importance, dtype=torch.bool)
    for item in range(len(importance)):
        values = importance[item].flatten().tolist()
        ranked = sorted(range(len(values)), key=lambda i: (-values[i], i))
        visible[item].view(-1)[ranked[: round(share * len(values))]] = True
    return visible


def maps(spatial: tuple[int, ...]) -> Tensor:
    return torch.rand((3, 1, *spatial), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("spatial", [(6, 5), (3, 4, 5)])
@pytest.mark.parametrize("ties", [False, True])
def test_quantile_order_equals_a_naive_sort(spatial: tuple[int, ...], ties: bool) -> None:
    importance = maps(spatial)
    if ties:
        importance = (importance * 3).round() / 3
    order = importance_order(importance)
    assert order.shape == importance.shape
    for share in (0.0, 0.05, 0.1, 1 / 3, 0.5, 0.77, 1.0):
        visible = top_share(order, share)
        assert torch.equal(visible, naive_visible(importance, share))
        assert visible.flatten(1).sum(dim=1).tolist() == [round(share * importance[0].numel())] * 3


def test_constant_map_shows_the_exact_share() -> None:
    visible = top_share(importance_order(torch.full((2, 1, 10, 10), 0.3)), 0.37)
    assert visible.flatten(1).sum(dim=1).tolist() == [37, 37]


@pytest.mark.parametrize("level", [0.0, 0.25, 0.4, 1.0])
def test_deletion_hides_what_insertion_shows(level: float) -> None:
    importance = (maps((4, 5)) * 8).round() / 8
    expected = {"quantile": naive_visible(importance, level), "threshold": (1 - importance) <= level}
    for order, top in expected.items():
        assert torch.equal(visible_voxels(importance, order, "insertion")(level), top)
        assert torch.equal(visible_voxels(importance, order, "deletion")(level), ~top)


def test_refuses_an_unknown_order_and_mode() -> None:
    with pytest.raises(ValueError, match="order must be one of 'quantile', 'threshold', got 'rank'"):
        visible_voxels(maps((2, 2)), "rank")
    with pytest.raises(ValueError, match="mode must be one of 'insertion', 'deletion', got 'both'"):
        visible_voxels(maps((2, 2)), mode="both")


def naive_depth(foreground: Tensor, spacing_mm: tuple[float, ...]) -> Tensor:
    """Distances to all voxels in turn; those of the rim have a background neighbour, by face, edge or corner."""
    voxels = [tuple(at) for at in torch.cartesian_prod(*map(torch.arange, foreground.shape)).tolist()]
    inside = [at for at in voxels if foreground[at]]
    outside = [at for at in voxels if not foreground[at]]
    rim = [at for at in inside if any(max(abs(i - j) for i, j in zip(at, o, strict=True)) == 1 for o in outside)]
    result = torch.zeros(foreground.shape)
    for at in voxels:
        nearest = min(
            math.hypot(*((i - j) * mm for i, j, mm in zip(at, o, spacing_mm, strict=True)))
            for o in (rim if foreground[at] else inside)
        )
        result[at] = nearest if foreground[at] else -nearest
    return result


@pytest.mark.parametrize(
    ("spatial", "spacing_mm"), [((9, 7), (1.0, 1.0)), ((9, 7), (0.5, 2.0)), ((7, 6, 5), (0.7, 1.3, 2.5))]
)
def test_distance_map_is_the_distance_to_the_nearest_voxel(
    spatial: tuple[int, ...], spacing_mm: tuple[float, ...]
) -> None:
    label = torch.zeros(2, 1, *spatial, dtype=torch.uint8)
    label[(0, 0, *(slice(1, 5) for _ in spatial))] = 2
    label[(0, 0, *(-1 for _ in spatial))] = 1
    label[(1, 0, *(3 for _ in spatial))] = 1
    result = distance_map(label, spacing_mm)
    assert (result.shape, result.dtype) == (label.shape, torch.float32)
    for item in range(2):
        torch.testing.assert_close(result[item, 0], naive_depth(label[item, 0] > 0, spacing_mm))
        assert result[item][label[item] > 0].min() > result[item][label[item] == 0].max()
    assert float(result[0].max()) > 0
    wrapped = distance_map(MetaTensor(label.float()), spacing_mm)
    assert type(wrapped) is Tensor
    assert torch.equal(wrapped, result)


def test_distance_map_without_a_border_ranks_nothing() -> None:
    label = torch.stack([torch.zeros(1, 3, 4), torch.ones(1, 3, 4)])
    assert torch.equal(distance_map(label, (1.0, 1.0)), torch.zeros(2, 1, 3, 4))


@pytest.mark.parametrize("bad", [(1.0,), (1.0, 1.0, 1.0), (1.0, 0.0), (1.0, math.inf), (math.nan, 1.0)])
def test_distance_map_refuses_bad_spacing(bad: tuple[float, ...]) -> None:
    with pytest.raises(ValueError, match=r"spacing_mm must .*, got \("):
        distance_map(torch.ones(1, 1, 3, 4), bad)
