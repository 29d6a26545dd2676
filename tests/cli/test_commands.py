"""The commands around ``unoise explain``, from their arguments to what they write."""

import json
import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from PIL import Image

from unoise_monai.cli import Exit, fit
from unoise_monai.cli import main as cli
from unoise_monai.cli.main import main
from unoise_monai.data.datasets import PARTS
from unoise_monai.data.reading import load_volume
from unoise_monai.fit.fitting import OBJECTIVES
from unoise_monai.handlers.savers import PICTURES
from unoise_monai.phantoms import write_phantom_cohort
from unoise_monai.phantoms.cohort import KINDS
from unoise_monai.render import montage, to_canonical
from unoise_monai.render.canvas import STYLES
from unoise_monai.report import volumes
from unoise_monai.report.doctor import Diagnosis, Finding

AFFINE = np.array([[-0.0, 1.5, 0.0, 3.0], [2.0, 0.0, 0.0, 5.0], [0.0, 0.0, 3.0, 7.0], [0, 0, 0, 1.0]])
SMALL = ["--size", "16", "16", "16", "--quiet"]
GOOD = Finding("versions", "torch", "2.13.0")
BAD = Finding("bundles", "x", "no weights", ok=False, advice="train them")


def test_choices_are_those_of_the_package() -> None:
    assert (tuple(PICTURES), STYLES, tuple(KINDS)) == (cli.PICTURES, cli.STYLES, cli.KINDS)
    assert (tuple(OBJECTIVES), (*PARTS, "all")) == (fit.OBJECTIVES, fit.PARTS)


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    pytest.importorskip("ipyniivue", reason="the viewer is an optional extra")
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
    assert "phantom_00" not in (output / "report" / "index.html").read_text(encoding="utf-8")


def test_without_a_viewer_there_are_no_volumes(results: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    folder, output = results

    def never(*args: object) -> None:
        raise AssertionError("was read")

    monkeypatch.setattr("unoise_monai.data.finding.find_cases", never)
    monkeypatch.setattr("unoise_monai.report.volumes.load_volume", never)
    assert main(["report", str(output), "--no-viewer", "--quiet", "--input", str(folder)]) == 0
    assert list((output / "report" / "volumes").glob("*")) == []


def test_scans_of_other_cases_are_not_made(
    results: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, output = results
    more = tmp_path / "more"
    shutil.copytree(folder / "imagesTr", more)
    shutil.copy(more / "phantom_001.nii.gz", more / "stranger.nii.gz")
    asked: list[Path] = []
    monkeypatch.setattr(volumes, "load_volume", lambda path: (asked.append(path), load_volume(path))[1])
    assert main(["report", str(output), "--input", str(more), "--quiet", "--key", f"{output}.key"]) == 0
    assert sorted(path.name for path in asked) == ["phantom_001.nii.gz", "phantom_002.nii.gz"]


def test_a_key_that_is_not_there_is_an_error(
    results: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, output = results
    key = tmp_path / "mistyped.key"
    assert main(["report", str(output), "--input", str(folder), "--key", str(key), "--quiet"]) == Exit.USAGE
    assert "mistyped.key" in capsys.readouterr().err
    assert not key.exists()


@pytest.fixture
def files(tmp_path: Path) -> dict[str, Path]:
    draw = np.random.default_rng(0)
    volumes = {
        "scan": draw.normal(size=(12, 10, 8)).astype(np.float32),
        "map": draw.random((12, 10, 8)).astype(np.float32),
        "seg": (draw.random((12, 10, 8)) > 0.7).astype(np.uint8),
    }
    for name, voxels in volumes.items():
        nib.save(nib.Nifti1Image(voxels, AFFINE), tmp_path / f"{name}.nii.gz")
    return {name: tmp_path / f"{name}.nii.gz" for name in volumes}


def test_a_montage_is_the_function_s(files: dict[str, Path], tmp_path: Path) -> None:
    out = tmp_path / "out.png"
    assert main(["render", str(files["scan"]), str(files["map"]), str(out), "--segmentation", str(files["seg"])]) == 0
    volumes = {name: to_canonical(np.asarray(nib.load(path).dataobj), AFFINE) for name, path in files.items()}
    expected = montage(
        volumes["scan"][0], volumes["scan"][1], importance=volumes["map"][0], segmentation=volumes["seg"][0]
    )
    np.testing.assert_array_equal(np.asarray(Image.open(out).convert("RGB")), expected)


def test_projections_and_rotation(files: dict[str, Path], tmp_path: Path) -> None:
    scan, values = str(files["scan"]), str(files["map"])
    assert main(["render", scan, values, str(tmp_path / "mip.png"), "--picture", "mip", "--style", "red"]) == 0
    assert main(["render", scan, values, str(tmp_path / "turn.gif"), "--picture", "rotation"]) == 0
    assert np.asarray(Image.open(tmp_path / "mip.png")).std() > 5
    assert Image.open(tmp_path / "turn.gif").n_frames > 1  # type: ignore[attr-defined]


@pytest.mark.parametrize(("sides", "scaled"), [((12, 10, 8), Exit.DONE), ((11, 10, 8), Exit.USAGE)])
def test_a_map_beyond_0_to_1_needs_scale_and_one_of_another_grid_is_refused(
    sides: tuple[int, ...], scaled: Exit, files: dict[str, Path], tmp_path: Path
) -> None:
    nib.save(nib.Nifti1Image(np.linspace(0, 40, np.prod(sides), dtype=np.float32).reshape(sides), AFFINE), files["map"])
    arguments = ["render", str(files["scan"]), str(files["map"]), str(tmp_path / "out.png")]
    assert main(arguments) == Exit.USAGE
    assert main([*arguments, "--scale"]) == scaled


def test_a_cohort_of_the_kind_count_and_grid_asked_for(tmp_path: Path) -> None:
    root = tmp_path / "phantoms"
    grid = [*SMALL, "--spacing_mm", "1", "2", "3"]
    assert main(["phantom", str(root), "--count", "1", "--test_count", "1", "--kind", "vessels", *grid]) == 0
    dataset = json.loads((root / "dataset.json").read_text(encoding="utf-8"))
    assert (dataset["modality"], dataset["numTest"]) == ({"0": "MRA"}, 1)
    (scan,) = (root / "imagesTr").glob("*.nii.gz")
    assert nib.load(scan).shape == (16, 16, 16)
    assert nib.load(scan).header.get_zooms() == pytest.approx((1, 2, 3))
    assert main(["phantom", str(tmp_path / "none"), "--count", "0", *SMALL]) == Exit.USAGE


@pytest.mark.parametrize(("findings", "code"), [((GOOD,), 0), ((GOOD, BAD), 1)])
def test_its_lines_and_status(
    findings: tuple[Finding, ...], code: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("unoise_monai.report.doctor.diagnose", lambda bundles: Diagnosis(findings))
    assert main(["doctor"]) == code
    assert capsys.readouterr().out.splitlines() == Diagnosis(findings).lines
    assert main(["doctor", "--json"]) == code
    assert json.loads(capsys.readouterr().out)["ok"] == (code == 0)


def test_a_bundle_that_is_not_there(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "nothing"]) == 2
    assert "nothing" in capsys.readouterr().err
