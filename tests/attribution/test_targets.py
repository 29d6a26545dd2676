"""Targets give the scalar that their formula says, of the voxels that the unperturbed image chose."""

import re

import pytest
import torch
from torch import Tensor

from unoise_monai.attribution import (
    Difference,
    Foreground,
    Region,
    SoftDice,
    border_mean,
    class_logits,
    class_sum,
    foreground_sum,
    voxel,
)
from unoise_monai.attribution.targets import of_item
from unoise_monai.networks import UNet


def logits_of(classes: int, *size: int, batch: int = 2) -> Tensor:
    return torch.randn(batch, classes, *size, generator=torch.Generator().manual_seed(classes))


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


def test_class_sum_of_one_channel() -> None:
    logits = logits_of(1, 6, 6)
    torch.testing.assert_close(class_sum(logits, 1)(logits), logits.clamp_min(0).flatten(1).sum(dim=1))
    torch.testing.assert_close(class_sum(logits, 0)(logits), (-logits).clamp_min(0).flatten(1).sum(dim=1))


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
    tumour, organ = class_sum(logits, 2), class_sum(logits, 1)
    torch.testing.assert_close(Difference(tumour, organ)(logits), tumour(logits) - organ(logits))


def test_foreground_is_every_voxel_s_own_class() -> None:
    logits, perturbed = logits_of(3, 5, 4, 3), logits_of(3, 5, 4, 3).flip(2)
    target = foreground_sum(logits)
    torch.testing.assert_close(target(perturbed), class_sum(logits, 1)(perturbed) + class_sum(logits, 2)(perturbed))
    one = logits_of(1, 5, 4)
    torch.testing.assert_close(foreground_sum(one)(one), class_sum(one, 1)(one))


@pytest.mark.parametrize("kind", ["class sum", "border", "dice", "difference", "foreground", "shared", "callable"])
def test_the_target_of_one_item_is_that_item_s(kind: str) -> None:
    logits = logits_of(3, 6, 6)
    targets = {
        "class sum": class_sum(logits, 1),
        "border": border_mean(logits, 2),
        "dice": SoftDice(torch.randint(0, 3, (2, 1, 6, 6), generator=torch.Generator().manual_seed(2)), 1),
        "difference": Difference(class_sum(logits, 2), voxel((3, 4), 1, (6, 6))),
        "foreground": foreground_sum(logits),
        "shared": voxel((3, 4), 1, (6, 6)),
        "callable": lambda logits: logits[:, 1].flatten(1).sum(dim=1),
    }
    both = targets[kind](logits)
    for index in range(2):
        single = of_item(targets[kind], index)(logits[index : index + 1].expand(3, -1, -1, -1))
        torch.testing.assert_close(single, both[index].expand(3))


def test_made_from_one_item_it_serves_many_copies() -> None:
    logits = logits_of(3, 6, 6, batch=1)
    copies = torch.cat([logits, 2 * logits, 3 * logits])
    torch.testing.assert_close(class_sum(logits, 1)(copies), class_sum(logits, 1)(logits) * torch.tensor([1.0, 2, 3]))


@pytest.mark.parametrize("kind", ["class sum", "border", "region", "voxel", "dice", "difference", "foreground"])
def test_the_gradient_reaches_the_image(kind: str) -> None:
    torch.manual_seed(0)
    network = UNet(2, 1, 3, depth=2, channel_factor=2).eval()
    image = torch.randn(2, 1, 8, 8, requires_grad=True)
    logits = torch.zeros(2, 3, 8, 8)
    logits[:, 0] = 1
    logits[:, 1, 2:6, 2:6] = 2
    logits[:, 2, 5:7, 5:7] = 3
    targets = {
        "class sum": class_sum(logits, 1),
        "border": border_mean(logits, 2),
        "region": Region(torch.rand(2, 1, 8, 8) > 0.5, 2),
        "voxel": voxel((3, 4), 1, (8, 8)),
        "dice": SoftDice(torch.randint(0, 3, (2, 1, 8, 8)), 1),
        "difference": Difference(class_sum(logits, 2), class_sum(logits, 1)),
        "foreground": foreground_sum(logits),
    }
    values = targets[kind](network(image))
    assert values.shape == (2,)
    values.sum().backward()
    assert bool((image.grad.flatten(1).abs().sum(dim=1) > 0).all())


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int32, torch.float32, torch.int64])
def test_foreground_labels_may_be_of_any_type(dtype: torch.dtype) -> None:
    logits = logits_of(3, 6, 6)
    labels = foreground_sum(logits).labels
    torch.testing.assert_close(Foreground(labels.to(dtype))(logits), Foreground(labels)(logits))


def test_the_mask_is_no_part_of_the_graph() -> None:
    logits = logits_of(2, 6, 6).requires_grad_()
    assert not class_sum(logits, 1).mask.requires_grad


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: class_sum(torch.full((2, 1, 3, 3), -1.0), 1), "at least one voxel of every item, got none of item 0"),
        (lambda: class_sum(torch.zeros(1, 3, 3, 3), 3), "label must be a class of the network, 0 to 2, got 3"),
        (lambda: class_sum(torch.zeros(1, 1, 3, 3), 2), "label must be a class of the network, 0 to 1, got 2"),
        (
            lambda: foreground_sum(torch.full((1, 1, 3, 3), -1.0)),
            "at least one voxel of every item, got none of item 0",
        ),
        (
            lambda: foreground_sum(torch.ones(1, 1, 3, 4))(torch.zeros(1, 1, 3, 3)),
            "segmentation must lie on the grid of the logits (1, 1, 3, 3), got (1, 1, 3, 4)",
        ),
        (lambda: SoftDice(torch.zeros(1, 1, 3, 3), 0), "label must be at least 1, got 0"),
        (lambda: voxel((3, 0), 1, (3, 3)), "index must lie inside (3, 3), got (3, 0)"),
        (
            lambda: Region(torch.ones(1, 1, 3, 4), 1)(torch.zeros(1, 2, 3, 3)),
            "region must lie on the grid of the logits (1, 2, 3, 3), got (1, 1, 3, 4)",
        ),
        (
            lambda: SoftDice(torch.ones(2, 1, 3, 3), 1)(torch.zeros(3, 2, 3, 3)),
            "label must lie on the grid of the logits (3, 2, 3, 3), got (2, 1, 3, 3)",
        ),
    ],
)
def test_refusals(make: object, says: str) -> None:
    with pytest.raises(ValueError, match=re.escape(says)):
        make()
