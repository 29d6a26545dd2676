"""Infidelity, maximum sensitivity and their perturbations, against sums written out, Captum, and known answers."""

import math
import re

import captum.metrics
import pytest
import torch
from monai.data import MetaTensor
from torch import Tensor, nn

from unoise_monai.attribution.gradient import Saliency
from unoise_monai.attribution.perturbation import Occlusion
from unoise_monai.attribution.targets import Target, foreground_sum
from unoise_monai.metrics.faithfulness import (
    GaussianPerturbation,
    InfidelityResult,
    infidelities,
    infidelity,
    max_sensitivity,
)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def randn(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(shape, generator=seeded(seed))


class Bent:
    """A score that no map predicts wholly; notes how many images a pass has."""

    def __init__(self, channels: int = 2, spatial: tuple[int, ...] = (5, 6)) -> None:
        self.weight = randn(1, channels, *spatial, seed=9)
        self.seen: list[int] = []

    def __call__(self, images: Tensor) -> Tensor:
        self.seen.append(len(images))
        linear = (images.contiguous() * self.weight).flatten(1).sum(dim=1)
        return linear + 0.1 * linear**2


def naive(
    score: Bent, image: Tensor, attribution: Tensor, sigma: float, samples: int, box: int | None
) -> InfidelityResult:
    """One item, one perturbation at a time, the scale by least squares, the error at that scale."""
    values, changes = [], []
    for item, weights in zip(image.double(), attribution.double(), strict=True):
        generator, predicted, happened = seeded(), [], []
        for _ in range(samples):
            noise = sigma * torch.randn(item.shape, generator=generator).double()
            changed = item - noise
            if box is not None:
                changed = item.clone()
                place = [slice(None)]
                for side in item.shape[1:]:
                    first = int(torch.randint(max(side - box, 0) + 1, (), generator=generator))
                    place.append(slice(first, first + min(box, side)))
                changed[tuple(place)] = noise[tuple(place)]
            predicted.append(float(((item - changed) * weights).sum()))
            happened.append(float(score(item[None]) - score(changed[None])))
        scale = sum(p * h for p, h in zip(predicted, happened, strict=True)) / sum(p * p for p in predicted)
        errors = [(scale * p - h) ** 2 for p, h in zip(predicted, happened, strict=True)]
        values.append(sum(errors) / samples)
        changes.append(sum(h * h for h in happened) / samples)
    return InfidelityResult(torch.tensor(values, dtype=torch.float64), torch.tensor(changes, dtype=torch.float64))


@pytest.mark.parametrize("spatial", [(5, 6), (4, 5, 3)])
@pytest.mark.parametrize("box", [None, 4])
@pytest.mark.parametrize("copies", [1, 3, 100])
def test_equals_the_sums_written_out(spatial: tuple[int, ...], box: int | None, copies: int) -> None:
    score = Bent(2, spatial)
    image, attribution = randn(3, 2, *spatial), randn(3, 1, *spatial, seed=2)
    expected = naive(score, image, attribution, 0.5, 8, box)
    found = infidelity(score, image, attribution, 0.5, 8, generator=seeded(), box=box, copies=copies)
    for got, wanted in zip(found, expected, strict=True):
        assert got.shape == (3,)
        torch.testing.assert_close(got, wanted, rtol=1e-4, atol=0)
    torch.testing.assert_close(found.unexplained, expected.value / expected.squared_change, rtol=1e-4, atol=0)
    assert 0 < float(found.unexplained.min()) <= float(found.unexplained.max()) < 1


def test_infidelity_equals_captum() -> None:
    score, image, attribution = Bent(), randn(3, 2, 5, 6), randn(3, 1, 5, 6, seed=2)
    found = infidelity(score, image, attribution, 0.5, 8, generator=seeded(), box=3)
    perturb = GaussianPerturbation(3, 0.5, seeded(), box=3)
    expected = captum.metrics.infidelity(
        score, perturb, image, attribution.expand_as(image), n_perturb_samples=8, normalize=True
    )
    torch.testing.assert_close(found.value.float(), expected, rtol=1e-3, atol=1e-4)


def test_gradient_of_a_linear_score_predicts_all_and_its_magnitude_nearly_nothing() -> None:
    weight = randn(1, 1, 8, 8, seed=3)
    image = randn(2, 3, 8, 8)

    def score(images: Tensor) -> Tensor:
        return (images * weight).flatten(1).sum(dim=1)

    maps = {"signed": weight.expand(2, -1, -1, -1), "absolute": weight.abs().expand(2, -1, -1, -1)}
    found = infidelities(score, image, maps, 0.1, 200, generator=seeded())
    assert 0 <= float(found["signed"].value.min()) <= float(found["signed"].unexplained.max()) < 1e-9
    assert float(found["absolute"].unexplained.min()) > 0.9


@pytest.mark.parametrize("scale", [1e-30, 1e25, -3.0])
def test_the_scale_of_a_map_does_not_count(scale: float) -> None:
    image, attribution = randn(2, 2, 5, 6), randn(2, 1, 5, 6, seed=2)
    one, other = (infidelity(Bent(), image, m, 0.5, 9, generator=seeded()) for m in (attribution, attribution * scale))
    torch.testing.assert_close(one.value, other.value, rtol=1e-5, atol=0)


def test_a_map_of_zeros_predicts_nothing_and_a_constant_one_by_the_sum_of_the_perturbation() -> None:
    image = randn(2, 2, 5, 6)
    maps = {"zeros": torch.zeros(2, 1, 5, 6), "constant": torch.full((2, 1, 5, 6), -4.0)}
    found = infidelities(Bent(), image, maps, 0.5, 9, generator=seeded())
    assert torch.equal(found["zeros"].value, found["zeros"].squared_change)
    assert found["zeros"].unexplained.tolist() == [1, 1]

    def total(images: Tensor) -> Tensor:
        return 7 * images.flatten(1).sum(dim=1)

    assert float(infidelity(total, image, maps["constant"], 0.5, 9, generator=seeded()).unexplained.max()) < 1e-9


def test_a_score_that_never_changes_leaves_nothing_to_explain() -> None:
    maps = randn(2, 1, 5, 6), randn(2, 1, 5, 6)
    found = infidelity(lambda images: torch.ones(len(images)), *maps, 0.5, 5, generator=seeded())
    assert found.value.tolist() == found.squared_change.tolist() == [0, 0]
    assert bool(found.unexplained.isnan().all())


def test_rounding_takes_no_score_out_of_its_range() -> None:
    """One weight on one voxel: the prediction is the change itself, and the square of their difference comes to 0."""
    for seed in range(30):
        image = randn(1, 1, 2, 2, seed=seed).double()
        attribution = (image == image[0, 0, 0, 0]) / 7
        found = infidelity(lambda images: images[:, 0, 0, 0] / 3, image, attribution, 0.5, 9, generator=seeded(seed))
        assert 0 <= float(found.value) < 1e-12


def test_an_unrelated_map_is_expected_at_one_less_a_sample() -> None:
    weight = randn(1, 1, 20, 20, seed=3)
    maps = {str(seed): randn(1, 1, 20, 20, seed=seed) for seed in range(100, 400)}

    def score(images: Tensor) -> Tensor:
        return (images * weight).flatten(1).sum(dim=1)

    found = infidelities(score, randn(1, 1, 20, 20), maps, 0.1, 4, generator=seeded())
    mean = sum(float(one.unexplained) for one in found.values()) / len(found)
    assert mean == pytest.approx(1 - 1 / 4, abs=0.05)


def test_several_maps_cost_the_passes_of_one_and_see_the_same_perturbations() -> None:
    image, score = randn(2, 2, 5, 6), Bent()
    maps = {name: randn(2, 1, 5, 6, seed=seed) for name, seed in (("a", 2), ("b", 3), ("c", 4))}
    found = infidelities(score, image, maps, 0.5, 7, generator=seeded(), copies=3)
    assert score.seen == [2, 6, 6, 2]
    assert list(found) == ["a", "b", "c"]
    for name, attribution in maps.items():
        alone = infidelity(Bent(), image, attribution, 0.5, 7, generator=seeded(), copies=3)
        assert torch.equal(alone.value, found[name].value)
        assert torch.equal(alone.squared_change, found[name].squared_change)


def test_the_generator_is_the_only_source_and_moves_on() -> None:
    image, attribution = randn(1, 2, 5, 6), randn(1, 1, 5, 6, seed=2)
    state, generator = torch.get_rng_state(), seeded()
    first, second = (infidelity(Bent(), image, attribution, 0.5, 6, generator=generator) for _ in range(2))
    assert torch.equal(torch.get_rng_state(), state)
    assert float(first.squared_change) != float(second.squared_change)


def test_meta_tensors_and_other_memory_layouts_give_the_same_and_stay() -> None:
    image, attribution = randn(2, 2, 5, 6), randn(2, 1, 5, 6, seed=2)
    expected = infidelity(Bent(), image, attribution, 0.5, 6, generator=seeded(), box=3)
    images = [MetaTensor(image.clone()), image.clone().to(memory_format=torch.channels_last)]
    maps = [MetaTensor(attribution.clone()), attribution.mT.contiguous().mT]
    for other, values in zip(images, maps, strict=True):
        found = infidelity(Bent(), other, values.requires_grad_(), 0.5, 6, generator=seeded(), box=3)
        assert type(found.value) is type(found.squared_change) is Tensor
        torch.testing.assert_close(found.value, expected.value, rtol=1e-5, atol=0)
        assert torch.equal(torch.as_tensor(other), image)
        assert not found.value.requires_grad


def test_a_module_runs_in_evaluation_mode_and_comes_back() -> None:
    class Mean(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = nn.Sequential(nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3), nn.Dropout(0.5))

        def forward(self, images: Tensor) -> Tensor:
            return self.net(images).square().flatten(1).mean(dim=1)

    score = Mean().train()
    score.net[2].eval()
    before = {name: value.clone() for name, value in score.state_dict().items()}
    image, attribution = randn(2, 2, 5, 6), randn(2, 1, 5, 6, seed=2)
    found = infidelity(score, image, attribution, 0.5, 6, generator=seeded())
    assert [module.training for module in score.modules()] == [True, True, True, True, False]
    assert all(torch.equal(value, before[name]) for name, value in score.state_dict().items())
    score.eval()
    expected = infidelity(lambda images: score(images), image, attribution, 0.5, 6, generator=seeded())
    assert torch.equal(found.value, expected.value)


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        *(({"sigma": bad}, f"sigma must be a finite number above 0, got {bad}") for bad in (0.0, math.inf, math.nan)),
        ({"samples": 1}, "samples must be at least 2, got 1"),
        ({"copies": 0}, "copies must be at least 1, got 0"),
        ({"box": 0}, "box must be at least 1, got 0"),
        ({"attribution": torch.zeros(2, 2, 5, 6)}, "attribution must be one channel on the image's grid, (2, 1, 5, 6)"),
        ({"attribution": torch.zeros(1, 1, 5, 6)}, "attribution must be one channel on the image's grid, (2, 1, 5, 6)"),
        ({"attribution": torch.full((2, 1, 5, 6), math.inf)}, "attribution must hold finite values only"),
        ({"image": torch.full((2, 2, 5, 6), math.nan)}, "image must hold finite values only"),
        ({"score": lambda images: images}, "score must give one number an item, (2,), got (2, 2, 5, 6)"),
        ({"score": lambda images: images.flatten(1).sum(1) / 0}, "score must hold finite values only"),
    ],
)
def test_infidelity_refuses(changed: dict, says: str) -> None:
    given = {"score": Bent(), "image": randn(2, 2, 5, 6), "attribution": randn(2, 1, 5, 6), "sigma": 0.5, **changed}
    with pytest.raises(ValueError, match=re.escape(says)):
        infidelity(**given, generator=seeded())


def total(logits: Tensor) -> Tensor:
    return logits.flatten(1).sum(dim=1)


class Gradient:
    """The gradient by hand, which needs gradients to be on; counts its calls."""

    def __init__(self, network: nn.Module) -> None:
        self.network, self.calls = network, 0

    def __call__(self, image: Tensor, target: Target) -> Tensor:
        self.calls += 1
        image = image.as_subclass(Tensor).detach().requires_grad_()
        return torch.autograd.grad(target(self.network(image)).sum(), image)[0].sum(dim=1, keepdim=True)


def curved() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(2, 4, 3, padding=1), nn.Tanh(), nn.Conv2d(4, 2, 1))


@pytest.mark.parametrize("items", [1, 3])
def test_equals_the_loop_over_perturbations(items: int) -> None:
    image, attributor = randn(items, 2, 5, 6), Gradient(curved())
    found = max_sensitivity(attributor, MetaTensor(image), total, 0.3, 5, generator=seeded())
    assert attributor.calls == 1 + 5
    assert found.shape == (items,)
    assert not found.requires_grad
    for item in range(items):
        one = image[item : item + 1]
        original, generator, largest = attributor(one, total), seeded(), 0.0
        for _ in range(5):
            noise = 0.3 * (2 * torch.rand(one.shape[1:], generator=generator) - 1)
            change = attributor(one + noise, total) - original
            largest = max(largest, float(change.square().sum().sqrt() / original.square().sum().sqrt()))
        assert float(found[item]) == pytest.approx(largest, rel=1e-4)


def test_sensitivity_equals_captum() -> None:
    image, attributor = randn(2, 2, 5, 6), Gradient(curved())
    generator = seeded()

    def perturb(images: Tensor) -> Tensor:
        return images + 0.3 * (2 * torch.rand(images.shape[1:], generator=generator) - 1)

    def explain(images: Tensor | tuple[Tensor]) -> Tensor | tuple[Tensor]:
        with torch.enable_grad():
            return (attributor(images[0], total),) if isinstance(images, tuple) else attributor(images, total)

    expected = captum.metrics.sensitivity_max(explain, image, perturb, n_perturb_samples=4, max_examples_per_batch=2)
    found = max_sensitivity(attributor, image, total, 0.3, 4, generator=seeded())
    torch.testing.assert_close(found.float(), expected.float(), rtol=1e-4, atol=0)


def test_gradient_of_a_linear_network_does_not_change() -> None:
    found = max_sensitivity(Gradient(nn.Conv3d(1, 2, 3)), randn(2, 1, 4, 5, 6), total, 0.5, 3, generator=seeded())
    assert found.tolist() == [0, 0]


def test_more_samples_and_a_wider_radius_find_more() -> None:
    image, attributor = randn(1, 2, 5, 6), Gradient(curved())
    few, many, wide = (
        float(max_sensitivity(attributor, image, total, radius, samples, generator=seeded()))
        for radius, samples in ((0.1, 2), (0.1, 8), (0.5, 8))
    )
    assert few < many < wide


@pytest.mark.parametrize("scale", [1e-30, 1e20, -2.0])
def test_the_scale_of_a_map_does_not_count_for_sensitivity(scale: float) -> None:
    image, gradient = randn(2, 2, 5, 6), Gradient(curved())
    one = max_sensitivity(gradient, image, total, 0.3, 3, generator=seeded())
    other = max_sensitivity(lambda x, t: gradient(x, t) * scale, image, total, 0.3, 3, generator=seeded())
    torch.testing.assert_close(one, other, rtol=1e-4, atol=0)


def test_of_a_map_of_zeros_there_is_nothing_to_be_relative_to() -> None:
    image = torch.zeros(2, 1, 4, 4)
    image[1] = 1
    still = max_sensitivity(lambda x, _: torch.zeros_like(x), image, total, 0.3, 3, generator=seeded())
    assert bool(still.isnan().all())
    moved = max_sensitivity(lambda x, _: x, image, total, 0.3, 1, generator=seeded())
    noise = 0.3 * (2 * torch.rand(1, 4, 4, generator=seeded()) - 1)
    assert bool(moved[0].isnan())
    assert float(moved[1]) == pytest.approx(float(noise.norm()) / 4)


@pytest.mark.parametrize("items", [1, 2])
def test_images_lie_where_the_image_does(items: int) -> None:
    affine = torch.tensor([[-0.4, -0.72, 0, 3], [-0.3, 0.96, 0, -2], [0, 0, 2, 1], [0, 0, 0, 1]]).double()
    image, network = MetaTensor(randn(items, 1, 8, 6, 4), affine=affine), nn.Conv3d(1, 2, 3, padding=1)
    seen = []

    def attributor(images: Tensor, target: Target) -> Tensor:
        seen.append(images)
        return Occlusion(network, 2.2, 2.2, unit="mm")(images, target)

    target = foreground_sum(network(image.as_tensor()).detach())
    found = max_sensitivity(attributor, image, target, 0.3, 2, generator=seeded())
    assert len(seen) == 1 + 2
    for images in seen:
        assert isinstance(images, MetaTensor)
        assert torch.equal(images.affine, affine)
    in_voxels = Occlusion(network, (4, 2, 1), (4, 2, 1))
    torch.testing.assert_close(found, max_sensitivity(in_voxels, image, target, 0.3, 2, generator=seeded()))


def test_one_of_the_project_s_attributions_with_targets_for_each_item() -> None:
    network, image = curved(), randn(2, 2, 5, 6)
    with torch.no_grad():
        target = foreground_sum(network(image))
    state, network_state = torch.get_rng_state(), [p.clone() for p in network.parameters()]
    found = max_sensitivity(Saliency(network), MetaTensor(image), target, 0.3, 4, generator=seeded())
    assert type(found) is Tensor
    assert float(found.min()) > 0
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(now, before) for now, before in zip(network.parameters(), network_state, strict=True))
    # With its own target each item scores as it does alone.
    for item in range(2):
        one = slice(item, item + 1)
        alone = max_sensitivity(Saliency(network), image[one], target.item(item), 0.3, 4, generator=seeded())
        torch.testing.assert_close(alone, found[one])


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"radius": -1.0}, "radius must be a finite number above 0, got -1.0"),
        ({"samples": 0}, "samples must be at least 1, got 0"),
        ({"image": torch.full((1, 2, 5, 6), math.nan)}, "image must hold finite values only"),
        ({"attributor": lambda x, _: x}, "the attributor's map must be one channel on the image's grid, (1, 1, 5, 6)"),
        ({"attributor": lambda x, _: x[:, :1] / 0}, "the attributor's map must hold finite values only"),
    ],
)
def test_sensitivity_refuses(changed: dict, says: str) -> None:
    given = {"attributor": Gradient(curved()), "image": randn(1, 2, 5, 6), "target": total, "radius": 0.1, **changed}
    with pytest.raises(ValueError, match=re.escape(says)):
        max_sensitivity(**given, generator=seeded())


def gaussian(box: int | None = None, items: int = 2, sigma: float = 0.7) -> GaussianPerturbation:
    return GaussianPerturbation(items, sigma, seeded(), box)


@pytest.mark.parametrize("box", [None, 2])
@pytest.mark.parametrize("shape", [(3, 5, 6), (1, 4, 5, 6)])
def test_every_item_gets_the_same_noise_and_every_copy_its_own(box: int | None, shape: tuple[int, ...]) -> None:
    image = torch.randn(2, *shape, generator=seeded(1))
    images = image.repeat_interleave(3, dim=0)
    perturbation, perturbed = gaussian(box)(images)
    torch.testing.assert_close(perturbation, images - perturbed)
    assert perturbation.shape == images.shape
    added = perturbation if box is None else torch.where(perturbation != 0, perturbed, 0.0)
    torch.testing.assert_close(added[:3], added[3:])
    assert not torch.equal(perturbation[0], perturbation[1])


def test_noise_has_the_standard_deviation() -> None:
    perturbation, _ = gaussian(sigma=0.3, items=1)(torch.zeros(1, 1, 100, 100))
    assert float(perturbation.std()) == pytest.approx(0.3, rel=0.03)
    assert float(perturbation.mean()) == pytest.approx(0, abs=0.01)


def place_of(changed: Tensor) -> list[tuple[int, int]]:
    """First and last voxel along each axis of what changed, which has to fill them."""
    corners = [(int(at.min()), int(at.max())) for at in changed.nonzero().T]
    volume = 1
    for first, last in corners:
        volume *= last - first + 1
    assert int(changed.sum()) == volume
    return corners


def test_a_box_of_every_channel_is_set_to_noise() -> None:
    """The image is far from the noise, so what is left of it would show."""
    images = torch.full((400, 2, 3, 8, 9), 50.0)
    perturbation, perturbed = gaussian(4, items=1)(images)
    starts = set()
    for item in range(len(images)):
        changed = perturbation[item] != 0
        assert torch.equal(changed[0], changed[1])
        corners = place_of(changed[0])
        assert [last - first + 1 for first, last in corners] == [3, 4, 4]
        starts.add((corners[1][0], corners[2][0]))
        assert torch.equal(perturbed[item][~changed], images[item][~changed])
    # Every place that lies inside, and no other, comes up.
    assert starts == {(y, z) for y in range(5) for z in range(6)}
    noise = perturbed[perturbation != 0]
    assert float(noise.mean()) == pytest.approx(0, abs=0.02)
    assert float(noise.std()) == pytest.approx(0.7, rel=0.02)


def test_uniform_noise_fills_the_radius() -> None:
    image, seen = torch.randn(2, 1, 50, 60, generator=seeded(1)), []

    def attributor(images: Tensor, _: object) -> Tensor:
        seen.append(images)
        return images

    max_sensitivity(attributor, image, lambda logits: logits, 0.2, 1, generator=seeded())
    noise = seen[1] - seen[0]
    torch.testing.assert_close(noise[0], noise[1])
    assert 0.199 < float(noise.max()) <= 0.2 + 1e-6
    assert -0.199 > float(noise.min()) >= -0.2 - 1e-6
    assert float(noise.mean()) == pytest.approx(0, abs=0.01)
    assert float(noise.std()) == pytest.approx(0.4 / 12**0.5, rel=0.03)
