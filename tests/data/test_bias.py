"""A known field is found, geometry stays, and what has no tissue is left alone."""

import logging
import pickle

import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from monai.transforms import RandomizableTrait

from unoise_monai.data.transforms import N4BiasCorrectiond, n4_bias_correction

SIZE = (48, 40, 32)
QUICK = {"shrink": 2, "iterations": 30, "levels": 2}


@pytest.fixture(scope="module")
def head() -> np.ndarray:
    """A ball of two tissues in air, with Rician noise."""
    rng = np.random.default_rng(0)
    u = np.stack(np.meshgrid(*(np.linspace(-1, 1, side) for side in SIZE), indexing="ij"))
    radius = np.sqrt((u**2).sum(axis=0))
    signal = np.select([radius < 0.5, radius < 0.9], [300.0, 200.0], 0.0)
    return np.hypot(signal + rng.normal(0, 5, SIZE), rng.normal(0, 5, SIZE)).astype(np.float32)


@pytest.fixture(scope="module")
def field() -> np.ndarray:
    """Without a unit, from 0.5 to 2 along x."""
    return np.exp(np.linspace(-0.7, 0.7, SIZE[0], dtype=np.float32))[:, None, None]


def variation(image: np.ndarray, head: np.ndarray) -> float:
    """The coefficient of variation within the brighter tissue."""
    tissue = image[head > 260]
    return float(tissue.std() / tissue.mean())


def test_a_known_field_is_removed(head: np.ndarray, field: np.ndarray) -> None:
    biased = np.where(head > 100, head * field, head)
    corrected = n4_bias_correction(biased, **QUICK)
    assert corrected.shape == SIZE
    assert corrected.dtype == np.float32
    assert variation(biased, head) > 0.15
    assert variation(corrected, head) < 0.4 * variation(biased, head)
    found = biased / corrected
    assert np.corrcoef(np.log(found[head > 100]), np.log(np.broadcast_to(field, SIZE)[head > 100]))[0, 1] > 0.97


def test_the_same_twice(head: np.ndarray, field: np.ndarray) -> None:
    once, again = (n4_bias_correction(head * field, **QUICK) for _ in range(2))
    np.testing.assert_array_equal(once, again)


def test_as_a_transform(head: np.ndarray, field: np.ndarray, affine: np.ndarray) -> None:
    image = MetaTensor(torch.as_tensor(head * field)[None], affine=torch.as_tensor(affine), meta={"note": "kept"})
    before = image.clone()
    transform = pickle.loads(pickle.dumps(N4BiasCorrectiond("image")))  # noqa: S301
    assert not isinstance(transform, RandomizableTrait)
    done = transform({"image": image, "case": "head"})["image"]
    np.testing.assert_array_equal(done.as_tensor().numpy()[0], n4_bias_correction(head * field))
    assert isinstance(done, MetaTensor)
    assert done.dtype == torch.float32
    assert done.meta["note"] == "kept"
    np.testing.assert_array_equal(done.affine, affine)
    assert torch.equal(image, before), "the caller's tensor stays as it was"


def test_a_volume_without_its_tissue_stays_as_it_is(head: np.ndarray, caplog: pytest.LogCaptureFixture) -> None:
    vessels = torch.as_tensor(np.where(head > 311, head, 0))[None]
    assert 0 < (vessels > 0).float().mean() < 0.05
    with caplog.at_level(logging.WARNING):
        assert N4BiasCorrectiond("image")({"image": vessels, "case": "mra_1"})["image"] is vessels
    assert "mra_1: bias not corrected" in caplog.text


@pytest.mark.parametrize(
    ("image", "says"),
    [
        (np.ones((8, 8)), r"image must be 3-D, got shape \(8, 8\)"),
        (np.zeros((8, 8, 8)), "image must hold different magnitudes, got 0.0 to 0.0"),
        (-np.indices((8, 8, 8))[0], "image must hold different magnitudes, got -7 to 0"),
        (np.full((8, 8, 8), np.inf), "image must hold finite values only, got 512 NaN or infinite"),
    ],
)
def test_refuses_volumes(image: np.ndarray, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        n4_bias_correction(image)
