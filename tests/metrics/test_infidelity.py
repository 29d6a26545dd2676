"""What a map predicts of a score's changes, against the sums written out, and where nothing can be predicted."""

import math
import re

import captum.metrics
import pytest
import torch
from monai.data import MetaTensor
from torch import Tensor, nn

from unoise_monai.metrics.faithfulness import GaussianPerturbation, InfidelityResult, infidelities, infidelity


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


def test_equals_captum() -> None:
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
    found = infidelity(
        lambda images: torch.ones(len(images)), randn(2, 1, 5, 6), randn(2, 1, 5, 6), 0.5, 5, generator=seeded()
    )
    assert found.value.tolist() == found.squared_change.tolist() == [0, 0]
    assert bool(found.unexplained.isnan().all())


def test_rounding_takes_no_score_out_of_its_range() -> None:
    """One weight on one voxel: the prediction is the change itself, and the square of their difference comes to 0."""
    for seed in range(30):
        image = randn(1, 1, 2, 2, seed=seed).double()
        found = infidelity(
            lambda images: images[:, 0, 0, 0] / 3,
            image,
            (image == image[0, 0, 0, 0]) / 7,
            0.5,
            9,
            generator=seeded(seed),
        )
        assert 0 <= float(found.value) < 1e-12


def test_an_unrelated_map_is_expected_at_one_less_a_sample() -> None:
    weight = randn(1, 1, 20, 20, seed=3)
    maps = {str(seed): randn(1, 1, 20, 20, seed=seed) for seed in range(100, 400)}
    found = infidelities(
        lambda images: (images * weight).flatten(1).sum(dim=1), randn(1, 1, 20, 20), maps, 0.1, 4, generator=seeded()
    )
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


def test_an_item_scores_as_it_does_alone() -> None:
    image, attribution = randn(3, 2, 5, 6), randn(3, 1, 5, 6, seed=2)
    whole = infidelity(Bent(), image, attribution, 0.5, 6, generator=seeded(), copies=2)
    for item in range(3):
        one = slice(item, item + 1)
        alone = infidelity(Bent(), image[one], attribution[one], 0.5, 6, generator=seeded(), copies=2)
        torch.testing.assert_close(alone.value, whole.value[one], rtol=1e-5, atol=0)


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
        ({"sigma": 0.0}, "sigma must be a finite number above 0, got 0.0"),
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
def test_refuses(changed: dict, says: str) -> None:
    given = {"score": Bent(), "image": randn(2, 2, 5, 6), "attribution": randn(2, 1, 5, 6), "sigma": 0.5, **changed}
    with pytest.raises(ValueError, match=re.escape(says)):
        infidelity(**given, generator=seeded())
