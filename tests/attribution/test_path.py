"""Path methods against loops, on linear networks in closed form, and in what their values add up to."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest
import torch
from small import unet
from torch import Tensor, nn

from unoise_monai.attribution.base import baseline, baselines, seeded
from unoise_monai.attribution.gradient import RULES, GradientAttributor, GradientShap, IntegratedGradients
from unoise_monai.attribution.targets import Region

SIZE = (8, 6)
IMAGE = torch.randn(1, 1, *SIZE, generator=torch.Generator().manual_seed(2))
TARGET = Region(torch.ones(1, 1, *SIZE), 1)


def linear() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 3, 3, padding=1), nn.Conv2d(3, 2, 3, padding=1))


def gradient(network: nn.Module, image: Tensor) -> Tensor:
    copy = image.clone().requires_grad_()
    return torch.autograd.grad(TARGET(network(copy)).sum(), copy)[0]


def notes_of(maps: Any) -> dict[str, Any]:
    return maps.meta["attribution"][0]


@pytest.mark.parametrize("kind", ["zero", "minimum", "noise", 0.5, torch.full((1, 1, 1, 1), 0.25)])
def test_of_a_linear_network_it_is_exact(kind: Any) -> None:
    network = linear()
    start = baseline(IMAGE, kind)
    expected = (IMAGE - start) * gradient(network, IMAGE)
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
    expected = sum(IMAGE * gradient(network, place * IMAGE) for place in places) / 4
    maps = IntegratedGradients(network, steps=4, rule=rule, sign="signed")(IMAGE, TARGET)
    torch.testing.assert_close(maps.as_tensor(), expected)


@pytest.mark.parametrize("kind", ["zero", "blurred"])
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


def test_expected_gradients_of_a_linear_network() -> None:
    network = linear()
    starts = baselines(IMAGE, ("zero", "noise", 1.0), seed=4)
    with seeded(4, IMAGE.device):
        chosen = torch.randint(3, (7,))
    mean = torch.stack([starts[int(at)] for at in chosen]).mean(dim=0)
    assert len(chosen.unique()) > 1
    maps = GradientShap(network, 7, ("zero", "noise", 1.0), seed=4, sign="signed")(IMAGE, TARGET)
    torch.testing.assert_close(maps.as_tensor(), (IMAGE - mean) * gradient(network, IMAGE))
    assert notes_of(maps)["convergence_delta"] == pytest.approx(0, abs=1e-5)
    with torch.no_grad():
        before = sum(float(TARGET(network(starts[int(at)]))) for at in chosen) / 7
        difference = float(TARGET(network(IMAGE))) - before
    assert notes_of(maps)["score_difference"] == pytest.approx(difference, abs=1e-5)


@pytest.mark.parametrize("sigma", [0.0, 0.3])
def test_expected_gradients_equal_the_loop(sigma: float) -> None:
    network = unet(2)
    starts = baselines(IMAGE, ("zero", "blurred"), seed=1)
    expected = torch.zeros_like(IMAGE)
    with seeded(1, IMAGE.device):
        chosen, places = torch.randint(2, (5,)).tolist(), torch.rand(5).tolist()
        for at, place in zip(chosen, places, strict=True):
            step = IMAGE + sigma * torch.randn_like(IMAGE) - starts[at]
            expected += step * gradient(network, starts[at] + place * step) / 5
    maps = GradientShap(network, 5, ("zero", "blurred"), sigma=sigma, seed=1, sign="signed")(IMAGE, TARGET)
    torch.testing.assert_close(maps.as_tensor(), expected)


def test_more_samples_come_nearer_to_the_integral() -> None:
    network = unet(2)
    integral = IntegratedGradients(network, 200, sign="signed")(IMAGE, TARGET).as_tensor()
    errors = [
        float((GradientShap(network, samples, ("zero",), sign="signed")(IMAGE, TARGET).as_tensor() - integral).norm())
        for samples in (2, 500)
    ]
    assert errors[1] < 0.1 * errors[0]


def test_seeds() -> None:
    network = unet(2)
    state = np.random.get_state()[1].copy()  # noqa: NPY002 - Captum's methods draw from it
    maps = [GradientShap(network, 3, seed=seed)(IMAGE, TARGET).as_tensor() for seed in (0, 0, 1, None, None)]
    assert torch.equal(maps[0], maps[1])
    assert not torch.equal(maps[0], maps[2])
    assert not torch.equal(maps[3], maps[4])
    assert (np.random.get_state()[1] == state).all()  # noqa: NPY002


def test_a_stack_of_images_as_baselines() -> None:
    network, stack = linear(), torch.stack([torch.zeros(1, *SIZE), torch.ones(1, *SIZE)])
    one = GradientShap(network, 6, stack)(IMAGE, TARGET).as_tensor()
    assert torch.equal(one, GradientShap(network, 6, (0.0, 1.0))(IMAGE, TARGET).as_tensor())


@pytest.mark.parametrize(
    ("method", "options", "says"),
    [
        (IntegratedGradients, {"steps": 1}, "steps must be at least 2, got 1"),
        (IntegratedGradients, {"rule": "riemann_trapezoid"}, "rule must be one of 'gausslegendre', 'riemann_left'"),
        (IntegratedGradients, {"baseline": "black"}, "baseline must be one of 'zero'"),
        (GradientShap, {"samples": 0}, "samples must be at least 1, got 0"),
        (GradientShap, {"sigma": -0.1}, "sigma must be a finite number of at least 0, got -0.1"),
        (GradientShap, {"baselines": ()}, "baselines must be one or more of"),
    ],
)
def test_refusals(method: type[GradientAttributor], options: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=re.escape(says)):
        method(linear(), **options)


def test_a_baseline_of_another_size_is_refused() -> None:
    with pytest.raises(ValueError, match=re.escape("baseline must expand to the image (1, 1, 8, 6), got (1, 1, 6, 8)")):
        IntegratedGradients(linear(), baseline=torch.zeros(1, 1, 6, 8))(IMAGE, TARGET)


def test_captum_s_trapezoid_is_no_choice_because_its_weights_fall_short() -> None:
    from captum.attr import IntegratedGradients as Captums

    network, copy = linear(), IMAGE.clone().requires_grad_()
    values = Captums(lambda x: TARGET(network(x))).attribute(copy, n_steps=4, method="riemann_trapezoid")
    torch.testing.assert_close(values.detach(), 0.75 * IMAGE * gradient(network, IMAGE))
