"""What is drawn: of which size, where, the same for every item, and whatever the number of copies in a pass."""

import pytest
import torch
from torch import Tensor

from unoise_monai.metrics.faithfulness import GaussianPerturbation, draw_copies, max_sensitivity


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


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


@pytest.mark.parametrize("box", [None, 2])
def test_copies_in_a_pass_change_nothing(box: int | None) -> None:
    image = torch.randn(2, 3, 5, 7, generator=seeded(1))
    whole = gaussian(box)(image.repeat_interleave(5, dim=0))[0].view(2, 5, 3, 5, 7)
    perturb = gaussian(box)
    parts = [perturb(image.repeat_interleave(copies, dim=0))[0].view(2, copies, 3, 5, 7) for copies in (1, 3, 1)]
    assert torch.equal(torch.cat(parts, dim=1), whole)


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


def test_the_generator_is_the_only_source() -> None:
    state = torch.get_rng_state()
    image = torch.zeros(2, 1, 4, 4)
    for perturb in (gaussian(), gaussian(2)):
        perturb(image)
    assert torch.equal(torch.get_rng_state(), state)


def test_draws_are_made_one_by_one() -> None:
    numbers = iter(range(3))
    drawn = draw_copies(torch.zeros(6, 1, 2), 2, lambda shape: torch.full(shape, float(next(numbers))))
    assert drawn[:, 0, 0].tolist() == [0, 1, 2, 0, 1, 2]


@pytest.mark.parametrize("bad", [0.0, -1.0, float("inf"), float("nan")])
def test_refuses_what_is_no_distance(bad: float) -> None:
    with pytest.raises(ValueError, match=f"sigma must be a finite number above 0, got {bad}"):
        gaussian(sigma=bad)


def test_refuses_a_box_of_nothing() -> None:
    with pytest.raises(ValueError, match="box must be at least 1, got 0"):
        gaussian(0)
