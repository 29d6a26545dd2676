"""``unoise explain``: its options, and from them to its files."""

import argparse
import json
import os
import stat
from itertools import pairwise
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from killing import table

from unoise_monai.attribution.base import method_names
from unoise_monai.bundle import load_bundle
from unoise_monai.cli import Exit, explain
from unoise_monai.cli.main import main, parser
from unoise_monai.handlers.savers import QUANTITIES
from unoise_monai.inference.memory import PRECISIONS
from unoise_monai.phantoms import write_phantom_cohort
from unoise_monai.runs import Comparison, Summary
from unoise_monai.runs.settings import check_options, parse_methods

SHARED = Path(__file__).resolve().parents[3] / "shared" / "data"
BUNDLE = "pancreas_ct_unoise"
QUICK = ["--device", "cpu", "--precision", "fp32", "--workers", "0"]


def options(*more: str) -> argparse.Namespace:
    return parser().parse_args(["explain", "bundle", "in", "out", *more])


def test_the_defaults() -> None:
    chosen = options()
    assert (chosen.quantity, chosen.precision, chosen.methods, chosen.scores) == (None, None, "", False)
    assert (chosen.images, chosen.fast, chosen.memory_gb) == (True, False, None)
    assert (chosen.device, chosen.workers, chosen.engine) == ("auto", 1, "local")
    assert (chosen.part, chosen.overwrite, chosen.anonymise, chosen.trust_bundle) == (None, False, False, False)
    assert options("--part", "2/8").part == (2, 8)
    assert options("--no-images").images is False


@pytest.mark.parametrize("text", ["2", "2/", "a/b", "1/2/3"])
def test_what_is_no_part(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        options("--part", text)
    assert f"must be K/N, such as 2/8, got {text!r}" in capsys.readouterr().err


def test_choices_are_those_of_the_package() -> None:
    assert (tuple(QUANTITIES), PRECISIONS) == (explain.QUANTITIES, explain.PRECISIONS)


def test_methods_are_listed_with_what_they_do(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        parser().parse_args(["explain", "--methods", "help"])
    assert ended.value.code == Exit.DONE
    methods, shared = capsys.readouterr().out.split("\n\n")
    lines = methods.splitlines()
    listed = dict(line.split(maxsplit=1) for line in lines if not line.startswith(" "))
    assert list(listed) == [name for name in method_names() if name != "voxelwise_mean"]
    assert listed["saliency"] == "The gradient of the target with respect to each voxel."
    own = {before.split()[0]: line.strip() for before, line in pairwise(lines) if line.startswith(" ")}
    assert own["guided_backprop"] == "substitute=false"
    assert own["gradient_shap"] == "samples=50 baselines=[zero,blur,noise] sigma=0.0 seed=0"
    assert "saliency" not in own
    assert shared.startswith("of every method: sign=null memory_gb=null precision=fp32\n")
    # What is shown can be typed as it is.
    for name, text in own.items():
        check_options(name, parse_methods(":".join([name, *text.split()]))[1][name])


def test_an_unknown_method_ends_with_a_list(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "scan.nii").write_bytes(b"")
    arguments = [BUNDLE, str(tmp_path / "scan.nii"), str(tmp_path / "out"), "--device", "cpu", "--methods", "magic"]
    assert main(["explain", *arguments]) == Exit.USAGE == 2
    message = capsys.readouterr().err
    assert "got 'magic'" in message
    assert "'saliency'" in message
    assert "'edges'" in message


@pytest.mark.parametrize(
    ("methods", "message"),
    [
        ("saliency:substitute=true", "option of saliency must be one of 'sign', 'memory_gb', 'precision', got 'subst"),
        ("guided_backprop:substitute=yes!", "substitute of guided_backprop must be bool, got 'yes!'"),
        ("integrated_gradients:steps=1", "steps must be at least 2, got 1"),
    ],
)
def test_options_that_no_method_takes_end_before_any_work(
    methods: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "scan.nii").write_bytes(b"")
    arguments = [BUNDLE, str(tmp_path / "scan.nii"), str(tmp_path / "out"), "--device", "cpu", "--methods", methods]
    assert main(["explain", *arguments]) == Exit.USAGE
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_options_reach_the_methods_over_those_of_the_bundle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Comparison] = []

    def keep(*arguments: object, **_: object) -> Summary:
        asked.extend(argument for argument in arguments if isinstance(argument, Comparison))
        return Summary(0, 0, 0, 0)

    monkeypatch.setattr("unoise_monai.runs.run.explain_cases", keep)
    (tmp_path / "scan.nii").write_bytes(b"")
    arguments = ["explain", BUNDLE, str(tmp_path / "scan.nii"), str(tmp_path / "out"), "--device", "cpu", "--quiet"]
    chosen = "guided_backprop:substitute=true,integrated_gradients:steps=4"
    assert main([*arguments, "--methods", chosen]) == Exit.DONE
    assert main([*arguments, "--methods", chosen, "--scores"]) == Exit.DONE
    plain, scored = asked
    assert plain.methods == scored.methods == ("guided_backprop", "integrated_gradients")
    assert plain.options == {"guided_backprop": {"substitute": True}, "integrated_gradients": {"steps": 4}}
    bundles = load_bundle(BUNDLE, "cpu", overlays=("explain",)).parsed("comparison").options
    assert scored.options["integrated_gradients"] == {**bundles["integrated_gradients"], "steps": 4}
    assert scored.options["rise"] == bundles["rise"]


def test_options_change_the_configuration() -> None:
    args = options("--quantity", "sigma", "--memory-gb", "2", "--no-images", "--fast")
    args.bundle = BUNDLE
    bundle, changes = explain.load(args, "cpu")
    plain, none = explain.load(argparse.Namespace(**{**vars(options()), "bundle": BUNDLE}), "cpu")
    assert plain.task is not None
    assert bundle.task is not None
    coarse = [explain.FAST * side for side in plain.task.spacing_mm]
    assert changes == {"quantity": "sigma", "memory_gb": 2.0, "pictures": [], "task#spacing_mm": coarse}
    assert none == {}
    assert list(bundle.task.spacing_mm) == coarse


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("cli") / "phantoms"
    return write_phantom_cohort(root, count=2, size=(24, 20, 16), spacing_mm=(6, 6, 6), progress=False)


def test_a_cohort_with_everything(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "out"
    organs = folder / "truthTr"
    arguments = ["--organs", str(organs), "--methods", "saliency", "--json", "--quantity", "percentile"]
    assert main(["explain", BUNDLE, str(folder), str(output), *QUICK, *arguments]) == Exit.DONE
    captured = capsys.readouterr()
    assert json.loads(captured.out) == {"cases": 2, "done": 2, "kept": 0, "failed": 0, "output": str(output)}
    assert "[2/2]" in captured.err
    assert sorted(path.name for path in (output / "phantom_001").iterdir()) == [
        "phantom_001_mip.png",
        "phantom_001_montage.png",
        "phantom_001_percentile.nii.gz",
        "phantom_001_saliency.nii.gz",
        "phantom_001_saliency_mip.png",
        "phantom_001_saliency_montage.png",
        "phantom_001_seg.nii.gz",
    ]
    assert nib.load(output / "phantom_001" / "phantom_001_percentile.nii.gz").get_fdata().max() > 90
    first, second = table(output, "cohort.csv")
    assert (first["case"], second["case"]) == ("phantom_001", "phantom_002")
    assert first["dice"]
    assert first["percentile_sha256"]
    shares = [float(value) for name, value in first.items() if name.startswith("organ_") and value]
    assert sum(shares) == pytest.approx(1, abs=1e-4)
    assert {row["case"] for row in table(output, "organs.csv")} == {"phantom_001", "phantom_002"}
    about = json.loads((output / "run.json").read_text(encoding="utf-8"))
    assert str(folder) not in json.dumps(about)
    assert about["settings"]["changes"] == {"quantity": "percentile", "precision": "fp32"}
    assert "--methods saliency" in about["command"]


def test_scores_rank_the_methods(folder: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    arguments = ["--no-images", "--quiet", "--part", "1/2", "--methods", "label_distance", "--scores"]
    assert main(["explain", BUNDLE, str(folder), str(output), *QUICK, *arguments]) == Exit.DONE
    assert {row["method"] for row in table(output, "scoreboard.csv")} == {"label_distance"}


def test_other_options_need_overwrite(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["explain", BUNDLE, str(folder), str(tmp_path / "out"), *QUICK, "--no-images", "--quiet"]
    assert main(arguments) == Exit.DONE
    assert main([*arguments, "--quantity", "sigma"]) == Exit.REFUSED
    assert "quantity was 'as the bundle has it', now 'sigma'" in capsys.readouterr().err
    assert main([*arguments, "--fast"]) == Exit.REFUSED
    assert "task#spacing_mm was 'as the bundle has it', now [" in capsys.readouterr().err
    assert main([*arguments, "--fast", "--overwrite"]) == Exit.DONE


def test_some_that_failed_have_their_exit_status(folder: Path, tmp_path: Path) -> None:
    mixed = tmp_path / "in"
    mixed.mkdir()
    (mixed / "bad.nii.gz").write_bytes(b"not a volume")
    (mixed / "good.nii.gz").write_bytes((folder / "imagesTr" / "phantom_001.nii.gz").read_bytes())
    output = tmp_path / "out"
    arguments = ["explain", BUNDLE, str(mixed), str(output), *QUICK, "--no-images"]
    assert main(arguments) == Exit.SOME_FAILED
    (failed,) = table(output, "failures.csv")
    assert (failed["case"], failed["file"], failed["stage"]) == ("bad", "bad.nii.gz", "load")
    assert str(tmp_path) not in (output / "failures.csv").read_text(encoding="utf-8")


def test_a_dry_run_lists_and_writes_nothing(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["explain", BUNDLE, str(folder), str(tmp_path / "out"), "--dry-run", "--part", "2/2"]) == Exit.DONE
    scan = folder / "imagesTr" / "phantom_002.nii.gz"
    assert capsys.readouterr().out == f"phantom_002\t{scan}\n"
    assert main(["explain", BUNDLE, str(scan), str(tmp_path / "out"), "--dry-run", "--json"]) == Exit.DONE
    row = {"case": "phantom_002", "files": [str(scan)], "problem": "", "label": None, "organs": None}
    assert json.loads(capsys.readouterr().out) == [row]
    assert list(tmp_path.iterdir()) == []


def test_a_dry_run_shows_problems(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.nii.gz").symlink_to("/nowhere")
    assert main(["explain", BUNDLE, str(tmp_path / "in"), str(tmp_path / "out"), "--dry-run"]) == Exit.DONE
    name, problem = capsys.readouterr().out.strip().split("\t")
    assert name == "a"
    assert "link" in problem


def test_anonymous_cases_show_no_name(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "out"
    arguments = ["explain", BUNDLE, str(folder), str(output), *QUICK, "--anonymise", "--part", "1/2"]
    assert main(arguments) == Exit.DONE
    assert stat.S_IMODE((tmp_path / "out.key").stat().st_mode) == 0o600
    words = [path.read_bytes() for path in output.rglob("*") if path.is_file() and path.suffix != ".gz"]
    words += [os.fsencode(path) for path in output.rglob("*")]
    words += [nib.load(path).header.binaryblock for path in output.rglob("*.nii.gz")]
    captured = capsys.readouterr()
    words += [captured.out.encode(), captured.err.encode()]
    for secret in (b"phantom_00", str(folder).encode()):
        assert not any(secret in word for word in words)
    # The same key gives the same names: nothing is left to do.
    assert main([*arguments, "--json"]) == Exit.DONE
    assert json.loads(capsys.readouterr().out)["kept"] == 1


def test_a_dicom_series_shows_nothing_of_its_patient(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    series = SHARED / "dicom_series"
    if not series.is_dir():
        pytest.skip(f"no DICOM series at {series}")
    import SimpleITK as sitk

    reader = sitk.ImageFileReader()
    reader.SetFileName(str(series / "1.dcm"))
    reader.LoadPrivateTagsOn()
    reader.ReadImageInformation()
    private = {
        reader.GetMetaData(key).strip().encode()
        for key in ("0010|0010", "0010|0020", "0010|0030", "0008|0020", "0020|000e", "0020|000d")
        if reader.HasMetaDataKey(key)
    } - {b""}
    assert len(private) >= 2
    output = tmp_path / "out"
    assert main(["explain", "hippocampus_mr_unoise", str(series), str(output), *QUICK]) == Exit.DONE
    ((name),) = [path.name for path in output.iterdir() if path.name.startswith("series-")]
    written = nib.load(output / name / f"{name}_importance.nii.gz")
    expected = sitk.ReadImage(sitk.ImageSeriesReader.GetGDCMSeriesFileNames(str(series)))
    found = sitk.ReadImage(str(output / name / f"{name}_importance.nii.gz"))
    assert found.GetSize() == expected.GetSize()
    for attribute in ("GetOrigin", "GetSpacing", "GetDirection"):
        np.testing.assert_allclose(getattr(found, attribute)(), getattr(expected, attribute)(), atol=1e-4)
    captured = capsys.readouterr()
    words = [captured.out.encode(), captured.err.encode(), written.header.binaryblock]
    words += [path.read_bytes() for path in output.rglob("*") if path.is_file() and path.suffix != ".gz"]
    for secret in (*private, str(series).encode()):
        assert not any(secret in word for word in words), secret
