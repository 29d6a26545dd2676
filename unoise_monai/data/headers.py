"""What a volume's header claims, and whether it can be true, before anything large is allocated for it."""

from __future__ import annotations

import gzip
import math
import os
import re
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np
from nibabel.affines import from_matvec, voxel_sizes
from nibabel.spatialimages import HeaderDataError
from nibabel.wrapstruct import WrapStructError
from numpy.typing import NDArray

from unoise_monai.data.reading import NIFTI, CaseError, affine_fault, kind_of, said

DEFLATE_BOUND = 1032
"""The most bytes that one compressed byte can stand for (zlib's documentation)."""
COPIES = 8
"""How many float32 copies of a volume the steps from file to network hold at once, at most."""


@dataclass(frozen=True)
class VolumeHeader:
    """What a header says about the voxels that follow it.

    Args:
        path: the file of the header, which messages name.
        shape: the sides, in voxels.
        voxel_bytes: stored bytes of one voxel.
        affine: ``(4, 4)``, voxel indices to mm.
        data: the file of the voxels.
        offset: where they begin in it, once unpacked where the whole file is packed; in bytes.
        packed: whether they are compressed.
    """

    path: Path
    shape: tuple[int, ...]
    voxel_bytes: int
    affine: NDArray[np.float64]
    data: Path
    offset: int = 0
    packed: bool = False


def check_stored(header: VolumeHeader, spacing_mm: Sequence[float] | None = None) -> None:
    """Refuse a header whose volume cannot be there, cannot be loaded or has no place in space.

    Args:
        header: what the file claims; nothing of its voxels is read.
        spacing_mm: the voxel size that the volume will be resampled to, where that is known.

    Raises:
        CaseError: when the volume is not three-dimensional with at least 2 voxels a side.
        CaseError: when the affine is not finite, not invertible, or not one of a scan.
        CaseError: when the file holds fewer voxels than claimed.
        CaseError: when the volume, or the resampled one, does not fit in memory, or resampling leaves a side too short.
    """
    start = f"file {header.path}"
    if len(header.shape) != 3 or min(header.shape) < 2:
        raise CaseError(f"{start} must be a 3-D volume, got shape {header.shape}")
    if fault := affine_fault(header.affine):
        raise CaseError(f"{start} {fault}")
    check_memory(start, header.shape)
    need = header.offset + math.prod(header.shape) * header.voxel_bytes
    held = header.data.stat().st_size
    if need > (held * DEFLATE_BOUND if header.packed else held):
        kind = "compressed " if header.packed else ""
        raise CaseError(
            f"{start} must hold the {need} bytes that its header claims for shape {header.shape}, "
            f"got {held} {kind}bytes: it is cut off, or its header is damaged"
        )
    if spacing_mm is not None:
        sides = np.array(header.shape) * voxel_sizes(header.affine) / np.array(spacing_mm)
        resampled = tuple(int(side) for side in np.rint(sides))
        if min(resampled) < 2:
            raise CaseError(f"{start} must span at least 2 voxels of {tuple(spacing_mm)} mm, got {resampled}")
        check_memory(f"{start}, resampled to {tuple(spacing_mm)} mm,", resampled)


def check_unpacks(path: Path, data: Path, start: int, need: int) -> None:
    """Refuse compressed voxels that are damaged or too few, reading them through once, a little at a time.

    Args:
        path: the file of the header, which messages name.
        data: the file of the voxels, packed by zlib or gzip.
        start: where they begin in it, in bytes.
        need: how many bytes they must unpack to.

    Raises:
        CaseError: when they are no such stream, are cut off, or fail their checksum.
    """
    stream, got = zlib.decompressobj(wbits=zlib.MAX_WBITS | 32), 0
    try:
        with data.open("rb") as file:
            file.seek(start)
            while not stream.eof and (packed := stream.unconsumed_tail or file.read(2**16)):
                got += len(stream.decompress(packed, 2**20))
    # The system's errors name the file, which may be one that a header names.
    except OSError as error:
        raise CaseError(f"file {path} must hold whole compressed voxels: {error.strerror}") from error
    except zlib.error as error:
        raise CaseError(f"file {path} must hold whole compressed voxels: {error}") from error
    if not stream.eof or got < need:
        raise CaseError(f"file {path} must hold {need} bytes of compressed voxels, got {got}: it is cut off or damaged")


def check_memory(name: str, shape: Sequence[int]) -> None:
    """Refuse a volume of which `COPIES` in float32 exceed this machine's memory.

    Raises:
        CaseError: when they do; the message begins with ``name``.
    """
    need, most = COPIES * 4 * math.prod(shape), memory_bytes()
    if need > most:
        raise CaseError(
            f"{name} must fit in this machine's memory of {most / 1e9:.1f} GB, "
            f"got shape {tuple(shape)}, which takes {need / 1e9:.1f} GB"
        )


def memory_bytes() -> int:
    """The RAM of this machine, or its container's limit where that is lower."""
    total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    limit = Path("/sys/fs/cgroup/memory.max")
    text = limit.read_text(encoding="utf-8").strip() if limit.exists() else ""
    return min(total, int(text)) if text.isdigit() else total


LONGEST_HEADER = 2**16
"""In bytes."""
BYTES = {
    **dict.fromkeys(("signedchar", "int8", "int8_t", "uchar", "unsignedchar", "uint8", "uint8_t"), 1),
    **dict.fromkeys(("short", "shortint", "signedshort", "signedshortint", "int16", "int16_t"), 2),
    **dict.fromkeys(("ushort", "unsignedshort", "unsignedshortint", "uint16", "uint16_t"), 2),
    **dict.fromkeys(("int", "signedint", "int32", "int32_t", "uint", "unsignedint", "uint32", "uint32_t", "float"), 4),
    **dict.fromkeys(("longlong", "longlongint", "signedlonglong", "signedlonglongint", "int64", "int64_t"), 8),
    **dict.fromkeys(("ulonglong", "unsignedlonglong", "unsignedlonglongint", "uint64", "uint64_t", "double"), 8),
}
"""Bytes of NRRD's types, by their names without spaces."""
META_BYTES = {
    **dict.fromkeys(("MET_CHAR", "MET_UCHAR"), 1),
    **dict.fromkeys(("MET_SHORT", "MET_USHORT"), 2),
    **dict.fromkeys(("MET_INT", "MET_UINT", "MET_FLOAT"), 4),
    **dict.fromkeys(("MET_LONG_LONG", "MET_ULONG_LONG", "MET_DOUBLE"), 8),
}
SPACES = ("leftposteriorsuperior", "lps", "rightanteriorsuperior", "ras", "leftanteriorsuperior", "las")


def read_nrrd(path: Path) -> VolumeHeader:
    """The header of a NRRD file (``.nrrd``, or ``.nhdr`` with its data file).

    Raises:
        CaseError: when it is no NRRD header, a field is missing, given twice or malformed, the type is none of single
            real numbers, the encoding neither raw nor gzip, the space not one of the patient's in mm, or the data file
            lies outside of the header's folder or is missing.
    """
    (first, *lines), end = _lines(path, lambda line: line == "")
    if not first.startswith("NRRD000"):
        raise CaseError(f"file {path} must begin with NRRD000, got {first[:20]!r}")
    pairs = [line.partition(":") for line in lines if not line.startswith("#") and ":=" not in line]
    fields = _fields(path, [(key.lower().replace(" ", ""), value) for key, _, value in pairs])
    units = set(fields.get("spaceunits", "mm").replace('"', " ").split())
    _check(path, "space units", sorted(units), units <= {"mm"}, "mm")
    space = fields.get("space", "lps").lower()
    _check(path, "space", space, space.replace("-", "") in SPACES, "LPS, RAS or LAS")
    encoding = fields.get("encoding", "none").lower()
    _check(path, "encoding", encoding, encoding in ("raw", "gzip", "gz"), "raw or gzip")
    kind = fields.get("type", "none").lower().replace(" ", "")
    _check(path, "type", kind, kind in BYTES, "a type of single real numbers")
    for key in ("lineskip", "byteskip"):
        _check(path, key, fields.get(key, "0"), fields.get(key, "0") == "0", "0")
    _check(path, "dimension", fields.get("dimension", "none"), fields.get("dimension") == "3", "3")
    shape = _numbers(path, "sizes", fields.get("sizes", ""))
    if "spacedirections" in fields:
        axes = _numbers(path, "space directions", fields["spacedirections"], 9).reshape(3, 3).T
    else:
        axes = np.diag(_numbers(path, "spacings", fields.get("spacings", "1 1 1")))
    origin = _numbers(path, "space origin", fields.get("spaceorigin", "0 0 0"))
    data = (_beside(path, fields["datafile"]), 0) if "datafile" in fields else (path, end)
    return _header(path, shape, BYTES[kind], axes, origin, data, encoding != "raw")


def read_meta(path: Path) -> VolumeHeader:
    """The header of a MetaImage file (``.mha``, or ``.mhd`` with its data file).

    Raises:
        CaseError: when it is no MetaImage header, a field is missing, given twice or malformed, the elements are no
            single real numbers, or the data file lies outside of the header's folder or is missing.
    """
    lines, end = _lines(path, lambda line: line.startswith("ElementDataFile"))
    if any("=" not in line for line in lines) or not lines[-1].startswith("ElementDataFile"):
        raise CaseError(f"file {path} must have a header of lines 'Key = value' that ends with ElementDataFile")
    pairs = [line.partition("=") for line in lines]
    fields = _fields(path, [(key.strip(), value) for key, _, value in pairs])
    places = [fields[key] for key in ("Offset", "Position", "Origin") if key in fields]
    _check(path, "Offset", places, len(places) < 2, "given once")
    for key, default in (("NDims", "3"), ("BinaryData", "True"), ("ElementNumberOfChannels", "1"), ("HeaderSize", "0")):
        _check(path, key, fields.get(key, default), fields.get(key, default) == default, default)
    kind = fields.get("ElementType", "none")
    _check(path, "ElementType", kind, kind in META_BYTES, "a type of single real numbers")
    shape = _numbers(path, "DimSize", fields.get("DimSize", ""))
    turn = fields.get("TransformMatrix", fields.get("Rotation", fields.get("Orientation", "1 0 0 0 1 0 0 0 1")))
    spacing = fields.get("ElementSpacing", fields.get("ElementSize", "1 1 1"))
    # The file's order is by column: its first three numbers are the direction of the first axis.
    axes = _numbers(path, "TransformMatrix", turn, 9).reshape(3, 3).T
    axes = axes * _numbers(path, "ElementSpacing", spacing)
    origin = _numbers(path, "Offset", places[0] if places else "0 0 0")
    local = fields["ElementDataFile"].upper() == "LOCAL"
    data = (path, end) if local else (_beside(path, fields["ElementDataFile"]), 0)
    packed = fields.get("CompressedData", "False").lower() not in ("false", "0", "f")
    return _header(path, shape, META_BYTES[kind], axes, origin, data, packed)


def _lines(path: Path, is_last: Callable[[str], bool]) -> tuple[list[str], int]:
    """The lines of a header up to its last one, and where the bytes after it begin."""
    try:
        with path.open("rb") as file:
            whole = file.read(LONGEST_HEADER)
    except OSError as error:
        raise CaseError(f"file {path} is unreadable: {said(error)}") from error
    lines, end = [], 0
    for raw in whole.split(b"\n"):
        end += len(raw) + 1
        lines.append(raw.decode("utf-8", "surrogateescape").strip())
        if is_last(lines[-1]):
            break
    return lines, end


def _fields(path: Path, pairs: list[tuple[str, str]]) -> dict[str, str]:
    fields: dict[str, str] = {}
    for key, value in pairs:
        # Readers differ in which of two they take.
        if key in fields:
            raise CaseError(f"file {path} must give {_printed(key)} once in its header, got it twice")
        fields[key] = value.strip()
    return fields


def _check(path: Path, name: str, value: object, holds: bool, rule: str) -> None:
    if not holds:
        raise CaseError(f"file {path} must have a header with {name} {rule}, got {_printed(str(value))}")


def _numbers(path: Path, name: str, text: str, count: int = 3) -> NDArray[np.float64]:
    words = re.sub(r"[(),]", " ", text).split()
    try:
        numbers = np.array([float(word) for word in words])
    except ValueError:
        numbers = np.array([])
    _check(path, name, text or "none", len(numbers) == count, f"of {count} numbers")
    return numbers


def _header(
    path: Path,
    shape: NDArray[np.float64],
    voxel_bytes: int,
    axes: NDArray[np.float64],
    origin: NDArray[np.float64],
    data: tuple[Path, int],
    packed: bool,
) -> VolumeHeader:
    whole = np.isfinite(shape).all() and (shape == np.rint(shape)).all()
    _check(path, "a shape", shape.tolist(), bool(whole), "of whole numbers")
    sides, affine = tuple(map(int, shape)), from_matvec(axes, origin)
    if packed:
        # Their readers take what they get of a damaged stream.
        check_unpacks(path, *data, math.prod(sides) * voxel_bytes)
    return VolumeHeader(path, sides, voxel_bytes, affine, data[0], 0 if packed else data[1], packed)


def _beside(path: Path, name: str) -> Path:
    """The data file that a header names: one, in the header's own folder or below.

    No message tells its name, which may be a patient's.
    """
    home = path.parent.resolve()
    lists = name.upper().startswith("LIST") or "%" in name or "\0" in name
    file = home if lists else Path(os.path.realpath(home / name))
    if lists or Path(name).is_absolute() or not file.is_relative_to(home):
        raise CaseError(f"file {path} must keep its voxels in one file in its own folder, got a list, or another place")
    if kind_of(file) != "file":
        raise CaseError(f"file {path} must have its voxels in the file beside it that it names, which is missing")
    try:
        file.open("rb").close()
    except OSError as error:
        raise CaseError(f"file {path} must have its voxels in a file that may be read: {error.strerror}") from error
    return file


def _printed(text: str) -> str:
    return repr(text[:80])


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
