"""``unoise report`` finds the scans that belong to the results."""

from pathlib import Path

import pytest

from unoise_monai.cli.main import main
from unoise_monai.data import write_phantom_cohort

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


def test_without_a_viewer_there_are_no_volumes(results: tuple[Path, Path]) -> None:
    _, output = results
    assert main(["report", str(output), "--no-viewer", "--quiet"]) == 0
    assert list((output / "report" / "volumes").glob("*")) == []
