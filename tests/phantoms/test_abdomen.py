import hashlib
import time
from collections.abc import Callable

import nibabel as nib
import numpy as np
import pytest

from unoise_monai.phantoms.abdomen import Phantom, Tissue, Truth, abdomen_phantom
from unoise_monai.phantoms.vessels import vessel_phantom

# The whole abdomen at 6 mm: fast, and everything is in it.
COARSE = {"size": (48, 48, 48), "spacing_mm": (6.0, 6.0, 6.0)}
CURVED_GRID = {"spacing_mm": (3.5, 4.0, 5.0), "oblique_degrees": 25.0, "left_handed": True}


def centre_mm(mask: np.ndarray, affine: np.ndarray) -> np.ndarray:
    return nib.affines.apply_affine(affine, np.argwhere(mask)).mean(axis=0)


def grown(mask: np.ndarray) -> np.ndarray:
    """``mask`` and the 26 neighbours of its voxels."""
    for axis in range(3):
        mask = mask | np.roll(mask, 1, axis) | np.roll(mask, -1, axis)
    return mask


@pytest.fixture(scope="module")
def phantom() -> Phantom:
    return abdomen_phantom(3)


def test_arrays_share_a_shape_and_have_the_promised_types(phantom: Phantom) -> None:
    assert phantom.image.shape == phantom.label.shape == phantom.truth.shape == (96, 96, 96)
    assert (phantom.image.dtype, phantom.label.dtype, phantom.truth.dtype) == (np.int16, np.uint8, np.uint8)
    np.testing.assert_allclose(phantom.affine @ [47.5, 47.5, 47.5, 1], [0, 0, 0, 1], atol=1e-9)


def test_every_meaning_is_present_and_the_label_is_the_target(phantom: Phantom) -> None:
    assert set(np.unique(phantom.truth)) == {int(value) for value in Truth}
    np.testing.assert_array_equal(phantom.truth == Truth.TARGET, phantom.label == 1)
    assert phantom.image[phantom.truth == Truth.OUTSIDE].mean() < -900


@pytest.mark.parametrize("draw", [abdomen_phantom, vessel_phantom])
def test_the_same_seed_gives_the_same_bits_and_another_seed_another_case(draw: Callable[..., Phantom]) -> None:
    first, again, other = (draw(seed, **COARSE) for seed in (7, 7, 8))
    for one, two in zip(first, again, strict=True):
        np.testing.assert_array_equal(one, two)
    assert (first.image != other.image).any()
    assert (first.truth != other.truth).any()


def test_a_seed_keeps_its_abdomen() -> None:
    # The shipped weights and the published numbers were made with phantoms of given seeds.
    phantom = abdomen_phantom(3, size=(32, 24, 20), spacing_mm=(3.5, 4, 5))
    labels = hashlib.sha256(phantom.label.tobytes() + phantom.truth.tobytes()).hexdigest()
    assert labels == "4423c781c613b6cbd0613a43365b1dabc52cc4c0b07447af81c4470c0ccac243"
    assert phantom.image[::8, ::8, 10].tolist() == [[-80, -63, -91], [11, -105, -84], [215, -44, 1], [76, -86, -100]]


def test_intensity_does_not_identify_the_target(phantom: Phantom) -> None:
    inner_means = []
    for value in (Truth.TARGET, Truth.DISTRACTOR):
        edge = grown(phantom.truth != value)
        inner_means.append(phantom.image[~edge].mean())
    assert abs(inner_means[0] - inner_means[1]) < 4
    assert Tissue.TARGET.hounsfield == Tissue.BOWEL.hounsfield


@pytest.mark.parametrize("seed", range(3))
def test_only_the_target_touches_the_landmarks(seed: int) -> None:
    truth = abdomen_phantom(seed).truth
    near_landmark = grown(truth == Truth.LANDMARK)
    assert (near_landmark & (truth == Truth.TARGET)).any()
    assert not (near_landmark & (truth == Truth.DISTRACTOR)).any()
    assert not (grown(truth == Truth.TARGET) & (truth == Truth.DISTRACTOR)).any()


@pytest.mark.parametrize("left_handed", [False, True])
def test_the_anatomy_lies_in_the_world_whatever_the_grid(left_handed: bool) -> None:
    grid = CURVED_GRID | {"left_handed": left_handed}
    plain = abdomen_phantom(5, **COARSE)
    turned = abdomen_phantom(5, size=(64, 60, 48), **grid)
    assert (np.linalg.det(turned.affine) < 0) == left_handed
    np.testing.assert_allclose(nib.affines.voxel_sizes(turned.affine), grid["spacing_mm"])
    assert np.abs(turned.affine[:3, :3] - np.diag(np.diag(turned.affine[:3, :3]))).max() > 0.5
    shift = centre_mm(turned.label == 1, turned.affine) - centre_mm(plain.label == 1, plain.affine)
    assert np.abs(shift).max() < 2
    volumes = [(case.label == 1).sum() * abs(np.linalg.det(case.affine)) for case in (plain, turned)]
    assert volumes[0] == pytest.approx(volumes[1], rel=0.1)


def test_a_small_grid_crops_the_same_anatomy(phantom: Phantom) -> None:
    middle = abdomen_phantom(3, size=(48, 48, 48))
    np.testing.assert_array_equal(middle.truth, phantom.truth[24:72, 24:72, 24:72])
    assert middle.label.sum() == phantom.label.sum()


def test_noise_has_the_deviation_asked_for_and_can_be_left_out() -> None:
    clean, noisy = (abdomen_phantom(1, size=(32, 32, 32), noise=hu).image for hu in (0.0, 20.0))
    assert (noisy.astype(float) - clean).std() == pytest.approx(20, rel=0.05)


def test_a_volume_of_96_takes_under_two_seconds() -> None:
    seconds = []
    for seed in range(2):
        start = time.perf_counter()
        abdomen_phantom(seed)
        seconds.append(time.perf_counter() - start)
    assert min(seconds) < 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"seed": -1}, "seed must be an integer of at least 0, got -1"),
        ({"size": (96, 96)}, r"size must be three integers of at least 16, got \(96, 96\)"),
        ({"size": (96, 96, 15)}, "size must be three integers of at least 16"),
        ({"size": (96, 96, 48.0)}, "size must be three integers of at least 16"),
        ({"spacing_mm": (3, 3, 0)}, r"spacing_mm must be three positive finite numbers, got \(3, 3, 0\)"),
        ({"spacing_mm": 3.0}, "spacing_mm must be three positive finite numbers, got 3.0"),
        ({"oblique_degrees": float("nan")}, "oblique_degrees must be a finite number, got nan"),
        ({"noise": -1.0}, "noise must be a finite number of at least 0, got -1.0"),
        ({"noise": float("inf")}, "noise must be a finite number of at least 0, got inf"),
    ],
)
@pytest.mark.parametrize("draw", [abdomen_phantom, vessel_phantom])
def test_bad_options_are_refused(draw: Callable[..., Phantom], options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        draw(**({"seed": 0} | options))
