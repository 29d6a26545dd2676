"""What a map finds of a known truth, against loops over thresholds, voxels and random orders."""

import math

import pytest
import torch
from monai.data import MetaTensor
from torch import Tensor

from unoise_monai.metrics.regions import DECIDING, TruthScores, average_precision, truth_scores
from unoise_monai.phantoms.abdomen import Truth, abdomen_phantom


def drawn(items: int = 2, size: tuple[int, ...] = (7, 6), levels: int = 0, seed: int = 0) -> tuple[Tensor, Tensor]:
    """A random map, of so many different values where ``levels`` is given, and a random truth."""
    generator = torch.Generator().manual_seed(seed)
    importance = torch.randn(items, 1, *size, generator=generator)
    if levels:
        importance = torch.randint(-levels // 2, levels // 2, importance.shape, generator=generator).float()
    return importance, torch.randint(0, 5, (items, 1, *size), generator=generator)


def naive_average_precision(values: list[float], wanted: list[bool]) -> float:
    """Lower the threshold from value to value; each step's gain of recall counts with the precision there."""
    area, recall = 0.0, 0.0
    for threshold in sorted(set(values), reverse=True):
        found = [hit for value, hit in zip(values, wanted, strict=True) if value >= threshold]
        area += (sum(found) / sum(wanted) - recall) * sum(found) / len(found)
        recall = sum(found) / sum(wanted)
    return area


def naive_rank(values: list[float], value: float) -> float:
    return (sum(v < value for v in values) + sum(v == value for v in values) / 2) / len(values)


def naive_top(values: list[float], tissue: list[int], count: int) -> list[float]:
    """The whole levels, and of the level at the cut as much of every voxel as is left to take."""
    parts, left = [0.0] * 5, float(count)
    for level in sorted(set(values), reverse=True):
        there = [t for v, t in zip(values, tissue, strict=True) if v == level]
        part = min(1.0, left / len(there))
        for t in there:
            parts[t] += part / count
        left -= part * len(there)
    return parts


@pytest.mark.parametrize("size", [(7, 6), (4, 3, 5)])
@pytest.mark.parametrize("levels", [0, 4, 1000])
@pytest.mark.parametrize("share", [None, 0.25, 1.0])
def test_equals_the_loops(size: tuple[int, ...], levels: int, share: float | None) -> None:
    importance, truth = drawn(3, size, levels)
    scores = truth_scores(importance, truth, share)
    assert scores.tissues == (0, 1, 2, 3, 4)
    assert scores.average_precision.dtype == torch.float64
    for item in range(3):
        values, tissue = importance[item].flatten().tolist(), truth[item].flatten().tolist()
        wanted = [t in (1, 2) for t in tissue]
        assert float(scores.average_precision[item]) == pytest.approx(naive_average_precision(values, wanted))
        assert float(scores.prevalence[item]) == pytest.approx(sum(wanted) / len(wanted))
        count = sum(wanted) if share is None else round(share * len(values))
        assert scores.top[item].tolist() == pytest.approx(naive_top(values, tissue, count))
        for t in range(5):
            ranks = [naive_rank(values, v) for v, own in zip(values, tissue, strict=True) if own == t]
            assert float(scores.rank[item, t]) == pytest.approx(sum(ranks) / len(ranks))


def test_the_truth_itself_is_the_ceiling_and_its_opposite_the_floor() -> None:
    truth = drawn()[1]
    wanted = ((truth == Truth.TARGET) | (truth == Truth.LANDMARK)).float()
    best, worst = truth_scores(wanted, truth), truth_scores(-wanted, truth)
    assert best.average_precision.tolist() == [1, 1]
    torch.testing.assert_close(best.top[:, list(DECIDING)].sum(dim=1), torch.ones(2, dtype=torch.float64))
    torch.testing.assert_close(worst.average_precision, worst.prevalence)
    assert (best.rank[:, 1:3] > 0.5).all()
    assert (worst.rank[:, 1:3] < 0.5).all()
    assert worst.top[:, 1:3].sum() == 0


def test_a_constant_map_is_worth_what_chance_is() -> None:
    truth = drawn(1)[1]
    scores = truth_scores(torch.full(truth.shape, 0.3), truth, 0.1)
    volume = torch.bincount(truth.flatten(), minlength=5).double() / truth.numel()
    torch.testing.assert_close(scores.top[0], volume)
    torch.testing.assert_close(scores.average_precision, scores.prevalence)
    assert scores.rank[0].tolist() == pytest.approx([0.5] * 5)


def same(one: TruthScores, other: TruthScores) -> None:
    for first, second in zip(one[1:], other[1:], strict=True):
        torch.testing.assert_close(first, second, equal_nan=True)


def test_only_the_order_counts() -> None:
    importance, truth = drawn()
    scores = truth_scores(importance, truth)
    same(truth_scores(importance.exp() * 1e-6, truth), scores)
    same(truth_scores(importance.double(), truth.to(torch.uint8)), scores)
    same(truth_scores(MetaTensor(importance).requires_grad_(), MetaTensor(truth)), scores)
    turned = torch.randperm(7, generator=torch.Generator().manual_seed(2))
    same(truth_scores(importance[:, :, turned], truth[:, :, turned]), scores)
    assert type(truth_scores(MetaTensor(importance), truth).top) is Tensor


def test_any_label_map() -> None:
    importance, truth = drawn()
    scores = truth_scores(importance, truth, deciding=(1, 2))
    same(truth_scores(importance, truth * 10 - 3, deciding=(7, 17), tissues=(-3, 7, 17, 27, 37)), scores)
    torch.testing.assert_close(average_precision(importance, (truth == 1) | (truth == 2)), scores.average_precision)
    torch.testing.assert_close(average_precision(importance, ((truth == 1) | (truth == 2)).int()), scores[1])


def test_an_item_without_the_tissue_is_nan() -> None:
    importance, truth = drawn()
    truth[0] = Truth.IRRELEVANT
    scores = truth_scores(importance, truth)
    assert scores.average_precision.isnan().tolist() == [True, False]
    assert scores.prevalence[0] == 0
    assert scores.top.isnan().any(dim=1).tolist() == [True, False]
    assert scores.rank[0].isnan().tolist() == [True, True, True, True, False]
    assert float(scores.rank[0, 4]) == pytest.approx(0.5)
    assert truth_scores(importance, truth, 1e-9).top[0].tolist() == [0, 0, 0, 0, 1]  # one voxel at least


def test_on_a_phantom() -> None:
    phantom = abdomen_phantom(0, size=(32, 32, 32), spacing_mm=(9, 9, 9))
    truth = torch.from_numpy(phantom.truth)[None, None]
    label = torch.from_numpy(phantom.label)[None, None].float()
    noise = torch.rand(label.shape, generator=torch.Generator().manual_seed(0))
    floor, target = truth_scores(noise, truth), truth_scores(label + 0.5 * noise, truth)
    assert float(floor.average_precision) == pytest.approx(float(floor.prevalence), abs=0.02)
    # The label's own voxels come first, and the landmarks as chance has it.
    own, deciding = int(label.sum()), int(((truth == 1) | (truth == 2)).sum())
    assert float(target.top[0, Truth.TARGET]) == pytest.approx(own / deciding)
    assert own / deciding < float(target.average_precision) < 1


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"importance": torch.zeros(1, 2, 3, 3)}, r"on one grid, got \(1, 2, 3, 3\) and \(1, 1, 3, 3\)"),
        ({"importance": torch.zeros(1, 1, 3, 4)}, r"on one grid, got \(1, 1, 3, 4\) and \(1, 1, 3, 3\)"),
        ({"importance": torch.full((1, 1, 3, 3), math.nan)}, "importance must hold finite values only, got 9 NaN"),
        ({"truth": torch.full((1, 1, 3, 3), 7)}, r"truth must hold the values \(0, 1, 2, 3, 4\) only, got 7"),
        ({"deciding": (9,)}, r"deciding must be some of the tissues \(0, 1, 2, 3, 4\), got \(9,\)"),
        ({"deciding": ()}, r"deciding must be some of the tissues \(0, 1, 2, 3, 4\), got \(\)"),
        ({"share": 0}, "share must be above 0 and at most 1, got 0"),
        ({"share": 1.5}, "share must be above 0 and at most 1, got 1.5"),
    ],
)
def test_refuses(change: dict, says: str) -> None:
    words = {"importance": torch.zeros(1, 1, 3, 3), "truth": torch.zeros(1, 1, 3, 3, dtype=torch.uint8)} | change
    with pytest.raises(ValueError, match=says):
        truth_scores(**words)


def test_average_precision_refuses_another_grid() -> None:
    with pytest.raises(ValueError, match="on one grid"):
        average_precision(torch.zeros(1, 1, 3, 3), torch.zeros(1, 1, 3, 4))
