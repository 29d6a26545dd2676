"""What a volume's header claims, and whether it can be true: of its file, of this machine, of space."""

from __future__ import annotations

import math
import os
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from nibabel.affines import voxel_sizes
from numpy.typing import NDArray

from unoise_monai.data.faults import affine_fault
from unoise_monai.data.validation import CaseError

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
    text = limit.read_text().strip() if limit.exists() else ""
    return min(total, int(text)) if text.isdigit() else total
