"""Headers of text are read as ITK reads them, or refused; `tests/cohort/test_bad_inputs.py` has the many ways."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bad_volumes import TURN, VOXELS, written

from unoise_monai.data.headers import read_meta, read_nrrd
from unoise_monai.data.reading import CaseError

READERS = {"nrrd": read_nrrd, "nhdr": read_nrrd, "mha": read_meta, "mhd": read_meta}


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("extension", READERS)
def test_as_written(tmp_path: Path, extension: str, packed: bool) -> None:
    path = written(tmp_path, f"scan.{extension}", packed)
    header = READERS[extension](path)
    assert header.shape == VOXELS.shape
    assert header.voxel_bytes == 2
    assert header.packed == packed
    np.testing.assert_allclose(header.affine[:3, :3], TURN @ np.diag([0.9, 1.2, 1.7]), atol=1e-6)
    np.testing.assert_allclose(header.affine[:3, 3], (10.5, -3.25, 7.0), atol=1e-6)
    assert (header.data == path) == (extension in ("nrrd", "mha"))
    if not packed:
        assert header.data.read_bytes()[header.offset :] == VOXELS.tobytes(order="F")


def test_the_voxels_are_in_the_folder(tmp_path: Path) -> None:
    path = written(tmp_path, "scan.mhd")
    (tmp_path / "deep").mkdir()
    (tmp_path / "scan.raw").rename(tmp_path / "deep/scan.raw")
    with pytest.raises(
        CaseError, match=r"scan.mhd must have its voxels in the file beside it that it names, which is missing$"
    ):
        read_meta(path)
    header = path.read_text()
    path.write_text(header.replace("scan.raw", "deep/scan.raw"))
    assert read_meta(path).data == tmp_path / "deep/scan.raw"
    path.write_text(header.replace("scan.raw", "/etc/passwd"))
    with pytest.raises(
        CaseError, match=r"must keep its voxels in one file in its own folder, got a list, or another place$"
    ):
        read_meta(path)


@pytest.mark.parametrize("extension", ["mhd", "nhdr"])
@pytest.mark.parametrize(
    "name", ["{}.raw", "/data/{}.raw", "../{}.raw", "LIST {}", "{}%03d.raw 1 5 1", "{}", "folder/{}.raw", "damaged/{}"]
)
def test_names_in_headers_are_not_told(tmp_path: Path, extension: str, name: str) -> None:
    """A name there may be a patient's, and is not in what scrubs messages."""
    patient = "DOE_JANE_19600101"
    (tmp_path / patient).mkdir()
    (tmp_path / "damaged").mkdir()
    (tmp_path / "damaged" / patient).write_bytes(b"no stream")
    path = written(tmp_path, f"scan.{extension}", packed=True)
    (old,) = (each.name for each in tmp_path.iterdir() if each.is_file() and each != path)
    path.write_text(path.read_text().replace(old, name.format(patient)))
    assert patient in path.read_text()
    with pytest.raises(CaseError) as caught:
        READERS[extension](path)
    assert patient not in str(caught.value)


@pytest.mark.parametrize("packed", [False, True])
def test_voxels_that_may_not_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, packed: bool) -> None:
    path, opened = written(tmp_path, "scan.mhd", packed), Path.open

    def refuse(self: Path, *arguments: Any) -> Any:
        if self != path:
            raise PermissionError(13, "Permission denied", str(self))
        return opened(self, *arguments)

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(
        CaseError, match=r"scan.mhd must have its voxels in a file that may be read: Permission denied$"
    ):
        read_meta(path)


def test_a_field_counts_once(tmp_path: Path) -> None:
    path = written(tmp_path, "scan.mha")
    path.write_bytes(path.read_bytes().replace(b"NDims = 3", b"NDims = 3\nNDims = 3"))
    with pytest.raises(CaseError, match="must give 'NDims' once in its header, got it twice"):
        read_meta(path)


def test_what_a_value_must_be(tmp_path: Path) -> None:
    path = written(tmp_path, "scan.nrrd")
    path.write_bytes(path.read_bytes().replace(b"type: short", b"type: block"))
    with pytest.raises(CaseError, match="header with type a type of single real numbers, got 'block'"):
        read_nrrd(path)
