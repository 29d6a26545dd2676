"""Writes the volumes that the project makes: phantoms and labels."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
from numpy.typing import NDArray

from unoise_monai.atomic import atomic_path


def write_nifti(path: Path, array: NDArray[np.generic], affine: NDArray[np.float64], description: str = "") -> None:
    """Write a whole file or none, its q-form and s-form both scanner coordinates (code 1) in mm.

    Args:
        path: the file; missing folders are created.
        array: ``(X, Y, Z)``.
        affine: ``(4, 4)``, voxel indices to RAS mm.
        description: what the header's ``descrip`` says, at most 79 bytes.
    """
    image = nib.Nifti1Image(array, affine)
    image.set_qform(affine, code=1)
    image.set_sform(affine, code=1)
    image.header.set_xyzt_units("mm")
    image.header["descrip"] = description
    with atomic_path(path) as temporary:
        nib.save(image, temporary)
