"""A header is believed as far as its file, the machine's memory and space allow; `test_bad_inputs.py` has the many ways
to be bad."""

import os
import re
import zlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from bad_volumes import AFFINE, DATATYPE, MAGIC, TURN, UNITS, VOXELS, nifti, put, shorts, written
from nibabel.affines import from_matvec

from unoise_monai.data import headers as module
from unoise_monai.data.headers import (
    CaseError,
    VolumeHeader,
    affine_fault,
    check_header,
    check_memory,
    kind_of,
    memory_bytes,
    one_line,
    read_header,
)


def test_kinds(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to("file")
    (tmp_path / "loop").symlink_to("loop")
    assert kind_of(tmp_path / "file") == kind_of(tmp_path / "link") == "file"
    assert kind_of(tmp_path) == "folder"
    assert kind_of(tmp_path / "pipe") == kind_of(Path("/dev/null")) == "pipe or device"
    for name in ("loop", "gone", "file/below", "a\0b", "\ud800", "x" * 300):
        assert kind_of(tmp_path / name) == ""


def test_one_line() -> None:
    error = RuntimeError("/ITK/Modules/x.cxx:490:\nITK ERROR: MetaImageIO(0x5612ab): File cannot  be read\n")
    assert one_line(error) == "ITK ERROR: MetaImageIO: File cannot be read"
    assert one_line(ValueError("as it is")) == "as it is"


def test_good_affines(affine: np.ndarray) -> None:
    sheared = affine @ from_matvec(np.array([[1, 0.8, 0], [0, 1, 0], [0, 0, 1.0]]))
    for each in (affine, sheared, from_matvec(np.diag([0.001, 1000, -1]), [1e6, 0, 0])):
        assert affine_fault(each) == ""


@pytest.mark.parametrize(
    ("axes", "origin", "says"),
    [
        (np.diag([1, np.nan, 1]), 0, "must have a finite affine"),
        (np.diag([1, 1, 1]), np.inf, "must have a finite affine"),
        (np.diag([1, 0, 1]), 0, "must have voxel sizes from 0.001 to 1000 mm, got 1, 0, 1"),
        (np.diag([1, 1001, 1]), 0, "got 1, 1001, 1"),
        (np.ones((3, 3)), 0, "got 0: it is singular or too sheared"),
        (np.array([[1, 11, 0], [0, 1, 0], [0, 0, 1]]), 0, "of at least 0.1, got 0.0905"),
        (np.diag([1, 1, 1]), -2e6, r"must lie within 1e\+06 mm of the origin, got 2e\+06 mm"),
    ],
)
def test_bad_affines(axes: np.ndarray, origin: float, says: str) -> None:
    assert re.search(says, affine_fault(from_matvec(axes.astype(float), [origin, 0, 0])))


@pytest.fixture
def header(tmp_path: Path) -> VolumeHeader:
    """Of a file that holds just its voxels."""
    path = tmp_path / "scan.raw"
    path.write_bytes(bytes(100 + 2 * 5 * 6 * 7))
    return VolumeHeader(path, (5, 6, 7), 2, from_matvec(np.diag([1.0, 1.0, 2.0])), path, 100)


def test_what_is_there_passes(header: VolumeHeader) -> None:
    header.check((1.0, 1.0, 1.0))
    replace(header, packed=True, voxel_bytes=1000).check()


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
        replace(header, **changes).check()  # type: ignore[arg-type]


def test_after_resampling(header: VolumeHeader) -> None:
    with pytest.raises(CaseError, match=r"must span at least 2 voxels of \(1.0, 1.0, 20.0\) mm, got \(5, 6, 1\)"):
        header.check((1.0, 1.0, 20.0))
    with pytest.raises(CaseError, match=r"resampled to \(0.0001, .* must fit in this machine's memory"):
        header.check((1e-4, 1e-4, 1e-4))


def test_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    assert memory_bytes() > 10**8
    monkeypatch.setattr(module, "memory_bytes", lambda: 32 * 1000)
    check_memory("scan", (10, 10, 10))
    with pytest.raises(CaseError, match=r"^scan must fit in this machine's memory of 0.0 GB, got shape \(10, 10, 11\)"):
        check_memory("scan", (10, 10, 11))


def test_compressed_voxels(header: VolumeHeader) -> None:
    header = replace(header, offset=0, packed=True, stream=4)
    packed = zlib.compress(np.random.default_rng(0).bytes(420))
    header.path.write_bytes(b"head" + packed + b"tail")
    header.check()
    with pytest.raises(CaseError, match="must hold 480 bytes of compressed voxels, got 420"):
        replace(header, shape=(5, 6, 8)).check()
    for content in (packed[:-1], packed[:300] + b"?" + packed[301:], b"?" * 50):
        header.path.write_bytes(b"head" + content)
        with pytest.raises(CaseError, match=r"file .*scan.raw must hold .*compressed voxels"):
            header.check()


@pytest.mark.parametrize(
    "name", ["scan.nii", "scan.hdr", "scan.nii.gz", "scan.NII", "scan.nrrd", "scan.nhdr", "scan.mha", "scan.MHD"]
)
@pytest.mark.parametrize("packed", [False, True])
def test_what_a_header_claims(tmp_path: Path, name: str, packed: bool) -> None:
    path = tmp_path / name
    if name.lower().endswith((".nii", ".hdr", ".gz")):
        nib.save((nib.Nifti1Pair if path.suffix == ".hdr" else nib.Nifti2Image)(VOXELS, AFFINE), path)
        affine, packed = AFFINE, path.suffix == ".gz"
    else:
        written(tmp_path, name.lower(), packed).rename(path)
        lps = np.diag([-1.0, -1.0, 1.0])
        affine = from_matvec(lps @ TURN @ np.diag([0.9, 1.2, 1.7]), lps @ (10.5, -3.25, 7.0))
    header = check_header(path, (1.0, 1.0, 1.0))
    assert (header.shape, header.voxel_bytes, header.packed) == (VOXELS.shape, 2, packed)
    np.testing.assert_allclose(header.affine, affine, atol=1e-5)
    assert (header.data == path) == (path.suffix.lower() not in (".hdr", ".nhdr", ".mhd"))
    if not packed:
        assert header.data.read_bytes()[header.offset :] == VOXELS.tobytes(order="F")


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({MAGIC: b"XXXX"}, r"is unreadable: it has no NIfTI header"),
        ({UNITS: b"\1"}, r"must give its lengths in mm, got meter"),
        ({DATATYPE: shorts(128, 24)}, r"must hold one real number a voxel"),
        ({108: b"\0\0\0\x7f"}, r"must have its voxels soon after its header"),
    ],
)
def test_refusals(tmp_path: Path, changes: dict[int, bytes], says: str) -> None:
    path = tmp_path / "scan.nii"
    path.write_bytes(put(nifti(), changes))
    with pytest.raises(CaseError, match=f"^file {path} {says}"):
        check_header(path)


@pytest.mark.parametrize(
    ("name", "old", "new", "says"),
    [
        ("scan.mha", "NDims = 3", "NDims = 3\nNDims = 3", "must give each field of its header once"),
        ("scan.mha", "Offset = 10.5", "Offset = nan", "gives its Offset once, as finite numbers"),
        ("scan.nrrd", "type: short", "type: block", "is unreadable: SimpleITK finds no whole header in it"),
        ("scan.nrrd", "encoding: raw", "encoding: hex", "field encoding is raw or gzip or gz, got another"),
        ("scan.nrrd", "encoding: raw", 'encoding: raw\nspace units: "m" "m" "m"', "field spaceunits is mm"),
        ("scan.nrrd", "left-posterior-superior", "scanner-xyz", "whose space is LPS, RAS or LAS"),
    ],
)
def test_refusals_of_text(tmp_path: Path, name: str, old: str, new: str, says: str) -> None:
    path = written(tmp_path, name)
    path.write_bytes(path.read_bytes().replace(old.encode(), new.encode()))
    with pytest.raises(CaseError, match=f"^file {path} .*{says}"):
        check_header(path)


def test_what_is_no_file(tmp_path: Path) -> None:
    with pytest.raises(CaseError, match=r"scan.nii is missing$"):
        check_header(tmp_path / "scan.nii")
    with pytest.raises(CaseError, match=r"must be a regular file, got a folder$"):
        check_header(tmp_path)
    with pytest.raises(CaseError, match=r"must be a regular file, got a pipe or device$"):
        check_header(Path("/dev/zero"))
    (tmp_path / "scan.png").touch()
    with pytest.raises(CaseError, match=r"must be a volume, of .nii.gz, .* got another extension"):
        check_header(tmp_path / "scan.png")


def test_a_path_that_simpleitk_would_die_of(tmp_path: Path) -> None:
    path = Path(os.fsdecode(os.fsencode(tmp_path) + b"/sc\xffan.nrrd"))
    written(tmp_path, "scan.nrrd").rename(path)
    with pytest.raises(CaseError, match="is unreadable"):
        check_header(path)


@pytest.mark.parametrize("extension", ["mhd", "nhdr"])
@pytest.mark.parametrize(
    "name", ["{}.raw", "/data/{}.raw", "../{}.raw", "LIST {}", "{}%03d.raw 1 5 1", "{}", "deep/{}", "damaged"]
)
def test_names_in_headers_are_not_repeated(tmp_path: Path, extension: str, name: str) -> None:
    """A name there may be a patient's, and is not in what scrubs messages."""
    patient = "DOE_JANE_19600101"
    (tmp_path / patient).mkdir()
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / patient).write_bytes(zlib.compress(VOXELS.tobytes()))
    (tmp_path / "damaged").write_bytes(b"no stream")
    path = written(tmp_path, f"scan.{extension}", packed=True)
    (old,) = (each.name for each in tmp_path.glob("scan.*") if each != path)
    path.write_text(path.read_text(encoding="utf-8").replace(old, name.format(patient)), encoding="utf-8")
    with pytest.raises(CaseError) as caught:
        check_header(path)
    assert patient not in str(caught.value)


@pytest.mark.parametrize("packed", [False, True])
def test_voxels_that_may_not_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, packed: bool) -> None:
    path, access = written(tmp_path, "scan.mhd", packed), os.access

    def refuse(file: Path, *arguments: Any) -> bool:
        return "raw" not in str(file) and access(file, *arguments)

    monkeypatch.setattr(os, "access", refuse)
    with pytest.raises(CaseError, match=r"scan.mhd must have its voxels in one file beside it, which may be read"):
        read_header(path)


def test_real_volumes(shared: Callable[[str], Path]) -> None:
    folder = shared("")
    paths = [*sorted(folder.glob("*/images*/*.nii.gz"))[::10], *folder.glob("*/*.nii.gz")]
    assert len(paths) > 20
    for path in paths:
        check_header(path, (1.0, 1.0, 1.0))
