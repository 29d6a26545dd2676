"""A network that somebody runs for a moment comes back as it was."""

import pytest
import torch
from torch import nn

from unoise_monai.networks.modes import evaluating


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
