"""Messages about a case tell no path, and a case goes to other processes whole."""

import pickle
from pathlib import Path

import pytest

from unoise_monai.data.cases import Case, scrub, stem

HOME = Path("/data/clinic/Schmidt^Hannelore")
FILE = Case("ct", (HOME / "ct.nii.gz",), "Schmidt^Hannelore/ct.nii.gz", label=Path("/labels/ct.nii.gz"))
SERIES = Case("series-1", (HOME / "Schmidt01", HOME / "10"), "series-1", series=True)
BARE = Case("case-2", (HOME / "12345678.hdr",), "case-2")
HIDDEN = Case("case-1", (HOME / "Schmidt.nii.gz",), "case-1", organs=Path("/maps/Schmidt.nii.gz"))


@pytest.mark.parametrize("name", ["scan.nii.gz", "scan.NII", "scan.hdr", "scan.img", "scan.dcm", "scan"])
def test_stem(name: str) -> None:
    assert stem(name) == "scan"


def test_cases_are_pickled() -> None:
    for case in (FILE, SERIES, HIDDEN):
        assert pickle.loads(pickle.dumps(case)) == case  # noqa: S301


@pytest.mark.parametrize(
    ("case", "text", "clean"),
    [
        (
            FILE,
            f"case ct: image file {HOME}/ct.nii.gz is unreadable",
            f"case ct: image file {FILE.shown} is unreadable",
        ),
        (FILE, "label file /labels/ct.nii.gz is bad", "label file ct.nii.gz is bad"),
        (FILE, f"no space in {HOME}", "no space in its folder"),
        (FILE, f"{HOME}2/x", f"{HOME}2/x"),
        (SERIES, f"cannot open {HOME}/Schmidt01 (Schmidt01)", "cannot open series-1 (series-1)"),
        (SERIES, f"got 10 slices of {HOME}/10", "got 10 slices of series-1"),
        (SERIES, "image file /tmp/x y/series-1.nii must", "image file /tmp/x series-1 must"),
        (HIDDEN, f"voxels of {HOME}/Schmidt.nii.gz in Schmidt.img", "voxels of case-1 in case-1.img"),
        (
            BARE,
            "file x must have its voxels in 12345678.img (12345678)",
            "file x must have its voxels in case-2.img (case-2)",
        ),
        (HIDDEN, "organs /maps/Schmidt.nii.gz of Schmidt", "organs case-1 of case-1"),
    ],
)
def test_scrub(case: Case, text: str, clean: str) -> None:
    assert scrub(text, case) == clean


def test_paths_as_errors_print_them(tmp_path: Path) -> None:
    """Links resolved, odd characters escaped."""
    (tmp_path / "real").mkdir()
    (tmp_path / "real" / "a\nb.nii").touch()
    (tmp_path / "link").symlink_to("real")
    path = tmp_path / "link" / "a\nb.nii"
    case = Case("x", (path,), "link/a?b.nii")
    for error in (FileNotFoundError(2, "gone", str(path)), OSError(5, "bad", str(path.resolve()))):
        assert str(tmp_path) not in scrub(str(error), case)
        assert "link/a?b.nii" in scrub(str(error), case)
