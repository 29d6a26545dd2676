"""A header is believed as far as its file, the machine's memory and space allow."""

from __future__ import annotations

import zlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from nibabel.affines import from_matvec

from unoise_monai.data import headers as stored
from unoise_monai.data.headers import VolumeHeader, check_memory, check_stored, check_unpacks, memory_bytes
from unoise_monai.data.reading import CaseError


@pytest.fixture
def header(tmp_path: Path) -> VolumeHeader:
    """Of a file that holds just its voxels."""
    path = tmp_path / "scan.raw"
    path.write_bytes(bytes(100 + 2 * 5 * 6 * 7))
    return VolumeHeader(path, (5, 6, 7), 2, from_matvec(np.diag([1.0, 1.0, 2.0])), path, 100)


def test_what_is_there_passes(header: VolumeHeader) -> None:
    check_stored(header)
    check_stored(header, (1.0, 1.0, 1.0))


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"shape": (5, 6, 8)}, r"must hold the 580 bytes that its header claims for shape \(5, 6, 8\), got 520 bytes"),
        ({"offset": 101}, "must hold the 521 bytes"),
        ({"voxel_bytes": 4}, "must hold the 940 bytes"),
        ({"shape": (5, 6)}, r"must be a 3-D volume, got shape \(5, 6\)"),
        ({"shape": (5, 6, 1)}, "must be a 3-D volume"),
        ({"shape": (5, -6, 7)}, "must be a 3-D volume"),
        ({"shape": (10**6,) * 3}, r"must fit in this machine's memory .* takes 32000000000.0 GB"),
        ({"affine": np.zeros((4, 4))}, "must have voxel sizes"),
        ({"packed": True, "voxel_bytes": 8000}, "must hold the 1680100 bytes .* got 520 compressed bytes"),
    ],
)
def test_claims(header: VolumeHeader, changes: dict[str, object], says: str) -> None:
    with pytest.raises(CaseError, match=f"^file {header.path} {says}"):
        check_stored(replace(header, **changes))  # type: ignore[arg-type]


def test_a_packed_file_may_hold_more(header: VolumeHeader) -> None:
    check_stored(replace(header, packed=True, voxel_bytes=1000))


def test_after_resampling(header: VolumeHeader) -> None:
    with pytest.raises(CaseError, match=r"must span at least 2 voxels of \(1.0, 1.0, 20.0\) mm, got \(5, 6, 1\)"):
        check_stored(header, (1.0, 1.0, 20.0))
    with pytest.raises(CaseError, match=r"resampled to \(0.0001, .* must fit in this machine's memory"):
        check_stored(header, (1e-4, 1e-4, 1e-4))


def test_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    assert memory_bytes() > 10**8
    monkeypatch.setattr(stored, "memory_bytes", lambda: 32 * 1000)
    check_memory("scan", (10, 10, 10))
    with pytest.raises(CaseError, match=r"^scan must fit in this machine's memory of 0.0 GB, got shape \(10, 10, 11\)"):
        check_memory("scan", (10, 10, 11))


def test_compressed_voxels(tmp_path: Path) -> None:
    path = tmp_path / "scan.zraw"
    packed = zlib.compress(np.random.default_rng(0).bytes(5000))
    path.write_bytes(b"head" + packed + b"tail")
    check_unpacks(path, path, 4, 5000)
    for content, need in (
        (b"head" + packed, 5001),
        (b"head" + packed[:-1], 5000),
        (b"head" + packed[:900] + b"?" + packed[901:], 5000),
        (b"head" + b"?" * 50, 5),
        (b"", 0),
    ):
        path.write_bytes(content)
        with pytest.raises(CaseError, match=r"file .*scan.zraw must hold .*compressed voxels"):
            check_unpacks(path, path, 4, need)
    with pytest.raises(CaseError, match=r"scan.zraw must hold whole compressed voxels: No such file or directory$"):
        check_unpacks(path, tmp_path / "Schmidt.zraw", 0, 1)
