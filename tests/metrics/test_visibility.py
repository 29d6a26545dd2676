"""Ranks, curves, and what is segmented of the visible voxels, against naive sorting, hiding and counting."""

import math
import re

import pytest
import torch
from ignite.engine import Engine
from ignite.exceptions import NotComputableError
from monai.data import MetaTensor
from torch import Tensor, nn

from unoise_monai.metrics.overlap import MEASURES, foreground_dice
from unoise_monai.metrics.visibility import (
    ZERO,
    Hiding,
    VisibilityCurve,
    VisibilityScorer,
    VisibilityScores,
    VisibleDice,
    distance_map,
    importance_order,
    top_share,
    visible_voxels,
)


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


@pytest.mark.parametrize("level", [0.0, 0.25, 0.4, 1.0])
def test_deletion_hides_what_insertion_shows(level: float) -> None:
    importance = (maps((4, 5)) * 8).round() / 8
    expected = {"quantile": naive_visible(importance, level), "threshold": (1 - importance) <= level}
    for order, top in expected.items():
        assert torch.equal(visible_voxels(importance, order, "insertion")(level), top)
        assert torch.equal(visible_voxels(importance, order, "deletion")(level), ~top)


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


def curve_of(share: list[float], dice: list[float]) -> VisibilityCurve:
    points = torch.tensor(share, dtype=torch.float64)
    return VisibilityCurve(points, points, torch.tensor(dice, dtype=torch.float64)[:, None])


def test_mean_score_leaves_out_classes_that_are_nan() -> None:
    points = torch.tensor([0.0, 1.0])
    curve = VisibilityCurve(points, points, torch.tensor([[0.2, math.nan], [0.4, 0.8]]))
    assert curve.mean_score.tolist() == pytest.approx([0.2, 0.6])


@pytest.mark.parametrize(
    ("share", "expected"), [(0.0, 0.1), (0.1, 0.2), (0.2, 0.3), (0.35, 0.45), (0.5, 0.6), (0.75, 0.8), (1.0, 1.0)]
)
@pytest.mark.parametrize("shuffled", [False, True])
def test_at_is_linear_between_the_points(share: float, expected: float, shuffled: bool) -> None:
    points, dice = [0.0, 0.2, 0.5, 1.0], [0.1, 0.3, 0.6, 1.0]
    order = [2, 0, 3, 1] if shuffled else [0, 1, 2, 3]
    assert curve_of([points[i] for i in order], [dice[i] for i in order]).at(share) == pytest.approx(expected)


def test_at_outside_the_points_is_the_nearest() -> None:
    curve = curve_of([0.2, 0.8], [0.3, 0.9])
    assert [curve.at(share) for share in (0.0, 0.9)] == pytest.approx([0.3, 0.9])
    assert curve_of([0.4], [0.7]).at(0.1) == pytest.approx(0.7)


@pytest.mark.parametrize("share", [0.0, 0.25, 0.5, 0.75, 1.0])
def test_at_and_area_bear_repeated_shares(share: float) -> None:
    """Two thresholds between which there is no voxel show the same share."""
    curve = curve_of([0.0, 0.0, 0.5, 0.5, 0.5, 1.0, 1.0], [0.2, 0.2, 0.6, 0.6, 0.6, 1.0, 1.0])
    assert curve.at(share) == pytest.approx(0.2 + 0.8 * share)
    assert curve.area == pytest.approx(0.6)


@pytest.mark.parametrize(
    ("share", "dice", "area"),
    [
        ([0.0, 1.0], [0.0, 1.0], 0.5),
        ([0.0, 0.5, 1.0], [0.0, 1.0, 1.0], 0.75),
        ([1.0, 0.0, 0.5], [1.0, 0.0, 1.0], 0.75),
        ([0.2, 0.6], [0.4, 0.8], 0.6),
        ([0.3], [0.7], 0.7),
        ([0.3, 0.3], [0.7, 0.7], 0.7),
    ],
)
def test_area_of_known_curves(share: list[float], dice: list[float], area: float) -> None:
    assert curve_of(share, dice).area == pytest.approx(area)


def test_scores_of_volumes_average_to_a_curve() -> None:
    """A class that one volume lacks, NaN, is averaged over the others; a class that none has stays NaN."""
    nan = math.nan
    first = torch.tensor([[[0.1, nan, nan], [0.5, nan, nan]], [[0.3, 0.2, nan], [0.9, 0.4, nan]]])
    share = torch.tensor([[0.0, 0.4], [0.0, 0.6]])
    scores = VisibilityScores(torch.tensor([0.0, 0.5]), share, {"dice": first, "iou": first / 2})
    curve = scores.curve("dice")
    torch.testing.assert_close(curve.level, torch.tensor([0.0, 0.5]))
    torch.testing.assert_close(curve.share, torch.tensor([0.0, 0.5]))
    torch.testing.assert_close(curve.score, torch.tensor([[0.2, 0.2, nan], [0.7, 0.4, nan]]), equal_nan=True)
    torch.testing.assert_close(scores.curve("iou").mean_score, torch.tensor([0.1, 0.275]))


class Bright(nn.Module):
    """A toy utility: class 1 where the first channel is above 0.5, class 2 above 1.5."""

    def forward(self, x: Tensor) -> Tensor:
        x = x[:, :1]
        return torch.cat([0.5 - x, torch.full_like(x, 0.0), x - 1.5], dim=1)


def cohort(items: int, spatial: tuple[int, ...] = (6, 5), seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Image, random importance, label: the segmentation of the image by `Bright`, with some voxels wrong."""
    generator = torch.Generator().manual_seed(seed)
    label = torch.randint(0, 3, (items, 1, *spatial), generator=generator)
    wrong = torch.rand(label.shape, generator=generator) < 0.1
    image = torch.where(wrong, 0, label).float()
    return image, torch.rand(label.shape, generator=generator), label


def dice_of(image: Tensor, visible: Tensor, label: Tensor) -> Tensor:
    return foreground_dice(Bright()(torch.where(visible, image, 0.0)), label).double()


@pytest.mark.parametrize("order", ["quantile", "threshold"])
def test_equals_hiding_and_counting(order: str) -> None:
    image, importance, label = cohort(3)
    # Multiples of 1/8: a tolerance that equals a level is visible, without rounding.
    importance = (importance * 8).round() / 8
    levels = (0.0, 0.125, 0.25, 0.5, 0.75, 1.0)
    metric = VisibleDice(Bright(), levels, order=order)
    metric.update((image, importance, label))
    curve = metric.compute()
    assert curve.level.tolist() == list(levels)
    for index, level in enumerate(levels):
        visible = naive_visible(importance, level) if order == "quantile" else (1 - importance) <= level
        assert float(curve.share[index]) == pytest.approx(float(visible.double().mean()))
        torch.testing.assert_close(curve.score[index], dice_of(image, visible, label).nanmean(dim=0))


@pytest.mark.parametrize("order", ["quantile", "threshold"])
def test_batches_and_updates_average_over_volumes(order: str) -> None:
    """Two unequal updates equal one, and the mean over single volumes."""
    whole = cohort(5)
    one, two = VisibleDice(Bright(), order=order), VisibleDice(Bright(), order=order)
    one.update(whole)
    two.update(tuple(part[:1] for part in whole))
    two.update(tuple(part[1:] for part in whole))
    singles = []
    for item in range(5):
        single = VisibleDice(Bright(), order=order)
        single.update(tuple(part[item : item + 1] for part in whole))
        singles.append(single.compute())
    for curve in (one.compute(), two.compute()):
        torch.testing.assert_close(curve.score, torch.stack([s.score for s in singles]).mean(dim=0))
        torch.testing.assert_close(curve.share, torch.stack([s.share for s in singles]).mean(dim=0))
    assert len({float(s.score[3].mean()) for s in singles}) > 1


def test_volumes_of_different_sizes_count_alike() -> None:
    small, large = cohort(1, (3, 4)), cohort(1, (9, 8), seed=1)
    metric = VisibleDice(Bright(), (0.4,))
    metric.update(small)
    metric.update(large)
    expected = [dice_of(image, naive_visible(maps, 0.4), label) for image, maps, label in (small, large)]
    torch.testing.assert_close(metric.compute().score[0], torch.cat(expected).mean(dim=0))


def test_class_that_a_volume_lacks_is_left_out() -> None:
    image, importance, label = cohort(2)
    label[0][label[0] == 2] = 0
    metric = VisibleDice(Bright(), (1.0,))
    metric.update((image, importance, label))
    dice = foreground_dice(Bright()(image), label).double()
    assert bool(dice[0, 1].isnan())
    torch.testing.assert_close(metric.compute().score[0], torch.stack([dice[:, 0].mean(), dice[1, 1]]))
    metric.reset()
    metric.update((image[:1], importance[:1], label[:1]))
    curve = metric.compute()
    assert bool(curve.score[0, 1].isnan())
    torch.testing.assert_close(curve.mean_score, curve.score[:, 0])


def test_reset_forgets() -> None:
    metric = VisibleDice(Bright(), value=0.5)
    with pytest.raises(NotComputableError, match="VisibleDice needs at least one volume, got none"):
        metric.compute()
    metric.update(cohort(1, seed=3))
    first = metric.compute()
    metric.reset()
    with pytest.raises(NotComputableError):
        metric.compute()
    metric.update(cohort(1, seed=4))
    metric.reset()
    metric.update(cohort(1, seed=3))
    assert metric.compute() == first


@pytest.mark.parametrize("value", ["curve", "area", 0.3, 1])
def test_value_of_an_engine_run(value: str | float) -> None:
    image, importance, label = cohort(3)
    metric = VisibleDice(Bright(), value=value, output_transform=lambda out: (out["image"], out["map"], out["label"]))
    engine = Engine(lambda _, item: {"image": image[item], "map": MetaTensor(importance[item]), "label": label[item]})
    metric.attach(engine, "visible")
    engine.run([slice(0, 2), slice(2, 3)])
    whole = VisibleDice(Bright())
    whole.update((image, importance, label))
    curve, result = whole.compute(), engine.state.metrics["visible"]
    if value == "curve":
        torch.testing.assert_close(result.score, curve.score)
    else:
        assert result == pytest.approx(curve.area if value == "area" else curve.at(value))


def test_network_and_inputs_come_back_as_they_were() -> None:
    network = nn.Sequential(nn.BatchNorm2d(1), nn.Conv2d(1, 3, 1), nn.Dropout(0.5)).train()
    network[2].eval()
    batch = cohort(2)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    kept = [part.clone() for part in batch]
    metric = VisibleDice(network, (0.5, 1.0))
    metric.update(batch)
    assert [module.training for module in network.modules()] == [True, True, True, False]
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert all(torch.equal(part, copy) for part, copy in zip(batch, kept, strict=True))
    expected = foreground_dice(network.eval()(batch[0]), batch[2]).double().nanmean(dim=0)
    torch.testing.assert_close(metric.compute().score[1], expected)


@pytest.mark.parametrize("mode", ["insertion", "deletion"])
@pytest.mark.parametrize("batch", [1, 3])
def test_every_option_reaches_the_scores(mode: str, batch: int) -> None:
    """Over two updates it is the mean of `VisibilityScorer` over the volumes."""
    image, importance, label = cohort(3)
    options: dict = {"hiding": Hiding("noise", sigma=0.7), "spacing_mm": (1.0, 2.5)}
    metric = VisibleDice(Bright(), measure="surface_distance", mode=mode, batch=batch, **options)
    passes = []
    metric.network.register_forward_hook(lambda _, inputs, output: passes.append(len(inputs[0])))
    metric.update((image[:2], importance[:2], label[:2]))
    metric.update((MetaTensor(image[2:]), MetaTensor(importance[2:]), MetaTensor(label[2:])))
    assert passes == [2 * batch] * (12 // batch) + [batch] * (12 // batch)
    curves = []
    for item in range(3):
        one = slice(item, item + 1)
        scorer = VisibilityScorer(Bright(), image[one], label[one], measures=("surface_distance",), **options)
        curves.append(scorer(importance[one], mode=mode).curve("surface_distance"))
    curve = metric.compute()
    torch.testing.assert_close(curve.score, torch.stack([single.score for single in curves]).nanmean(dim=0))
    torch.testing.assert_close(curve.share, torch.stack([single.share for single in curves]).mean(dim=0))
    assert type(curve.score) is type(curve.share) is Tensor


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"order": "rank"}, "order must be one of 'quantile', 'threshold', got 'rank'"),
        ({"value": "mean"}, "value must be one of 'curve', 'area', got 'mean'"),
        ({"value": 1.5}, "value must be 'curve', 'area' or a share in [0, 1], got 1.5"),
        ({"levels": (0.5, 1.1)}, "levels must be numbers in [0, 1], at least one, got (0.5, 1.1)"),
        ({"levels": (-0.1, 1.0)}, "levels must be numbers in [0, 1], at least one, got (-0.1, 1.0)"),
        ({"mode": "both"}, "mode must be one of 'insertion', 'deletion', got 'both'"),
        ({"measure": "f1"}, "measure must be one of 'dice', 'soft_dice', 'iou', 'surface_distance', got 'f1'"),
        ({"measure": "surface_distance"}, "spacing_mm must be given for measure 'surface_distance', got None"),
        ({"spacing_mm": (1.0, 0.0)}, "spacing_mm must be finite numbers above 0, got (1.0, 0.0)"),
        ({"batch": 0}, "batch must be at least 1, got 0"),
    ],
)
def test_refuses_bad_arguments(changed: dict, says: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(says)}$"):
        VisibleDice(Bright(), **changed)


def test_refuses_bad_importance() -> None:
    image, importance, label = cohort(2)
    for bad in (importance[..., :-1], importance[:1]):
        with pytest.raises(ValueError, match=r"importance must be one channel on .* grid, \(2, 1, 6, 5\), got"):
            VisibleDice(Bright()).update((image, bad, label))


SPACING = (1.0, 2.5, 0.5)
LEVELS = (0.0, 0.1, 0.3, 0.75, 1.0)


class Counted(nn.Module):
    """A small random network that keeps what it was given."""

    def __init__(self, classes: int = 3, channels: int = 2) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.layers = nn.Sequential(nn.Conv3d(channels, classes, 3, padding=1), nn.BatchNorm3d(classes))
        self.seen: list[Tensor] = []

    def forward(self, x: Tensor) -> Tensor:
        assert not torch.is_grad_enabled()
        assert not self.layers[1].training
        self.seen.append(x)
        return self.layers(x)


def volume(items: int = 2) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    image = torch.randn(items, 2, 5, 4, 6, generator=generator)
    importance = torch.rand(items, 1, 5, 4, 6, generator=generator)
    return image, importance, torch.randint(0, 3, importance.shape, generator=generator)


@pytest.mark.parametrize("batch", [1, 2, 5, 9])
@pytest.mark.parametrize("mode", ["insertion", "deletion"])
@pytest.mark.parametrize("hiding", [ZERO, Hiding("noise", sigma=2.0), Hiding("mean")], ids=lambda h: h.operator)
def test_equals_hiding_and_segmenting_by_hand(batch: int, mode: str, hiding: Hiding) -> None:
    image, importance, label = volume()
    names = tuple(MEASURES)
    scorer = VisibilityScorer(Counted(), image, label, hiding, names, SPACING, batch)
    result = scorer(importance, LEVELS, mode=mode)
    assert result.level.tolist() == list(LEVELS)
    assert set(result.score) == set(names)
    network = Counted().eval()
    visible = visible_voxels(importance, "quantile", mode)
    for index, level in enumerate(LEVELS):
        shown = round(level * 120) / 120
        assert result.share[:, index].tolist() == pytest.approx([shown if mode == "insertion" else 1 - shown] * 2)
        with torch.no_grad():
            logits = network(hiding(image, visible(level)))
        for name in names:
            expected = MEASURES[name](logits, label, SPACING).double()
            torch.testing.assert_close(result.score[name][:, index], expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("batch", "passes"), [(1, [1] * 5), (2, [2, 2, 1]), (8, [5])])
def test_the_ends_are_passed_once_for_all_maps_and_modes(batch: int, passes: list[int]) -> None:
    image, importance, label = volume(items=1)
    network = Counted()
    scorer = VisibilityScorer(network, image, label, measures=("dice", "soft_dice"), batch=batch)
    first = scorer(importance, LEVELS)
    assert [len(x) for x in network.seen] == passes
    network.seen.clear()
    again = scorer(importance, LEVELS)
    assert sum(len(x) for x in network.seen) == 3
    assert all(torch.equal(first.score[name], again.score[name]) for name in first.score)
    network.seen.clear()
    deleted = scorer(1 - importance, LEVELS, mode="deletion")
    assert sum(len(x) for x in network.seen) == 3
    # Nothing deleted is everything visible, and the reverse.
    assert torch.equal(deleted.score["dice"][:, [0, -1]], first.score["dice"][:, [-1, 0]])
    assert deleted.share[0, [0, -1]].tolist() == [1, 0]
    assert not torch.equal(first.score["dice"][:, 0], first.score["dice"][:, -1])


def test_an_end_of_one_item_is_no_end() -> None:
    """By threshold one item may be all visible and another not."""
    image, importance, label = volume()
    importance[0] = 1
    scorer = VisibilityScorer(Counted(), image, label)
    scorer(torch.ones_like(importance), (1.0,))
    result = scorer(importance, (0.5,), order="threshold")
    assert result.share[0].item() == 1
    assert result.share[1].item() < 1
    with torch.no_grad():
        expected = MEASURES["dice"](Counted().eval()(image * (importance >= 0.5)), label).double()
    torch.testing.assert_close(result.score["dice"][:, 0], expected)


def test_every_map_and_every_level_meets_the_same_noise() -> None:
    image, importance, label = volume(items=1)
    network = Counted()
    scorer = VisibilityScorer(network, image, label, Hiding("noise", sigma=3.0))
    scorer(importance, (0.0, 0.4))
    scorer(1 - importance, (0.2,))
    nothing, *others = network.seen
    for seen in others:
        hidden = seen != image
        assert torch.equal(seen[hidden], nothing[hidden])


def test_a_callable_runs_without_gradients_and_a_network_comes_back() -> None:
    image, importance, label = volume()
    network = Counted().train()
    network.layers[0].eval()
    kept = [part.clone() for part in (image, importance, label)]
    state = {name: value.clone() for name, value in network.state_dict().items()}
    by_network = VisibilityScorer(network, image, label)(importance.requires_grad_(), LEVELS)
    assert [module.training for module in network.modules()] == [True, True, False, True]
    assert all(torch.equal(value, state[name]) for name, value in network.state_dict().items())
    assert all(torch.equal(part, copy) for part, copy in zip((image, importance, label), kept, strict=True))
    network.eval()
    by_callable = VisibilityScorer(lambda x: network(x), image.requires_grad_(), label)(importance, LEVELS)
    assert torch.equal(by_callable.score["dice"], by_network.score["dice"])
    assert not by_network.score["dice"].requires_grad


def test_scorer_of_metatensors_gives_what_tensors_give() -> None:
    image, importance, label = volume()
    names = tuple(MEASURES)
    options = (Hiding("blur", sigma=1.0), names, SPACING)
    plain = VisibilityScorer(Counted(), image, label, *options)(importance)
    network = Counted()
    wrapped = VisibilityScorer(network, MetaTensor(image), MetaTensor(label.float()), *options)(MetaTensor(importance))
    assert {type(part) for part in (*wrapped.score.values(), wrapped.share, *network.seen)} == {Tensor}
    for name in names:
        torch.testing.assert_close(wrapped.score[name], plain.score[name])


class Threshold(nn.Module):
    """A toy utility: class 1 where the image is above 0.5."""

    def forward(self, x: Tensor) -> Tensor:
        return x - 0.5


def test_chance_is_the_floor_and_the_label_the_ceiling() -> None:
    label = torch.zeros(1, 1, 12, 12, 12)
    label[:, :, 4:8, 3:9, 2:6] = 1
    scorer = VisibilityScorer(
        Threshold(), label, label, measures=("dice", "surface_distance"), spacing_mm=SPACING, batch=4
    )
    maps = {
        "chance": torch.rand(label.shape, generator=torch.Generator().manual_seed(0)),
        "label": distance_map(label, SPACING),
    }
    shown = {name: scorer(importance) for name, importance in maps.items()}
    hidden = {name: scorer(importance, mode="deletion") for name, importance in maps.items()}
    assert shown["label"].curve("dice").area > shown["chance"].curve("dice").area + 0.2
    assert hidden["label"].curve("dice").area < hidden["chance"].curve("dice").area - 0.2
    assert shown["label"].curve("surface_distance").area < shown["chance"].curve("surface_distance").area
    assert bool((shown["label"].score["dice"][:, 3:] == 1).all())


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"measures": ()}, "measures must be a sequence of at least one name, got ()"),
        ({"measures": ("surface_distance",)}, "spacing_mm must be given for measure 'surface_distance', got None"),
        ({"spacing_mm": (1.0, 1.0)}, "spacing_mm must have one number for each of 3 axes, got (1.0, 1.0)"),
        ({"batch": 0}, "batch must be at least 1, got 0"),
        (
            {"label": torch.zeros(2, 1, 5, 4, 5)},
            "label must be one channel on the image's grid, (2, 1, 5, 4, 6), got (2, 1, 5, 4, 5)",
        ),
        (
            {"image": torch.full((2, 2, 5, 4, 6), math.inf)},
            "image must hold finite values only, got 480 NaN or infinite of 480",
        ),
    ],
)
def test_scorer_refuses_bad_arguments(changed: dict, says: str) -> None:
    image, _, label = volume()
    with pytest.raises(ValueError, match=f"^{re.escape(says)}$"):
        VisibilityScorer(**{"predict": Counted(), "image": image, "label": label, **changed})


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"levels": ()}, "levels must be numbers in [0, 1], at least one, got ()"),
        ({"levels": (0.2, math.nan)}, "levels must be numbers in [0, 1], at least one, got (0.2, nan)"),
        ({"mode": "both"}, "mode must be one of 'insertion', 'deletion', got 'both'"),
        ({"order": "rank"}, "order must be one of 'quantile', 'threshold', got 'rank'"),
        (
            {"importance": torch.ones(2, 2, 5, 4, 6)},
            "importance must be one channel on the image's grid, (2, 1, 5, 4, 6), got (2, 2, 5, 4, 6)",
        ),
        (
            {"importance": torch.full((2, 1, 5, 4, 6), math.nan)},
            "importance must hold finite values only, got 240 NaN or infinite of 240",
        ),
    ],
)
def test_refuses_a_bad_map_before_the_network_runs(changed: dict, says: str) -> None:
    image, importance, label = volume()
    network = Counted()
    with pytest.raises(ValueError, match=f"^{re.escape(says)}$"):
        VisibilityScorer(network, image, label)(**{"importance": importance, **changed})
    assert network.seen == []
