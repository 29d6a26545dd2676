"""Targets give the scalar of their formula, for the voxels that the unperturbed image chose, item by item."""

import itertools
import re
from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from unoise_monai.attribution.targets import (
    ClassProbability,
    Difference,
    Foreground,
    HardDice,
    Region,
    SoftDice,
    Target,
    border,
    border_mean,
    check_items,
    class_logits,
    class_sum,
    foreground_sum,
    of_item,
    unperturbed_dice,
    voxel,
)
from unoise_monai.networks import UNet


def logits_of(classes: int, *size: int, batch: int = 2, seed: int | None = None) -> Tensor:
    generator = torch.Generator().manual_seed(classes if seed is None else seed)
    return torch.randn(batch, classes, *size, generator=generator)


def ones(batch: int, *size: int) -> Tensor:
    return torch.ones(batch, 1, *size)


def test_the_logit_of_a_class() -> None:
    three, one = logits_of(3, 4, 4), logits_of(1, 4, 4)
    assert torch.equal(class_logits(three, 2), three[:, 2:])
    assert torch.equal(class_logits(one, 1), one)
    assert torch.equal(class_logits(one, 0), -one)


def test_class_sum_keeps_its_voxels_while_the_image_is_perturbed() -> None:
    logits, perturbed = logits_of(3, 5, 4, 3), logits_of(3, 5, 4, 3).flip(2)
    target = class_sum(logits, 1)
    chosen = logits.argmax(dim=1) == 1
    expected = torch.stack([perturbed[item, 1][chosen[item]].sum() for item in range(2)])
    torch.testing.assert_close(target(perturbed), expected)

    one = logits_of(1, 6, 6)
    torch.testing.assert_close(class_sum(one, 1)(one), one.clamp_min(0).flatten(1).sum(dim=1))
    torch.testing.assert_close(class_sum(one, 0)(one), (-one).clamp_min(0).flatten(1).sum(dim=1))


def test_a_single_voxel() -> None:
    logits = logits_of(2, 4, 5, 3)
    torch.testing.assert_close(voxel((3, 0, 2), 1, (4, 5, 3))(logits), logits[:, 1, 3, 0, 2])


def test_soft_dice() -> None:
    labels = torch.randint(0, 3, (1, 1, 4, 4), generator=torch.Generator().manual_seed(1))
    logits = logits_of(3, 4, 4)
    p, y = torch.softmax(logits, dim=1)[:, 2], (labels[:, 0] == 2).float()
    expected = 2 * (p * y).flatten(1).sum(dim=1) / (p.flatten(1).sum(dim=1) + y.sum())
    torch.testing.assert_close(SoftDice(labels, 2)(logits), expected)
    one = torch.where(labels == 1, 30.0, -30.0)
    torch.testing.assert_close(SoftDice(labels, 1)(one), torch.ones(1))


def test_difference_of_two_classes() -> None:
    logits = logits_of(3, 6, 6)
    first, second = class_sum(logits, 2), class_sum(logits, 1)
    torch.testing.assert_close(Difference(first, second)(logits), first(logits) - second(logits))


def test_foreground_is_every_voxel_s_own_class() -> None:
    logits, perturbed = logits_of(3, 5, 4, 3), logits_of(3, 5, 4, 3).flip(2)
    target = foreground_sum(logits)
    torch.testing.assert_close(target(perturbed), class_sum(logits, 1)(perturbed) + class_sum(logits, 2)(perturbed))
    one = logits_of(1, 5, 4)
    torch.testing.assert_close(foreground_sum(one)(one), class_sum(one, 1)(one))


KINDS: dict[str, Callable[[Tensor], Target]] = {
    "class sum": lambda logits: class_sum(logits, 1),
    "border": lambda logits: border_mean(logits, 2),
    "region": lambda logits: Region(logits[:, :1] > 0.5, 2),
    "voxel": lambda logits: voxel((3, 4), 1, logits.shape[2:]),
    "dice": lambda logits: SoftDice(logits.argmax(dim=1, keepdim=True).flip(2), 1),
    "difference": lambda logits: Difference(class_sum(logits, 2), voxel((3, 4), 1, logits.shape[2:])),
    "foreground": foreground_sum,
    "callable": lambda _: lambda logits: logits[:, 1].flatten(1).sum(dim=1),
}


@pytest.mark.parametrize("kind", KINDS)
def test_the_target_of_one_item_is_that_item_s(kind: str) -> None:
    logits = logits_of(3, 6, 6)
    target = KINDS[kind](logits)
    both = target(logits)
    for index in range(2):
        single = of_item(target, index)(logits[index : index + 1].expand(3, -1, -1, -1))
        torch.testing.assert_close(single, both[index].expand(3))


def test_made_from_one_item_it_serves_many_copies() -> None:
    logits = logits_of(3, 6, 6, batch=1)
    copies = torch.cat([logits, 2 * logits, 3 * logits])
    torch.testing.assert_close(class_sum(logits, 1)(copies), class_sum(logits, 1)(logits) * torch.tensor([1.0, 2, 3]))
    others = logits_of(3, 6, 6, batch=4)
    dice = unperturbed_dice(logits, 1)
    torch.testing.assert_close(dice(others), torch.cat([dice(other[None]) for other in others]))


@pytest.mark.parametrize("kind", KINDS)
def test_the_gradient_reaches_the_image(kind: str) -> None:
    torch.manual_seed(0)
    network = UNet(2, 1, 3, depth=2, channel_factor=2).eval()
    image = torch.randn(2, 1, 8, 8, requires_grad=True)
    logits = torch.zeros(2, 3, 8, 8)
    logits[:, 0] = 1
    logits[:, 1, 2:6, 2:6] = 2
    logits[:, 2, 5:7, 5:7] = 3
    values = KINDS[kind](logits)(network(image))
    assert values.shape == (2,)
    values.sum().backward()
    assert bool((image.grad.flatten(1).abs().sum(dim=1) > 0).all())


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int32, torch.float32, torch.int64])
def test_foreground_labels_may_be_of_any_type(dtype: torch.dtype) -> None:
    logits = logits_of(3, 6, 6)
    labels = foreground_sum(logits).labels
    torch.testing.assert_close(Foreground(labels.to(dtype))(logits), Foreground(labels)(logits))


def test_the_mask_is_no_part_of_the_graph() -> None:
    assert not class_sum(logits_of(2, 6, 6).requires_grad_(), 1).mask.requires_grad


def naive_border(labels: Tensor, label: int) -> Tensor:
    found = torch.zeros_like(labels, dtype=torch.bool)
    size = labels.shape[2:]
    for item, *at in itertools.product(range(len(labels)), *map(range, size)):
        for axis, step in itertools.product(range(len(size)), (-1, 1)):
            near = list(at)
            near[axis] += step
            inside = 0 <= near[axis] < size[axis]
            if inside and labels[(item, 0, *at)] == label and labels[(item, 0, *near)] == 0:
                found[(item, 0, *at)] = True
    return found


@pytest.mark.parametrize("size", [(6, 7), (5, 4, 6)])
@pytest.mark.parametrize("label", [1, 2])
def test_border_is_the_naive_one(size: tuple[int, ...], label: int) -> None:
    labels = torch.randint(0, 3, (2, 1, *size), generator=torch.Generator().manual_seed(0))
    assert torch.equal(border(labels, label), naive_border(labels, label))


def test_neither_another_class_nor_the_image_s_edge_is_background() -> None:
    labels = torch.tensor([[[[1, 1, 2, 2, 0]]]])
    assert not border(labels, 1).any()
    assert border(labels, 2).flatten().tolist() == [False, False, False, True, False]


def test_border_mean() -> None:
    logits, perturbed = logits_of(3, 8, 8), logits_of(3, 8, 8) + 1
    where = naive_border(logits.argmax(dim=1, keepdim=True), 1)
    expected = torch.stack([perturbed[item, 1][where[item, 0]].mean() for item in range(2)])
    torch.testing.assert_close(border_mean(logits, 1)(perturbed), expected)


@pytest.mark.parametrize("classes", [1, 3])
@pytest.mark.parametrize("size", [(5, 6), (4, 3, 5)])
def test_equals_counting(classes: int, size: tuple[int, ...]) -> None:
    logits = logits_of(classes, *size)
    labels = torch.randint(0, max(classes, 2), (2, 1, *size), generator=torch.Generator().manual_seed(0))
    for label in range(max(classes, 2)):
        found = (logits > 0).long()[:, 0] if classes == 1 else logits.argmax(dim=1)
        expected = []
        for item in range(2):
            a, b = found[item].flatten() == label, labels[item].flatten() == label
            both = sum(x and y for x, y in zip(a.tolist(), b.tolist(), strict=True))
            expected.append(2 * both / int(a.sum() + b.sum()))
        dice = HardDice(labels, label)(logits)
        assert dice.shape == (2,)
        assert dice.tolist() == pytest.approx(expected)
        assert HardDice(labels, label).item(1)(logits[1:]).tolist() == pytest.approx(expected[1:])


def test_one_without_a_change_and_zero_without_the_class() -> None:
    logits = logits_of(3, 6, 6)
    target = unperturbed_dice(logits, 2)
    assert target(logits).tolist() == [1, 1]
    assert target(torch.tensor([1.0, 0, 0]).reshape(1, 3, 1, 1).expand(2, 3, 6, 6)).tolist() == [0, 0]


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


def test_a_target_is_of_one_item_or_of_as_many_as_the_image() -> None:
    for target in targets(3):
        check_items(target, 3)
        for items in (1, 2, 4):
            with pytest.raises(ValueError, match=f"of one item or of the image's {items}, got one of 3"):
                check_items(target, items)

    for target in (*targets(1), Weighted(torch.ones(3, 1, 1, 1)), KINDS["callable"](torch.ones(1))):
        for items in (1, 2, 5):
            check_items(target, items)


def naive(logits: Tensor, where: Tensor, label: int | None, unperturbed: Tensor) -> float:
    values = []
    for at in where.nonzero().tolist():
        _, _, *voxel = at
        z = logits[(0, slice(None), *voxel)]
        own = int(unperturbed[(0, slice(None), *voxel)].argmax()) if label is None else label
        shares = [1 - float(z.sigmoid()), float(z.sigmoid())] if len(z) == 1 else z.softmax(0).tolist()
        values.append(shares[own])
    return sum(values) / len(values)


@pytest.mark.parametrize("size", [(5, 6), (3, 4, 5)])
def test_the_mean_over_the_voxels_of_the_class(size: tuple[int, ...]) -> None:
    before, after = logits_of(3, *size, batch=1, seed=0), logits_of(3, *size, batch=1, seed=1)
    segmented = before.argmax(dim=1, keepdim=True)
    for target in (class_sum(before, 2), SoftDice(torch.zeros(1, 1, *size), 2)):
        expected = naive(after, segmented == 2, 2, before)
        assert ClassProbability.of(target, before)(after) == pytest.approx(expected)
    expected = naive(after, segmented > 0, None, before)
    assert ClassProbability.of(foreground_sum(before), before)(after) == pytest.approx(expected)


def test_a_region_asks_about_its_own_voxels() -> None:
    before, after = logits_of(3, 5, 6, batch=1, seed=0), logits_of(3, 5, 6, batch=1, seed=1)
    mask = torch.zeros(1, 1, 5, 6, dtype=torch.bool)
    mask[..., 1:3, 2] = True
    assert ClassProbability.of(Region(mask, 1), before)(after) == pytest.approx(naive(after, mask, 1, before))


@pytest.mark.parametrize("label", [0, 1])
def test_one_channel(label: int) -> None:
    before, after = logits_of(1, 5, 6, batch=1, seed=0), logits_of(1, 5, 6, batch=1, seed=1)
    where = (before > 0) == bool(label)
    found = ClassProbability.of(class_sum(before, label), before)
    assert found(after) == pytest.approx(naive(after, where, label, before))
    assert found(before) > 0.5


BACKGROUND = torch.full((2, 1, 3, 3), -1.0)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: class_sum(BACKGROUND, 1), "at least one voxel of every item, got none of item 0"),
        (lambda: Region(torch.eye(2, 1).view(2, 1, 1, 1), 1), "the region must hold at least one voxel of every item"),
        (lambda: Region(torch.eye(2, 1).view(2, 1, 1, 1), 1), "at least one voxel of every item, got none of item 1"),
        (lambda: foreground_sum(BACKGROUND), "at least one voxel of every item, got none of item 0"),
        (lambda: unperturbed_dice(BACKGROUND, 1), "class 1 must hold at least one voxel of every item, got none of"),
        (lambda: class_sum(torch.zeros(1, 3, 3, 3), 3), "label must be a class of the network, 0 to 2, got 3"),
        (lambda: class_sum(torch.zeros(1, 1, 3, 3), 2), "label must be a class of the network, 0 to 1, got 2"),
        (lambda: unperturbed_dice(torch.zeros(1, 3, 3, 3), 3), "label must be a class of the network, 0 to 2, got 3"),
        (lambda: border_mean(torch.zeros(1, 3, 3, 3), 0), "label must be above 0"),
        (lambda: SoftDice(torch.zeros(1, 1, 3, 3), 0), "label must be at least 1, got 0"),
        (lambda: voxel((3, 0), 1, (3, 3)), "index must lie inside (3, 3), got (3, 0)"),
        (lambda: foreground_sum(ones(1, 3, 4))(ones(1, 3, 3)), "segmentation must lie on the grid of the logits"),
        (lambda: Region(ones(1, 3, 4), 1)(ones(1, 3, 3)), "region must lie on the grid of the logits (1, 1, 3, 3)"),
        (lambda: Region(ones(1, 3, 3).expand(1, 4, 3, 3), 1)(ones(1, 3, 3)), "logits (1, 1, 3, 3), got (1, 4, 3, 3)"),
        (
            lambda: Region(ones(2, 3, 3), 1)(ones(3, 3, 3)),
            "region must lie on the grid of the logits (3, 1, 3, 3), got",
        ),
        (lambda: SoftDice(ones(2, 3, 3), 1)(ones(3, 3, 3)), "label must lie on the grid of the logits (3, 1, 3, 3)"),
        (lambda: HardDice(ones(2, 3, 3), 1)(ones(3, 3, 3)), "label must lie on the grid of the logits (3, 1, 3, 3)"),
        (lambda: HardDice(ones(1, 3, 4), 1)(ones(1, 3, 3)), "label must lie on the grid of the logits (1, 1, 3, 3)"),
        (lambda: ClassProbability.of(SoftDice(ones(1, 4, 4), 2), torch.zeros(1, 3, 4, 4)), "one voxel, got none"),
    ],
)
def test_refusals(make: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        make()
