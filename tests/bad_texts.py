"""NRRD and MetaImage files, good and bad, beside those of `bad_volumes`."""

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from bad_volumes import Bad, flip, written

SIZES = (b"9 8 8", b"0 8 7", b"-9 8 7", b"9 8", b"1 8 63", b"2000000 2000000 2000000")
NRRD_SIZES = (*SIZES, b"9 8 7 1", b"99999999999999999999 8 7", b"nan 8 7", b"9 8 7\nsizes: 99999 9999 9999")
META_SIZES = (*SIZES, b"9 8 7\nDimSize = 99999 9999 9999")
NRRD_CHANGES = {(b"sizes: 9 8 7", b"sizes: " + new): True for new in NRRD_SIZES} | {
    # SimpleITK takes what is whole of it.
    (b"sizes: 9 8 7", b"sizes: 9.5 8 7"): None,
    (b"dimension: 3", b"dimension: 4"): True,
    (b"dimension: 3", b"dimension: 2"): True,
    (b"type: short", b"type: block"): True,
    (b"type: short", b"type: double"): True,
    (b"type: short", b"type: ushort"): False,
    (b"type: short", b"type: int16"): False,
    (b"encoding: raw", b"encoding: ascii"): True,
    (b"encoding: raw", b"encoding: bzip2"): True,
    (b"encoding: raw", b"encoding: gzip"): True,
    (b"left-posterior-superior", b"right-anterior-superior"): False,
    (b"left-posterior-superior", b"LAS"): False,
    (b"left-posterior-superior", b"scanner-xyz"): True,
    (b"left-posterior-superior", b"left-posterior-superior-time"): True,
    (b"encoding: raw", b'encoding: raw\nspace units: "mm" "mm" "mm"'): False,
    (b"encoding: raw", b'encoding: raw\nspace units: "m" "m" "m"'): True,
    (b"encoding: raw", b"encoding: raw\nbyte skip: 100"): True,
    (b"encoding: raw", b"encoding: raw\nline skip: 1"): True,
    (b"encoding: raw", b"encoding: raw\nkey:=value"): False,
    (b"space directions: (", b"space directions: (nan,nan,nan) ("): True,
    (b"space directions: ", b"space directions: none "): True,
    (b"space origin: (10.5", b"space origin: (inf"): True,
    (b"space origin: (10.5", b"space origin: (1e30"): True,
    (b"NRRD0004", b"NRRD9999"): True,
}
META_CHANGES = {(b"DimSize = 9 8 7", b"DimSize = " + new): True for new in META_SIZES} | {
    (b"DimSize = 9 8 7", b"DimSize = 9 8 7 1"): None,
    (b"NDims = 3", b"NDims = 4"): True,
    (b"NDims = 3", b"NDims = 2"): True,
    (b"MET_SHORT", b"MET_DOUBLE"): True,
    (b"MET_SHORT", b"MET_USHORT"): False,
    (b"MET_SHORT", b"MET_UCHAR_ARRAY"): True,
    (b"ElementType", b"ElementNumberOfChannels = 3\nElementType"): True,
    (b"ElementType", b"HeaderSize = 999\nElementType"): True,
    (b"ElementType", b"HeaderSize = -1\nElementType"): False,
    (b"BinaryData = True", b"BinaryData = False"): True,
    (b"CompressedData = False", b"CompressedData = True"): True,
    (b"ByteOrderMSB = False", b"ByteOrderMSB = True"): False,
    (b"ElementSpacing = 0.9", b"ElementSpacing = nan"): True,
    (b"ElementSpacing = 0.9", b"ElementSpacing = 0.0"): True,
    (b"ElementSpacing = 0.9", b"ElementSpacing = inf"): True,
    (b"ElementSpacing = 0.9", b"ElementSpacing = 1e9"): True,
    (b"Offset = 10.5", b"Offset = nan"): True,
    (b"Offset = 10.5", b"Origin = 1 2 3\nOffset = 10.5"): True,
    (b"TransformMatrix = ", b"TransformMatrix = 0 0 0 0 0 0 0 0 0 "): True,
    (b"ObjectType = Image", b"ObjectType = Image\nno field"): True,
}
ESCAPES = ("/etc/passwd", "../scan.raw", "../../../../etc/passwd", "LIST", "scan%02d.raw 1 7 1")
ESCAPES += ("a\0b", "out.raw", "none.raw")
"""What a header may name as the file of its voxels and must not; ``out.raw`` will be a link out of the folder."""


def texts() -> Iterator[Bad]:
    for extension in ("nrrd", "nhdr", "mha", "mhd"):
        for packed in (False, True):
            name = f"scan.{extension}"
            yield Bad(f"{name}, packed {packed}", lambda f, n=name, p=packed: written(f, n, p), False)
    for extension, changes in (("nrrd", NRRD_CHANGES), ("mha", META_CHANGES)):
        for (old, new), refused in changes.items():
            yield Bad(f"{extension} with {new!r}", _changing(f"scan.{extension}", old, new), refused)
        for share in np.linspace(0, 0.99, 12):
            yield Bad(f"{share:.2f} of a {extension}", _cutting(f"scan.{extension}", share, False), True)
            yield Bad(f"{share:.2f} of a {extension}, packed", _cutting(f"scan.{extension}", share, True), True)
        for seed in range(40):
            yield Bad(f"{extension}, bit {seed} flipped", _flipping(f"scan.{extension}", seed), None)
    for name, old in (("scan.nhdr", b"scan.raw"), ("scan.mhd", b"scan.raw")):
        for target in ESCAPES:
            yield Bad(f"{name} at {target!r}", _changing(name, old, target.encode()), True)


def _changing(name: str, old: bytes, new: bytes) -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        path = written(folder, name)
        content = path.read_bytes()
        if old not in content:
            raise ValueError(f"{name} must hold {old!r}")
        path.write_bytes(content.replace(old, new, 1))
        (folder / "out.raw").symlink_to("/etc/passwd")
        return path

    return write


def _cutting(name: str, share: float, packed: bool) -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        path = written(folder, name, packed)
        content = path.read_bytes()
        path.write_bytes(content[: int(share * len(content))])
        return path

    return write


def _flipping(name: str, seed: int) -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        path = written(folder, name, packed=seed % 2 == 0)
        content = path.read_bytes()
        path.write_bytes(flip(content, int(np.random.default_rng(seed).integers(8 * len(content)))))
        return path

    return write
