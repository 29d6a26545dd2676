"""What Dice is left of the visible voxels, over volumes, against naive sorting and counting."""

import math
import re

import pytest
import torch
from ignite.engine import Engine
from ignite.exceptions import NotComputableError
from monai.data import MetaTensor
from torch import Tensor, nn

from unoise_monai.metrics.overlap import foreground_dice
from unoise_monai.metrics.visibility import Hiding, VisibilityScorer, VisibleDice


class Bright(nn.Module):
    """A toy utility: class 1 where the first channel is above 0.5, class 2 above 1.5."""

    def forward(self, x: Tensor) -> Tensor:
        x = x[:, :1]
        return torch.cat([0.5 - x, torch.full_like(x, 0.0), x - 1.5], dim=1)


def cohort(items: int, spatial: tuple[int, ...] = (6, 5), seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Image, random importance, label: what `Bright` says of the image, with some voxels wrong."""
    generator = torch.Generator().manual_seed(seed)
    label = torch.randint(0, 3, (items, 1, *spatial), generator=generator)
    wrong = torch.rand(label.shape, generator=generator) < 0.1
    image = torch.where(wrong, 0, label).float()
    return image, torch.rand(label.shape, generator=generator), label


def naive_visible(importance: Tensor, share: float) -> Tensor:
    """The top share of each volume, by sorting a list; equal values in the order of the voxels."""
    visible = torch.zeros_like(importance, dtype=torch.bool)
    for item in range(len(importance)):
        values = importance[item].flatten().tolist()
        ranked = sorted(range(len(values)), key=lambda i: (-values[i], i))
        visible[item].view(-1)[ranked[: round(share * len(values))]] = True
    return visible


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


def test_all_visible_is_the_clean_dice_and_none_is_the_zero_image() -> None:
    image, importance, label = cohort(2)
    network = nn.Sequential(nn.Conv2d(1, 3, 3, padding=1))
    metric = VisibleDice(network, (0.0, 1.0))
    metric.update((image, importance, label))
    curve = metric.compute()
    assert curve.share.tolist() == [0, 1]
    torch.testing.assert_close(curve.score[1], foreground_dice(network(image), label).double().nanmean(dim=0))
    zeros = foreground_dice(network(torch.zeros_like(image)), label)
    torch.testing.assert_close(curve.score[0], zeros.double().nanmean(dim=0))


def test_every_channel_is_hidden() -> None:
    image, importance, label = cohort(1)
    seen = []
    network = Bright()
    network.register_forward_hook(lambda _, inputs, output: seen.append(inputs[0]))
    VisibleDice(network, (0.5,)).update((torch.cat([image + 1, image + 2], dim=1), importance, label))
    assert torch.equal(seen[0] != 0, naive_visible(importance, 0.5).expand(-1, 2, -1, -1))


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


def test_map_of_what_matters_beats_a_random_and_an_inverted_one() -> None:
    image, random, label = cohort(3, (10, 10))
    areas = []
    for importance in ((image > 0).float(), random, (image == 0).float()):
        metric = VisibleDice(Bright(), value="area")
        metric.update((image, importance, label))
        areas.append(metric.compute())
    assert areas[0] > areas[1] + 0.1 > areas[2] + 0.2


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
    """Over two updates it is the mean of what `VisibilityScorer` says of each volume."""
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


def test_deletion_scores_by_the_visible_share() -> None:
    whole = cohort(2)
    shown, hidden = (VisibleDice(Bright(), (0.2,), mode=mode, value="curve") for mode in ("insertion", "deletion"))
    for metric in (shown, hidden):
        metric.update(whole)
    assert (shown.compute().share.tolist(), hidden.compute().share.tolist()) == ([0.2], [0.8])
    inverted = VisibleDice(Bright(), (0.8,))
    inverted.update((whole[0], -whole[1], whole[2]))
    torch.testing.assert_close(hidden.compute().score, inverted.compute().score)


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"order": "rank"}, "order must be one of 'quantile', 'threshold', got 'rank'"),
        ({"value": "mean"}, "value must be one of 'curve', 'area', got 'mean'"),
        ({"value": 1.5}, "value must be 'curve', 'area' or a share in [0, 1], got 1.5"),
        ({"levels": ()}, "levels must be numbers in [0, 1], at least one, got ()"),
        ({"levels": (0.5, 1.1)}, "levels must be numbers in [0, 1], at least one, got (0.5, 1.1)"),
        ({"levels": (-0.1, 1.0)}, "levels must be numbers in [0, 1], at least one, got (-0.1, 1.0)"),
        ({"levels": (math.nan,)}, "levels must be numbers in [0, 1], at least one, got (nan,)"),
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
    metric = VisibleDice(Bright())
    for bad in (importance.repeat(1, 2, 1, 1), importance[..., :-1], importance[:1]):
        with pytest.raises(
            ValueError, match=r"importance must be one channel on the image's grid, \(2, 1, 6, 5\), got"
        ):
            metric.update((image, bad, label))
    importance[0, 0, 0, 0] = math.nan
    with pytest.raises(ValueError, match="importance must hold finite values only, got 1 NaN or infinite of 60"):
        metric.update((image, importance, label))
