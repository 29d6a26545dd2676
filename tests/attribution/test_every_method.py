"""What holds for every method by its name: batches, geometry, precision, tiles, refused options, one of your own."""

import importlib
import re
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from monai.bundle import ConfigParser
from monai.data import MetaTensor
from small import AFFINE, picture, region, unet
from torch import Tensor, nn

from unoise_monai.attribution import base
from unoise_monai.attribution.base import METHODS, NEEDS, Attributor, Score, make_attributor, method_names, register
from unoise_monai.attribution.composed import SmoothGrad
from unoise_monai.attribution.gradient import Saliency
from unoise_monai.attribution.iterative import FineTuning, RegionOfInterest
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


@pytest.mark.parametrize(
    ("method", "options", "says"),
    [
        ("integrated_gradients", {"sign": "both"}, "sign must be one of 'signed', 'absolute', 'positive', got 'both'"),
        ("integrated_gradients", {"steps": 1}, "steps must be at least 2, got 1"),
        ("integrated_gradients", {"rule": "riemann_trapezoid"}, "rule must be one of 'gausslegendre', 'riemann_left'"),
        ("integrated_gradients", {"baseline": "black"}, "baseline must be one of 'zero'"),
        ("gradient_shap", {"samples": 0}, "samples must be at least 1, got 0"),
        ("gradient_shap", {"sigma": -0.1}, "sigma must be a finite number of at least 0, got -0.1"),
        ("gradient_shap", {"baselines": ()}, "baselines must be one or more of"),
        ("deep_lift", {"baseline": "black"}, "baseline must be one of 'zero'"),
        ("deep_lift_shap", {"baselines": ()}, "baselines must be one or more of"),
        ("smooth_grad", {"samples": 0}, "samples must be at least 1, got 0"),
        ("smooth_grad", {"sigma": -0.1}, "sigma must be a finite number of at least 0, got -0.1"),
        ("smooth_grad", {"method": "rise"}, "method must be one of 'saliency'"),
        ("voxelwise_mean", {"max_voxels": 0}, "max_voxels must be at least 1, got 0"),
        ("voxelwise_mean", {"time_limit_s": 0.0}, "time_limit_s must be above 0, got 0.0"),
        ("voxelwise_mean", {"method": SmoothGrad}, "layer_cam, guided_grad_cam, by its name or class, got <"),
        ("layer_conductance", {"steps": 1}, "steps must be at least 2, got 1"),
        (
            "layer_conductance",
            {"rule": "gausslegendre"},
            "rule must be one of 'riemann_trapezoid', got 'gausslegendre'",
        ),
        ("layer_integrated_gradients", {"rule": "simpson"}, "rule must be one of 'gausslegendre', 'riemann_left'"),
        ("internal_influence", {"baseline": "nothing"}, "baseline must be one of 'zero'"),
        ("occlusion", {"baseline": float("nan")}, "baseline must hold finite values only"),
        ("occlusion", {"baseline": "grey"}, "baseline must be one of 'zero'"),
        ("occlusion", {"time_limit_s": 0}, "time_limit_s must be above 0, got 0"),
        ("occlusion", {"window": 0}, "window must be above 0, got 0"),
        ("occlusion", {"window": 4, "stride": -1}, "stride must be above 0, got -1"),
        ("occlusion", {"window": 4.5, "stride": 2}, "window must be whole voxels, got 4.5"),
        ("occlusion", {"window": 4, "stride": 5}, "stride must be at most the window on each axis, got 5 and 4"),
        ("occlusion", {"window": (4, 4, 2), "stride": 3}, "at most the window on each axis, got 3 and (4, 4, 2)"),
        ("occlusion", {"window": (4, 4), "stride": (1, 1, 1)}, "stride must be at most the window on each axis"),
        ("occlusion", {"unit": "cm"}, "unit must be one of 'voxels', 'mm', got 'cm'"),
        ("rise", {"masks": 0}, "masks must be at least 1, got 0"),
        ("rise", {"cells": 0}, "cells must be at least 1 on each axis, got 0"),
        ("rise", {"cells": (3, 0)}, "cells must be at least 1 on each axis, got (3, 0)"),
        ("rise", {"visible": 0}, "visible must be above 0 and at most 1, got 0"),
        ("rise", {"visible": 1}, "visible must be below 1, or nothing is hidden, got 1"),
        (
            "feature_ablation",
            {"labels": torch.zeros(2, 1, 4, 4)},
            "labels must be one map, (1, 1, *spatial), got (2, 1",
        ),
        ("feature_ablation", {"size": 0}, "size must be integers of at least 1, one or one an axis, got 0"),
        ("feature_ablation", {"compactness": -1}, "compactness must be above 0, got -1"),
        ("lime", {"samples": 1}, "samples must be at least 2, got 1"),
        ("lime", {"kernel_width": 0}, "kernel_width must be above 0, got 0"),
        ("lime", {"ridge": -1}, "ridge must be at least 0, got -1"),
        ("kernel_shap", {"samples": 1}, "samples must be at least 2, got 1"),
        ("iterative_roi", {"max_rounds": 0}, "max_rounds must be at least 1, got 0"),
        ("iterative_roi", {"min_probability": 1.5}, "min_probability must lie in [0, 1], got 1.5"),
        ("iterative_roi", {"hidden": float("nan")}, "hidden must hold finite values only"),
        ("iterative_roi", {"hidden": "grey"}, "hidden must be one of 'zero', 'mean'"),
        (RegionOfInterest, {"level": 0.0}, "level must be above 0 and at most 1, got 0.0"),
        (RegionOfInterest, {"quantile": 1.5}, "quantile must be above 0 and at most 1, got 1.5"),
        (RegionOfInterest, {"threshold": -0.5}, "threshold must be above 0 and at most 1, got -0.5"),
        (RegionOfInterest, {"box": 4}, "box must hold odd numbers above 0, got 4"),
        (RegionOfInterest, {"box": (3, -1)}, "box must hold odd numbers above 0, got (3, -1)"),
        (RegionOfInterest, {"passes": -1}, "passes must be at least 0, got -1"),
        (FineTuning, {"steps": 0}, "steps must be at least 1, got 0"),
        (FineTuning, {"lr": -0.1}, "lr must be a finite number above 0, got -0.1"),
    ],
)
def test_an_option_out_of_range(method: Any, options: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=re.escape(says)):
        make_attributor(method, nn.Conv2d(1, 2, 1), **options) if isinstance(method, str) else method(**options)


PAGE = Path(__file__).resolve().parents[2] / "docs" / "extend" / "method.md"
NAME = "contrast_x_gradient"


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The page's code block as a module that Python finds; what it registers is forgotten afterwards."""
    (code,) = re.findall(r"```python\n(.*?)```", PAGE.read_text("utf-8"), flags=re.DOTALL)
    (tmp_path / "contrast.py").write_text(code, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    before = dict(base._CLASSES)
    yield "contrast"
    sys.modules.pop("contrast", None)
    base._CLASSES.clear()
    base._CLASSES.update(before)


@pytest.mark.parametrize("route", ["python", "bundle"])
def test_the_method_of_the_page(route: str, module: str) -> None:
    assert NAME not in method_names()
    if route == "python":
        importlib.import_module(module)
    else:
        ConfigParser({"imports": [f"$import {module}"], "network": "$1"}).get_parsed_content("network")
    assert method_names()[-1] == NAME
    torch.manual_seed(0)
    linear, image, target = nn.Conv2d(1, 2, 3, padding=1), picture(8, 6), region(8, 6)
    expected = make_attributor("integrated_gradients", linear, baseline="blur", sign="signed")(image, target)
    found = make_attributor(NAME, linear, sign="signed")(image, target)
    torch.testing.assert_close(found.as_tensor(), expected.as_tensor())
    assert found.meta["attribution"] == [{"method": NAME, "sign": "signed"}]
    smooth = make_attributor("smooth_grad", linear, method=NAME, sigma=0.0)(image, target)
    torch.testing.assert_close(smooth.as_tensor(), found.as_tensor().abs())
    whole = make_attributor(NAME, unet(2), baseline="zero")(picture(151, 11), region(151, 11))
    assert float(whole.max()) > 0


def test_a_module_that_is_imported_again_is_no_other_method(module: str) -> None:
    first = importlib.import_module(module).ContrastXGradient
    again = importlib.reload(sys.modules[module]).ContrastXGradient
    assert first is not again is METHODS[NAME]


def method_of(**attributes: object) -> type[Attributor]:
    def maps(self: Attributor, images: torch.Tensor, score: Score) -> torch.Tensor:
        return images

    return type("Mine", (Attributor,), {"maps": maps, **attributes})


@pytest.mark.parametrize(
    ("attributes", "message"),
    [
        ({}, "name of Mine must be lower-case words with underscores, got ''"),
        ({"name": "My method"}, "name of Mine must be lower-case words with underscores, got 'My method'"),
        ({"name": "saliency"}, "name of Mine must be unused, got 'saliency', which unoise_monai.attribution.gradient"),
        ({"name": "mine", "needs": ("sleep",)}, f"needs of Mine must be one of {', '.join(map(repr, NEEDS))}, got"),
    ],
)
def test_what_cannot_be_registered(attributes: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        register(method_of(**attributes))
    assert "mine" not in METHODS
    assert METHODS["saliency"].__name__ == "Saliency"
