"""Methods made of methods: noise tunnels and voxels' means against loops, Captum's own and maps in one go."""

import logging
import re
import warnings
from typing import Any

import pytest
import torch
from small import gradient, picture, unet
from torch import Tensor, nn

from unoise_monai.attribution import SmoothGrad, SmoothGradSquared, VarGrad, VoxelwiseMean, backpropagation
from unoise_monai.attribution import layers as layerwise
from unoise_monai.attribution.backpropagation import GuidedBackprop
from unoise_monai.attribution.base import Attributor, Score, seeded
from unoise_monai.attribution.composed import ComposedAttributor, Method, NoisyMaps, each_voxel
from unoise_monai.attribution.gradient import IntegratedGradients, Saliency, note_convergence
from unoise_monai.attribution.layer_methods import GuidedGradCAM
from unoise_monai.attribution.targets import Region, border_mean, class_sum, foreground_sum, voxel

SIZE = (8, 6)
IMAGE = torch.randn(1, 2, *SIZE, generator=torch.Generator().manual_seed(2))
TARGET = Region(torch.ones(1, 1, *SIZE), 1, mean=False)
CHEAP = {"integrated_gradients": {"steps": 5}, "gradient_shap": {"samples": 4}}
GRADIENT_METHODS = NoisyMaps.methods()
CLASSES = [SmoothGrad, SmoothGradSquared, VarGrad]


def linear() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(2, 3, 3, padding=1), nn.Conv2d(3, 2, 3, padding=1))


@pytest.mark.parametrize("method", GRADIENT_METHODS)
def test_without_noise_it_is_the_method(method: str) -> None:
    network, options = unet(2, channels=2), CHEAP.get(method, {})
    inner = GRADIENT_METHODS[method](network, **options)
    expected = inner(IMAGE, TARGET)
    maps = SmoothGrad(network, method, samples=3, sigma=0.0, method_options=options)(IMAGE, TARGET)
    assert torch.equal(maps.as_tensor(), expected.as_tensor())
    kept = {key: value for key, value in expected.meta["attribution"][0].items() if key != "method"}
    assert maps.meta["attribution"][0] == {**kept, "method": "smooth_grad", "samples": 3}
    variance = VarGrad(network, inner, samples=3, sigma=0.0)(IMAGE, TARGET)
    assert not variance.any()


def noisy(samples: int, sigma: float = 0.15, seed: int = 0) -> list[Tensor]:
    with seeded(seed, IMAGE.device):
        return [IMAGE + sigma * torch.randn_like(IMAGE) for _ in range(samples)]


def test_equals_the_loop_over_noisy_copies() -> None:
    network = unet(2, channels=2)
    maps = torch.cat([gradient(network, copy, TARGET) for copy in noisy(6, 0.4, seed=3)])
    options: dict[str, Any] = {"samples": 6, "sigma": 0.4, "seed": 3, "sign": "signed"}
    for method, expected in (
        (SmoothGrad, maps.mean(dim=0)),
        (SmoothGradSquared, maps.square().mean(dim=0)),
        (VarGrad, maps.var(dim=0, correction=0)),
    ):
        result = method(network, **options)(IMAGE, TARGET)
        torch.testing.assert_close(result.as_tensor(), expected[None].sum(dim=1, keepdim=True), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("method", CLASSES)
def test_the_noise_does_not_depend_on_the_memory(method: type[NoisyMaps]) -> None:
    network = unet(2, channels=2)
    for inner in ("guided_backprop", "deep_lift", "gradient_shap"):
        alone, many = (
            method(network, inner, samples=5, method_options=CHEAP.get(inner), memory_gb=memory_gb)
            for memory_gb in (None, 0.0002)
        )
        assert 4 < many.volume.copies(IMAGE) < 10
        expected = alone(IMAGE, TARGET).as_tensor()
        # The variance is of values whose own rounding is of the order of 1e-7 of them.
        torch.testing.assert_close(many(IMAGE, TARGET).as_tensor(), expected, rtol=1e-3, atol=1e-5)


def test_a_linear_network_has_one_gradient() -> None:
    network = linear()
    expected = gradient(network, IMAGE, TARGET)
    for method, value in ((SmoothGrad, expected), (SmoothGradSquared, expected.square()), (VarGrad, 0 * expected)):
        maps = method(network, sign="signed", samples=4)(IMAGE, TARGET)
        torch.testing.assert_close(maps.as_tensor(), value.sum(dim=1, keepdim=True))


def test_the_noise_has_the_sigma_that_is_asked_for() -> None:
    # Input times the gradient of a linear network: its variance is that of the noise, times the gradient squared.
    network = linear()
    weight = gradient(network, IMAGE, TARGET)
    maps = VarGrad(network, "input_x_gradient", samples=400, sigma=0.5)(IMAGE, TARGET).as_tensor()
    ratio = maps / (0.25 * weight.square().sum(dim=1, keepdim=True))
    assert float(ratio.mean()) == pytest.approx(1, abs=0.05)


def test_the_rules_hold_within_the_samples() -> None:
    network = unet(2, channels=2)
    by_hand = [GuidedBackprop(network, sign="signed")(copy, TARGET).as_tensor() for copy in noisy(4)]
    signed = SmoothGrad(network, "guided_backprop", samples=4, sign="signed")(IMAGE, TARGET).as_tensor()
    torch.testing.assert_close(signed, torch.stack(by_hand).mean(dim=0))


def test_notes_are_the_means_of_the_samples() -> None:
    network = unet(2, channels=2)
    notes = SmoothGrad(network, IntegratedGradients, samples=3, method_options={"steps": 4})(IMAGE, TARGET)
    singles = [IntegratedGradients(network, 4)(copy, TARGET).meta["attribution"][0] for copy in noisy(3)]
    mean = sum(single["convergence_delta"] for single in singles) / 3
    assert notes.meta["attribution"][0]["convergence_delta"] == pytest.approx(mean, rel=1e-3)


def test_a_mean_of_contributions_is_one_and_a_variance_is_none() -> None:
    network = unet(2, channels=2)
    for inner, contributes in (("integrated_gradients", True), ("saliency", False)):
        assert SmoothGrad(network, inner).contributes is contributes
        assert not SmoothGradSquared(network, inner).contributes
        assert not VarGrad(network, inner).contributes


class Twice(ComposedAttributor):
    """Twice the method's map."""

    name = "twice"

    def maps(self, images: Tensor, score: Score) -> Tensor:
        sums: dict[str, float] = {}
        maps = self.inner_maps(images.detach().repeat(2, 1, 1, 1), score, score.target, sums)
        score.notes["sums"] = sums
        return maps.sum(dim=0, keepdim=True)


NETWORK = unet(2, channels=2)


@pytest.mark.parametrize("method", ["guided_backprop", GuidedBackprop, GuidedBackprop(NETWORK)])
def test_by_name_by_class_or_made(method: Method) -> None:
    expected = GuidedBackprop(NETWORK)(IMAGE, TARGET).as_tensor()
    attributor = Twice(NETWORK, method)
    torch.testing.assert_close(attributor(IMAGE, TARGET).as_tensor(), 2 * expected)
    assert attributor.volume.clips


@pytest.mark.parametrize("composed", [SmoothGrad, VoxelwiseMean])
def test_a_network_that_the_method_refuses_or_substitutes(composed: type[ComposedAttributor]) -> None:
    network = nn.Sequential(nn.Conv2d(2, 3, 1), nn.PReLU())
    with pytest.raises(ValueError, match="guided_backprop has a rule for, got PReLU x 1"):
        composed(network, "guided_backprop")(IMAGE, TARGET)
    maps = composed(network, "guided_backprop", method_options={"substitute": True})(IMAGE, TARGET)
    assert maps.meta["attribution"][0]["substituted"] == {"PReLU": 1}


def test_every_gradient_method_by_its_name() -> None:
    assert {"saliency", "deconvolution", "gradient_shap", "deep_lift_shap"} < set(Twice.methods())
    for name, method in Twice.methods().items():
        assert method.name == name
        assert type(Twice(NETWORK, name).inner) is method


def test_options_of_the_method_and_its_own() -> None:
    attributor = Twice(NETWORK, "integrated_gradients", {"steps": 7, "sign": "signed"}, precision="bf16")
    assert isinstance(attributor.inner, IntegratedGradients)
    assert attributor.inner.steps == 7
    assert (attributor.sign, attributor.volume.precision, attributor.volume.clips) == ("signed", "bf16", False)
    made = Saliency(NETWORK, sign="positive", memory_gb=3.0, precision="bf16")
    like = Twice(NETWORK, made)
    assert (like.sign, like.volume.memory_gb, like.volume.precision) == ("positive", 3.0, "bf16")
    other = Twice(NETWORK, made, sign="signed", memory_gb=None, precision="fp32")
    assert (other.sign, other.volume.memory_gb, other.volume.precision) == ("signed", None, "fp32")
    assert Twice(NETWORK, made, sign=None).sign == "positive"


def test_notes_are_added_once_for_each_image() -> None:
    class Noting(Saliency):
        def maps(self, images: Tensor, score: Score) -> Tensor:
            values = super().maps(images, score)
            note_convergence(score, torch.ones_like(images), torch.full((len(images),), 4.0))
            return values

    notes = Twice(NETWORK, Noting)(IMAGE, TARGET).meta["attribution"][0]
    assert notes["sums"] == {"convergence_delta": 8.0, "score_difference": 184.0}


class Other(Attributor):
    name = "other"

    def maps(self, images: Tensor, score: Score) -> Tensor:
        return images


@pytest.mark.parametrize(
    ("method", "options", "says"),
    [
        ("occlusion", None, "method must be one of 'saliency', 'input_x_gradient', 'integrated_gradients'"),
        (Other, None, "deep_lift_shap, by its name or class, got <class"),
        (Other(NETWORK), None, "deep_lift_shap, by its name or class, got <"),
        (Saliency(unet(2, channels=2)), None, "method must be made over the network itself, got saliency over another"),
        (Saliency(NETWORK), {"sign": "signed"}, "method_options must be None where method is made, got {'sign'"),
    ],
)
def test_refusals(method: Method, options: dict | None, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        Twice(NETWORK, method, options)


CAMS = [VoxelwiseMean.methods()[name] for name in VoxelwiseMean.methods() if name not in GRADIENT_METHODS]
LINEAR = ("saliency", "input_x_gradient", "integrated_gradients", "gradient_shap", "deep_lift", "deep_lift_shap")


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
    network, image, region = unet(len(size), channels=2), picture(*size, batch=2, channels=2), blob(*size, batch=2)
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
    network, image, region = unet(2), picture(7, 6), blob(7, 6)
    maps = VoxelwiseMean(network, method, sign=sign, memory_gb=memory_gb)(image, region)
    expected = loop(network, image, region, method, sign).mean(dim=0)
    torch.testing.assert_close(maps.as_tensor(), expected, rtol=1e-4, atol=1e-6)
    assert maps.meta["attribution"][0]["sign"] == sign


@pytest.mark.parametrize("method", ["guided_backprop", "deconvolution"])
def test_clipped_gradients_of_voxels_are_not_those_of_the_region(method: str) -> None:
    network, image, region = unet(2), picture(7, 6), blob(7, 6)
    maps = VoxelwiseMean(network, method, sign="signed")(image, region).as_tensor()
    direct = GRADIENT_METHODS[method](network, sign="signed")(image, region).as_tensor()
    assert float((maps - direct).norm()) > 0.05 * float(direct.norm())


@pytest.mark.parametrize("mean", [True, False])
def test_a_soft_mask_weighs_its_voxels(mean: bool) -> None:
    network, image = unet(2), picture(7, 6)
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
    network, image, region = unet(2), picture(7, 6), blob(7, 6)
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
    network, image, region = unet(2), picture(7, 6), blob(7, 6)
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
    network, image = unet(2), picture(6, 6)
    logits = torch.randn(1, 3, 6, 6)
    says = f"target must be a Region on the grid of the image (1, 1, 6, 6), {got}"
    with pytest.raises(ValueError, match=re.escape(says)):
        VoxelwiseMean(network)(image, target(logits))


@pytest.mark.parametrize("cam", CAMS)
def test_the_network_is_looked_at_once(cam: type, monkeypatch: pytest.MonkeyPatch) -> None:
    network, image, region = unet(2), picture(40, 8), blob(40, 8)
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
    network, image, region = unet(2), picture(8, 8), blob(8, 8)
    voxels = region.mask[0, 0].nonzero().tolist()
    maps = [cam(network, sign=sign)(image, voxel(at, region.label, (8, 8))).as_tensor() for at in voxels]
    found = VoxelwiseMean(network, cam.name, sign=sign)(image, region)
    torch.testing.assert_close(found.as_tensor(), torch.stack(maps).mean(dim=0), rtol=1e-4, atol=1e-7)
    assert found.meta["attribution"][0]["evaluated"] == len(voxels)
