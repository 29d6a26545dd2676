"""Reads a volume's file as it is stored, or says in a line why not."""

from __future__ import annotations

import gzip
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from monai.data import MetaTensor, NibabelReader
from monai.transforms import LoadImage
from numpy.typing import NDArray

NIFTI = (".nii", ".nii.gz", ".hdr")


class StoredNifti(NibabelReader):
    """MONAI's reader of NIfTI, with the affine that nibabel gives.

    MONAI's own replaces the s-form with the q-form where its voxel sizes differ by 1e-5 from those in ``pixdim``, and
    what is written on that grid would not lie on the file's.
    """

    def read(self, data: Sequence[str] | str, **kwargs: Any) -> Any:
        """The image, whose voxels are not read yet.

        Raises:
            ValueError: when its voxels are colours, complex, or of more bits than a number of 64.
        """
        image = super().read(data, **kwargs)
        kind = image.get_data_dtype()
        if kind.kind not in "iuf" or kind.itemsize > 8:
            raise ValueError(f"must hold one real number a voxel, got {kind}")
        return image

    def _get_affine(self, img: Any) -> NDArray[np.float64]:
        return np.array(nib.load(img.get_filename()).affine)


def load_volume(path: Path) -> MetaTensor:
    """The volume of a file, or of a folder with a DICOM series.

    Shape:
        as stored, float32, with the affine in RAS mm.

    Raises:
        Exception: whatever the reader of the format raises on a bad file, of every kind.
    """
    name = path.name.lower()
    if name.endswith(".gz"):
        check_gzip(path)
    return LoadImage(image_only=True, dtype=np.float32)(str(path), StoredNifti() if name.endswith(NIFTI) else None)


def check_gzip(path: Path) -> None:
    """Read a file to its checksum, which readers that stop at the last voxel never see.

    Raises:
        OSError: when the checksum is another, or the file no gzip.
        EOFError: when it is cut off.
        zlib.error: when it is damaged.
    """
    with gzip.open(path) as file:
        while file.read(2**20):
            pass


def said(error: BaseException) -> str:
    """What an error says, in one line, the same in every run: without addresses and lines of C++."""
    return " ".join(re.sub(r"\(0x[0-9a-f]+\)|\S+\.[ch]xx:\d+:", "", str(error)).split())
