import time

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk

from unoise_monai.phantoms import vessels as vessel_phantoms
from unoise_monai.phantoms.abdomen import Phantom, Truth
from unoise_monai.phantoms.head import SATURATED, inflow
from unoise_monai.phantoms.shapes import Ellipsoid, grid_affine
from unoise_monai.phantoms.vessels import SLAB, Segment, both_ends, paint_blood, random_vessels, vessel_phantom

COARSE = {"size": (64, 76, 46), "spacing_mm": (1.5, 1.5, 1.5)}
CURVED_GRID = {"size": (90, 80, 60), "spacing_mm": (1.1, 1.5, 1.3), "oblique_degrees": 25.0, "left_handed": True}


@pytest.fixture(scope="module")
def phantom() -> Phantom:
    return vessel_phantom(3, stripped=False)


@pytest.fixture(scope="module")
def coarse() -> Phantom:
    return vessel_phantom(3, **COARSE, stripped=False)


def segment(points: list[list[float]], radii: list[float], transit: list[float]) -> Segment:
    return Segment(np.array(points), np.array(radii), np.array(transit), -1)


def bent_vessels() -> list[Segment]:
    """A thick one, and one of 0.3 mm that crosses it: both bend and taper."""
    return [
        segment([[-9, -3, -2], [0, -1, 1], [9, 4, 2]], [2.4, 2.0, 1.8], [0, 2, 6]),
        segment([[4, -4, 3], [1, 0, 0], [-4, 3, -3]], [0.5, 0.4, 0.3], [40, 50, 70]),
    ]


def inside_by_hand(world: np.ndarray, vessels: list[Segment]) -> np.ndarray:
    inside = np.zeros(len(world), bool)
    for vessel in vessels:
        for (start, end), (first, last) in zip(both_ends(vessel.points), both_ends(vessel.radii), strict=True):
            along = np.clip((world - start) @ (end - start) / ((end - start) @ (end - start)), 0, 1)
            distance = np.linalg.norm(world - start - along[:, None] * (end - start), axis=1)
            inside |= distance < first + along * (last - first)
    return inside


def test_arrays_share_a_shape_and_have_the_promised_types(phantom: Phantom) -> None:
    assert phantom.image.shape == phantom.label.shape == phantom.truth.shape == (160, 192, 112)
    assert (phantom.image.dtype, phantom.label.dtype, phantom.truth.dtype) == (np.int16, np.uint8, np.uint8)
    np.testing.assert_allclose(phantom.affine @ [79.5, 95.5, 55.5, 1], [0, 0, 0, 1], atol=1e-9)


def test_the_truth_is_that_of_vessels(phantom: Phantom) -> None:
    assert set(np.unique(phantom.truth)) == {Truth.OUTSIDE, Truth.TARGET, Truth.DISTRACTOR, Truth.IRRELEVANT}
    np.testing.assert_array_equal(phantom.truth == Truth.TARGET, phantom.label == 1)
    assert set(np.unique(phantom.label)) == {0, 1}
    means = {value: phantom.image[phantom.truth == value].mean() for value in Truth if value != Truth.LANDMARK}
    assert means[Truth.TARGET] > means[Truth.DISTRACTOR] > means[Truth.IRRELEVANT] > means[Truth.OUTSIDE]
    # Some of what is no vessel is as bright as vessels are.
    assert phantom.image[phantom.truth == Truth.DISTRACTOR].max() > np.median(phantom.image[phantom.label == 1])


@pytest.mark.parametrize("seed", range(4))
def test_vessels_fill_as_much_as_in_a_head(seed: int) -> None:
    assert 0.005 < vessel_phantom(seed, **COARSE).label.mean() < 0.025


def test_vessels_are_few_connected_trees(phantom: Phantom) -> None:
    parts = sitk.ConnectedComponent(sitk.GetImageFromArray(phantom.label), True)
    sizes = np.bincount(sitk.GetArrayFromImage(parts).ravel())[1:]
    # Two carotids, the basilar artery and up to four arteries of the scalp enter; the rest are tips at the border.
    assert np.sort(sizes)[::-1][:7].sum() > 0.97 * sizes.sum()


def test_the_anatomy_lies_in_the_world_whatever_the_grid(phantom: Phantom) -> None:
    turned = vessel_phantom(3, **CURVED_GRID, stripped=False)
    assert np.linalg.det(turned.affine) < 0
    np.testing.assert_allclose(nib.affines.voxel_sizes(turned.affine), CURVED_GRID["spacing_mm"])
    assert np.abs(turned.affine[:3, :3] - np.diag(np.diag(turned.affine[:3, :3]))).max() > 0.3
    # The value at each voxel of the turned grid, looked up in the plain grid at the same place in the world.
    to_plain = np.linalg.inv(phantom.affine) @ turned.affine
    places = np.rint(nib.affines.apply_affine(to_plain, np.argwhere(np.ones(turned.label.shape)))).astype(int)
    within = ((places >= 0) & (places < phantom.label.shape)).all(axis=1)
    found = {name: getattr(turned, name).ravel()[within] for name in ("label", "truth")}
    expected = {name: getattr(phantom, name)[tuple(places[within].T)] for name in found}
    overlap = (found["label"] & expected["label"]).sum()
    assert 2 * overlap / (found["label"].sum() + expected["label"].sum()) > 0.75
    assert int(found["label"].sum()) == pytest.approx(int(expected["label"].sum()), rel=0.05)
    assert (found["truth"] == expected["truth"]).mean() > 0.95


def test_the_volume_of_vessels_does_not_depend_on_the_spacing(phantom: Phantom, coarse: Phantom) -> None:
    millilitres = [
        case.label.sum() * abs(np.linalg.det(case.affine[:3, :3])) / 1000 / fields
        for case, fields in ((phantom, 96 * 115.2 * 67.2), (coarse, 96 * 114 * 69))
    ]
    assert millilitres[0] == pytest.approx(millilitres[1], rel=0.05)


@pytest.mark.parametrize("left_handed", [False, True])
def test_the_label_is_exact_and_the_share_that_of_fine_sampling(left_handed: bool) -> None:
    # More planes along the first axis than a slab holds.
    size, finer = (40, 14, 12), 8
    affine = grid_affine(size, (0.5, 0.9, 1.2), 30, left_handed)
    label, share, blood = paint_blood(bent_vessels(), 100.0, size, affine)
    centres = nib.affines.apply_affine(affine, np.argwhere(np.ones(size)))
    np.testing.assert_array_equal(label.ravel() == 1, inside_by_hand(centres, bent_vessels()))
    assert label[:SLAB].any()
    assert label[SLAB:].any()

    steps = (np.argwhere(np.ones((finer,) * 3)) + 0.5) / finer - 0.5
    expected = np.mean(
        [inside_by_hand(centres + affine[:3, :3] @ step, bent_vessels()) for step in steps], axis=0
    ).reshape(size)
    error = share - expected
    assert np.abs(error).max() < 0.2
    assert np.abs(error[expected > 0]).mean() < 0.03
    assert share.sum() == pytest.approx(expected.sum(), rel=0.01)
    # Thinner than a voxel: a share without a label.
    assert share[label == 0].max() > 0.2
    assert (blood <= share + 1e-6).all()


def test_blood_is_its_share_times_its_brightness() -> None:
    vessels = [segment([[-30, 0, 0], [30, 0, 0]], [3, 3], [0, 80])]
    size = (16, 16, 16)
    _, share, blood = paint_blood(vessels, 40.0, size, grid_affine(size, (1, 1, 1), 0, False))
    brightness = SATURATED + (1 - SATURATED) * np.exp(-2)
    np.testing.assert_allclose(blood, share * brightness, atol=0.003)
    assert share.max() == 1
    assert 0 < share[share > 0].min() < 1


def test_far_and_thin_vessels_are_dim() -> None:
    vessels = random_vessels(
        np.random.default_rng(0), 0.8, Ellipsoid(np.array([0.0, -10, 22]), np.array([52.0, 64, 50]))
    )
    size, affine = (100, 120, 130), grid_affine((100, 120, 130), (1, 1, 1), 0, False)
    _, share, blood = paint_blood(vessels, 150.0, size, affine)
    places = [np.rint(part.points[len(part.points) // 2] - affine[:3, 3]).astype(int) for part in vessels]
    within = [index for index, place in enumerate(places) if ((place >= 0) & (place < size)).all()]
    radii = np.array([vessels[index].radii.mean() for index in within])
    transit = np.array([vessels[index].transit.mean() for index in within])
    brightness = np.array([blood[tuple(places[index])] / share[tuple(places[index])] for index in within])
    # Where vessels meet, the brighter one shows; elsewhere it is the formula.
    assert np.median(np.abs(brightness - inflow(transit, 150.0))) < 0.01
    assert brightness[radii > 1.5].mean() > 1.2 * brightness[radii < 0.5].mean()


def test_noise_has_the_deviation_asked_for_and_can_be_left_out() -> None:
    clean, noisy = (vessel_phantom(1, **COARSE, noise=noise, stripped=False) for noise in (0.0, 8.0))
    np.testing.assert_array_equal(clean.label, noisy.label)
    bright = clean.image > 100
    # In bright voxels Rician noise is Gaussian; rounding adds next to nothing.
    assert (noisy.image.astype(float) - clean.image)[bright].std() == pytest.approx(8, rel=0.05)


def test_stripping_removes_the_soft_tissue_and_leaves_the_rest() -> None:
    for seed in range(4):
        whole, stripped = (vessel_phantom(seed, **COARSE, stripped=stripped) for stripped in (False, True))
        for name in ("label", "truth", "affine"):
            np.testing.assert_array_equal(getattr(whole, name), getattr(stripped, name))
        assert (stripped.image <= whole.image).all()
        assert (whole.image == 0).mean() < 0.3
        assert (stripped.image == 0).mean() > 0.7
        # At 1.5 mm many a vessel is too faint for the threshold.
        assert (stripped.image[stripped.label == 1] > 0).mean() > 0.6


def test_two_scans_in_five_are_stripped(monkeypatch: pytest.MonkeyPatch) -> None:
    stripped = []

    def spy(image: np.ndarray, *_: object) -> np.ndarray:
        stripped.append(image)
        return image

    monkeypatch.setattr(vessel_phantoms, "strip", spy)
    monkeypatch.setattr(vessel_phantoms, "random_vessels", lambda *_: bent_vessels())
    for seed in range(100):
        vessel_phantom(seed, size=(16, 16, 16))
    assert 30 <= len(stripped) <= 50


def test_the_default_volume_takes_under_four_seconds() -> None:
    seconds = []
    for seed in range(2):
        start = time.process_time()
        vessel_phantom(seed)
        seconds.append(time.process_time() - start)
    assert min(seconds) < 4
