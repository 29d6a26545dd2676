"""The mean of voxels' maps: a loop over voxels, and the map of the region where the method is linear."""

import logging
import re
import warnings
from typing import Any

import pytest
import torch
from small import unet
from torch import Tensor, nn

from unoise_monai.attribution import backpropagation
from unoise_monai.attribution import layers as layerwise
from unoise_monai.attribution.composed import SmoothGrad, VoxelwiseMean, each_voxel
from unoise_monai.attribution.layer_methods import GuidedGradCAM
from unoise_monai.attribution.targets import Region, border_mean, class_sum, foreground_sum, voxel

CHEAP = {"integrated_gradients": {"steps": 3}, "gradient_shap": {"samples": 3}}
GRADIENT_METHODS = SmoothGrad.methods()
CAMS = [VoxelwiseMean.methods()[name] for name in VoxelwiseMean.methods() if name not in GRADIENT_METHODS]
LINEAR = ("saliency", "input_x_gradient", "integrated_gradients", "gradient_shap", "deep_lift", "deep_lift_shap")


def image_of(*size: int) -> Tensor:
    return torch.randn(*size, generator=torch.Generator().manual_seed(3))


def blob(*size: int, batch: int = 1) -> Region:
    """The border of a segment: of another size in each item."""
    logits = torch.zeros(batch, 3, *size)
    logits[:, 0] = 1
    for item in range(batch):
        logits[(item, 2, *[slice(1, 7 - len(size) - item)] * len(size))] = 2
    return border_mean(logits, 2)


@pytest.mark.parametrize("method", LINEAR)
@pytest.mark.parametrize("size", [(7, 6), (6, 5, 6)])
@pytest.mark.parametrize("memory_gb", [None, 0.001])
def test_of_a_linear_method_it_is_the_map_of_the_region(
    method: str, size: tuple[int, ...], memory_gb: float | None
) -> None:
    network, image, region = unet(len(size), channels=2), image_of(2, 2, *size), blob(*size, batch=2)
    options = {"method_options": CHEAP.get(method), "sign": "signed", "memory_gb": memory_gb}
    attributor = VoxelwiseMean(network, method, max_voxels=None, **options)
    assert (attributor.volume.copies(image) > 1) is (memory_gb is not None)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        maps = attributor(image, region)
    expected = GRADIENT_METHODS[method](network, sign="signed", **CHEAP.get(method, {}))(image, region)
    torch.testing.assert_close(maps.as_tensor(), expected.as_tensor(), rtol=1e-4, atol=1e-6)
    for notes, wanted in zip(maps.meta["attribution"], expected.meta["attribution"], strict=True):
        for key in ("convergence_delta", "score_difference"):
            assert notes.get(key) == (pytest.approx(wanted[key], abs=1e-5) if key in wanted else None)


def loop(network: nn.Module, image: Tensor, region: Region, method: str, sign: str) -> Tensor:
    """Each voxel's own attribution, one at a time."""
    size = image.shape[2:]
    attributor = GRADIENT_METHODS[method](network, sign=sign)
    at = region.mask[0, 0].nonzero().tolist()
    return torch.stack([attributor(image, voxel(index, region.label, size)).as_tensor() for index in at])


@pytest.mark.parametrize("method", ["saliency", "guided_backprop", "deconvolution", "deep_lift"])
@pytest.mark.parametrize("sign", ["absolute", "positive", "signed"])
@pytest.mark.parametrize("memory_gb", [None, 0.0003])
def test_equals_the_loop_over_voxels(method: str, sign: str, memory_gb: float | None) -> None:
    network, image, region = unet(2), image_of(1, 1, 7, 6), blob(7, 6)
    maps = VoxelwiseMean(network, method, sign=sign, memory_gb=memory_gb)(image, region)
    expected = loop(network, image, region, method, sign).mean(dim=0)
    torch.testing.assert_close(maps.as_tensor(), expected, rtol=1e-4, atol=1e-6)
    assert maps.meta["attribution"][0]["sign"] == sign


@pytest.mark.parametrize("method", ["guided_backprop", "deconvolution"])
def test_clipped_gradients_of_voxels_are_not_those_of_the_region(method: str) -> None:
    network, image, region = unet(2), image_of(1, 1, 7, 6), blob(7, 6)
    maps = VoxelwiseMean(network, method, sign="signed")(image, region).as_tensor()
    direct = GRADIENT_METHODS[method](network, sign="signed")(image, region).as_tensor()
    assert float((maps - direct).norm()) > 0.05 * float(direct.norm())


@pytest.mark.parametrize("mean", [True, False])
def test_a_soft_mask_weighs_its_voxels(mean: bool) -> None:
    network, image = unet(2), image_of(1, 1, 7, 6)
    mask = torch.rand(1, 1, 7, 6, generator=torch.Generator().manual_seed(0)) * blob(7, 6).mask
    region = Region(mask, 2, mean)
    for method in ("saliency", "integrated_gradients"):
        options = {"sign": "signed", "method_options": CHEAP.get(method)}
        maps = VoxelwiseMean(network, method, **options)(image, region)
        expected = GRADIENT_METHODS[method](network, sign="signed", **CHEAP.get(method, {}))(image, region)
        torch.testing.assert_close(maps.as_tensor(), expected.as_tensor(), rtol=1e-4, atol=1e-6)
        for key in ("convergence_delta", "score_difference"):
            wanted = expected.meta["attribution"][0].get(key)
            assert maps.meta["attribution"][0].get(key) == (None if wanted is None else pytest.approx(wanted, abs=1e-5))
    weights = mask[mask > 0].view(-1, 1, 1, 1, 1)
    for method in ("guided_backprop", "deep_lift"):
        every = loop(network, image, region, method, "absolute")
        found = VoxelwiseMean(network, method)(image, region).as_tensor()
        total = (weights * every).sum(dim=0)
        torch.testing.assert_close(found, total / weights.sum() if mean else total, rtol=1e-4, atol=1e-6)


def test_voxels_are_drawn_from_a_large_region() -> None:
    network, image, region = unet(2), image_of(1, 1, 7, 6), blob(7, 6)
    every = loop(network, image, region, "saliency", "absolute")
    attributor = VoxelwiseMean(network, "saliency", max_voxels=3)
    maps = attributor(image, region)
    torch.testing.assert_close(attributor(image, region).as_tensor(), maps.as_tensor())
    notes = maps.meta["attribution"][0]
    assert (notes["voxels"], notes["planned"], notes["evaluated"]) == (len(every), 3, 3)
    # One of the means of three voxels' maps.
    triples = torch.combinations(torch.arange(len(every)), 3)
    errors = (every[triples].mean(dim=1) - maps.as_tensor()).abs().flatten(1).amax(dim=1)
    assert int((errors < 1e-6).sum()) == 1
    others = [VoxelwiseMean(network, "saliency", 3, seed)(image, region).as_tensor() for seed in (1, 2)]
    assert not any(torch.allclose(other, maps.as_tensor()) for other in others)
    summing = Region(region.mask, region.label, mean=False)
    torch.testing.assert_close(attributor(image, summing).as_tensor(), maps.as_tensor() * len(every))
    everything = VoxelwiseMean(network, "saliency", max_voxels=len(every) + 1)(image, region)
    assert everything.meta["attribution"][0]["evaluated"] == len(every)


def test_a_time_limit_gives_the_mean_so_far(caplog: pytest.LogCaptureFixture) -> None:
    network, image, region = unet(2), image_of(1, 1, 7, 6), blob(7, 6)
    with caplog.at_level(logging.WARNING):
        maps = VoxelwiseMean(network, "saliency", time_limit_s=1e-9)(image, region)
    notes = maps.meta["attribution"][0]
    assert notes["evaluated"] == 1
    assert notes["planned"] == notes["voxels"] == int(region.mask.sum())
    assert notes["stopped_after_s"] > 0
    assert f"voxelwise_mean: stopped after 0.0 s with 1 of {notes['planned']} copies" in caplog.text
    every = loop(network, image, region, "saliency", "absolute")
    errors = (every - maps.as_tensor()).abs().flatten(1).amax(dim=1)
    assert int((errors < 1e-6).sum()) == 1
    assert int(errors.argmin()) != 0


def test_each_copy_has_its_voxel() -> None:
    logits = torch.randn(6, 3, 4, 5)
    at = torch.tensor([[3, 0], [1, 4], [2, 2]])
    weights = torch.tensor([1.0, 0.5, 3.0])
    result = each_voxel(at, 2, weights)(logits)
    expected = [weights[copy % 3] * logits[copy, 2, at[copy % 3][0], at[copy % 3][1]] for copy in range(6)]
    torch.testing.assert_close(result, torch.stack(expected))
    one = torch.randn(3, 1, 4, 5)
    torch.testing.assert_close(each_voxel(at, 0, weights)(one), -each_voxel(at, 1, weights)(one))


@pytest.mark.parametrize(
    ("target", "got"),
    [
        (lambda logits: foreground_sum(logits), "got Foreground"),
        (lambda logits: class_sum(logits[:, :, :4], 1), "got (1, 1, 4, 6)"),
    ],
)
def test_refuses_what_is_no_region_of_the_image(target: Any, got: str) -> None:
    network, image = unet(2), image_of(1, 1, 6, 6)
    logits = torch.randn(1, 3, 6, 6)
    says = f"target must be a Region on the grid of the image (1, 1, 6, 6), {got}"
    with pytest.raises(ValueError, match=re.escape(says)):
        VoxelwiseMean(network)(image, target(logits))


@pytest.mark.parametrize("cam", CAMS)
def test_the_network_is_looked_at_once(cam: type, monkeypatch: pytest.MonkeyPatch) -> None:
    network, image, region = unet(2), image_of(1, 1, 40, 8), blob(40, 8)
    cam(network)(image, region)  # what a pass takes is measured
    watched = [(layerwise, "layer_named"), (backpropagation, "activations")]
    looks: list[str] = []
    for module, name in watched:
        real = getattr(module, name)
        monkeypatch.setattr(module, name, lambda *args, real=real, name=name: looks.append(name) or real(*args))
    sizes: list[int] = []
    network.register_forward_pre_hook(lambda _, inputs: sizes.append(inputs[0].shape[2]))
    VoxelwiseMean(network, cam)(image, region)
    kinds = 2 if cam is GuidedGradCAM else 1
    assert len(looks) == len(set(looks)) == kinds
    # A pass for each voxel and method, beside one for each look.
    assert sizes.count(40) == kinds * int(region.mask.sum())
    assert len(sizes) == sizes.count(40) + kinds


@pytest.mark.parametrize("cam", CAMS)
@pytest.mark.parametrize("sign", ["signed", "absolute", "positive"])
def test_of_a_cam_it_is_the_mean_over_single_voxels(cam: type, sign: str) -> None:
    network, image, region = unet(2), image_of(1, 1, 8, 8), blob(8, 8)
    voxels = region.mask[0, 0].nonzero().tolist()
    maps = [cam(network, sign=sign)(image, voxel(at, region.label, (8, 8))).as_tensor() for at in voxels]
    found = VoxelwiseMean(network, cam.name, sign=sign)(image, region)
    torch.testing.assert_close(found.as_tensor(), torch.stack(maps).mean(dim=0), rtol=1e-4, atol=1e-7)
    assert found.meta["attribution"][0]["evaluated"] == len(voxels)
