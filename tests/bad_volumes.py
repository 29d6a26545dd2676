"""Files that a cohort may hold by accident or malice: each a name, what writes it, and whether it must be refused."""

import gzip
import os
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import nibabel as nib
import numpy as np
import SimpleITK
from nibabel.affines import from_matvec
from nibabel.eulerangles import euler2mat

TURN = euler2mat(0.5, -0.3, 0.2)
AFFINE = from_matvec(TURN @ np.diag([0.9, 1.2, -1.7]), [41.3, -20.7, 33.1])
VOXELS = np.random.default_rng(0).normal(300, 90, (9, 8, 7)).astype(np.int16)
DIM, DATATYPE, PIXDIM, VOX_OFFSET = 40, 70, 76, 108
SLOPE, UNITS, QFORM, SROW, MAGIC = 112, 123, 252, 280, 344
NEW_DIM = 16
"""Where the header of NIfTI 2 has its dimensions."""


class Bad(NamedTuple):
    name: str
    write: Callable[[Path], Path]
    refused: bool | None
    """None where either a right result or a refusal will do."""


def nifti(voxels: np.ndarray = VOXELS, affine: np.ndarray | None = AFFINE, kind: type = nib.Nifti1Image) -> bytes:
    return bytes(kind(voxels, affine, dtype=voxels.dtype).to_bytes())


def put(content: bytes, changes: dict[int, bytes]) -> bytes:
    """Bytes overwritten at some places."""
    result = bytearray(content)
    for place, new in changes.items():
        result[place : place + len(new)] = new
    return bytes(result)


def flip(content: bytes, bit: int) -> bytes:
    return put(content, {bit // 8: bytes([content[bit // 8] ^ (1 << bit % 8)])})


def shorts(*values: int) -> bytes:
    return struct.pack(f"<{len(values)}h", *values)


def floats(*values: float) -> bytes:
    return struct.pack(f"<{len(values)}f", *values)


def file(name: str, content: bytes, refused: bool | None, file_name: str = "scan.nii") -> Bad:
    def write(folder: Path) -> Path:
        (folder / file_name).write_bytes(content)
        return folder / file_name

    return Bad(name, write, refused)


def both(name: str, content: bytes, refused: bool | None) -> Iterator[Bad]:
    """Plain and compressed."""
    yield file(name, content, refused)
    yield file(f"{name}, gzip", gzip.compress(content, mtime=0), refused, "scan.nii.gz")


def cut_off() -> Iterator[Bad]:
    plain, packed = nifti(), gzip.compress(nifti(), mtime=0)
    for share in np.linspace(0, 0.999, 30):
        yield file(f"{share:.3f} of it", plain[: int(share * len(plain))], True)
        yield file(f"{share:.3f} of it, gzip", packed[: int(share * len(packed))], True, "scan.nii.gz")
    for missing in (1, 4, 8, 9):
        yield file(f"gzip without its last {missing}", packed[:-missing], True, "scan.nii.gz")


def no_volumes() -> Iterator[Bad]:
    contents = {
        "nothing": b"",
        "a page": b"<html><body>404</body></html>" * 30,
        "zeros": bytes(2000),
        "noise": np.random.default_rng(1).bytes(3000),
        "a picture": b"\x89PNG\r\n\x1a\n" + bytes(3000),
        "an archive": b"PK\3\4" + bytes(3000),
        "text": "Ärztlicher Bericht\n".encode() * 99,
    }
    for name, content in contents.items():
        for extension in (".nii", ".nii.gz", ".hdr", ".nrrd", ".nhdr", ".mha", ".mhd"):
            yield file(f"{name} as {extension}", content, True, f"scan{extension}")
        yield file(f"{name}, gzip", gzip.compress(content), True, "scan.nii.gz")
    yield file("plain as gzip", nifti(), True, "scan.nii.gz")
    yield file("gzip as plain", gzip.compress(nifti()), True)
    yield file("of another extension", nifti(), True, "scan.xyz")
    yield from both("magic of a pair", put(nifti(), {MAGIC: b"ni1\0"}), None)
    for magic in (b"XXXX", bytes(4), b"n+3\0"):
        yield from both(f"magic {magic!r}", put(nifti(), {MAGIC: magic}), True)


def claims() -> Iterator[Bad]:
    """Sides that are absurd, up to terabytes."""
    for sides in ((-9, 8, 7), (0, 8, 7), (9, 0, 0), (32767,) * 3, (9, 8, 8), (2000, 2000, 2000), (9, 8, -7), (1, 8, 7)):
        yield from both(f"sides {sides}", put(nifti(), {DIM + 2: shorts(*sides)}), True)
    for count in (-1, 0, 1, 2, 4, 7, 8, 32767):
        yield from both(f"{count} dimensions", put(nifti(), {DIM: shorts(count)}), True)
    new = nifti(kind=nib.Nifti2Image)
    yield from both("NIfTI 2", new, False)
    for side in (-1, 0, 2**20, 2**31, 2**31 - 1, 2**62, 2**63 - 1):
        for axis in (1, 3):
            content = put(new, {NEW_DIM + 8 * axis: struct.pack("<q", side)})
            yield from both(f"NIfTI 2, side {axis} of {side}", content, True)
    for offset in (-1.0, 0.0, 1e6, 3e38, np.nan, np.inf):
        yield from both(
            f"voxels at {offset}", put(nifti(), {VOX_OFFSET: floats(offset)}), None if offset == 0 else True
        )
    # Eight bytes are claimed for each of two.
    yield from both("wider type", put(nifti(), {DATATYPE: shorts(64, 64)}), True)


def voxels() -> Iterator[Bad]:
    for value in (np.nan, np.inf, -np.inf, 1e30, -3e38):
        content = VOXELS.astype(np.float32)
        content[3, 2, 1] = value
        yield from both(f"a voxel of {value}", nifti(content), True)
    yield from both("a voxel beyond float32", nifti(np.where(VOXELS > 450, 1e300, VOXELS)), True)
    for value in (0, -7, 1000):
        yield from both(f"{value} everywhere", nifti(np.full_like(VOXELS, value)), True)
    for kind in ("i1", "u1", "i2", "u2", "i4", "u4", "i8", "u8", "f4", "f8", ">i2", ">f4"):
        yield from both(f"type {kind}", nifti((VOXELS % 100).astype(kind)), False)
    for kind in ("c8", "c16", [("R", "u1"), ("G", "u1"), ("B", "u1")], [(each, "u1") for each in "RGBA"]):
        yield from both(f"type {kind}", nifti(np.zeros(VOXELS.shape, kind)), True)
    for number in (0, 1, 32, 128, 255, 256, 1536, 1792, 2048, 2304, 9999, -1):
        yield from both(
            f"type number {number}", put(nifti(), {DATATYPE: shorts(number)}), True if number != 256 else None
        )
    flat, deep = (
        ((9,), (9, 8), (9, 8, 1), (9, 1, 7), (1, 8, 7)),
        ((9, 8, 7, 1), (9, 8, 7, 2), (9, 8, 7, 1, 3), (3, 2, 2, 2)),
    )
    for shape in (*flat, *deep):
        yield from both(f"shape {shape}", nifti(np.resize(VOXELS, shape)), True)
    for slope, offset in ((0, 5), (2.5, -100), (-1, 0), (np.nan, 0), (1, np.nan), (np.inf, 0), (1, np.inf), (1e30, 0)):
        either = None if slope in (0, np.nan) or not np.isfinite(offset + slope) else bool(slope > 1e20)
        yield from both(f"slope {slope}, {offset}", put(nifti(), {SLOPE: floats(slope, offset)}), either)


def affines() -> Iterator[Bad]:
    def rows(axes: np.ndarray, origin: tuple[float, ...] = (0, 0, 0)) -> bytes:
        return put(nifti(), {SROW: floats(*from_matvec(axes, origin)[:3].ravel())})

    shear = np.array([[1, 0.3, 0], [0, 1, 0], [0, 0, 1.5]])
    yield from both("sheared", rows(shear), False)
    yield from both("sheared and turned", rows(TURN @ shear), False)
    yield from both("sheared too far", rows(np.array([[1, 30, 0], [0, 1, 0], [0, 0, 1.0]])), True)
    yield from both("mirrored", rows(np.diag([1, -1, 1])), False)
    for scale in (0.0, 1e-30, 1e-5, 1e5, 1e30, np.nan, np.inf):
        yield from both(f"voxels of {scale} mm", rows(np.diag([scale, 1, 1])), True)
        yield from both(f"all voxels of {scale} mm", rows(np.diag([scale] * 3)), True)
    yield from both("far resampled", rows(np.diag([900.0] * 3)), True)
    yield from both("one voxel resampled", rows(np.diag([0.01, 1, 1])), True)
    yield from both("two axes alike", rows(np.array([[1, 1, 0], [0, 0, 0], [0, 0, 1.0]])), True)
    for place in (np.nan, np.inf, 1e30, 1e7):
        yield from both(f"at {place} mm", rows(np.diag([1.0] * 3), (place, 0, 0)), True)
    for unit in (1, 3):
        yield from both(f"lengths in unit {unit}", put(nifti(), {UNITS: bytes([unit])}), True)
    yield from both("an unknown unit", put(nifti(), {UNITS: bytes([7])}), True)
    yield from both("no forms", put(nifti(), {QFORM: shorts(0, 0)}), False)
    yield from both("q-form alone", put(nifti(), {QFORM: shorts(1, 0)}), False)
    for size in (0, -1, np.nan, np.inf):
        content = put(nifti(), {QFORM: shorts(1, 0), PIXDIM + 4: floats(size)})
        yield from both(f"q-form with voxels of {size} mm", content, None if size <= 0 else True)


def flips() -> Iterator[Bad]:
    """One bit other than it was, in headers and voxels."""
    plain, packed = nifti(), gzip.compress(nifti(), mtime=0)
    rng = np.random.default_rng(2)
    for bit in sorted(rng.choice(8 * 352, 150, replace=False).tolist()):
        yield file(f"bit {bit} flipped", flip(plain, bit), None)
    for bit in sorted(rng.choice(8 * len(packed), 80, replace=False).tolist()):
        yield file(f"bit {bit} flipped, gzip", flip(packed, bit), None, "scan.nii.gz")


def specials() -> Iterator[Bad]:
    def fifo(folder: Path) -> Path:
        os.mkfifo(folder / "scan.nii.gz")
        return folder / "scan.nii.gz"

    def pair(folder: Path, changes: dict[int, bytes], cut: int = 0) -> Path:
        nib.save(nib.Nifti1Pair(VOXELS, AFFINE), folder / "scan.hdr")
        for name, new in (("scan.hdr", changes), ("scan.img", {})):
            content = (folder / name).read_bytes()
            (folder / name).write_bytes(put(content[: len(content) - (cut if name == "scan.img" else 0)], new))
        return folder / "scan.hdr"

    def lonely(folder: Path) -> Path:
        pair(folder, {}).with_suffix(".img").unlink()
        return folder / "scan.hdr"

    yield Bad("a pipe", fifo, True)
    yield Bad("a device", lambda folder: Path("/dev/zero"), True)
    yield Bad("a folder", lambda folder: folder, True)
    yield Bad("nothing there", lambda folder: folder / "scan.nii", True)
    yield Bad("a name too long", lambda folder: folder / f"{'x' * 300}.nii", True)
    yield Bad("a character 0", lambda folder: folder / "a\0b.nii", True)
    yield Bad("a pair", lambda folder: pair(folder, {}), False)
    yield Bad("a pair, cut off", lambda folder: pair(folder, {}, cut=9), True)
    yield Bad("a pair without magic", lambda folder: pair(folder, {MAGIC: bytes(4)}), True)
    yield Bad("a pair, absurd", lambda folder: pair(folder, {DIM + 2: shorts(32767, 32767)}), True)
    yield Bad("a header alone", lonely, True)


def written(folder: Path, name: str, packed: bool = False) -> Path:
    """A good volume in another format, by SimpleITK."""
    image = SimpleITK.GetImageFromArray(VOXELS.T)
    image.SetSpacing((0.9, 1.2, 1.7))
    image.SetOrigin((10.5, -3.25, 7.0))
    image.SetDirection(TURN.ravel().tolist())
    SimpleITK.WriteImage(image, str(folder / name), packed)
    return folder / name
