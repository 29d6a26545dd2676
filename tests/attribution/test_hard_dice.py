"""Dice as a target, against counting."""

import re

import pytest
import torch

from unoise_monai.attribution.targets import HardDice, unperturbed_dice


def logits_of(classes: int, *size: int, batch: int = 2) -> torch.Tensor:
    return torch.randn(batch, classes, *size, generator=torch.Generator().manual_seed(classes))


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


def test_made_from_one_item_it_serves_many_copies() -> None:
    logits, others = logits_of(3, 6, 6, batch=1), logits_of(3, 6, 6, batch=4)
    target = unperturbed_dice(logits, 1)
    torch.testing.assert_close(target(others), torch.cat([target(other[None]) for other in others]))


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (
            lambda: unperturbed_dice(torch.full((2, 1, 3, 3), -1.0), 1),
            "class 1 must hold at least one voxel of every item, got none of item 0",
        ),
        (lambda: unperturbed_dice(torch.zeros(1, 3, 3, 3), 3), "label must be a class of the network, 0 to 2, got 3"),
        (
            lambda: HardDice(torch.ones(2, 1, 3, 3), 1)(torch.zeros(3, 2, 3, 3)),
            "label must lie on the grid of the logits (3, 2, 3, 3), got (2, 1, 3, 3)",
        ),
        (
            lambda: HardDice(torch.ones(1, 1, 3, 4), 1)(torch.zeros(1, 2, 3, 3)),
            "label must lie on the grid of the logits (1, 2, 3, 3), got (1, 1, 3, 4)",
        ),
    ],
)
def test_refusals(make: object, says: str) -> None:
    with pytest.raises(ValueError, match=re.escape(says)):
        make()
