"""Every picture is the same however a file is stored, leaves its input alone and refuses bad ones; their table."""

import inspect
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from nibabel.affines import from_matvec
from nibabel.eulerangles import euler2mat

from unoise_monai.handlers import PICTURES
from unoise_monai.render import decile_pictures, layer_grid, mips, montage, rotating_mip, slab_mips, to_canonical

SHAPE = (14, 12, 10)
SPACING_MM = (1.0, 1.5, 3.0)
RNG = np.random.default_rng(2)
# Few values, so that many voxels of a ray are equally bright.
IMAGE, IMPORTANCE = RNG.integers(0, 10, SHAPE).astype(float), RNG.random(SHAPE)
SEGMENTATION = (IMPORTANCE > 0.97).astype(np.uint8) + (IMPORTANCE > 0.99)
VOLUMES = (IMAGE, IMPORTANCE, SEGMENTATION)

DRAWINGS: dict[str, Callable[..., np.ndarray]] = {
    "montage": partial(montage, count=3, crop_mm=5.0),
    "mips": mips,
    "slab_mips": partial(slab_mips, slab_mm=9.0),
    "rotating_mip": partial(PICTURES["rotation"].draw, frames=3, longest=64),
    "decile_pictures": lambda segmentation, **given: decile_pictures(shares=(0.2, 0.5), **given),
    "layer_grid": lambda image, importance, segmentation, **given: layer_grid(
        {"fine": image, "coarse": importance}, **given
    ),
}


def draw(name: str, image: Any, spacing_mm: Any, importance: Any, segmentation: Any, **given: Any) -> np.ndarray:
    volumes = {"image": image, "importance": importance, "segmentation": segmentation}
    return DRAWINGS[name](spacing_mm=spacing_mm, **volumes, **given)


@pytest.mark.parametrize("name", DRAWINGS)
def test_the_same_picture_however_the_file_is_stored(name: str) -> None:
    """Oblique, anisotropic, and left-handed in every storage order with an odd number of flips and swaps."""
    affine = from_matvec(euler2mat(0.35, -0.25, 0.2) @ np.diag(SPACING_MM), [91.3, -120.7, 33.1])
    expected = draw(name, IMAGE, SPACING_MM, IMPORTANCE, SEGMENTATION)
    for axes, flips in (((1, 2, 0), (1, -1, -1)), ((2, 1, 0), (-1, 1, 1))):
        orientation = np.column_stack([axes, flips])
        stored_affine = affine @ nib.orientations.inv_ornt_aff(orientation, SHAPE)
        stored = [to_canonical(nib.apply_orientation(volume, orientation), stored_affine) for volume in VOLUMES]
        spacing_mm = tuple(np.round(stored[0][1], 9))
        found = draw(name, stored[0][0], spacing_mm, stored[1][0], stored[2][0])
        np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("name", DRAWINGS)
def test_leaves_its_input_alone(name: str) -> None:
    given = [volume.copy() for volume in VOLUMES]
    draw(name, given[0], SPACING_MM, *given[1:])
    np.testing.assert_equal(given, list(VOLUMES))


VIEW, LOOK = {"spacing_mm", "window", "axis"}, {"style", "threshold"}
TAKES = {
    "montage": VIEW | LOOK | {"image", "importance", "segmentation"},
    "mips": LOOK | {"spacing_mm", "window", "image", "importance", "segmentation"},
    "slab_mips": VIEW | LOOK | {"image", "importance", "segmentation"},
    "rotating_mip": VIEW | LOOK | {"image", "importance"},
    "decile_pictures": VIEW | {"image", "importance"},
    # Its maps may be of any shape and range, see its own tests.
    "layer_grid": VIEW,
}
BAD: dict[str, tuple[Any, str]] = {
    "spacing_mm": ((1.0, 1.0, -1.0), "spacing_mm must be three finite numbers above 0"),
    "window": ((1, 0), "window must be"),
    "axis": (3, "axis must be one of 0, 1, 2, got 3"),
    "image": (np.zeros(SHAPE), r"image must hold more than one value, got 0\.0 in every voxel"),
    "importance": (IMPORTANCE * 2, r"importance must lie in \[0, 1\]"),
    "segmentation": (SEGMENTATION[1:], "segmentation must be of the image's shape"),
    "style": ("jet", "style must be one of 'colour', 'red', got 'jet'"),
    "threshold": (1, "threshold must be at least 0 and below 1, got 1"),
}


@pytest.mark.parametrize(
    ("name", "argument"), [(name, argument) for name in DRAWINGS for argument in sorted(TAKES[name])]
)
def test_refuses_what_cannot_be_drawn(name: str, argument: str) -> None:
    value, message = BAD[argument]
    given = {"image": IMAGE, "spacing_mm": SPACING_MM, "importance": IMPORTANCE, "segmentation": SEGMENTATION}
    with pytest.raises(ValueError, match=message):
        draw(name, **given | {argument: value})


@pytest.mark.parametrize("name", PICTURES)
def test_every_picture_of_the_table_is_called_and_saved_alike(name: str, tmp_path: Path) -> None:
    picture = PICTURES[name]
    options = {"window": (0, 9), "style": "red", "threshold": 0.2, "label": "q", "count": 2, "slab_mm": 5.0, "axis": 1}
    chosen = picture.chosen({**options, "frames": 500})
    assert set(chosen) == set(options) & set(picture.options)
    drawn = picture.draw(IMAGE, SPACING_MM, IMPORTANCE, SEGMENTATION, **chosen)
    function = {"montage": montage, "mip": mips, "rotation": rotating_mip}[name]
    assert set(picture.options) <= set(inspect.signature(function).parameters)
    outlined = {} if name == "rotation" else {"segmentation": SEGMENTATION}
    np.testing.assert_array_equal(drawn, function(IMAGE, SPACING_MM, importance=IMPORTANCE, **outlined, **chosen))
    picture.save(drawn, tmp_path / f"a{picture.suffix}")
    assert (tmp_path / f"a{picture.suffix}").stat().st_size > 100
