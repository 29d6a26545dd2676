"""The configuration of a bundle is followed on every route: its own run, the command and Python give the same."""

import json
import re
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
import yaml
from bad_scans import BAD
from killing import table
from monai.bundle import ConfigParser
from nibabel.affines import from_matvec
from nibabel.eulerangles import euler2mat
from small_bundle import run

from unoise_monai import load_bundle
from unoise_monai.cli import Exit
from unoise_monai.cli.main import main
from unoise_monai.handlers.savers import map_quantity

SHIPPED = Path(__file__).parents[1] / "bundles" / "hippocampus_mr_unoise" / "configs"
# Oblique, anisotropic, left-handed, away from the origin.
AFFINE = from_matvec(euler2mat(0.4, -0.3, 0.2) @ np.diag([1.9, 2.2, -3.0]), [41.3, -20.7, 33.1])
SHAPE = (18, 16, 12)
U_NET = {"_target_": "unoise_monai.networks.UNet", "spatial_dims": 3, "in_channels": 1}
SMALL: dict[str, Any] = {
    "utility": {**U_NET, "out_channels": 3, "depth": 2, "channel_factor": 2},
    "noise_model": {**U_NET, "out_channels": 1, "depth": 2, "channel_factor": 1},
    "device": "cpu",
    "pictures": ["montage"],
    "count": 1,
}
SEGMENTER = "unoise_monai.ExplainedSegmenter"
PLAIN = [
    {"_target_": "LoadImaged", "keys": "image"},
    {"_target_": "EnsureChannelFirstd", "keys": "image"},
    {"_target_": "Orientationd", "keys": "image", "axcodes": "RAS", "labels": None},
    {"_target_": "Spacingd", "keys": "image", "pixdim": [4.0, 3.0, 3.5]},
    {"_target_": "ScaleIntensityd", "keys": "image"},
]
INVERTED = [
    {"_target_": "unoise_monai.inference.postprocessing", "preprocess": "@preprocessing"},
    {"_target_": "Lambdad", "keys": "importance", "func": "$lambda importance: 1 - importance"},
]
SAVER = {"_target_": "unoise_monai.handlers.ImportanceSaver", "output_dir": "@output_dir", "quantity": "percentile"}
SHALLOW = {**SMALL["noise_model"], "depth": 1}
USUAL = ["importance", "montage", "seg"]
# Of each id: what stands there in place of the shipped value, and the files that there are of a case.
EDITS: dict[str, tuple[Any, list[str]]] = {
    "preprocessing": ({"_target_": "Compose", "transforms": PLAIN}, USUAL),
    "network_def": ({"_target_": SEGMENTER, "utility": "@utility", "noise_model": SHALLOW}, USUAL),
    "inferer": ({"_target_": "SlidingWindowInferer", "roi_size": [8, 8, 8], "overlap": 0.25}, USUAL),
    "postprocessing": ({"_target_": "Compose", "transforms": INVERTED}, USUAL),
    "savers": ([SAVER], ["percentile", "seg"]),
    "quantity": ("tolerance", ["montage", "seg", "tolerance"]),
    "pictures": (["mip"], ["importance", "mip", "seg"]),
}


@pytest.fixture(scope="module")
def scan(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("scan") / "scan.nii.gz"
    nib.save(nib.Nifti1Image(np.random.default_rng(0).normal(100, 30, SHAPE).astype(np.float32), AFFINE), path)
    return path


def write_bundle(folder: Path, edit: dict[str, Any]) -> Path:
    """A copy of the shipped bundle with small networks, their weights, and an edited ``inference.yaml``."""
    (folder / "configs").mkdir(parents=True)
    (folder / "models").mkdir()
    config = {**yaml.safe_load((SHIPPED / "inference.yaml").read_text(encoding="utf-8")), **SMALL, **edit}
    (folder / "configs" / "inference.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
    (folder / "configs" / "metadata.json").write_bytes((SHIPPED / "metadata.json").read_bytes())
    torch.manual_seed(0)
    network = ConfigParser(config).get_parsed_content("network_def")
    torch.save(network.state_dict(), folder / "models" / "model.pt")
    return folder


def files_in(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def explain(bundle: Path, scan: Path, output: Path, *more: str, status: Exit = Exit.DONE) -> None:
    command = ["explain", str(bundle), str(scan), str(output), "--trust-bundle", "--device", "cpu", "--quiet"]
    assert main([*command, "--workers", "0", *more]) == status


def written(bundle: Path, scan: Path, output: Path) -> dict[str, bytes]:
    """What the bundle's own run and the command write, and Python gives: all the same."""
    run(bundle, "inference", dataset_dir=str(scan), output_dir=str(output / "run"))
    explain(bundle, scan, output / "command")
    files = files_in(output / "run" / "scan")
    assert files_in(output / "command" / "scan") == files
    loaded = load_bundle(bundle, "cpu", trusted=True)
    saver, found = loaded.savers[0], loaded.explain(scan)
    importance = map_quantity(found.importance[0].numpy(), saver.quantity, saver.sigma_min, saver.sigma_max)
    for name, values in ((saver.quantity, importance), ("seg", found.segmentation[0].numpy())):
        image = nib.load(output / "run" / "scan" / f"scan_{name}.nii.gz")
        np.testing.assert_array_equal(np.asarray(image.dataobj), values)
        np.testing.assert_allclose(image.affine, AFFINE, atol=1e-5)
    return files


@pytest.fixture(scope="module")
def unedited(scan: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    folder = tmp_path_factory.mktemp("unedited")
    return written(write_bundle(folder / "bundle", {}), scan, folder)


@pytest.mark.parametrize("name", EDITS)
def test_an_edit_of_the_configuration_changes_every_route_alike(
    name: str, scan: Path, tmp_path: Path, unedited: dict[str, bytes]
) -> None:
    edit, left = EDITS[name]
    files = written(write_bundle(tmp_path / "bundle", {name: edit}), scan, tmp_path)
    assert [file.removeprefix("scan_").split(".")[0] for file in files] == left
    changed = {file for file in files if files[file] != unedited.get(file)}
    if name in ("savers", "quantity", "pictures"):
        # What is written is another, and the pipeline is as it was.
        assert changed == set(files) - set(unedited)
    else:
        assert changed >= {"scan_importance.nii.gz", "scan_montage.png"}


def test_an_option_of_the_command_is_an_edit(scan: Path, tmp_path: Path, unedited: dict[str, bytes]) -> None:
    bundle = write_bundle(tmp_path / "bundle", {})
    explain(bundle, scan, tmp_path / "out", "--quantity", "sigma", "--no-images")
    edited = written(write_bundle(tmp_path / "edited", {"quantity": "sigma", "pictures": []}), scan, tmp_path / "other")
    assert files_in(tmp_path / "out" / "scan") == edited
    assert edited["scan_seg.nii.gz"] == unedited["scan_seg.nii.gz"]
    changes = json.loads((tmp_path / "out" / "run.json").read_text(encoding="utf-8"))["settings"]["changes"]
    assert changes == {"quantity": "sigma", "pictures": []}


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_bundle(tmp_path_factory.mktemp("plain") / "bundle", {"pictures": []})


# Two series of one folder are two cases here, see below.
@pytest.mark.parametrize("name", [name for name in BAD if name != "two series"])
def test_a_bad_scan_is_refused_by_the_bundle_s_run_and_by_the_command(name: str, bundle: Path, tmp_path: Path) -> None:
    write, reason = BAD[name]
    write(tmp_path / "in")
    run(bundle, "inference", dataset_dir=str(tmp_path / "in"), output_dir=str(tmp_path / "run"))
    explain(bundle, tmp_path / "in", tmp_path / "command", status=Exit.SOME_FAILED)
    for output in (tmp_path / "run", tmp_path / "command"):
        (row,) = table(output, "failures.csv")
        assert re.search(reason, row["reason"])
        assert not list(output.glob("*/*.nii.gz"))


def test_two_series_of_one_folder_are_two_cases_on_both(bundle: Path, tmp_path: Path) -> None:
    BAD["two series"][0](tmp_path / "in")
    run(bundle, "inference", dataset_dir=str(tmp_path / "in"), output_dir=str(tmp_path / "run"))
    explain(bundle, tmp_path / "in", tmp_path / "command")
    names = {
        output: sorted(path.name for path in (tmp_path / output).glob("series-*")) for output in ("run", "command")
    }
    assert len(names["run"]) == 2
    assert names["run"] == names["command"]
    for case in names["run"]:
        assert files_in(tmp_path / "run" / case) == files_in(tmp_path / "command" / case)
