"""What holds for every method at a layer: windows, batches, geometry, precision, and nothing changed."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from monai.data import MetaTensor
from monai.networks import nets
from small import AFFINE, picture, region, unet
from torch import Tensor, nn

from unoise_monai.attribution.base import Attributor
from unoise_monai.attribution.layer_methods import (
    GuidedGradCAM,
    LayerDeepLift,
    LayerGuidedActivation,
    LayerGuidedBackprop,
    LayerPath,
)
from unoise_monai.attribution.layers import LayerActivation
from unoise_monai.attribution.registry import METHODS
from unoise_monai.attribution.targets import SoftDice, class_sum
from unoise_monai.inference.tiling import VolumeNetwork

AT_A_LAYER = [method for method in METHODS.values() if "layer" in method.needs]
CLIPPING = [GuidedGradCAM, LayerGuidedBackprop, LayerGuidedActivation, LayerDeepLift]


def made(method: type[Attributor], network: nn.Module, **options: Any) -> Attributor:
    steps = {"steps": 4} if issubclass(method, LayerPath) else {}
    return method(network, sign="signed", **steps, **options)


def assert_near(found: Tensor, expected: Tensor) -> None:
    scale = float(expected.abs().max())
    assert scale > 0
    torch.testing.assert_close(found.as_tensor(), expected.as_tensor(), rtol=1e-5, atol=1e-5 * scale)


def test_which_methods_are_at_a_layer() -> None:
    assert len(AT_A_LAYER) == 13
    assert {LayerActivation, *CLIPPING} < set(AT_A_LAYER)


@pytest.mark.parametrize("method", AT_A_LAYER)
@pytest.mark.parametrize(
    ("path", "size"), [("encoder.0", (151, 11)), ("bottleneck", (93, 5, 7)), ("decoder.0", (151, 11))]
)
def test_windows_equal_the_whole(method: type[Attributor], path: str, size: tuple[int, ...]) -> None:
    network, image, target = unet(len(size)), picture(*size).requires_grad_(), region(*size)
    volume, copies = VolumeNetwork(network), getattr(method, "copies", 1)
    padded = volume.pad(image)
    budget = 0.65e-9 * volume._cost(image).bytes_per_voxel * padded.numel() * copies
    whole, windows = (made(method, network, layer=path, memory_gb=memory_gb) for memory_gb in (None, budget))
    assert len(windows.volume.tiles(padded.expand(copies, *padded.shape[1:])) or []) > 1
    found, expected = windows(image, target), whole(image, target)
    assert_near(found, expected)
    for key, value in expected.meta["attribution"][0].items():
        near = pytest.approx(value, rel=1e-4, abs=1e-5) if isinstance(value, float) else value
        assert found.meta["attribution"][0][key] == near
    curved = SoftDice(target.mask.long(), 1)
    if issubclass(method, LayerPath | LayerDeepLift):
        with pytest.raises(ValueError, match="target must be linear in the logits"):
            windows(image, curved)
        assert float(whole(image, curved).abs().max()) > 0
    else:
        assert_near(windows(image, curved), whole(image, curved))


@pytest.mark.parametrize("method", AT_A_LAYER)
@pytest.mark.parametrize("classes", [1, 3])
def test_batches_geometry_and_precision(method: type[Attributor], classes: int) -> None:
    network, images = unet(3, classes), picture(5, 6, 7, batch=2)
    with torch.no_grad():
        target = class_sum(VolumeNetwork(network)(images), 1)
    both = made(method, network)(MetaTensor(images, affine=AFFINE), target)
    assert both.shape == (2, 1, 5, 6, 7)
    torch.testing.assert_close(both.affine, AFFINE.double())
    for index in range(2):
        single = made(method, network)(images[index : index + 1], target.item(index))
        assert torch.equal(both.as_tensor()[index : index + 1], single.as_tensor())
    bf16 = made(method, network, precision="bf16")(images, target)
    assert bf16.dtype == torch.float32
    near = torch.corrcoef(torch.stack([bf16.as_tensor().flatten(), both.as_tensor().flatten()]))
    assert 0.9 < float(near[0, 1]) < 1


@pytest.mark.parametrize("method", CLIPPING)
def test_other_activations_are_refused_or_substituted(method: type[Attributor]) -> None:
    torch.manual_seed(0)
    network, image, target = nets.UNet(2, 1, 2, (2, 4), (2,), norm=None), picture(8, 8), region(8, 8)
    with pytest.raises(ValueError, match=r"network must have the activations that .* has a rule for"):
        made(method, network)(image, target)
    found = made(method, network, layer="model.0", substitute=True)(image, target)
    note = found.meta["attribution"][0]
    assert note["substituted"] == {"PReLU": 2}
    assert float(found.abs().max()) > 0
    if method is LayerDeepLift:
        assert abs(note["convergence_delta"]) < 1e-5 < abs(note["score_difference"])


@pytest.mark.parametrize("method", AT_A_LAYER)
def test_the_network_and_the_image_stay_as_they_were(method: type[Attributor]) -> None:
    network, image = unet(2).train(), picture(8, 6)
    for module in network.modules():
        if isinstance(module, nn.ReLU):
            module.inplace = True
    state = {key: value.clone() for key, value in network.state_dict().items()}
    attributes = [set(vars(module)) for module in network.modules()]
    before = image.clone()
    made(method, network, layer="decoder.0")(image, region(8, 6))
    with pytest.raises(ValueError, match=r"layer must be one of encoder\.0, .*, or the path of .*, got 'encoder\.9'"):
        made(method, network, layer="encoder.9")(image, region(8, 6))
    with pytest.raises(ValueError, match="one scalar an item"):
        made(method, network)(image, lambda logits: logits)
    assert torch.equal(image, before)
    assert not image.requires_grad
    assert all(module.training for module in network.modules())
    assert all(module.inplace for module in network.modules() if isinstance(module, nn.ReLU))
    assert all(parameter.requires_grad for parameter in network.parameters())
    hooks = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    assert not any(getattr(module, name) for module in network.modules() for name in hooks)
    assert [set(vars(module)) for module in network.modules()] == attributes
    assert all(torch.equal(value, state[key]) for key, value in network.state_dict().items())
