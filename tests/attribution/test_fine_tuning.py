"""Fine-tuning against a plain training loop, whole and in tiles."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from unoise_monai.attribution.iterative import FineTuning, _padded_labels
from unoise_monai.inference.tiling import VolumeNetwork
from unoise_monai.networks import UNet


def unet(spatial_dims: int, classes: int) -> UNet:
    torch.manual_seed(0)
    network = UNet(spatial_dims, 1, classes, depth=2, channel_factor=2)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d | nn.BatchNorm3d):
            module.running_mean.normal_(0, 0.2)
            module.running_var.uniform_(0.5, 2)
    return network.eval().requires_grad_(False)


def sample(classes: int, *size: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return (
        torch.randn(1, 1, *size, generator=generator),
        torch.randint(0, max(classes, 2), (1, 1, *size), generator=generator),
    )


def by_hand(network: nn.Module, image: Tensor, truth: Tensor, steps: int, lr: float) -> nn.Module:
    """On volumes that lie on the network's grid."""
    tuned = copy.deepcopy(network).requires_grad_()
    optimiser = torch.optim.Adam(tuned.parameters(), lr)
    for _ in range(steps):
        logits = tuned(image)
        if logits.shape[1] == 1:
            loss = F.binary_cross_entropy_with_logits(logits, truth.float())
        else:
            loss = F.cross_entropy(logits, truth[:, 0])
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    return tuned


def assert_same_weights(first: nn.Module, second: nn.Module) -> None:
    for (name, a), (_, b) in zip(first.state_dict().items(), second.state_dict().items(), strict=True):
        torch.testing.assert_close(a, b, msg=name, rtol=1e-4, atol=2e-6)


@pytest.mark.parametrize("classes", [1, 3])
@pytest.mark.parametrize("size", [(12, 10), (6, 8, 4)])
def test_equals_a_plain_training_loop(size: tuple[int, ...], classes: int) -> None:
    network = unet(len(size), classes)
    image, truth = sample(classes, *size)
    tuned = copy.deepcopy(network)
    with torch.no_grad():
        FineTuning(steps=3, lr=1e-3)(tuned, image, truth)
    assert_same_weights(tuned, by_hand(network, image, truth, 3, 1e-3))
    assert not torch.equal(tuned.head.weight, network.head.weight)
    assert not any(parameter.requires_grad or parameter.grad is not None for parameter in tuned.parameters())


def test_tiles_give_the_gradient_of_the_whole() -> None:
    network = unet(3, 3)
    image, truth = sample(3, 50, 37, 40)
    whole, tiled = copy.deepcopy(network), copy.deepcopy(network)
    volume = VolumeNetwork(network, 0.03)
    assert len(volume.tiles(volume.pad(image)) or []) > 1
    FineTuning(steps=1, lr=1e-3)(whole, image, truth)
    FineTuning(steps=1, lr=1e-3)(tiled, image, truth, memory_gb=0.03)
    assert_same_weights(whole, tiled)


def test_padding_has_no_label() -> None:
    network = unet(2, 3)
    image, truth = sample(3, 11, 10)
    tuned = copy.deepcopy(network)
    FineTuning(steps=1, lr=1e-3)(tuned, image, truth)
    padded = F.pad(image, (0, 0, 0, 1), "replicate")
    by_hand_tuned = copy.deepcopy(network).requires_grad_()
    optimiser = torch.optim.Adam(by_hand_tuned.parameters(), 1e-3)
    F.cross_entropy(by_hand_tuned(padded)[:, :, :11], truth[:, 0]).backward()
    optimiser.step()
    assert_same_weights(tuned, by_hand_tuned)


def test_refusals() -> None:
    with pytest.raises(ValueError, match="steps must be at least 1, got 0"):
        FineTuning(steps=0)
    with pytest.raises(ValueError, match=r"lr must be a finite number above 0, got -0\.1"):
        FineTuning(lr=-0.1)
    network = unet(2, 3)
    with pytest.raises(ValueError, match=r"truth must be one channel on the image's grid, \(1, 1, 8, 8\), got \(1, 1"):
        FineTuning()(network, torch.zeros(1, 1, 8, 8), torch.zeros(1, 1, 8, 6))
    assert not any(parameter.requires_grad for parameter in network.parameters())


@pytest.mark.parametrize(
    ("classes", "value", "says"),
    [(3, 3, "0 to 2, got 0 to 3"), (3, -1, "0 to 2, got -1 to 0"), (1, 2, "0 to 1, got 0 to 2")],
)
def test_refuses_labels_that_are_no_class(classes: int, value: int, says: str) -> None:
    network, image = unet(2, classes), torch.zeros(1, 1, 8, 8)
    before = copy.deepcopy(network)
    truth = torch.zeros(1, 1, 8, 8)
    truth[0, 0, 5, 5] = value
    with pytest.raises(ValueError, match=f"truth must hold classes of the network, {says}"):
        FineTuning()(network, image, truth)
    assert_same_weights(network, before)
    assert not any(parameter.requires_grad or parameter.grad is not None for parameter in network.parameters())


def test_the_label_goes_where_the_image_is() -> None:
    """No second device is needed to see it: a label stays on the meta device, which holds no values."""
    padded = torch.zeros(1, 1, 8, 12, device="meta")
    assert _padded_labels(torch.zeros(1, 1, 7, 9), padded).device == padded.device


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_label_in_main_memory_teaches_a_network_on_the_gpu() -> None:
    image, truth = sample(3, 12, 10)
    tuned = unet(2, 3).cuda()
    FineTuning(steps=1, lr=1e-3)(tuned, image.cuda(), truth)
    assert_same_weights(tuned.cpu(), by_hand(unet(2, 3), image, truth, 1, 1e-3))
