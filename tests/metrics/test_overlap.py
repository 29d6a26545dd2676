"""The measures against counting voxels and looking for the nearest border voxel one by one."""

import math
import warnings

import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from torch import Tensor

from unoise_monai.attribution.targets import SoftDice
from unoise_monai.metrics.overlap import (
    MEASURES,
    check_measures,
    dice_per_class,
    foreground_dice,
    foreground_iou,
    segmentation_pair,
    soft_dice,
    surface_distance,
)
from unoise_monai.metrics.visibility import distance_map
from unoise_monai.networks.weights import segmentation

SPACING = {2: (0.5, 2.0), 3: (0.7, 1.3, 2.5)}


def batch(classes: int, spatial: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """Random logits and labels; item 1 lacks class 1, which is predicted all the same."""
    generator = torch.Generator().manual_seed(classes + len(spatial))
    logits = torch.randn(3, classes, *spatial, generator=generator)
    label = torch.randint(0, max(classes, 2), (3, 1, *spatial), generator=generator)
    label[1][label[1] == 1] = 0
    return logits, label


def each_class(logits: Tensor, label: Tensor, score: object) -> Tensor:
    """``score(found, wanted)`` of the masks of each item and foreground class; NaN where there is none to find."""
    predicted = segmentation(logits)
    rows = [
        [
            score(predicted[item, 0] == value, label[item, 0] == value)
            if bool((label[item] == value).any())
            else math.nan
            for value in range(1, max(logits.shape[1], 2))
        ]
        for item in range(len(logits))
    ]
    return torch.tensor(rows)


def naive_dice(found: Tensor, wanted: Tensor) -> float:
    return 2 * sum((found & wanted).flatten().tolist()) / sum([*found.flatten().tolist(), *wanted.flatten().tolist()])


@pytest.mark.parametrize("classes", [1, 2, 4])
@pytest.mark.parametrize("spatial", [(4, 5), (3, 4, 2)])
def test_dice_and_iou_equal_counting_voxels(classes: int, spatial: tuple[int, ...]) -> None:
    logits, label = batch(classes, spatial)
    dice = each_class(logits, label, naive_dice)
    iou = each_class(logits, label, lambda found, wanted: float((found & wanted).sum() / (found | wanted).sum()))
    assert bool(dice[1, 0].isnan())
    for kind in (torch.uint8, torch.float32):
        torch.testing.assert_close(foreground_dice(logits, label.to(kind)), dice, equal_nan=True)
    torch.testing.assert_close(foreground_iou(logits, label), iou, equal_nan=True)
    wrapped = foreground_dice(MetaTensor(logits), MetaTensor(label.float()))
    assert type(wrapped) is Tensor
    torch.testing.assert_close(wrapped, dice, equal_nan=True)
    for item in range(3):
        arrays = (segmentation(logits)[item, 0].numpy().astype(np.uint8), label[item, 0].numpy())
        assert dice_per_class(*arrays, max(classes, 2)) == pytest.approx(dice[item].tolist(), nan_ok=True)


def test_a_class_found_where_there_is_none_is_nan_and_a_missed_one_is_0() -> None:
    assert dice_per_class([1, 1, 0], [0, 0, 0], 2) == pytest.approx([math.nan], nan_ok=True)
    assert dice_per_class([0, 0, 2], [1, 0, 2], 3) == [0, 1]


@pytest.mark.parametrize(
    ("given", "says"),
    [
        (([0, 1], [0], 2), r"segmentation and label must have one shape, got \(2,\) and \(1,\)"),
        (([0, 2], [0, 1], 2), "segmentation must hold classes below 2, got 2"),
        (([0, 1], [0, 3], 2), "label must hold classes below 2, got 3"),
    ],
)
def test_dice_refuses(given: tuple, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        dice_per_class(*given)


@pytest.mark.parametrize("classes", [1, 2, 4])
def test_pair_is_one_hot(classes: int) -> None:
    logits, label = batch(classes, (4, 5))
    for one_hot, indices in zip(segmentation_pair(logits, label), (segmentation(logits), label), strict=True):
        assert one_hot.shape == (3, max(classes, 2), 4, 5)
        assert set(one_hot.unique().tolist()) <= {0.0, 1.0}
        assert bool((one_hot.sum(dim=1) == 1).all())
        assert torch.equal(one_hot.argmax(dim=1, keepdim=True), indices)


@pytest.mark.parametrize("classes", [1, 2, 4])
@pytest.mark.parametrize("spatial", [(4, 5), (3, 4, 2)])
def test_soft_dice_equals_summing_probabilities(classes: int, spatial: tuple[int, ...]) -> None:
    logits, label = batch(classes, spatial)
    result = soft_dice(logits, label)
    assert result.shape == (3, max(classes - 1, 1))
    for item in range(3):
        for value in range(1, max(classes, 2)):
            scores = logits[item].flatten(1).T.tolist()
            if classes == 1:
                found = [1 / (1 + math.exp(-each[0])) for each in scores]
            else:
                found = [math.exp(each[value]) / sum(map(math.exp, each)) for each in scores]
            wanted = [float(index == value) for index in label[item].flatten().tolist()]
            overlap = sum(p * y for p, y in zip(found, wanted, strict=True))
            expected = 2 * overlap / (sum(found) + sum(wanted)) if any(wanted) else math.nan
            assert float(result[item, value - 1]) == pytest.approx(expected, nan_ok=True)
            target = SoftDice(label, value)(logits)[item]
            assert not any(wanted) or float(target) == pytest.approx(expected)


@pytest.mark.parametrize("classes", [1, 3])
def test_soft_dice_of_a_sure_network_is_the_hard_dice(classes: int) -> None:
    logits, label = batch(classes, (4, 5))
    torch.testing.assert_close(soft_dice(logits * 1e5, label), foreground_dice(logits, label), equal_nan=True)


def naive_border(mask: Tensor) -> list[tuple[int, ...]]:
    """Voxels with a face-neighbour outside the mask; what lies beyond the volume is outside."""
    inside = {tuple(at) for at in mask.nonzero().tolist()}
    steps = [
        tuple(sign * (axis == other) for other in range(mask.ndim)) for axis in range(mask.ndim) for sign in (-1, 1)
    ]
    return [
        at
        for at in sorted(inside)
        if any(tuple(i + s for i, s in zip(at, step, strict=True)) not in inside for step in steps)
    ]


def naive_distance(found: Tensor, wanted: Tensor) -> float:
    spacing = SPACING[found.ndim]
    borders = naive_border(found), naive_border(wanted)

    def nearest(at: tuple[int, ...], others: list[tuple[int, ...]]) -> float:
        return min(math.hypot(*((i - j) * mm for i, j, mm in zip(at, o, spacing, strict=True))) for o in others)

    distances = [nearest(at, borders[1]) for at in borders[0]] + [nearest(at, borders[0]) for at in borders[1]]
    return sum(distances) / len(distances)


@pytest.mark.parametrize("classes", [1, 2, 4])
@pytest.mark.parametrize("spatial", [(9, 8), (6, 5, 4)])
def test_surface_distance_equals_looking_for_the_nearest_voxel(classes: int, spatial: tuple[int, ...]) -> None:
    logits, label = batch(classes, spatial)
    # Solid bodies, so that a border is not all there is.
    for item in (0, 2):
        body = (item, slice(None), *(slice(1, 1 + item + 2) for _ in spatial))
        logits[body] -= 9
        logits[(item, -1, *body[2:])] += 20
        label[(item, 0, *(slice(2, 5) for _ in spatial))] = max(classes - 1, 1)
    result = surface_distance(logits, label, SPACING[len(spatial)])
    torch.testing.assert_close(result, each_class(logits, label, naive_distance), equal_nan=True)
    assert bool(result[1, 0].isnan())


def test_surface_distance_of_shifted_planes_is_the_shift_in_mm() -> None:
    label = torch.zeros(1, 1, 8, 3, 3)
    label[:, :, 1] = 1
    for axis, spacing in enumerate([(2.5, 1.0, 1.0), (1.0, 2.5, 1.0), (1.0, 1.0, 2.5)]):
        turned = label.movedim(2, axis + 2)
        logits = turned.roll(2, axis + 2) - 0.5
        assert float(surface_distance(logits, turned, spacing)) == pytest.approx(5.0)
        assert float(surface_distance(turned - 0.5, turned, spacing)) == 0


def test_an_empty_prediction_is_as_far_as_the_diagonal() -> None:
    """Worse than anything that is found, and no reason to warn."""
    label = torch.zeros(1, 1, 3, 5)
    label[0, 0, 0, 0] = 1
    corner = torch.full((1, 1, 3, 5), -1.0)
    corner[0, 0, -1, -1] = 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        empty = surface_distance(torch.full((1, 1, 3, 5), -1.0), label, (2.0, 0.5))
        nothing_to_find = surface_distance(corner, torch.zeros(1, 1, 3, 5), (2.0, 0.5))
        neither = surface_distance(-corner.abs(), torch.zeros(1, 1, 3, 5), (2.0, 0.5))
    assert float(empty) == pytest.approx(math.hypot(6, 2.5))
    assert float(surface_distance(corner, label, (2.0, 0.5))) == pytest.approx(math.hypot(4, 2))
    assert math.isnan(float(nothing_to_find))
    assert math.isnan(float(neither))


def test_a_prediction_of_everything_is_finite() -> None:
    label = torch.zeros(1, 1, 4, 4, 4)
    label[0, 0, 1, 2, 1] = 1
    assert 0 < float(surface_distance(torch.ones(1, 1, 4, 4, 4), label, (1.0, 1.0, 1.0))) < math.hypot(4, 4, 4)


@pytest.mark.parametrize("name", sorted(MEASURES))
@pytest.mark.parametrize("classes", [1, 3])
def test_every_measure_tells_the_better_segmentation(name: str, classes: int) -> None:
    measure = MEASURES[name]
    _, label = batch(max(classes, 2), (6, 5))
    good = (
        torch.cat([(label == value).float() * 4 - 2 for value in range(classes)], dim=1) if classes > 1 else label - 0.5
    )
    bad = good.clone()
    bad[..., :3] = -good[..., :3]
    scores = [measure(logits, label, (1.0, 1.0)) for logits in (good, bad)]
    assert scores[0].shape == scores[1].shape == (3, max(classes - 1, 1))
    there = ~scores[0].isnan()
    assert not bool(there[1, 0])
    assert bool(there[[0, 2]].all())
    assert bool(((scores[0] > scores[1]) if measure.higher_is_better else (scores[0] < scores[1]))[there].all())
    wrapped = measure(MetaTensor(bad), MetaTensor(label.float()), (1.0, 1.0))
    torch.testing.assert_close(wrapped.as_subclass(Tensor), scores[1], equal_nan=True)


def test_check_measures() -> None:
    check_measures(("dice", "iou"), None)
    check_measures(("surface_distance",), (1.0, 2.0), 2)
    with pytest.raises(ValueError, match=r"measure must be one of 'dice', .*, got 'f1'"):
        check_measures(("dice", "f1"), None)
    with pytest.raises(ValueError, match="spacing_mm must be given for measure 'surface_distance', got None"):
        check_measures(("dice", "surface_distance"), None)
    with pytest.raises(ValueError, match=r"spacing_mm must have one number for each of 3 axes, got \(1.0, 2.0\)"):
        check_measures(("dice",), (1.0, 2.0), 3)
    for empty in ((), "dice"):
        with pytest.raises(ValueError, match="measures must be a sequence of at least one name, got"):
            check_measures(empty, None)


@pytest.mark.parametrize("bad", [(1.0,), (1.0, 1.0, 1.0), (1.0, 0.0), (1.0, math.inf), (math.nan, 1.0)])
def test_distances_refuse_bad_spacing(bad: tuple[float, ...]) -> None:
    for measure in (surface_distance, lambda _, label, spacing_mm: distance_map(label, spacing_mm)):
        with pytest.raises(ValueError, match=r"spacing_mm must .*, got \("):
            measure(torch.ones(1, 1, 3, 4), torch.ones(1, 1, 3, 4), bad)


def test_logit_0_is_background() -> None:
    assert segmentation(torch.tensor([-1.0, 0.0, 1e-6]).view(1, 1, 3)).flatten().tolist() == [0, 0, 1]
