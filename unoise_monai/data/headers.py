"""Refuses a bad volume by its header, before anything large is allocated for it."""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Sequence
from pathlib import Path

import nibabel as nib
from nibabel.spatialimages import HeaderDataError
from nibabel.wrapstruct import WrapStructError

from unoise_monai.data.paths import kind_of
from unoise_monai.data.reading import NIFTI, said
from unoise_monai.data.stored import VolumeHeader, check_stored
from unoise_monai.data.text_headers import read_meta, read_nrrd
from unoise_monai.data.validation import CaseError

READERS = {".nrrd": read_nrrd, ".nhdr": read_nrrd, ".mha": read_meta, ".mhd": read_meta}
UNREADABLE = (HeaderDataError, WrapStructError, OSError, EOFError, KeyError, ValueError, OverflowError, zlib.error)
LONGEST_EXTENSION = 2**26
"""Bytes between a NIfTI header and its voxels, which readers load as text."""


def check_header(path: Path, spacing_mm: Sequence[float] | None = None) -> None:
    """Refuse a file whose header shows that it is no volume a network can be given.

    Args:
        path: a NIfTI (``.nii``, ``.nii.gz``, ``.hdr`` with its ``.img``), NRRD or MetaImage file; links are followed.
        spacing_mm: the voxel size that the volume will be resampled to: the result must fit in memory, too.

    Raises:
        CaseError: when the file is missing, not a regular file, or of none of these formats.
        CaseError: when its header is malformed, or of numbers that are not real, or its lengths are not in mm.
        CaseError: when its volume is not 3-D, has no place in space, is not all there, or does not fit in memory.
    """
    if not (kind := kind_of(path)):
        raise CaseError(f"file {path} is missing")
    if kind != "file":
        raise CaseError(f"file {path} must be a regular file, got a {kind}")
    check_stored(read_header(path), spacing_mm)


def read_header(path: Path) -> VolumeHeader:
    """What a regular file's header claims.

    Raises:
        CaseError: when it is of no known format, malformed, or of numbers that are not real.
    """
    if path.name.lower().endswith(NIFTI):
        return read_nifti(path)
    if path.suffix.lower() in READERS:
        return READERS[path.suffix.lower()](path)
    raise CaseError(f"file {path} must be a volume, of {', '.join((*NIFTI, *READERS))}, got another extension")


def read_nifti(path: Path) -> VolumeHeader:
    """The header of a NIfTI file.

    Raises:
        CaseError: when it is no NIfTI header, its voxels are no real numbers, or its lengths are not in mm.
    """
    packed, paired = path.name.lower().endswith(".gz"), path.suffix.lower() == ".hdr"
    try:
        with gzip.open(path) if packed else path.open("rb") as file:
            raw = file.read(nib.Nifti2Header.sizeof_hdr)
        header = _parsed(raw, paired)
        # Its own check: a slope or an offset that is no number.
        header.get_slope_inter()
        shape, kind, affine = header.get_data_shape(), header.get_data_dtype(), header.get_best_affine()
        unit, offset = header.get_xyzt_units()[0], int(header.get_data_offset())
    except UNREADABLE as error:
        raise CaseError(f"file {path} is unreadable: {said(error)}") from error
    if kind.kind not in "iuf" or kind.itemsize > 8:
        raise CaseError(f"file {path} must hold one real number a voxel, got {kind}")
    if unit not in ("mm", "unknown"):
        raise CaseError(f"file {path} must give its lengths in mm, got {unit}")
    if not 0 <= offset <= len(raw) + LONGEST_EXTENSION:
        raise CaseError(f"file {path} must have its voxels soon after its header, got them at byte {offset:g}")
    data = path.with_suffix(".img") if paired else path
    if kind_of(data) != "file":
        raise CaseError(f"file {path} must have its voxels beside it, in {data.name}, which is missing")
    return VolumeHeader(path, tuple(map(int, shape)), kind.itemsize, affine, data, offset, packed)


def _parsed(raw: bytes, paired: bool) -> nib.Nifti1Header:
    pairs, single = (nib.Nifti1Pair, nib.Nifti2Pair), (nib.Nifti1Image, nib.Nifti2Image)
    for kind in (image.header_class for image in (pairs if paired else single)):
        if kind.may_contain_header(raw):
            return kind(raw[: kind.sizeof_hdr], check=True)
    raise HeaderDataError("it has no NIfTI header (Analyze 7.5 does not tell left from right)")
