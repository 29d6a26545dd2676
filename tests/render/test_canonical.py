"""The same picture however a file is stored, with the patient the right way round."""

from itertools import permutations, product

import nibabel as nib
import numpy as np
import pytest
from nibabel.affines import from_matvec
from nibabel.eulerangles import euler2mat

from unoise_monai.render import to_canonical
from unoise_monai.render.canvas import EDGE_LETTERS, display_slice, foreground_box, pixel_mm

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
