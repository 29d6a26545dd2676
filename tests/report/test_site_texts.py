"""What the report shows of a table names no file of a person's disk."""

from __future__ import annotations

import pytest

from unoise_monai.report.cases import without_paths


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("No space left on device: '/home/jane/my out/case_seg.nii.gz'", "No space left on device: (path)"),
        ("cannot read /data/DOE^JANE/ct.nii.gz, which is cut off", "cannot read (path), which is cut off"),
        ("at:/data/DOE^JANE/", "at:(path)"),
        ("from ~/scans/ct.nii and C:\\scans\\DOE JANE.nii", "from (path) and (path) JANE.nii"),
        ('"C:\\scans\\DOE JANE.nii" is gone', "(path) is gone"),
        ("\\\\server\\share\\ct.nii", "(path)"),
        ("'/ct.nii.gz' is missing", "(path) is missing"),
    ],
)
def test_absolute_paths_go(text: str, expected: str) -> None:
    assert without_paths(text) == expected


@pytest.mark.parametrize(
    "text", ["", "0.25", "64 x 64 x 30", "mm/voxel", "imagesTr/case_1.nii.gz", "1 / 2", "the <b>end</b>: now", "a \\ b"]
)
def test_all_else_stays(text: str) -> None:
    assert without_paths(text) == text
