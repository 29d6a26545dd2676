"""Reads the headers of NRRD and MetaImage files: lines of text, of which only plain volumes are let through."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
from nibabel.affines import from_matvec
from numpy.typing import NDArray

from unoise_monai.data.paths import kind_of
from unoise_monai.data.reading import said
from unoise_monai.data.stored import VolumeHeader, check_unpacks
from unoise_monai.data.validation import CaseError

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
