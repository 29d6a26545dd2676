"""A network that is run for a moment comes back as it was; one channel and more mean the same of two classes."""

import pytest
import torch
from torch import nn

from unoise_monai.networks.weights import attributing, evaluating, probabilities, segmentation


def test_every_submodule_gets_its_own_mode_back_also_after_an_error() -> None:
    network = nn.Sequential(nn.BatchNorm1d(2), nn.Dropout()).train()
    network[1].eval()
    before = network[0].running_mean.clone()
    with evaluating(network):
        assert not network[0].training
        assert not network(torch.ones(3, 2, requires_grad=True)).requires_grad
    with pytest.raises(RuntimeError), evaluating(network):
        network(torch.ones(3, 5))
    assert (network.training, network[0].training, network[1].training) == (True, True, False)
    torch.testing.assert_close(network[0].running_mean, before, rtol=0, atol=0)
    assert torch.is_grad_enabled()


class Left(nn.Module):
    """An activation in place, whose hooks a method leaves behind."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(2, 2)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.relu(self.layer(x))


def test_attributing_leaves_no_trace_also_after_an_error() -> None:
    network = Left().train()
    network.layer.bias.requires_grad_(False)
    calls: list[str] = []
    network.relu.register_forward_hook(lambda *_: calls.append("own"))
    x = torch.ones(1, 2, requires_grad=True)

    def fail() -> None:
        assert (network.training, network.relu.training, network.relu.inplace) == (False, False, False)
        assert not any(parameter.requires_grad for parameter in network.parameters())
        for register in (network.relu.register_full_backward_hook, network.relu.register_forward_pre_hook):
            register(lambda *_: calls.append("left"))
        network(x).sum().backward()
        network(torch.ones(1, 3))

    with pytest.raises(RuntimeError, match="shapes"), attributing(network):
        fail()
    assert x.grad is not None
    assert network.layer.weight.grad is None
    assert calls == ["left", "own", "left"]
    assert (network.training, network.relu.training, network.relu.inplace) == (True, True, True)
    assert (network.layer.weight.requires_grad, network.layer.bias.requires_grad) == (True, False)
    calls.clear()
    network(torch.ones(1, 2)).sum().backward()
    assert calls == ["own"]


def test_attributing_in_inference_mode() -> None:
    network = Left()
    with torch.inference_mode():
        x = torch.ones(1, 2)
        with attributing(network):
            copy = x.clone().requires_grad_()
            (gradient,) = torch.autograd.grad(network(copy).sum(), copy)
        assert torch.is_inference_mode_enabled()
    expected = torch.ones(1, 2, requires_grad=True)
    network(expected).sum().backward()
    torch.testing.assert_close(gradient, expected.grad)


def test_attributing_enables_gradients_where_the_caller_has_none() -> None:
    network = Left()
    with torch.no_grad(), attributing(network):
        assert network(torch.ones(1, 2, requires_grad=True)).requires_grad
    assert torch.is_grad_enabled()


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
