"""One image, many maps: the scores against hiding and segmenting by hand, and how often the network is called."""

import math
import re

import pytest
import torch
from monai.data import MetaTensor
from torch import Tensor, nn

from unoise_monai.metrics.overlap import MEASURES
from unoise_monai.metrics.visibility import ZERO, Hiding, VisibilityScorer, distance_map, visible_voxels

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
    return (
        image,
        torch.rand(items, 1, 5, 4, 6, generator=generator),
        torch.randint(0, 3, (items, 1, 5, 4, 6), generator=generator),
    )


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


def test_threshold_order() -> None:
    image, importance, label = volume()
    result = VisibilityScorer(Counted(), image, label)(importance, (0.3, 0.6), order="threshold")
    for index, level in enumerate((0.3, 0.6)):
        shown = importance >= 1 - level
        torch.testing.assert_close(result.share[:, index], shown.flatten(1).double().mean(dim=1))
        with torch.no_grad():
            expected = MEASURES["dice"](Counted().eval()(image * shown), label).double()
        torch.testing.assert_close(result.score["dice"][:, index], expected)


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


def test_metatensors_give_what_tensors_give() -> None:
    image, importance, label = volume()
    names = tuple(MEASURES)
    plain = VisibilityScorer(Counted(), image, label, Hiding("blur", sigma=1.0), names, SPACING)(importance)
    network = Counted()
    scorer = VisibilityScorer(
        network, MetaTensor(image), MetaTensor(label.float()), Hiding("blur", sigma=1.0), names, SPACING
    )
    wrapped = scorer(MetaTensor(importance))
    assert {type(part) for part in (*wrapped.score.values(), wrapped.share, *network.seen)} == {Tensor}
    for name in names:
        torch.testing.assert_close(wrapped.score[name], plain.score[name])


class Bright(nn.Module):
    """A toy utility: class 1 where the image is above 0.5."""

    def forward(self, x: Tensor) -> Tensor:
        return x - 0.5


def test_chance_is_the_floor_and_the_label_the_ceiling() -> None:
    label = torch.zeros(1, 1, 12, 12, 12)
    label[:, :, 4:8, 3:9, 2:6] = 1
    scorer = VisibilityScorer(
        Bright(), label, label, measures=("dice", "surface_distance"), spacing_mm=SPACING, batch=4
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
def test_refuses_bad_arguments(changed: dict, says: str) -> None:
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
