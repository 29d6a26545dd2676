"""``unoise report`` finds the scans that belong to the results."""

import shutil
from pathlib import Path

import pytest

from unoise_monai.cli.codes import Exit
from unoise_monai.cli.main import main
from unoise_monai.data.cases import CohortCase
from unoise_monai.data.dicom import volume_file
from unoise_monai.phantoms import write_phantom_cohort

pytest.importorskip("ipyniivue", reason="the viewer is an optional extra")


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    root = tmp_path_factory.mktemp("report")
    folder = write_phantom_cohort(root / "phantoms", count=2, size=(24, 20, 16), spacing_mm=(6, 6, 6), progress=False)
    options = ["--device", "cpu", "--workers", "0", "--quiet", "--anonymise"]
    assert main(["explain", "pancreas_ct_unoise", str(folder), str(root / "out"), *options]) == 0
    return folder, root / "out"


@pytest.mark.parametrize("with_key", [True, False])
def test_scans_are_shown_where_their_names_are_known(
    with_key: bool, results: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    folder, output = results
    key = ["--key", f"{output}.key"] if with_key else []
    assert main(["report", str(output), "--input", str(folder), "--quiet", *key]) == 0
    assert capsys.readouterr().out.strip() == str(output / "report" / "index.html")
    packed = list((output / "report" / "volumes").rglob("*scan*"))
    assert len(packed) == (2 if with_key else 0)
    assert "phantom_00" not in (output / "report" / "index.html").read_text()


def test_without_a_viewer_there_are_no_volumes(results: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    folder, output = results

    def never(*args: object) -> None:
        raise AssertionError("was read")

    for name in ("find_cohort", "volume_file"):
        monkeypatch.setattr(f"unoise_monai.cli.report.{name}", never)
    assert main(["report", str(output), "--no-viewer", "--quiet", "--input", str(folder)]) == 0
    assert list((output / "report" / "volumes").glob("*")) == []


def test_scans_of_other_cases_are_not_made(
    results: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, output = results
    more = tmp_path / "more"
    shutil.copytree(folder / "imagesTr", more)
    shutil.copy(more / "phantom_001.nii.gz", more / "stranger.nii.gz")
    asked = []

    def count(case: CohortCase, place: Path) -> Path:
        asked.append(case.files[0].name)
        return volume_file(case, place)

    monkeypatch.setattr("unoise_monai.cli.report.volume_file", count)
    assert main(["report", str(output), "--input", str(more), "--quiet", "--key", f"{output}.key"]) == 0
    assert sorted(asked) == ["phantom_001.nii.gz", "phantom_002.nii.gz"]


def test_a_key_that_is_not_there_is_an_error(
    results: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, output = results
    key = tmp_path / "mistyped.key"
    assert main(["report", str(output), "--input", str(folder), "--key", str(key), "--quiet"]) == Exit.USAGE
    assert "mistyped.key" in capsys.readouterr().err
    assert not key.exists()
