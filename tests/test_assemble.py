"""A bundle of objects that a run has made is told apart by its weights, not by devices, layouts or places."""

import torch
from torch import nn

from unoise_monai.bundle import state_sha256


def network(dtype: torch.dtype = torch.float32) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv3d(1, 2, 3), nn.BatchNorm3d(2)).to(dtype)


def test_equal_weights_have_one_digest_and_any_change_another() -> None:
    digest = state_sha256(network())
    assert len(digest) == 64
    assert state_sha256(network()) == digest
    weight, buffer = network(), network()
    with torch.no_grad():
        weight[0].weight[1, 0, 2, 0, 1] += 1e-6
        buffer[1].running_mean[0] = 0.5
    assert len({digest, state_sha256(weight), state_sha256(buffer), state_sha256(network(torch.bfloat16))}) == 4


def test_the_layout_in_memory_does_not_matter_and_names_and_shapes_do() -> None:
    assert state_sha256(network().to(memory_format=torch.channels_last_3d)) == state_sha256(network())
    flat, square = nn.Linear(4, 1, bias=False), nn.Linear(2, 2, bias=False)
    with torch.no_grad():
        flat.weight.fill_(1)
        square.weight.fill_(1)
    assert state_sha256(flat) != state_sha256(square)
    assert state_sha256(flat) != state_sha256(nn.ModuleDict({"layer": flat}))


def test_the_network_comes_back_untouched() -> None:
    before = network()
    state_sha256(before)
    for name, value in before.state_dict().items():
        torch.testing.assert_close(value, network().state_dict()[name], rtol=0, atol=0)
