"""The losses equal their papers' formulas, written out."""

import re

import pytest
import torch
from torch.nn import functional as F

from unoise_monai.losses import BCEIoUDiceLoss, FocalTverskyLoss, MultiScaleLoss, full_resolution
from unoise_monai.losses.segmentation import soft_labels
from unoise_monai.networks.weights import probabilities


def volumes(classes: int, batch: int = 2) -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(classes)
    return torch.randn(batch, classes, 4, 5, 3), torch.randint(0, max(classes, 2), (batch, 1, 4, 5, 3)).float()


def test_focal_tversky_is_the_formula() -> None:
    logits, target = volumes(1)
    p, y = torch.sigmoid(logits), target
    hit, missed, false = (p * y).sum(), ((1 - p) * y).sum(), (p * (1 - y)).sum()
    index = (hit + 1) / (hit + 0.7 * missed + 0.3 * false + 1)
    torch.testing.assert_close(FocalTverskyLoss()(logits, target), (1 - index) ** 0.75)


def test_focal_tversky_averages_the_foreground_classes() -> None:
    logits, target = volumes(3)
    p = torch.softmax(logits, dim=1)
    losses = []
    for value in (1, 2):
        y, q = (target == value).float(), p[:, value : value + 1]
        index = ((q * y).sum() + 2) / ((q * y).sum() + 0.6 * ((1 - q) * y).sum() + 0.4 * (q * (1 - y)).sum() + 2)
        losses.append((1 - index) ** 0.5)
    loss = FocalTverskyLoss(false_negatives=0.6, false_positives=0.4, power=0.5, smooth=2.0)
    torch.testing.assert_close(loss(logits, target), sum(losses) / 2)


def test_a_missed_vessel_costs_more_than_a_false_one() -> None:
    target = torch.zeros(1, 1, 10)
    target[..., :5] = 1
    missed, false = torch.full((1, 1, 10), -9.0), torch.full((1, 1, 10), -9.0)
    missed[..., :3] = 9
    false[..., :7] = 9
    loss = FocalTverskyLoss()
    assert loss(missed, target) > loss(false, target)


@pytest.mark.parametrize("classes", [1, 3])
def test_a_soft_label_against_itself_costs_nothing(classes: int) -> None:
    logits, _ = volumes(classes)
    assert FocalTverskyLoss()(logits, probabilities(logits)) < 1e-3


def test_a_perfect_or_empty_batch_has_finite_gradients() -> None:
    for target in (torch.zeros(1, 1, 4, 4), torch.ones(1, 1, 4, 4)):
        logits = (200 * (2 * target - 1)).requires_grad_()
        loss = FocalTverskyLoss()(logits, target)
        loss.backward()
        assert torch.isfinite(logits.grad).all()
        assert loss < 1e-3


@pytest.mark.parametrize("classes", [1, 3])
def test_equation_5_is_the_formula(classes: int) -> None:
    logits, target = volumes(classes)
    shares, p = soft_labels(target, classes), probabilities(logits)
    entropy = -(shares * p.log()).sum(dim=1).mean()
    if classes == 1:
        entropy = -(target * p.log() + (1 - target) * (1 - p).log()).mean()
    dice, iou = [], []
    for item in range(2):
        for value in range(1, classes) if classes > 1 else [0]:
            q, y = p[item, value], shares[item, value]
            both = (q * y).sum()
            dice.append(2 * both / (q.sum() + y.sum()))
            iou.append(both / (q.sum() + y.sum() - both))
    expected = 2 + entropy - sum(iou) / len(iou) - sum(dice) / len(dice)
    torch.testing.assert_close(BCEIoUDiceLoss()(logits, target), expected, atol=1e-4, rtol=1e-4)


def test_equation_5_trains_a_utility_of_either_kind() -> None:
    for classes in (1, 3):
        logits, target = volumes(classes)
        fitted = logits.clone().requires_grad_()
        optimizer = torch.optim.Adam([fitted], lr=0.5)
        loss = BCEIoUDiceLoss()
        before = float(loss(logits, target))
        for _ in range(60):
            optimizer.zero_grad()
            loss(fitted, target).backward()
            optimizer.step()
        assert float(loss(fitted.detach(), target)) < 0.1 * before


def test_the_scales_are_weighted_and_brought_to_the_label_s_grid() -> None:
    _, target = volumes(1)
    target = F.interpolate(target, (8, 8, 8))
    scales = [torch.randn(2, 1, side, side, side, requires_grad=True) for side in (8, 4, 2)]
    loss = FocalTverskyLoss()
    up = [F.interpolate(scale, (8, 8, 8), mode="trilinear") for scale in scales]
    expected = loss(up[0], target) + 0.66 * loss(up[1], target) + 0.34 * loss(up[2], target)
    found = MultiScaleLoss(loss)(scales, target)
    torch.testing.assert_close(found, expected)
    found.backward()
    assert all(float(scale.grad.abs().sum()) > 0 for scale in scales)
    torch.testing.assert_close(MultiScaleLoss(loss)(scales[0], target), loss(scales[0], target))


def test_scales_in_two_dimensions() -> None:
    scales = [torch.randn(1, 1, 8, 6), torch.randn(1, 1, 4, 3)]
    assert torch.isfinite(MultiScaleLoss(BCEIoUDiceLoss(), (1, 0.5))(scales, torch.ones(1, 1, 8, 6)))


def test_full_resolution_is_the_first_tensor_of_all() -> None:
    first, other = torch.zeros(1), torch.ones(1)
    for pred in (first, [first, other], ([first, other], [other], other)):
        assert full_resolution(pred) is first


def test_soft_labels() -> None:
    indices = torch.tensor([[[0.0, 2.0, 1.0]]])
    expected = torch.tensor([[[1.0, 0, 0], [0, 0, 1], [0, 1, 0]]])
    torch.testing.assert_close(soft_labels(indices, 3), expected)
    torch.testing.assert_close(soft_labels(expected, 3), expected)
    torch.testing.assert_close(soft_labels(torch.tensor([[[0.25, 1.0]]]), 1), torch.tensor([[[0.25, 1.0]]]))
    with pytest.raises(ValueError, match=re.escape("target must have 1 channel or 3, got shape (1, 2, 4)")):
        soft_labels(torch.zeros(1, 2, 4), 3)
    rounded = torch.tensor([[[-1e-7, 1 + 1.2e-7]]])
    assert soft_labels(rounded, 1) is rounded
    with pytest.raises(ValueError, match=re.escape("target must hold shares in [0, 1], got 0.0 to 2.0")):
        soft_labels(torch.tensor([[[0.0, 2.0]]]), 1)


@pytest.mark.parametrize("name", ["false_negatives", "false_positives", "power", "smooth"])
def test_focal_tversky_refuses_values_out_of_range(name: str) -> None:
    with pytest.raises(ValueError, match=f"{name} must be a finite number above 0, got 0"):
        FocalTverskyLoss(**{name: 0})


def test_scales_refuse_bad_weights() -> None:
    with pytest.raises(
        ValueError, match=re.escape("weights must be finite numbers of at least 0, one or more, got []")
    ):
        MultiScaleLoss(FocalTverskyLoss(), [])
    with pytest.raises(ValueError, match=re.escape("got [1, -1]")):
        MultiScaleLoss(FocalTverskyLoss(), [1, -1])
    with pytest.raises(ValueError, match="weights must hold one for each of 2 scales, got 1"):
        MultiScaleLoss(FocalTverskyLoss(), [1.0])([torch.zeros(1, 1, 2, 2)] * 2, torch.zeros(1, 1, 2, 2))
