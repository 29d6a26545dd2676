"""What a volume's header claims, and whether it can be true, before anything large is allocated for it."""

import gzip
import math
import os
import re
import stat
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import nibabel as nib
import numpy as np
import SimpleITK
from nibabel.affines import from_matvec, voxel_sizes
from nibabel.spatialimages import HeaderDataError
from nibabel.wrapstruct import WrapStructError
from numpy.typing import NDArray

NIFTI = (".nii.gz", ".nii", ".hdr")
ITK_READERS = {".nrrd": "NrrdImageIO", ".nhdr": "NrrdImageIO", ".mha": "MetaImageIO", ".mhd": "MetaImageIO"}
"""SimpleITK's reader of each other format: the extension alone decides how a file is read."""
DICOM = (".dcm", ".ima")
VOLUMES = (*NIFTI, *ITK_READERS)
EXTENSIONS = (*VOLUMES, *DICOM)

VOXEL_SIZES_MM = (1e-3, 1e3)
FARTHEST_MM = 1e6
"""From the origin to a volume's first voxel: farther away, resampling rounds too much."""
LEAST_DETERMINANT = 0.1
"""Of the directions of a volume's axes: 1 for right angles, 0 where they lie in a plane."""
DEFLATE_BOUND = 1032
"""The most bytes that one compressed byte can stand for (zlib's documentation)."""
COPIES = 8
"""How many float32 copies of a volume the steps from file to network hold at once, at most."""
LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0])


class CaseError(ValueError):
    """A case that cannot be used; the message names the case, the file, the rule and the value."""


def kind_of(path: Path) -> str:
    """``"file"``, ``"folder"`` or ``"pipe or device"``, links followed; empty where nothing is, or nothing can be."""
    try:
        mode = path.stat().st_mode
    # ValueError: a character that no path of this system can have.
    except (OSError, ValueError):
        return ""
    if stat.S_ISDIR(mode):
        return "folder"
    return "file" if stat.S_ISREG(mode) else "pipe or device"


def one_line(error: BaseException) -> str:
    """An error's message in one line, the same in every run: without addresses and lines of C++."""
    return " ".join(re.sub(r"\(0x[0-9a-f]+\)|\S+\.[ch]xx:\d+:", "", str(error)).split())


@contextmanager
def without_itk_warnings() -> Iterator[None]:
    """ITK's own warnings name files and go straight to the terminal; what they warn of is checked here."""
    before = SimpleITK.ProcessObject.GetGlobalWarningDisplay()
    SimpleITK.ProcessObject.SetGlobalWarningDisplay(False)
    try:
        yield
    finally:
        SimpleITK.ProcessObject.SetGlobalWarningDisplay(before)


def affine_fault(affine: NDArray[np.float64]) -> str:
    """Why a volume with this affine has no place in space, as the end of a sentence; else empty."""
    if not np.isfinite(affine).all():
        return "must have a finite affine, got NaN or infinite numbers"
    sizes = voxel_sizes(affine)
    least, most = VOXEL_SIZES_MM
    if not (least <= sizes.min() and sizes.max() <= most):
        return f"must have voxel sizes from {least:g} to {most:g} mm, got {', '.join(f'{size:g}' for size in sizes)}"
    determinant = abs(float(np.linalg.det(affine[:3, :3] / sizes)))
    if determinant < LEAST_DETERMINANT:
        rule = "must have an affine whose axes stand apart, with a determinant of their directions"
        return f"{rule} of at least {LEAST_DETERMINANT}, got {determinant:.3g}: it is singular or too sheared"
    farthest = float(np.abs(affine[:3, 3]).max())
    return f"must lie within {FARTHEST_MM:g} mm of the origin, got {farthest:g} mm" if farthest > FARTHEST_MM else ""


def check_grid(
    name: str, shape: Sequence[int], affine: NDArray[np.float64], spacing_mm: Sequence[float] | None = None
) -> None:
    """Refuse a volume that cannot be loaded or has no place in space.

    Args:
        name: begins the messages.
        shape: the sides, in voxels.
        affine: ``(4, 4)``, voxel indices to mm.
        spacing_mm: the voxel size that the volume will be resampled to: the result must fit in memory, too.

    Raises:
        CaseError: when the volume is not 3-D with at least 2 voxels a side, before and after resampling; when its
            affine is not finite, not invertible, or not one of a scan; when it does not fit in memory.
    """
    if len(shape) != 3 or min(shape) < 2:
        raise CaseError(f"{name} must be a 3-D volume, got shape {tuple(shape)}")
    if fault := affine_fault(affine):
        raise CaseError(f"{name} {fault}")
    check_memory(name, shape)
    if spacing_mm is not None:
        sides = np.array(shape) * voxel_sizes(affine) / np.array(spacing_mm)
        resampled = tuple(int(side) for side in np.rint(sides))
        if min(resampled) < 2:
            raise CaseError(f"{name} must span at least 2 voxels of {tuple(spacing_mm)} mm, got {resampled}")
        check_memory(f"{name}, resampled to {tuple(spacing_mm)} mm,", resampled)


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


@dataclass(frozen=True)
class VolumeHeader:
    """What a file's header claims of its voxels."""

    path: Path
    """The file of the header, which messages name."""
    shape: tuple[int, ...]
    voxel_bytes: int
    """Stored bytes of one voxel."""
    affine: NDArray[np.float64]
    """``(4, 4)``, voxel indices to RAS mm."""
    data: Path
    """The file of the voxels."""
    offset: int = 0
    """Where they begin in it, in bytes; where the whole file is packed, of the unpacked file."""
    packed: bool = False
    """Whether they are compressed."""
    stream: int | None = None
    """At which byte of ``data`` compressed voxels begin, where they alone are compressed."""
    channels: int = 1
    """How many volumes of ``shape`` there are, one after the other."""

    def check(self, spacing_mm: Sequence[float] | None = None, channels: int | None = 1) -> None:
        """Refuse what cannot be true; of the voxels, only a compressed stream of their own is read through.

        Args:
            spacing_mm: see `check_grid`.
            channels: how many there must be; None for any number.

        Raises:
            CaseError: see `check_grid`; when there are other channels; when the file holds fewer voxels than claimed,
                or they are damaged.
        """
        name = f"file {self.path}"
        if channels not in (None, self.channels):
            rule = "a 3-D volume" if channels == 1 else f"a volume of {channels} channels"
            shape = self.shape if self.channels == 1 else (*self.shape, self.channels)
            raise CaseError(f"{name} must be {rule}, got shape {shape}")
        check_grid(name, self.shape, self.affine, spacing_mm)
        need = self.offset + math.prod(self.shape) * self.channels * self.voxel_bytes
        held = self.data.stat().st_size
        if need > (held * DEFLATE_BOUND if self.packed else held):
            kind = "compressed " if self.packed else ""
            raise CaseError(
                f"{name} must hold the {need} bytes that its header claims for shape {self.shape}, "
                f"got {held} {kind}bytes: it is cut off, or its header is damaged"
            )
        # ITK reads what is left of a damaged stream.
        if self.stream is not None:
            self._check_stream(self.stream, need)

    def _check_stream(self, start: int, need: int) -> None:
        """Refuse compressed voxels that are damaged or too few, reading them through once, a little at a time."""
        stream, got = zlib.decompressobj(wbits=zlib.MAX_WBITS | 32), 0
        try:
            with self.data.open("rb") as file:
                file.seek(start)
                while not stream.eof and (packed := stream.unconsumed_tail or file.read(2**16)):
                    got += len(stream.decompress(packed, 2**20))
        # The system's errors name the file, which may be one that a header names.
        except (OSError, zlib.error) as error:
            reason = error.strerror if isinstance(error, OSError) else error
            raise CaseError(f"file {self.path} must hold whole compressed voxels: {reason}") from error
        if not stream.eof or got < need:
            rule = f"file {self.path} must hold {need} bytes of compressed voxels"
            raise CaseError(f"{rule}, got {got}: it is cut off or damaged")


def check_header(path: Path, spacing_mm: Sequence[float] | None = None, channels: int | None = 1) -> VolumeHeader:
    """The header of a file, once it is known to be of a volume that a network can be given.

    Args:
        path: a NIfTI (``.nii``, ``.nii.gz``, ``.hdr`` with its ``.img``), NRRD or MetaImage file; links are followed.
        spacing_mm: see `check_grid`.
        channels: see `VolumeHeader.check`.

    Raises:
        CaseError: when the file is missing or not a regular file; see `read_header` and `VolumeHeader.check`.
    """
    if not (kind := kind_of(path)):
        raise CaseError(f"file {path} is missing")
    if kind != "file":
        raise CaseError(f"file {path} must be a regular file, got a {kind}")
    header = read_header(path)
    header.check(spacing_mm, channels)
    return header


def read_header(path: Path) -> VolumeHeader:
    """What a regular file's header claims.

    Raises:
        CaseError: when it is of no known format, malformed, of numbers that are not real, or of lengths not in mm.
    """
    if path.name.lower().endswith(NIFTI):
        return _read_nifti(path)
    if path.suffix.lower() in ITK_READERS:
        return _read_itk(path)
    raise CaseError(f"file {path} must be a volume, of {', '.join(VOLUMES)}, got another extension")


NIFTI_ERRORS = (HeaderDataError, WrapStructError, OSError, EOFError, KeyError, ValueError, OverflowError, zlib.error)
LONGEST_EXTENSION = 2**26
"""Bytes between a NIfTI header and its voxels, which readers load."""


def _read_nifti(path: Path) -> VolumeHeader:
    packed, paired = path.name.lower().endswith(".gz"), path.suffix.lower() == ".hdr"
    try:
        with gzip.open(path) if packed else path.open("rb") as file:
            raw = file.read(nib.Nifti2Header.sizeof_hdr)
        pairs, single = (nib.Nifti1Pair, nib.Nifti2Pair), (nib.Nifti1Image, nib.Nifti2Image)
        kinds = [image.header_class for image in (pairs if paired else single)]
        known = next((kind for kind in kinds if kind.may_contain_header(raw)), None)
        if known is None:
            raise HeaderDataError("it has no NIfTI header (Analyze 7.5 does not tell left from right)")
        header = known(raw[: known.sizeof_hdr], check=True)
        # Its own check: a slope or an offset that is no number.
        header.get_slope_inter()
        shape, kind, affine = header.get_data_shape(), header.get_data_dtype(), header.get_best_affine()
        unit, offset = header.get_xyzt_units()[0], int(header.get_data_offset())
    except NIFTI_ERRORS as error:
        raise CaseError(f"file {path} is unreadable: {one_line(error)}") from error
    if kind.kind not in "iuf" or kind.itemsize > 8:
        raise CaseError(f"file {path} must hold one real number a voxel, got {kind}")
    if unit not in ("mm", "unknown"):
        raise CaseError(f"file {path} must give its lengths in mm, got {unit}")
    if not 0 <= offset <= len(raw) + LONGEST_EXTENSION:
        raise CaseError(f"file {path} must have its voxels soon after its header, got them at byte {offset:g}")
    data = path.with_suffix(".img") if paired else path
    if kind_of(data) != "file":
        raise CaseError(f"file {path} must have its voxels beside it, in {data.name}, which is missing")
    sides, channels = [int(side) for side in shape], 1
    # Channels lie in a fourth axis, as in the Decathlon's tasks of several.
    if len(sides) == 4 and sides[3] > 1:
        channels = sides.pop()
    return VolumeHeader(path, tuple(sides), kind.itemsize, affine, data, offset, packed, channels=channels)


LONGEST_HEADER = 2**16
"""Bytes of the text before the voxels of a NRRD or MetaImage file."""
TEXT_RULES = {"encoding": ("raw", "gzip", "gz"), "spaceunits": ("mm",), "BinaryData": ("true",)}
"""The words that fields may hold whose values SimpleITK does not give."""
PLACES = ("Offset", "Position", "Origin")
"""MetaImage's names of one field; what is no number there, ITK silently takes for 0."""
VOXEL_TYPES = ("Int8", "Int16", "Int32", "Int64", "UInt8", "UInt16", "UInt32", "UInt64", "Float32", "Float64")
VOXEL_BYTES = {getattr(SimpleITK, f"sitk{kind}"): np.dtype(kind.lower()).itemsize for kind in VOXEL_TYPES}


def _read_itk(path: Path) -> VolumeHeader:
    """The header of a NRRD or MetaImage file, as SimpleITK reads it.

    SimpleITK does not give where the voxels are, nor whether they are compressed: its text is read here, too. Messages
    do not repeat values, which may name the patient.
    """
    name = f"file {path}"
    fields, end = _text_fields(path)
    for key, allowed in TEXT_RULES.items():
        if not set(fields.get(key, "").lower().replace('"', " ").split()) <= set(allowed):
            raise CaseError(f"{name} must have a header whose field {key} is {' or '.join(allowed)}, got another")
    places = [fields[key] for key in PLACES if key in fields]
    if len(places) > 1 or re.search(r"[^-+.\deE\s]", "".join(places)):
        raise CaseError(f"{name} must have a header that gives its Offset once, as finite numbers")
    detached = fields.get("datafile", fields.get("ElementDataFile", "LOCAL"))
    data, start = (path, end) if detached.upper() == "LOCAL" else (_beside(path, detached), 0)
    try:
        with without_itk_warnings():
            reader = itk_reader(path)
            reader.ReadImageInformation()
    except RuntimeError as error:
        raise CaseError(f"{name} is unreadable: SimpleITK finds no whole header in it") from error
    shape, pixel = reader.GetSize(), reader.GetPixelIDValue()
    if pixel not in VOXEL_BYTES:
        raise CaseError(f"{name} must hold one real number a voxel, got another type")
    if len(shape) != 3:
        raise CaseError(f"{name} must be a 3-D volume, got shape {shape}")
    if reader.HasMetaDataKey("NRRD_space") and reader.GetMetaData("NRRD_space") != "left-posterior-superior":
        raise CaseError(f"{name} must have a header whose space is LPS, RAS or LAS, got another")
    packed = fields.get("encoding", "raw").lower() != "raw" or fields.get("CompressedData", "F")[:1] in "Tt1"
    header = VolumeHeader(path, shape, VOXEL_BYTES[pixel], itk_affine(reader), data)
    return replace(header, packed=True, stream=start) if packed else replace(header, offset=start)


def itk_reader(path: Path, image_io: str | None = None) -> SimpleITK.ImageFileReader:
    """SimpleITK's reader of a file, by default in the format of its extension.

    Raises:
        RuntimeError: when the path holds bytes that are no UTF-8: SimpleITK would end the process.
    """
    try:
        str(path).encode()
    except UnicodeEncodeError as error:
        raise RuntimeError("SimpleITK must be given a path in UTF-8") from error
    reader = SimpleITK.ImageFileReader()
    reader.SetImageIO(image_io or ITK_READERS[path.suffix.lower()])
    reader.SetFileName(str(path))
    return reader


def itk_affine(image: SimpleITK.ImageFileReader | SimpleITK.Image) -> NDArray[np.float64]:
    """Voxel indices to RAS mm, of a 3-D image or its header."""
    axes = np.array(image.GetDirection()).reshape(3, 3) * image.GetSpacing()
    return np.asarray(from_matvec(LPS_TO_RAS @ axes, LPS_TO_RAS @ image.GetOrigin()))


def _text_fields(path: Path) -> tuple[dict[str, str], int]:
    """The fields of a NRRD or MetaImage header by their names, and at which byte it ends."""
    try:
        with path.open("rb") as file:
            raw = file.read(LONGEST_HEADER)
    except OSError as error:
        raise CaseError(f"file {path} is unreadable: {error.strerror}") from error
    # A NRRD header ends with an empty line, or with the file; that of MetaImage with its field ElementDataFile.
    nrrd = ITK_READERS[path.suffix.lower()] == "NrrdImageIO"
    last = re.compile(rb"\n\r?\n" if nrrd else rb"^ElementDataFile[^\n]*\n?", re.MULTILINE).search(raw)
    if last is None and not (nrrd and path.suffix.lower() == ".nhdr" and len(raw) < LONGEST_HEADER):
        raise CaseError(f"file {path} is unreadable: it has no whole header in its first {LONGEST_HEADER} bytes")
    end = last.end() if last else len(raw)
    fields: dict[str, str] = {}
    for line in raw[:end].decode("utf-8", "surrogateescape").split("\n"):
        key, separator, value = line.partition(":" if nrrd else "=")
        if not separator or value.startswith("=") or line.startswith("#"):
            continue
        key = key.replace(" ", "").lower() if nrrd else key.strip()
        # Readers differ in which of two they take.
        if key in fields:
            raise CaseError(f"file {path} must give each field of its header once, got one twice")
        fields[key] = value.strip()
    return fields, end


def _beside(path: Path, name: str) -> Path:
    """The data file that a header names: one, in the header's own folder. No message repeats its name."""
    home = path.parent.resolve()
    listed = name.upper().startswith("LIST") or "%" in name or "\0" in name
    data = home if listed else Path(os.path.realpath(home / name))
    if data.parent != home or kind_of(data) != "file" or not os.access(data, os.R_OK):
        rule = f"file {path} must have its voxels in one file beside it, which may be read"
        raise CaseError(f"{rule}, got a header that names a list, another place, or what is not there")
    return data
