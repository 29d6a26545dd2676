"""The same picture however a file is stored, with the patient the right way round."""

from itertools import permutations, product

import nibabel as nib
import numpy as np
import pytest
from nibabel.affines import from_matvec
from nibabel.eulerangles import euler2mat

from unoise_monai.render import to_canonical
from unoise_monai.render.canonical import (
    EDGE_LETTERS,
    check_contrast,
    check_importance,
    check_unit_range,
    check_volumes,
    display_slice,
    foreground_box,
    pixel_mm,
)

SPACING_MM = (0.7, 1.1, 2.5)
ROTATION = euler2mat(0.35, -0.25, 0.2)
AFFINE = from_matvec(ROTATION @ np.diag(SPACING_MM), [91.3, -120.7, 33.1])
VOLUME = np.random.default_rng(3).random((4, 5, 6))


@pytest.mark.parametrize("axes", list(permutations(range(3))))
@pytest.mark.parametrize("flips", list(product((1, -1), repeat=3)))
def test_every_storage_order_gives_the_same_volume(axes: tuple[int, ...], flips: tuple[int, ...]) -> None:
    orientation = np.column_stack([axes, flips])
    stored = nib.apply_orientation(VOLUME, orientation)
    affine = AFFINE @ nib.orientations.inv_ornt_aff(orientation, VOLUME.shape)
    volume, spacing_mm = to_canonical(stored, affine)
    np.testing.assert_array_equal(volume, VOLUME)
    np.testing.assert_allclose(spacing_mm, SPACING_MM)


def test_agrees_with_nibabel() -> None:
    affine = from_matvec(ROTATION @ np.diag([-0.7, 1.1, -2.5])[[1, 0, 2]], [1, 2, 3])
    expected = nib.as_closest_canonical(nib.Nifti1Image(VOLUME, affine))
    volume, spacing_mm = to_canonical(VOLUME, affine)
    np.testing.assert_array_equal(volume, expected.get_fdata())
    np.testing.assert_allclose(spacing_mm, nib.affines.voxel_sizes(expected.affine))


@pytest.mark.parametrize("axis", range(3))
def test_letters_say_what_lies_at_each_edge(axis: int) -> None:
    """A volume whose voxels are named by the letters of the patient's sides that they touch."""
    sides = np.zeros((3, 3, 3), dtype=object)
    sides[:] = ""
    for dimension, (low, high) in enumerate(("LR", "PA", "IS")):
        np.moveaxis(sides, dimension, 0)[0] += low
        np.moveaxis(sides, dimension, 0)[2] += high
    picture = display_slice(sides, axis, 1)
    letters = EDGE_LETTERS[axis]
    assert picture[0, 1] == letters["top"]
    assert picture[2, 1] == letters["bottom"]
    assert picture[1, 0] == letters["left"]
    assert picture[1, 2] == letters["right"]


@pytest.mark.parametrize("axis", range(3))
def test_slices_of_a_flipped_view_copy_no_volume(axis: int) -> None:
    volume = VOLUME.transpose(2, 0, 1)[::-1, :, ::-1]
    shown = display_slice(volume, axis, 2)
    assert np.shares_memory(shown, VOLUME)
    np.testing.assert_array_equal(shown, np.take(volume, 2, axis)[::-1, ::-1].T)


def test_foreground_box_holds_all_that_is_above_zero() -> None:
    mask = np.zeros((7, 8, 9), dtype=np.uint8)
    mask[2, 3, 4], mask[5, 1, 8] = 1, 7
    assert foreground_box(mask) == ((2, 6), (1, 4), (4, 9))
    assert foreground_box(mask.astype(bool)) == ((2, 6), (1, 4), (4, 9))
    assert foreground_box(np.zeros_like(mask)) is None


def test_pixel_sizes_are_rows_then_columns() -> None:
    for axis in range(3):
        height, width = pixel_mm(SPACING_MM, axis)
        rows, columns = display_slice(VOLUME, axis, 0).shape
        kept = [index for index in range(3) if index != axis]
        assert (columns, rows) == tuple(VOLUME.shape[index] for index in kept)
        assert (width, height) == tuple(SPACING_MM[index] for index in kept)


def test_refuses_what_has_no_geometry() -> None:
    with pytest.raises(ValueError, match=r"array must be 3-D, got shape \(4, 5\)"):
        to_canonical(VOLUME[..., 0], AFFINE)
    with pytest.raises(ValueError, match=r"affine must be 4x4, got shape \(3, 4\)"):
        to_canonical(VOLUME, AFFINE[:3])
    parallel = AFFINE.copy()
    parallel[:, 0] = parallel[:, 1]
    for affine in (parallel, AFFINE * [0, 1, 1, 1], AFFINE * np.nan):
        with pytest.raises(ValueError, match="affine must be finite and not singular"):
            to_canonical(VOLUME, affine)


def test_refuses_volumes_that_do_not_fit() -> None:
    with pytest.raises(ValueError, match="axis must be one of 0, 1, 2, got 3"):
        check_volumes(SPACING_MM, 3, VOLUME)
    with pytest.raises(ValueError, match="spacing_mm must be three finite numbers above 0"):
        check_volumes((1.0, 0.0, 1.0), 0, VOLUME)
    with pytest.raises(ValueError, match="image must be 3-D and not empty"):
        check_volumes(SPACING_MM, 0, VOLUME[:0])
    with pytest.raises(ValueError, match=r"importance must be of the image's shape \(4, 5, 6\), got \(3, 5, 6\)"):
        check_volumes(SPACING_MM, 0, VOLUME, importance=VOLUME[1:], segmentation=None)
    for bad in (np.nan, np.inf, -np.inf):
        holed = VOLUME.copy()
        holed[1, 2, 3] = bad
        with pytest.raises(ValueError, match="importance must hold finite values only"):
            check_volumes(SPACING_MM, 0, VOLUME, importance=holed)
    check_volumes(SPACING_MM, 0, VOLUME, importance=VOLUME > 0.5)
    with pytest.raises(ValueError, match=r"importance must lie in \[0, 1\], got values from"):
        check_importance(VOLUME * 2)
    with pytest.raises(ValueError, match=r"importance must lie in \[0, 1\]"):
        check_importance(VOLUME * np.nan)
    assert check_importance(np.array([-5e-4, 1 + 5e-4])).tolist() == [0, 1]


def test_refuses_an_image_with_nothing_to_see() -> None:
    with pytest.raises(ValueError, match="image must hold more than one value, got 0 in every voxel"):
        check_contrast(np.zeros((2, 2, 2), dtype=np.int16))
    check_contrast(VOLUME)


def test_importance_may_leave_the_unit_range_by_what_resampling_does() -> None:
    check_unit_range(np.array([-5e-4, 1 + 5e-4]))
    for bad in ([-0.01, 0.5], [0.5, 1.01], [0.5, np.nan]):
        with pytest.raises(ValueError, match=r"importance must lie in \[0, 1\], got values from"):
            check_unit_range(np.array(bad))
