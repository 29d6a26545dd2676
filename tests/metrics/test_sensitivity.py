"""The largest change of a map, against a loop over the same perturbations, and where the answer is known."""

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
from unoise_monai.metrics.faithfulness import max_sensitivity


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def randn(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(shape, generator=seeded(seed))


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


def test_equals_captum() -> None:
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


def test_a_map_of_another_memory_layout_gives_the_same() -> None:
    image, gradient = randn(2, 2, 5, 6), Gradient(curved())
    found = max_sensitivity(lambda x, t: gradient(x, t).mT.contiguous().mT, image, total, 0.3, 3, generator=seeded())
    assert torch.equal(found, max_sensitivity(gradient, image, total, 0.3, 3, generator=seeded()))


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
def test_the_scale_of_a_map_does_not_count(scale: float) -> None:
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
def test_refuses(changed: dict, says: str) -> None:
    given = {"attributor": Gradient(curved()), "image": randn(1, 2, 5, 6), "target": total, "radius": 0.1, **changed}
    with pytest.raises(ValueError, match=re.escape(says)):
        max_sensitivity(**given, generator=seeded())
