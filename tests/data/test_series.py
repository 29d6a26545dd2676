"""DICOM files are sorted by series, whatever they are called and wherever they lie."""

from pathlib import Path

import numpy as np
from dicom_slices import PATIENT, SPACING_MM, TURN, UID, slices, without_picture, write_series

from unoise_monai.data.cases import Case, series_name, walk
from unoise_monai.data.dicom import find_series, read_slice

OTHER = f"{UID}.77"


def found(folder: Path) -> dict[str, Case]:
    return {case.name: case for case in find_series([entry for entry in walk(folder) if entry.is_slice])}


def test_a_header(tmp_path: Path) -> None:
    header = read_slice(write_series(tmp_path)[3])
    assert header.uid == UID
    assert header.shape == (12, 10, 1)
    assert header.kind == "MONOCHROME2"
    np.testing.assert_allclose(header.axes, TURN.T[:2], atol=1e-7)
    # Between rows first, as DICOM has it.
    np.testing.assert_allclose(header.spacing_mm, SPACING_MM[::-1])
    first = read_slice(tmp_path / "000.dcm")
    assert abs(header.height_mm - first.height_mm - 6) < 1e-5


def test_a_header_without_numbers(tmp_path: Path) -> None:
    (path,) = write_series(tmp_path, slices(1))
    place = path.read_bytes().index(b"\x20\x00\x32\x00")
    content = bytearray(path.read_bytes())
    content[place + 8 : place + 12] = b"1\\x\\"
    path.write_bytes(content)
    assert np.isnan(read_slice(path).position).all()


def test_mixed_folders_are_split(tmp_path: Path) -> None:
    """Two series in one folder, and one over two folders; of which no name tells the patient's."""
    folder = tmp_path / PATIENT
    one = write_series(folder, slices(4), names="IM{:04}")
    two = write_series(folder, slices(3), uid=OTHER, names="{:03}.dcm")
    far = folder / "more" / "IM0003"
    far.parent.mkdir()
    one[3].rename(far)
    cases = found(tmp_path)
    assert set(cases) == {series_name(UID), series_name(OTHER)}
    assert cases[series_name(UID)].files == (*one[:3], far)
    assert cases[series_name(OTHER)].files == tuple(two)
    assert all(case.series and case.shown == case.name and not case.problem for case in cases.values())


def test_slices_go_up_the_normal(tmp_path: Path) -> None:
    paths = write_series(tmp_path, step_mm=(-3.0 * TURN[:, 2]).tolist())
    assert found(tmp_path)[series_name(UID)].files == tuple(reversed(paths))


def test_what_is_no_picture_is_left_out(tmp_path: Path) -> None:
    write_series(tmp_path)
    for name, kind in (("DICOMDIR", b"1.2.840.10008.1.3.10"), ("report.dcm", b"1.2.840.10008.5.1.4.1.1.88.33")):
        (tmp_path / name).write_bytes(without_picture(kind))
    (case,) = found(tmp_path).values()
    assert not case.problem


def test_a_damaged_slice_fails_its_series_alone(tmp_path: Path) -> None:
    write_series(tmp_path, names="a{:03}.dcm")
    broken = write_series(tmp_path, uid=OTHER, names="b{:03}.dcm")[-1]
    broken.write_bytes(broken.read_bytes()[:-30])
    cases = found(tmp_path)
    assert not cases[series_name(UID)].problem
    assert cases[series_name(OTHER)].problem.startswith("must have readable slices")
    assert cases[series_name(OTHER)].files == ()


def test_a_damaged_slice_with_explicit_types(tmp_path: Path) -> None:
    write_series(tmp_path)
    header = b"\x20\x00\x0e\x00UI" + len(UID).to_bytes(2, "little") + UID.encode() + b"\0\x20\x00\x10\x00"
    (tmp_path / "far").mkdir()
    (tmp_path / "far" / "x").write_bytes(bytes(128) + b"DICM" + bytes(300) + header)
    (case,) = found(tmp_path).values()
    assert case.name == series_name(UID)
    assert "cut off" in case.problem


def test_a_slice_that_tells_nothing_fails_its_folder(tmp_path: Path) -> None:
    """An interrupted copy ends in an empty file; without it, the series would look whole, and be shorter."""
    write_series(tmp_path / "in")[-1].write_bytes(b"")
    write_series(tmp_path / "out", uid=OTHER)
    cases = found(tmp_path)
    assert "cut off" in cases[series_name(UID)].problem
    assert not cases[series_name(OTHER)].problem
    (tmp_path / "alone").mkdir()
    (tmp_path / "alone" / "x.dcm").write_bytes(b"no DICOM")
    assert len(found(tmp_path)) == 3


def test_a_link_out_of_the_tree_fails_its_series(tmp_path: Path) -> None:
    paths = write_series(tmp_path / "in")
    write_series(tmp_path / "far")
    paths[-1].unlink()
    paths[-1].symlink_to(tmp_path / "far" / "005.dcm")
    (case,) = found(tmp_path / "in").values()
    assert "leads out of it" in case.problem
