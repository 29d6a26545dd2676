"""DeepLIFT of a layer adds up, equals the rescale rule by hand, and leaves nothing behind."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from monai.data import MetaTensor
from monai.networks import nets
from small import AFFINE, picture, region, unet
from torch import Tensor, nn

from unoise_monai.attribution.layer_methods import LayerDeepLift
from unoise_monai.attribution.targets import SoftDice
from unoise_monai.inference.tiling import VolumeNetwork


def test_the_rescale_rule_by_hand() -> None:
    torch.manual_seed(0)
    first, second = nn.Conv2d(1, 3, 3, padding=1), nn.Conv2d(3, 2, 3, padding=1)
    network = nn.Sequential(first, nn.ReLU(inplace=True), second)
    image, target = picture(6, 5), region(6, 5)
    start = torch.full_like(image, 0.3)
    with torch.no_grad():
        features, before = first(image), first(start)
        slope = (features.relu() - before.relu()) / (features - before)
    opened = features.relu().requires_grad_()
    (gradient,) = torch.autograd.grad(target(second(opened)).sum(), opened)
    expected = ((features - before) * slope * gradient).sum(dim=1, keepdim=True)
    found = LayerDeepLift(network, "0", baseline=0.3, sign="signed")(image, target)
    torch.testing.assert_close(found.as_tensor(), expected)


@pytest.mark.parametrize("size", [(8, 6), (4, 6, 8)])
@pytest.mark.parametrize("path", ["encoder.0", "decoder.0"])
def test_a_layer_that_all_goes_through_sums_to_the_difference(size: tuple[int, ...], path: str) -> None:
    network, image, target = unet(len(size)), picture(*size), region(*size)
    with torch.no_grad():
        difference = float(target(network(image)) - target(network(torch.zeros_like(image))))
    found = LayerDeepLift(network, path, sign="signed")(image, target)
    assert abs(difference) > 0.01
    assert float(found.sum()) == pytest.approx(difference, rel=1e-3)
    note = found.meta["attribution"][0]
    assert note["score_difference"] == pytest.approx(difference, abs=1e-5)
    assert abs(note["convergence_delta"]) < 1e-4


@pytest.mark.parametrize("path", ["encoder.0", "bottleneck"])
@pytest.mark.parametrize("size", [(151, 11), (93, 5, 7)])
def test_windows_equal_the_whole(path: str, size: tuple[int, ...]) -> None:
    network, image, target = unet(len(size)), picture(*size).requires_grad_(), region(*size)
    volume = VolumeNetwork(network)
    budget = 2 * 0.65e-9 * volume._cost(image).bytes_per_voxel * volume.pad(image).numel()
    whole = LayerDeepLift(network, path, sign="signed")(image, target)
    windows = LayerDeepLift(network, path, sign="signed", memory_gb=budget)
    found = windows(image, target)
    assert windows.volume.tiles(volume.pad(image).expand(2, *volume.pad(image).shape[1:])) is not None
    scale = float(whole.abs().max())
    assert scale > 0
    torch.testing.assert_close(found.as_tensor(), whole.as_tensor(), rtol=1e-5, atol=1e-5 * scale)
    with pytest.raises(ValueError, match="target must be linear in the logits"):
        windows(image, SoftDice(target.mask.long(), 1))


def test_batches_geometry_and_precision() -> None:
    network, images, target = unet(3), picture(5, 6, 7, batch=2), region(5, 6, 7)
    both = LayerDeepLift(network)(MetaTensor(images, affine=AFFINE), target)
    torch.testing.assert_close(both.affine, AFFINE.double())
    for index in range(2):
        single = LayerDeepLift(network)(images[index : index + 1], target)
        assert torch.equal(both.as_tensor()[index : index + 1], single.as_tensor())
    bf16 = LayerDeepLift(network, precision="bf16")(images, target)
    near = torch.corrcoef(torch.stack([bf16.as_tensor().flatten(), both.as_tensor().flatten()]))
    assert 0.9 < float(near[0, 1]) < 1


def test_other_activations_are_refused_or_substituted() -> None:
    torch.manual_seed(0)
    network, image, target = nets.UNet(2, 1, 2, (2, 4), (2,), norm=None), picture(8, 8), region(8, 8)
    with pytest.raises(ValueError, match="network must have the activations that deep_lift has a rule for"):
        LayerDeepLift(network)(image, target)
    found = LayerDeepLift(network, "model.0", substitute=True, sign="signed")(image, target)
    note = found.meta["attribution"][0]
    assert note["substituted"] == {"PReLU": 2}
    assert abs(note["convergence_delta"]) < 1e-5 < abs(note["score_difference"])


def failing(logits: Tensor) -> Any:
    raise RuntimeError("half way")


def test_the_network_stays_as_it_was() -> None:
    network, image = unet(2).train(), picture(8, 6)
    before = [set(vars(module)) for module in network.modules()]
    LayerDeepLift(network, "decoder.0")(image, region(8, 6))
    with pytest.raises(RuntimeError, match="half way"):
        LayerDeepLift(network, "decoder.0")(image, failing)
    assert [set(vars(module)) for module in network.modules()] == before
    assert all(module.training for module in network.modules())
    hooks = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    assert not any(getattr(module, name) for module in network.modules() for name in hooks)
