"""What hidden voxels become, against loops; what stays visible is untouched."""

import math
import re

import pytest
import torch
from monai.data import MetaTensor
from torch import Tensor

from unoise_monai.attribution.base import BASELINES, baseline
from unoise_monai.metrics.visibility import ZERO, Hiding

ALL = (
    ZERO,
    Hiding("mean"),
    Hiding("minimum"),
    Hiding("value", value=-1.0),
    Hiding("noise", sigma=2.0),
    Hiding("blur", sigma=1.5),
)


def images(spatial: tuple[int, ...] = (6, 5, 4), seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    image = torch.randn(2, 3, *spatial, generator=generator) - 1
    return image, torch.rand(2, 1, *spatial, generator=generator) < 0.4


@pytest.mark.parametrize("hiding", ALL, ids=lambda hiding: hiding.operator)
@pytest.mark.parametrize("spatial", [(6, 5), (6, 5, 4)])
def test_visible_voxels_stay_and_hidden_ones_are_filled_in_every_channel(
    hiding: Hiding, spatial: tuple[int, ...]
) -> None:
    image, visible = images(spatial)
    kept = image.clone()
    result = hiding(image, visible)
    everywhere = visible.expand_as(image)
    assert torch.equal(result[everywhere], image[everywhere])
    assert torch.equal(result[~everywhere], hiding.fill(image).expand_as(image)[~everywhere])
    # The lowest voxel itself stays what it is.
    assert float((result[~everywhere] != image[~everywhere]).double().mean()) > (
        0.9 if hiding.operator == "minimum" else 0.9999
    )
    assert torch.equal(image, kept)
    assert result.dtype == image.dtype
    wrapped = hiding(MetaTensor(image), MetaTensor(visible))
    assert type(wrapped) is Tensor
    assert torch.equal(wrapped, result)
    assert hiding(image.half(), visible).dtype == torch.float16


@pytest.mark.parametrize("hiding", ALL, ids=lambda hiding: hiding.operator)
def test_an_item_is_filled_alike_alone_and_in_a_batch(hiding: Hiding) -> None:
    image, _ = images((6, 5))
    alone = torch.cat([hiding.fill(item[None]) for item in image])
    torch.testing.assert_close(hiding.fill(image), alone)


def test_constants() -> None:
    image, _ = images()
    assert bool((ZERO.fill(image) == 0).all())
    assert bool((Hiding("value", value=-1.0).fill(image) == -1).all())
    assert bool((Hiding("value", value=0.0).fill(image) == 0).all())
    for volume, filled in zip(image.flatten(0, 1), Hiding("mean").fill(image).flatten(0, 1), strict=True):
        torch.testing.assert_close(filled, torch.full((6, 5, 4), sum(volume.flatten().tolist()) / 120))


def test_noise_is_the_value_plus_sigma_eps_of_its_seed_alone() -> None:
    image, _ = images((40, 30))
    before = torch.get_rng_state()
    one, five = ((Hiding("noise", sigma=s).fill(image) - image) for s in (1.0, 5.0))
    assert torch.equal(before, torch.get_rng_state())
    torch.testing.assert_close(five, 5 * one, atol=1e-5, rtol=1e-5)
    assert float(one.mean()) == pytest.approx(0, abs=0.06)
    assert float(one.std()) == pytest.approx(1, abs=0.05)
    # Channels draw their own, items share theirs; another image meets the same.
    assert float((one[0, 0] - one[0, 1]).std()) > 1
    torch.testing.assert_close(one[0], one[1], atol=1e-5, rtol=0)
    other, _ = images((40, 30), seed=1)
    torch.testing.assert_close(Hiding("noise", sigma=1.0).fill(other) - other, one, atol=1e-5, rtol=0)
    assert float((Hiding("noise", sigma=1.0, seed=1).fill(image) - image - one).std()) > 1


def naive_blur(image: Tensor, sigma: float) -> Tensor:
    """The weighted mean along each axis in turn; a weight is the Gaussian's integral over a voxel."""
    tail = int(4 * sigma + 0.5)
    for axis in range(2, image.ndim):
        lines = image.movedim(axis, 0)
        result = torch.zeros_like(lines)
        for at in range(len(lines)):
            total = 0.0
            for other in range(max(at - tail, 0), min(at + tail + 1, len(lines))):
                low, high = ((other - at + half) / (sigma * math.sqrt(2)) for half in (-0.5, 0.5))
                weight = (math.erf(high) - math.erf(low)) / 2
                total += weight
                result[at] += weight * lines[other]
            result[at] /= total
        image = result.movedim(0, axis)
    return image


@pytest.mark.parametrize("spatial", [(7, 5), (6, 5, 4)])
@pytest.mark.parametrize("sigma", [0.4, 1.0, 3.0])
def test_blur_is_the_gaussian_mean_of_the_voxels_inside(spatial: tuple[int, ...], sigma: float) -> None:
    image, _ = images(spatial)
    torch.testing.assert_close(Hiding("blur", sigma=sigma).fill(image), naive_blur(image, sigma), atol=1e-5, rtol=1e-4)
    kind = next(kind for kind in BASELINES if kind.startswith("blur"))
    assert torch.equal(Hiding("blur", sigma=sigma).fill(image), baseline(image, kind, sigma))
    # The background of a scan stays what it is up to the volume's faces.
    constant = torch.full_like(image, -1.0)
    torch.testing.assert_close(Hiding("blur", sigma=sigma).fill(constant), constant)


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        (
            {"operator": "black"},
            "operator must be one of 'zero', 'mean', 'minimum', 'value', 'noise', 'blur', got 'black'",
        ),
        ({"operator": "noise"}, "sigma must be given for operator 'noise', got None"),
        ({"operator": "blur"}, "sigma must be given for operator 'blur', got None"),
        ({"operator": "value"}, "value must be given for operator 'value', got None"),
        ({"sigma": 1.0}, "sigma must be left out for operator 'zero', got 1.0"),
        ({"operator": "mean", "value": 0.0}, "value must be left out for operator 'mean', got 0.0"),
        ({"operator": "value", "value": 1.0, "sigma": 1.0}, "sigma must be left out for operator 'value', got 1.0"),
        ({"operator": "noise", "sigma": 0.0}, "sigma must be a finite number above 0, got 0.0"),
        ({"operator": "blur", "sigma": -1.0}, "sigma must be a finite number above 0, got -1.0"),
        ({"operator": "blur", "sigma": math.inf}, "sigma must be a finite number above 0, got inf"),
        ({"operator": "noise", "sigma": math.nan}, "sigma must be a finite number above 0, got nan"),
        ({"operator": "value", "value": math.nan}, "value must be a finite number, got nan"),
    ],
)
def test_refuses_bad_arguments(changed: dict, says: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(says)}$"):
        Hiding(**changed)


def test_results_can_be_kept_by_it() -> None:
    assert {Hiding(): 1}[ZERO] == 1
    assert len({*ALL, *ALL}) == len(ALL)
