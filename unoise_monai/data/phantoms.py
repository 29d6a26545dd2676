"""Synthetic abdominal CT in which only the neighbourhood tells the target, with the map of what should matter."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from enum import IntEnum
from pathlib import Path
from typing import NamedTuple

import nibabel as nib
import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from unoise_monai.atomic import atomic_path
from unoise_monai.data.anatomy import Tissue, random_abdomen, random_hounsfield
from unoise_monai.data.shapes import grid_affine, paint, random_rotation, soften


class Truth(IntEnum):
    """What a voxel means for telling the target."""

    OUTSIDE = 0
    TARGET = 1
    LANDMARK = 2
    DISTRACTOR = 3
    IRRELEVANT = 4


MEANING = {
    Tissue.AIR: Truth.OUTSIDE,
    Tissue.TARGET: Truth.TARGET,
    Tissue.AORTA: Truth.LANDMARK,
    Tissue.SPLENIC_VEIN: Truth.LANDMARK,
    Tissue.BOWEL: Truth.DISTRACTOR,
}


class Phantom(NamedTuple):
    """One synthetic scan, every array ``(X, Y, Z)``."""

    image: NDArray[np.int16]
    """Intensity in HU."""
    label: NDArray[np.uint8]
    """1 in the target, 0 elsewhere."""
    truth: NDArray[np.uint8]
    """Values of :class:`Truth`."""
    affine: NDArray[np.float64]
    """Voxel indices to RAS millimetres, (4, 4), as nibabel has it."""


def abdomen_phantom(
    seed: int,
    size: Sequence[int] = (96, 96, 96),
    spacing_mm: Sequence[float] = (3.0, 3.0, 3.0),
    oblique_degrees: float = 0.0,
    left_handed: bool = False,
    noise_hu: float = 12.0,
) -> Phantom:
    """Draw one abdomen; the same ``seed`` gives the same anatomy in millimetres on any grid.

    The target, a curved tube along the splenic vein and over the aorta, shares its mean intensity and its family of
    calibres and curves with 4 to 7 bowel loops elsewhere. The whole moves by up to 10 mm, turns and scales a little,
    so that no fixed place tells the target either. A grid smaller than the body crops it around the middle.

    Args:
        seed: of the anatomy and of the noise, at least 0.
        size: voxels along each axis, at least 16.
        spacing_mm: voxel sizes.
        oblique_degrees: turn of the grid about a fixed oblique axis.
        left_handed: flip the first voxel axis, so that the affine's determinant is negative.
        noise_hu: standard deviation of the noise, part white, part correlated between neighbours.

    Raises:
        ValueError: when ``seed`` is negative or no integer.
        ValueError: when ``size`` is not three integers of at least 16.
        ValueError: when ``spacing_mm`` is not three positive finite numbers.
        ValueError: when ``oblique_degrees`` is not finite, or ``noise_hu`` not finite and at least 0.
    """
    check_options(seed, size, spacing_mm, oblique_degrees, noise_hu)
    affine = grid_affine(size, spacing_mm, oblique_degrees, left_handed)
    # Two streams: the anatomy must not depend on how many voxels the noise fills.
    rng, noise_rng = np.random.default_rng([seed, 0]), np.random.default_rng([seed, 1])
    place = np.diag([1.0, 1.0, 1.0, 1.0])
    place[:3, :3] = rng.uniform(0.94, 1.06) * random_rotation(rng, 4)
    place[:3, 3] = rng.uniform(-10, 10, 3)
    tissue = np.full(tuple(size), Tissue.FAT, np.uint8)
    to_body = np.linalg.inv(place) @ affine
    for kind, shape in random_abdomen(rng):
        paint(tissue, shape, kind, to_body)

    hounsfield = soften(random_hounsfield(rng).astype(np.float32)[tissue])
    white, correlated = noise_rng.standard_normal((2, *size), dtype=np.float32)
    # soften() scales the deviation of white noise by sqrt(6) / 4 along each axis; 0.6 and 0.8 add up to one variance.
    hounsfield += np.float32(noise_hu) * (0.6 * white + 0.8 * (4 / math.sqrt(6)) ** 3 * soften(correlated))
    image = np.clip(np.rint(hounsfield), -1024, 3071).astype(np.int16)
    truth = np.array([MEANING.get(kind, Truth.IRRELEVANT) for kind in Tissue], np.uint8)[tissue]
    return Phantom(image, (truth == Truth.TARGET).astype(np.uint8), truth, affine)


def write_phantom_cohort(
    root: str | Path,
    count: int,
    test_count: int = 0,
    seed: int = 0,
    size: Sequence[int] = (96, 96, 96),
    spacing_mm: Sequence[float] = (3.0, 3.0, 3.0),
    oblique_degrees: float = 0.0,
    left_handed: bool = False,
    noise_hu: float = 12.0,
    name: str = "Phantom",
    progress: bool = True,
) -> Path:
    """Write phantoms as a Decathlon folder, with the truth maps beside it in ``truthTr`` and ``truthTs``.

    A training case depends on ``seed`` and its number only, whatever ``count`` is; a test case likewise.
    ``dataset.json`` comes last, so an interrupted run leaves none and may simply be started again.

    Returns:
        ``root``. The other options are those of :func:`abdomen_phantom`.

    Raises:
        ValueError: when ``count`` is below 1 or ``test_count`` below 0, or as in :func:`abdomen_phantom`.
        FileExistsError: when ``root`` already holds a ``dataset.json``.
    """
    for key, value, least in (("count", count, 1), ("test_count", test_count, 0)):
        check_integer(key, value, least)
    check_options(seed, size, spacing_mm, oblique_degrees, noise_hu)
    root = Path(root)
    index_file = root / "dataset.json"
    if index_file.exists():
        raise FileExistsError(f"root must not hold a data set already, got {index_file}")

    cases = [("Tr", 0, k, f"phantom_{k:03d}") for k in range(1, count + 1)]
    cases += [("Ts", 1, k, f"phantom_test_{k:03d}") for k in range(1, test_count + 1)]
    for split, stream, number, case in tqdm(cases, desc=name, unit="case", disable=not progress):
        case_seed = int(np.random.SeedSequence([seed, stream, number]).generate_state(1)[0])
        phantom = abdomen_phantom(case_seed, size, spacing_mm, oblique_degrees, left_handed, noise_hu)
        write_nifti(root / f"images{split}" / f"{case}.nii.gz", phantom.image, phantom.affine)
        write_nifti(root / f"truth{split}" / f"{case}.nii.gz", phantom.truth, phantom.affine)
        if split == "Tr":
            write_nifti(root / "labelsTr" / f"{case}.nii.gz", phantom.label, phantom.affine)

    index = {
        "name": name,
        "description": "Synthetic portal-venous CT of the abdomen, generated, of no patient",
        "reference": "unoise_monai.data.phantoms",
        "licence": "Apache-2.0, generated",
        "release": "1.0",
        "tensorImageSize": "3D",
        "modality": {"0": "CT"},
        "labels": {"0": "background", "1": "pancreas"},
        "truth": {str(value.value): value.name.lower() for value in Truth},
        "numTraining": count,
        "numTest": test_count,
        "training": [
            {"image": f"./imagesTr/{case}.nii.gz", "label": f"./labelsTr/{case}.nii.gz"}
            for split, _, _, case in cases
            if split == "Tr"
        ],
        "test": [f"./imagesTs/{case}.nii.gz" for split, _, _, case in cases if split == "Ts"],
    }
    with atomic_path(index_file) as temporary:
        temporary.write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
    return root


def write_nifti(path: Path, array: NDArray[np.generic], affine: NDArray[np.float64]) -> None:
    """Write a whole file or none, its q-form and s-form both scanner coordinates (code 1) in mm."""
    image = nib.Nifti1Image(array, affine)
    image.set_qform(affine, code=1)
    image.set_sform(affine, code=1)
    image.header.set_xyzt_units("mm")
    with atomic_path(path) as temporary:
        nib.save(image, temporary)


def check_integer(name: str, value: object, least: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < least:
        raise ValueError(f"{name} must be an integer of at least {least}, got {value!r}")


def check_options(
    seed: int, size: Sequence[int], spacing_mm: Sequence[float], oblique_degrees: float, noise_hu: float
) -> None:
    check_integer("seed", seed, 0)
    if np.shape(size) != (3,) or any(not isinstance(side, int | np.integer) or side < 16 for side in size):
        raise ValueError(f"size must be three integers of at least 16, got {size}")
    if np.shape(spacing_mm) != (3,) or any(not (math.isfinite(step) and step > 0) for step in spacing_mm):
        raise ValueError(f"spacing_mm must be three positive finite numbers, got {spacing_mm}")
    if not math.isfinite(oblique_degrees):
        raise ValueError(f"oblique_degrees must be a finite number, got {oblique_degrees}")
    if not (math.isfinite(noise_hu) and noise_hu >= 0):
        raise ValueError(f"noise_hu must be a finite number of at least 0, got {noise_hu}")
