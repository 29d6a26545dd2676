"""What holds for every method by its name: batches, geometry, precision, tiles, and nothing else changed."""

import re
import warnings
from typing import Any

import pytest
import torch
from monai.data import MetaTensor
from small import AFFINE, picture, region, unet
from torch import Tensor, nn

from unoise_monai.attribution.base import METHODS, Attributor, make_attributor, method_names
from unoise_monai.attribution.composed import SmoothGrad
from unoise_monai.attribution.gradient import Saliency
from unoise_monai.attribution.iterative import RegionOfInterest
from unoise_monai.attribution.layer_methods import LayerDeepLift, LayerPath
from unoise_monai.attribution.perturbation import PerturbationAttributor
from unoise_monai.attribution.targets import SoftDice

CHEAP: dict[str, dict[str, Any]] = {
    "integrated_gradients": {"steps": 4},
    "gradient_shap": {"samples": 3},
    "smooth_grad": {"samples": 2},
    "smooth_grad_squared": {"samples": 2},
    "var_grad": {"samples": 2},
    "voxelwise_mean": {"max_voxels": 4},
    "layer_conductance": {"steps": 4},
    "internal_influence": {"steps": 4},
    "layer_integrated_gradients": {"steps": 4},
    "occlusion": {"window": 6, "stride": 4},
    "feature_ablation": {"size": 4},
    "rise": {"masks": 5, "cells": 2},
    "lime": {"samples": 12, "size": 4},
    "kernel_shap": {"samples": 40, "size": 4},
    "iterative_roi": {"saliency": Saliency, "region": RegionOfInterest(0.5, box=3, threshold=0.3), "max_rounds": 2},
    "unoise": {"noise_model": unet(3, classes=1)},
}
ALL = pytest.mark.parametrize("name", method_names())
PASSING = [name for name, method in METHODS.items() if not method.control]
DRAWING = {
    *("random", "gradient_shap", "deep_lift_shap", "smooth_grad", "smooth_grad_squared", "var_grad", "voxelwise_mean"),
    *("rise", "lime"),
}


def made(name: str, network: nn.Module, **options: Any) -> Attributor:
    own = dict(CHEAP.get(name, {}))
    if name == "unoise" and network.head.weight.ndim == 4:
        own["noise_model"] = unet(2, classes=1)
    return make_attributor(name, network, **{**own, **options})


def documentation(method: type[Attributor]) -> str:
    """Of the class and of those between it and `Attributor`, which it leaves common things to."""
    own = [each for each in method.__mro__ if issubclass(each, Attributor) and each is not Attributor]
    return " ".join(each.__doc__ or "" for each in own)


def traces(network: nn.Module) -> list[Any]:
    """All that a method could leave behind."""
    names = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    hooks = [[list(getattr(module, name)) for name in names] for module in network.modules()]
    attributes = [sorted(vars(module)) for module in network.modules()]
    modes = [(module.training, getattr(module, "inplace", None)) for module in network.modules()]
    return [hooks, attributes, modes, [(weight.requires_grad, weight.grad) for weight in network.parameters()]]


def fail(logits: Tensor) -> Tensor:
    raise RuntimeError("half way")


@ALL
def test_names_costs_and_depth(name: str) -> None:
    method = METHODS[name]
    assert method.name == name
    assert len((method.__doc__ or "").strip().splitlines()[0]) > 20
    assert re.search(r"\bpass(es)?\b|\bcosts\b", documentation(method), re.IGNORECASE)
    assert len([each for each in method.__mro__ if issubclass(each, Attributor)]) <= 4


@ALL
@pytest.mark.parametrize("classes", [1, 3])
def test_a_batch_is_its_items_with_the_geometry_of_the_image(name: str, classes: int) -> None:
    network, images, target = unet(3, classes), picture(9, 8, 7, batch=2), region(9, 8, 7)
    pixels, attributor = images.clone(), made(name, network)
    maps = attributor(MetaTensor(images, affine=AFFINE), target)
    assert type(attributor) is METHODS[name]
    assert maps.shape == (2, 1, 9, 8, 7)
    assert bool(maps.isfinite().all())
    assert all(float(values.std()) > 0 for values in maps.as_tensor())
    assert [note["method"] for note in maps.meta["attribution"]] == [name, name]
    torch.testing.assert_close(maps.affine, AFFINE.double())
    for item in range(2):
        single = attributor(images[item : item + 1], target)
        torch.testing.assert_close(maps.as_tensor()[item : item + 1], single.as_tensor())
    assert torch.equal(images, pixels)
    assert not images.requires_grad


@ALL
def test_network_and_random_state_are_left_as_they_were(name: str) -> None:
    network, image, target = unet(3).train(), picture(9, 8, 7), region(9, 8, 7)
    for module in network.modules():
        if isinstance(module, nn.ReLU):
            module.inplace = True
    network.head.eval()
    network.head.bias.requires_grad_(False)
    weights = {key: value.clone() for key, value in network.state_dict().items()}
    before = traces(network)
    torch.manual_seed(9)
    expected = torch.rand(2)
    torch.manual_seed(9)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        in_place = made(name, network)(image, target).as_tensor()
    if name in PASSING and name not in ("unoise", "voxelwise_mean", "layer_guided_activation", "iterative_roi"):
        with pytest.raises(RuntimeError, match="half way"):
            made(name, network)(image, fail)
        with pytest.raises(ValueError, match="one scalar an item"):
            made(name, network)(image, lambda logits: logits)
    assert torch.equal(torch.rand(2), expected)
    assert traces(network) == before
    assert all(torch.equal(value, weights[key]) for key, value in network.state_dict().items())
    torch.testing.assert_close(made(name, unet(3))(image, target).as_tensor(), in_place)


@pytest.mark.parametrize("name", [name for name in PASSING if name != "iterative_roi"])
def test_bf16_is_near(name: str) -> None:
    # In 3D, where autocast pools in float32 on a CPU.
    network, image, target = unet(3), picture(9, 8, 7), region(9, 8, 7)
    exact, near = (made(name, network, precision=kind)(image, target).as_tensor() for kind in ("fp32", "bf16"))
    assert near.dtype == torch.float32
    assert not torch.equal(near, exact)
    assert float(torch.corrcoef(torch.stack([exact.flatten(), near.flatten()]))[0, 1]) > 0.9


@pytest.mark.parametrize("name", [name for name in PASSING if name != "iterative_roi"])
@pytest.mark.parametrize(
    ("path", "size"), [("encoder.0", (151, 11)), ("bottleneck", (93, 5, 7)), ("decoder.0", (151, 11))]
)
def test_tiles_give_the_map_of_one_pass(name: str, path: str, size: tuple[int, ...]) -> None:
    method, network, image, target = METHODS[name], unet(len(size)), picture(*size).requires_grad_(), region(*size)
    at_a_layer = "layer" in method.needs
    if not at_a_layer and path == "decoder.0":
        pytest.skip("another layer is another case for methods at a layer")
    options: dict[str, Any] = {"layer": path} if at_a_layer else {"sign": "signed"}
    if "size" in CHEAP.get(name, {}):
        # Few enough features for the samples: otherwise the values of Kernel SHAP are not determined.
        options["size"] = 16
    volume, copies = made(name, network).volume, getattr(method, "copies", 1)
    padded = volume.pad(image)
    with torch.set_grad_enabled(method.differentiates):
        budget = 0.65e-9 * volume._cost(image).bytes_per_voxel * padded.numel() * copies
        whole, tiled = (made(name, network, memory_gb=memory_gb, **options) for memory_gb in (None, budget))
        assert len(tiled.volume.tiles(padded.expand(copies, *padded.shape[1:])) or []) > 1
    found, expected = tiled(image, target), whole(image, target)
    scale = float(expected.abs().max())
    assert scale > 0
    torch.testing.assert_close(found.as_tensor(), expected.as_tensor(), rtol=1e-4, atol=2e-5 * scale)
    for key, value in expected.meta["attribution"][0].items():
        near = pytest.approx(value, rel=1e-3, abs=1e-4) if isinstance(value, float) else value
        assert found.meta["attribution"][0][key] == near
    if issubclass(method, LayerPath | LayerDeepLift):
        with pytest.raises(ValueError, match="target must be linear in the logits"):
            tiled(image, SoftDice(target.mask.long(), 1))
    elif at_a_layer:
        maps = [attributor(image, SoftDice(target.mask.long(), 1)).as_tensor() for attributor in (tiled, whole)]
        torch.testing.assert_close(*maps, rtol=1e-5, atol=1e-5 * float(maps[1].abs().max()))


@pytest.mark.parametrize("name", PASSING)
def test_as_many_copies_as_fit_give_the_map_of_one_at_a_time(name: str) -> None:
    network, image, target = unet(2), picture(12, 10), region(12, 10)
    many = made(name, network, memory_gb=0.0006)
    assert 2 < many.volume.copies(image) < 20
    alone = made(name, network)(image, target).as_tensor()
    torch.testing.assert_close(many(image, target).as_tensor(), alone, rtol=1e-3, atol=2e-5 * float(alone.abs().max()))


@ALL
def test_seeds(name: str) -> None:
    network, image, target = unet(3), picture(9, 8, 7), region(9, 8, 7)
    # The seed orders windows and features, and draws the baselines that are noise.
    seeded = name in DRAWING or issubclass(METHODS[name], PerturbationAttributor)
    maps = [made(name, network, **({"seed": seed} if seeded else {}))(image, target).as_tensor() for seed in (0, 0, 1)]
    torch.testing.assert_close(maps[0], maps[1], rtol=1e-4, atol=1e-6)
    if name in DRAWING:
        assert not torch.equal(maps[0], maps[2])
    else:
        torch.testing.assert_close(maps[0], maps[2], rtol=1e-4, atol=1e-4)


def test_options_go_to_the_class() -> None:
    attributor = make_attributor("smooth_grad", unet(2), samples=3, sign="signed")
    assert isinstance(attributor, SmoothGrad)
    assert (attributor.samples, attributor.sign) == (3, "signed")
    with pytest.raises(TypeError, match="nonsense"):
        make_attributor("saliency", unet(2), nonsense=1)


def test_an_unknown_name() -> None:
    with pytest.raises(ValueError, match=r"one of 'saliency', .*, 'edges', got 'GradCAM' \(close: 'grad_cam'"):
        make_attributor("GradCAM", unet(2))
    with pytest.raises(ValueError, match=r"got 'xyzzy'$"):
        make_attributor("xyzzy", unet(2))


def test_what_methods_say_of_themselves() -> None:
    assert method_names() == tuple(METHODS)
    assert {name for name, method in METHODS.items() if method.control} == {"random", "intensity", "edges"}
    assert [name for name, method in METHODS.items() if "noise_model" in method.needs] == ["unoise"]
    assert [name for name, method in METHODS.items() if "region" in method.needs] == ["voxelwise_mean"]
    assert sum("layer" in method.needs for method in METHODS.values()) == 13
    with pytest.raises(TypeError):
        METHODS["mine"] = Saliency
