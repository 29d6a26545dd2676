"""Gradient methods against formulas, loops and Captum; what holds for all of them."""

import logging
from typing import Any

import numpy as np
import pytest
import torch
from small import gradient, picture, region, unet
from torch import Tensor, nn

from unoise_monai.attribution import GradientShap, InputXGradient, IntegratedGradients, Region, Saliency
from unoise_monai.attribution.base import Attributor, Score, baseline, baselines, seeded
from unoise_monai.attribution.composed import ComposedAttributor, each_voxel
from unoise_monai.attribution.gradient import RULES, GradientAttributor, note_convergence
from unoise_monai.networks.weights import attributing

CHEAP = {"integrated_gradients": {"steps": 5}, "gradient_shap": {"samples": 4}, "smooth_grad": {"samples": 3}}
GRADIENT_METHODS = ComposedAttributor.methods()


def make(method: type[Attributor], network: nn.Module, **options: Any) -> Attributor:
    return method(network, **({"sign": "signed"} | CHEAP.get(method.name, {}) | options))


@pytest.mark.parametrize("size", [(8, 6), (6, 4, 8)])
def test_the_gradient_and_the_image_times_it(size: tuple[int, ...]) -> None:
    network, image = unet(len(size), channels=2), picture(*size, batch=2, channels=2)
    target = region(*size)
    expected = gradient(network, image, target)
    maps = Saliency(network, sign="signed")(image, target)
    torch.testing.assert_close(maps.as_tensor(), expected.sum(dim=1, keepdim=True))
    torch.testing.assert_close(Saliency(network)(image, target).as_tensor(), expected.abs().sum(dim=1, keepdim=True))
    maps = InputXGradient(network, sign="signed")(image, target)
    torch.testing.assert_close(maps.as_tensor(), (image * expected).sum(dim=1, keepdim=True))


@pytest.mark.parametrize("method", GRADIENT_METHODS.values())
@pytest.mark.parametrize("copies", [1, 7, 100])
def test_images_that_go_through_at_once_keep_their_own_targets(method: type[GradientAttributor], copies: int) -> None:
    network = unet(2).eval()
    attributor = make(method, network)
    images = picture(6, 8, batch=3).requires_grad_()
    at, weights = torch.tensor([[0, 3], [4, 7], [2, 2]]), torch.tensor([1.0, 0.5, 2.0])
    targets = [each_voxel(at[index : index + 1], 1, weights[index : index + 1]) for index in range(3)]
    score = Score(attributor.volume, each_voxel(at, 1, weights), copies)
    sizes: list[int] = []
    handle = network.register_forward_pre_hook(lambda _, inputs: sizes.append(len(inputs[0])))
    with attributing(network):
        attributor.volume.copies(images)  # measured before the method's hooks, as in a call
        maps = attributor.maps(images, score)
    handle.remove()
    assert max(sizes) <= max(copies, 3 * method.copies_each)
    singles = [Score(attributor.volume, target) for target in targets]
    with attributing(network):
        expected = [attributor.maps(image, each) for image, each in zip(images.split(1), singles, strict=True)]
    torch.testing.assert_close(maps, torch.cat(expected), rtol=1e-4, atol=1e-6)
    for key, value in score.notes.items():
        assert value == pytest.approx(sum(each.notes[key] for each in singles) / 3, abs=1e-5)


def test_what_a_map_misses_is_noted_and_logged(caplog: pytest.LogCaptureFixture) -> None:
    class Missing(Saliency):
        def maps(self, images: Tensor, score: Score) -> Tensor:
            values = torch.ones_like(images)
            note_convergence(score, values, torch.tensor([self.delta]))
            return values

    attributor = Missing(unet(2))
    image = picture(2, 2)
    for attributor.delta, logged in ((0.3, False), (2.0, True)):
        with caplog.at_level(logging.WARNING):
            notes = attributor(image, region(2, 2)).meta["attribution"][0]
        assert notes["convergence_delta"] == pytest.approx(attributor.delta)
        assert notes["score_difference"] == pytest.approx(4 - attributor.delta)
        assert ("saliency: the map sums to 2 more than the 2 to explain" in caplog.text) is logged


SIZE = (8, 6)
IMAGE = torch.randn(1, 1, *SIZE, generator=torch.Generator().manual_seed(2))
TARGET = Region(torch.ones(1, 1, *SIZE), 1)


def linear() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 3, 3, padding=1), nn.Conv2d(3, 2, 3, padding=1))


def notes_of(maps: Any) -> dict[str, Any]:
    return maps.meta["attribution"][0]


@pytest.mark.parametrize("kind", ["zero", "minimum", "noise", 0.5, torch.full((1, 1, 1, 1), 0.25)])
def test_of_a_linear_network_it_is_exact(kind: Any) -> None:
    network = linear()
    start = baseline(IMAGE, kind)
    expected = (IMAGE - start) * gradient(network, IMAGE, TARGET)
    with torch.no_grad():
        difference = float(TARGET(network(IMAGE)) - TARGET(network(start)))
    for rule in RULES:
        maps = IntegratedGradients(network, steps=3, rule=rule, baseline=kind, sign="signed")(IMAGE, TARGET)
        torch.testing.assert_close(maps.as_tensor(), expected)
        assert notes_of(maps)["convergence_delta"] == pytest.approx(0, abs=1e-5)
        assert notes_of(maps)["score_difference"] == pytest.approx(difference, abs=1e-5)


@pytest.mark.parametrize(
    ("rule", "places"),
    [
        ("riemann_left", [0.0, 0.25, 0.5, 0.75]),
        ("riemann_middle", [0.125, 0.375, 0.625, 0.875]),
        ("riemann_right", [0.25, 0.5, 0.75, 1.0]),
    ],
)
def test_equals_the_loop_over_the_path(rule: str, places: list[float]) -> None:
    network = unet(2)
    expected = sum(IMAGE * gradient(network, place * IMAGE, TARGET) for place in places) / 4
    maps = IntegratedGradients(network, steps=4, rule=rule, sign="signed")(IMAGE, TARGET)
    torch.testing.assert_close(maps.as_tensor(), expected)


@pytest.mark.parametrize("kind", ["zero", "blur"])
def test_the_sum_is_the_difference_of_scores_within_the_delta(kind: str) -> None:
    network = unet(2)
    with torch.no_grad():
        difference = float(TARGET(network(IMAGE)) - TARGET(network(baseline(IMAGE, kind))))
    deltas = []
    for steps in (5, 400):
        maps = IntegratedGradients(network, steps=steps, baseline=kind, sign="signed")(IMAGE, TARGET)
        notes = notes_of(maps)
        assert float(maps.sum()) == pytest.approx(difference + notes["convergence_delta"], abs=1e-5)
        assert notes["score_difference"] == pytest.approx(difference, abs=1e-5)
        deltas.append(abs(notes["convergence_delta"]))
    assert deltas[1] < 0.02 * abs(difference)
    assert deltas[1] < deltas[0]


@pytest.mark.parametrize("sigma", [0.0, 0.3])
def test_expected_gradients_equal_the_loop(sigma: float) -> None:
    network = unet(2)
    kinds = ("zero", "blur", "noise", 1.0)
    starts = baselines(IMAGE, kinds, seed=1)
    expected = torch.zeros_like(IMAGE)
    with seeded(1, IMAGE.device):
        chosen, places = torch.randint(4, (5,)).tolist(), torch.rand(5).tolist()
        for at, place in zip(chosen, places, strict=True):
            step = IMAGE + sigma * torch.randn_like(IMAGE) - starts[at]
            expected += step * gradient(network, starts[at] + place * step, TARGET) / 5
    with torch.no_grad():
        difference = float(TARGET(network(IMAGE)) - sum(TARGET(network(starts[at])) for at in chosen) / 5)
    maps = GradientShap(network, 5, kinds, sigma=sigma, seed=1, sign="signed")(IMAGE, TARGET)
    torch.testing.assert_close(maps.as_tensor(), expected)
    assert notes_of(maps)["score_difference"] == pytest.approx(difference, abs=1e-5)
    assert notes_of(maps)["convergence_delta"] == pytest.approx(float(expected.sum()) - difference, abs=1e-5)


def test_more_samples_come_nearer_to_the_integral() -> None:
    network = unet(2)
    integral = IntegratedGradients(network, 200, sign="signed")(IMAGE, TARGET).as_tensor()
    errors = [
        float((GradientShap(network, samples, ("zero",), sign="signed")(IMAGE, TARGET).as_tensor() - integral).norm())
        for samples in (2, 500)
    ]
    assert errors[1] < 0.1 * errors[0]


def test_numpy_s_global_state_is_left() -> None:
    state = np.random.get_state()[1].copy()  # noqa: NPY002 - Captum's methods draw from it
    GradientShap(unet(2), 3)(IMAGE, TARGET)
    assert (np.random.get_state()[1] == state).all()  # noqa: NPY002
