"""Every method of the package has its name, says what it costs, and gives a map."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
import re
from functools import partial
from typing import Any, get_origin

import pytest
import torch

import unoise_monai.attribution as package
from unoise_monai.attribution.base import Attributor
from unoise_monai.attribution.composed import SmoothGrad
from unoise_monai.attribution.gradient import Saliency
from unoise_monai.attribution.iterative import RegionOfInterest
from unoise_monai.attribution.registry import METHODS, make_attributor, method_names
from unoise_monai.attribution.targets import class_sum
from unoise_monai.inference.tiling import VolumeNetwork
from unoise_monai.networks import UNet

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
    "occlusion": {"window": 4, "stride": 4},
    "feature_ablation": {"size": 4},
    "rise": {"masks": 4, "cells": 2},
    "lime": {"samples": 12, "size": 5},
    "kernel_shap": {"samples": 24, "size": 5},
    "iterative_roi": {"saliency": Saliency, "region": RegionOfInterest(threshold=0.3), "max_rounds": 2},
}


def unet(out_channels: int = 3) -> UNet:
    """Random, but for logits that are 0 in the mean, so that noise has voxels of every class."""
    torch.manual_seed(0)
    network = UNet(3, 1, out_channels, depth=2, channel_factor=2).eval()
    with torch.no_grad():
        logits = network(torch.randn(1, 1, 16, 16, 16))
        network.head.bias -= logits.transpose(0, 1).flatten(1).mean(dim=1)
    return network


def documentation(method: type[Attributor]) -> str:
    """Of the class and of those between it and `Attributor`, which it leaves common things to."""
    own = [each for each in method.__mro__ if issubclass(each, Attributor) and each is not Attributor]
    return " ".join(each.__doc__ or "" for each in own)


def test_no_method_is_left_out() -> None:
    for module in pkgutil.iter_modules(package.__path__, f"{package.__name__}."):
        for _, kind in inspect.getmembers(importlib.import_module(module.name), inspect.isclass):
            # Python 3.10 takes aliases such as Callable[[Tensor], Tensor] for classes.
            is_method = get_origin(kind) is None and issubclass(kind, Attributor) and not inspect.isabstract(kind)
            if is_method and hasattr(kind, "name"):
                assert METHODS.get(kind.name) is kind


@pytest.mark.parametrize("name", method_names())
def test_names_and_costs(name: str) -> None:
    method = METHODS[name]
    assert method.name == name
    assert re.fullmatch(r"[a-z]+(_[a-z]+)*", name)
    assert len((method.__doc__ or "").strip().splitlines()[0]) > 20
    assert re.search(r"\bpass(es)?\b|\bcosts\b", documentation(method), re.IGNORECASE)


@pytest.mark.parametrize("name", method_names())
def test_a_finite_map_that_is_not_constant(name: str) -> None:
    network = unet()
    image = torch.randn(1, 1, 10, 9, 8, generator=torch.Generator().manual_seed(0))
    options = {"unoise": {"noise_model": unet(1)}} | CHEAP
    attributor = make_attributor(name, network, **options.get(name, {}))
    assert type(attributor) is METHODS[name]
    with torch.no_grad():
        target = class_sum(VolumeNetwork(network)(image), 2)
    result = attributor(image, target)
    assert result.shape == (1, 1, 10, 9, 8)
    assert torch.isfinite(result).all()
    assert float(result.std()) > 0
    assert result.meta["attribution"][0]["method"] == name


def test_options_go_to_the_class() -> None:
    attributor = make_attributor("smooth_grad", unet(), samples=3, sign="signed")
    assert isinstance(attributor, SmoothGrad)
    assert (attributor.samples, attributor.sign) == (3, "signed")
    with pytest.raises(TypeError, match="nonsense"):
        make_attributor("saliency", unet(), nonsense=1)


def test_an_unknown_name_is_told_what_there_is() -> None:
    make = partial(make_attributor, network=unet())
    with pytest.raises(ValueError, match=r"one of 'saliency', .*, 'edges', got 'GradCAM' \(close: 'grad_cam'"):
        make("GradCAM")
    with pytest.raises(ValueError, match=r"got 'xyzzy'$"):
        make("xyzzy")


def test_the_registry_is_not_for_writing() -> None:
    with pytest.raises(TypeError):
        METHODS["mine"] = Saliency
    assert method_names() == tuple(METHODS)
