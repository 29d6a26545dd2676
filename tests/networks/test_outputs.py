"""Logits of one channel and of more say the same of two classes."""

import torch

from unoise_monai.networks.modes import probabilities, segmentation


def test_one_channel_is_two_classes_whose_first_logit_is_zero() -> None:
    logits = torch.randn(2, 1, 3, 4)
    two = torch.cat([torch.zeros_like(logits), logits], dim=1)
    assert torch.equal(segmentation(logits), segmentation(two))
    torch.testing.assert_close(probabilities(logits), probabilities(two)[:, 1:])


def test_the_largest_logit_is_the_class() -> None:
    logits = torch.tensor([[[1.0, -1.0], [0.0, 5.0], [3.0, 2.0]]])
    assert segmentation(logits).tolist() == [[[2, 1]]]
    torch.testing.assert_close(probabilities(logits).sum(dim=1), torch.ones(1, 2))


def test_half_precision_comes_out_in_float32() -> None:
    assert probabilities(torch.zeros(1, 1, 2, dtype=torch.bfloat16)).dtype == torch.float32
