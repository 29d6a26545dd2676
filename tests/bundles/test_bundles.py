"""Every bundle, whole: its metadata, its network, and the path from training to importance volumes."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK
import torch
import yaml
from killing import table
from monai.bundle import ckpt_export, verify_metadata, verify_net_in_out
from monai.bundle.config_parser import ConfigParser
from small_bundle import PHANTOMS, SMALL, SMALL_NOISE, SMALL_U_NET, bundle_parametrize, run, workflow

from unoise_monai.data import CaseError
from unoise_monai.data.nifti import write_nifti
from unoise_monai.losses import VisibleShare
from unoise_monai.phantoms import vessel_phantom, write_phantom_cohort

ROOT = Path(__file__).parents[2]
SCHEMA = ROOT.parent / "shared" / "schemas" / "meta_schema_20240725.json"
REAL = ROOT.parent / "shared" / "data"
PRESETS = sorted((ROOT / "configs").glob("*.yaml"))
UTILITY = ["train", "train_utility"]
CONFIGS = {"train_utility": (UTILITY, "train"), "train": (["train"], "train"), "inference": (["inference"], "infer")}
"""What is laid over each other, and the kind of workflow that it is."""
SMALL_UTILITY = {"vessel_tof_mra_unoise": {"utility#channels": [4, 8]}}


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_phantom_cohort(tmp_path_factory.mktemp("cohort") / "phantoms", count=4, test_count=1, **PHANTOMS)


def small(bundle: Path) -> dict[str, object]:
    """What makes a bundle small."""
    return {**SMALL, **SMALL_UTILITY.get(bundle.name, SMALL_U_NET)}


@pytest.mark.skipif(not SCHEMA.is_file(), reason=f"the metadata schema is not at {SCHEMA}")
@bundle_parametrize
def test_metadata_follows_the_schema(bundle: Path, tmp_path: Path) -> None:
    schema = shutil.copy(SCHEMA, tmp_path)
    verify_metadata(meta_file=str(bundle / "configs" / "metadata.json"), filepath=schema)


@bundle_parametrize
@pytest.mark.parametrize("config", ["train", "inference"])
def test_network_gives_what_the_metadata_says(bundle: Path, config: str) -> None:
    verify_net_in_out(
        net_id="network_def",
        meta_file=str(bundle / "configs" / "metadata.json"),
        config_file=str(bundle / "configs" / f"{config}.yaml"),
        device="cpu",
        n=2,
    )


@bundle_parametrize
def test_shipped_weights_export_to_torchscript(bundle: Path, tmp_path: Path) -> None:
    weights = bundle / "models" / "model.pt"
    assert weights.stat().st_size < 12e6
    ckpt_export(
        net_id="network_def",
        filepath=str(tmp_path / "model.ts"),
        ckpt_file=str(weights),
        meta_file=str(bundle / "configs" / "metadata.json"),
        config_file=str(bundle / "configs" / "inference.yaml"),
    )
    scripted = torch.jit.load(tmp_path / "model.ts").eval()
    network = workflow(bundle, "inference").parser.get_parsed_content("network_def").eval()
    network.load_state_dict(torch.load(weights, weights_only=True))
    image = torch.randn(1, 1, *(network.stride * factor for factor in (2, 2, 3)))
    with torch.no_grad():
        expected = network(image)
        torch.testing.assert_close(scripted(image), expected, atol=1e-4, rtol=1e-4)
    assert 0 <= float(expected[:, -1].min()) <= float(expected[:, -1].max()) <= 1


def test_the_weights_for_visible_shares_are_of_the_same_utility() -> None:
    models = ROOT / "bundles" / "hippocampus_mr_unoise" / "models"
    ours, visible = (torch.load(models / f"{name}.pt", weights_only=True) for name in ("model", "visible"))
    assert ours.keys() == visible.keys()
    assert {name.split(".")[0] for name in ours if not torch.equal(ours[name], visible[name])} == {"noise_model"}


@bundle_parametrize
@pytest.mark.parametrize("config", CONFIGS)
def test_no_required_property_is_missing(bundle: Path, config: str, cohort: Path, tmp_path: Path) -> None:
    flow = workflow(
        bundle, *CONFIGS[config], dataset_dir=str(cohort), ckpt_dir=str(tmp_path), cache="none", **small(bundle)
    )
    if config == "inference":
        flow.initialize()
    else:
        flow.parser.parse(reset=True)
        flow._is_initialized = True
    assert flow.check_properties() == []


@bundle_parametrize
def test_training_and_inference_define_the_same_network(bundle: Path) -> None:
    parsers = [ConfigParser.load_config_file(bundle / "configs" / f"{name}.yaml") for name in ("train", "inference")]
    for key in ("task", "utility", "noise_model", "network_def", "sigma_min", "sigma_max"):
        assert parsers[0][key] == parsers[1][key]


@bundle_parametrize
def test_from_training_to_importance_volumes(bundle: Path, cohort: Path, tmp_path: Path) -> None:
    common = {"dataset_dir": str(cohort), "ckpt_dir": str(tmp_path / "models"), **small(bundle)}
    training = {**common, "val_interval": 1, "batch_size": 2}
    run(bundle, UTILITY, output_dir=str(tmp_path / "utility"), utility_epochs=1, **training)
    before = torch.load(tmp_path / "models" / "utility.pt", weights_only=True)
    # A pretrained start and a noise ratio that is found: the options that no default run reaches.
    options = {
        "pretrained": str(tmp_path / "models" / "utility.pt"),
        "noise_ratio": {"_target_": "unoise_monai.losses.DualNoiseRatio", "keep": 0.9, "of": "loss"},
    }
    run(bundle, "train", output_dir=str(tmp_path / "noise"), max_epochs=2, **training, **SMALL_NOISE, **options)
    after = torch.load(tmp_path / "models" / "model.pt", weights_only=True)
    for name, value in before.items():
        torch.testing.assert_close(after[f"utility.{name}"], value, rtol=0, atol=0)

    rows = table(tmp_path / "noise", "metrics.csv")
    assert [row["epoch"] for row in rows] == ["1", "2"]
    for column in ("train_noised_dice", "train_tolerance", "val_tolerance_foreground", "val_visible_dice", "seconds"):
        assert np.isfinite(float(rows[-1][column]))
    assert len({row["noise_ratio"] for row in rows}) == 2
    assert list((tmp_path / "noise" / "tensorboard").iterdir())

    # The same on visible shares: another noise model, the same utility and split.
    models = {"ckpt_dir": str(tmp_path / "visible"), "split_file": str(tmp_path / "models" / "split.json")}
    models["utility_weights"] = [str(tmp_path / "models" / "utility.pt")]
    small_run = {**training, **SMALL_NOISE, **models, "max_epochs": 1}
    flow = run(bundle, ["train", "train_visible"], output_dir=str(tmp_path / "visible_run"), **small_run)
    assert isinstance(flow.parser.get_parsed_content("train#network"), VisibleShare)
    other = torch.load(tmp_path / "visible" / "model.pt", weights_only=True)
    changed = {name for name, value in after.items() if not torch.equal(other[name], value)}
    assert changed
    assert all(name.startswith("noise_model.") for name in changed)

    common |= SMALL_NOISE
    run(bundle, ["train", "evaluate"], output_dir=str(tmp_path / "evaluation"), **common)
    summary = json.loads((tmp_path / "evaluation" / "evaluation.json").read_text(encoding="utf-8"))
    assert set(summary) == {"quantile", "threshold"}
    for name in ("quantile.csv", "threshold.csv", "visibility.png"):
        assert (tmp_path / "evaluation" / name).stat().st_size > 0
    assert list((tmp_path / "evaluation").glob("*_deciles.png"))

    output = tmp_path / "importance"
    run(bundle, "inference", output_dir=str(output), **common)
    source = nib.load(cohort / "imagesTs" / "phantom_test_001.nii.gz")
    for name in ("importance", "seg"):
        path = output / "phantom_test_001" / f"phantom_test_001_{name}.nii.gz"
        written = nib.load(path)
        assert written.shape == source.shape
        np.testing.assert_allclose(written.affine, source.affine, atol=1e-5)
        assert SimpleITK.ReadImage(str(path)).GetSize() == source.shape
    for name in ("montage", "mip"):
        assert (output / "phantom_test_001" / f"phantom_test_001_{name}.png").stat().st_size > 0


def test_what_monai_label_changes(cohort: Path, tmp_path: Path) -> None:
    """Its ids: the lists of cases without names, the epochs, and a loader of the last weights before our handlers."""
    bundle, models = ROOT / "bundles" / "pancreas_ct_unoise", tmp_path / "models"
    common = {"dataset_dir": str(cohort), "ckpt_dir": str(models), **small(bundle), **SMALL_NOISE, "val_interval": 1}
    run(bundle, UTILITY, output_dir=str(tmp_path / "utility"), utility_epochs=1, **common)
    run(bundle, "train", output_dir=str(tmp_path / "first"), max_epochs=1, **common)
    parser = ConfigParser()
    parser.read_config(bundle / "configs" / "train.yaml")
    handlers = parser.get("train#handlers")
    assert {"_target_"} <= set.intersection(*map(set, handlers))
    loader = {
        "_target_": "CheckpointLoader",
        "load_path": str(models / "model.pt"),
        "load_dict": {"model": "$@network"},
    }
    items = [
        {key: str(cohort / f"{key}sTr" / f"phantom_{number:03}.nii.gz") for key in ("image", "label")}
        for number in (1, 2, 3)
    ]
    changes = {
        "train#trainer#max_epochs": 2,
        "train#dataset#data": items[:2],
        "validate#dataset#data": items[2:],
        "train#handlers": [loader, *handlers],
    }
    flow = run(bundle, "train", output_dir=str(tmp_path / "second"), max_epochs=1, **common, **changes)
    assert [len(flow.parser.get_parsed_content(f"{part}#dataset")) for part in ("train", "validate")] == [2, 1]
    assert len(table(tmp_path / "second", "metrics.csv")) == 2


def test_angiograms_without_labels_from_training_to_importance(tmp_path: Path) -> None:
    """The vessel bundle's own options: semi-automatic labels, N4, uniform crops, no deformation; a folder of scans."""
    bundle, scans = ROOT / "bundles" / "vessel_tof_mra_unoise", tmp_path / "scans"
    for seed in (1, 2, 3):
        phantom = vessel_phantom(
            seed, (64, 56, 48), (1.0, 1.0, 1.2), oblique_degrees=12, left_handed=True, stripped=False
        )
        write_nifti(scans / f"sub-{seed:02}" / "anat" / f"sub-{seed:02}_angio.nii.gz", phantom.image, phantom.affine)
    common = {"dataset_dir": str(scans), "ckpt_dir": str(tmp_path / "models"), "device": "cpu", "precision": "fp32"}
    common |= {"utility#channels": [2, 4, 8], "task#bias_correction": True, "task#spacing_mm": [2.0, 2.0, 2.0]}
    training = {**common, "missing_labels": "make", "sampling": "uniform", "task#patch_size": [16, 16, 16]}
    training |= {"val_interval": 1, "utility_epochs": 1, "max_epochs": 1}
    run(bundle, UTILITY, output_dir=str(tmp_path / "utility"), deformation_aware=False, **training)
    run(bundle, "train", output_dir=str(tmp_path / "noise"), **training, **SMALL_NOISE)
    run(bundle, "inference", output_dir=str(tmp_path / "out"), **common, **SMALL_NOISE)
    assert len(list(scans.rglob("*_desc-semiauto_mask.nii.gz"))) == 3
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [f"sub-{seed:02}_angio" for seed in (1, 2, 3)]
    source = nib.load(scans / "sub-02" / "anat" / "sub-02_angio.nii.gz")
    written = nib.load(tmp_path / "out" / "sub-02_angio" / "sub-02_angio_importance.nii.gz")
    assert written.shape == source.shape
    np.testing.assert_allclose(written.affine, source.affine, atol=1e-5)


@bundle_parametrize
def test_missing_utility_weights_name_the_command_that_trains_them(bundle: Path, cohort: Path, tmp_path: Path) -> None:
    flow = workflow(
        bundle,
        "train",
        dataset_dir=str(cohort),
        ckpt_dir=str(tmp_path),
        utility_weights=str(tmp_path / "no.pt"),
        **small(bundle),
    )
    with pytest.raises(RuntimeError) as caught:
        flow.initialize()
    assert "'configs/train_utility.yaml']" in str(caught.value.__cause__)


def bad_input(kind: str, folder: Path) -> tuple[Path, str]:
    """A data set that no bundle can use, and what its error has to say."""
    affine = np.diag([3.0, 3.0, 3.0, 1.0])
    if kind == "an empty folder":
        (folder / "empty").mkdir()
        return folder / "empty", "must hold volumes .* got none"
    voxels = {"a 2-D file": np.ones((16, 16)), "an all-zero volume": np.zeros((16, 16, 16))}[kind]
    path = folder / "scan.nii.gz"
    nib.save(nib.Nifti1Image(voxels.astype(np.int16), affine), path)
    says = "must be a 3-D volume, got shape" if kind == "a 2-D file" else "must not be constant, got 0 everywhere"
    return path, f"case scan: image file .*scan.nii.gz {says}"


@bundle_parametrize
@pytest.mark.parametrize("kind", ["an empty folder", "a 2-D file", "an all-zero volume"])
def test_bad_input_is_refused_by_name(bundle: Path, kind: str, tmp_path: Path) -> None:
    data, says = bad_input(kind, tmp_path)
    changes = {"dataset_dir": str(data), "output_dir": str(tmp_path / "out"), "device": "cpu"}
    if kind == "an empty folder":
        with pytest.raises(RuntimeError) as caught:
            run(bundle, "inference", **changes)
        assert isinstance(caught.value.__cause__, CaseError)
        assert re.search(says, str(caught.value.__cause__))
    else:
        # The run goes on after a bad case, and lists it.
        run(bundle, "inference", **changes)
        (row,) = table(tmp_path / "out", "failures.csv")
        assert row["case"] == "scan"
        assert re.search(says, row["reason"])
    assert not list(tmp_path.glob("out/*/*.*"))


@bundle_parametrize
def test_a_label_on_another_grid_is_refused_before_training(bundle: Path, cohort: Path, tmp_path: Path) -> None:
    data = tmp_path / "cohort"
    shutil.copytree(cohort, data)
    path = data / "labelsTr" / "phantom_002.nii.gz"
    label = nib.load(path)
    moved = label.affine.copy()
    moved[:3, 3] += 5
    nib.save(nib.Nifti1Image(np.asarray(label.dataobj), moved), path)
    flow = workflow(bundle, UTILITY, dataset_dir=str(data), ckpt_dir=str(tmp_path), **small(bundle))
    with pytest.raises(RuntimeError) as caught:
        flow.parser.get_parsed_content("split")
    error: BaseException | None = caught.value
    while error is not None and not isinstance(error, CaseError):
        error = error.__cause__
    assert re.search(r"case phantom_002: label file .* must lie on the grid of the image", str(error))


def test_a_killed_run_goes_on(cohort: Path, tmp_path: Path) -> None:
    """From the bundle's folder, by the command of its docs."""
    bundle = ROOT / "bundles" / "pancreas_ct_unoise"
    changes = {"dataset_dir": cohort, "ckpt_dir": tmp_path / "models", "output_dir": tmp_path, "utility_epochs": 12}
    arguments = [f"--{key}={value}" for key, value in {**small(bundle), **changes, "batch_size": 2}.items()]
    configs = "['configs/train.yaml','configs/train_utility.yaml']"
    command = [sys.executable, "-m", "monai.bundle", "run", "training", "--config_file", configs]
    options = {"cwd": bundle, "env": {**os.environ, "OMP_NUM_THREADS": "1"}}
    last = tmp_path / "models" / "utility_last.pt"
    with (tmp_path / "log").open("w") as log:
        process = subprocess.Popen([*command, *arguments], stdout=log, stderr=log, **options)
        deadline = time.monotonic() + 120
        while not last.is_file() and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.02)
        process.send_signal(signal.SIGKILL)
        process.wait()
    reached = torch.load(last, weights_only=True)["epoch"]
    assert 1 <= reached < 12
    done = subprocess.run([*command, *arguments], capture_output=True, text=True, timeout=300, check=True, **options)
    assert f"continued from utility_last.pt after epoch {reached}" in done.stdout + done.stderr
    assert [int(row["epoch"]) for row in table(tmp_path, "metrics.csv")] == list(range(1, 13))
    assert not last.exists()


def has(config: object, key: str) -> bool:
    for part in key.split("#"):
        if not isinstance(config, dict) or part not in config:
            return False
        config = config[part]
    return True


@pytest.mark.parametrize("preset", PRESETS, ids=lambda path: path.stem)
def test_presets_change_only_what_is_there(preset: Path) -> None:
    content = yaml.safe_load(preset.read_text(encoding="utf-8"))
    assert (ROOT / content.pop("config_file")).is_file()
    folder = ROOT / content["bundle_root"] / "configs"
    configs = {
        name: ConfigParser.load_config_files([folder / f"{file}.yaml" for file in files])
        for name, (files, _) in CONFIGS.items()
    }
    for key in content:
        if "#" in key:
            # A change inside a component fails where the component is missing: it must be in every configuration.
            assert all(has(config, key) or has(config, key.rsplit("#", 1)[0]) for config in configs.values()), key
        assert any(has(config, key) for config in configs.values()), key


def test_the_gpu_preset_trains_the_utility_for_its_own_epochs(cohort: Path) -> None:
    preset = yaml.safe_load((ROOT / "configs" / "task07_gpu.yaml").read_text(encoding="utf-8"))
    bundle = ROOT / preset.pop("bundle_root")
    preset.pop("config_file")
    flow = workflow(bundle, UTILITY, **{**preset, "dataset_dir": str(cohort), "device": "cpu"})
    assert flow.parser.get_parsed_content("train#trainer#max_epochs") == preset["utility_epochs"]
    assert flow.parser.get_parsed_content("task").spacing_mm == (1.5, 1.5, 1.5)


def test_a_preset_runs_from_the_root(cohort: Path, tmp_path: Path) -> None:
    """``make demo`` runs the whole one; here its command, on a few voxels."""
    paths = {"dataset_dir": str(cohort), "ckpt_dir": str(tmp_path), "output_dir": str(tmp_path / "run")}
    bundle = ROOT / "bundles" / "pancreas_ct_unoise"
    changes: dict[str, object] = {**small(bundle), **paths, "val_interval": 1}
    run(bundle, UTILITY, utility_epochs=1, **changes)
    changes |= {**SMALL_NOISE, "utility_weights": str(tmp_path / "utility.pt"), "max_epochs": 1}
    command = [sys.executable, "-m", "monai.bundle", "run", "training", "--args_file", "configs/phantom_demo.yaml"]
    command += [f"--{key}={value}" for key, value in changes.items()]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True, timeout=300)
    assert (tmp_path / "model.pt").is_file()


GRIDS = {
    "oblique phantom": ("pancreas_ct_unoise", None),
    "abdominal CT": ("pancreas_ct_unoise", REAL / "abdomen_ct" / "imagesTr" / "abdomen_001.nii.gz"),
    "hippocampus MR": ("hippocampus_mr_unoise", REAL / "Task04_Hippocampus" / "imagesTs" / "hippocampus_006.nii.gz"),
    "oblique angiogram": ("vessel_tof_mra_unoise", REAL / "tof_mra" / "chris_MRA.nii.gz"),
}


@pytest.mark.parametrize(("bundle", "image"), GRIDS.values(), ids=GRIDS)
def test_shipped_weights_write_maps_on_the_file_s_own_grid(
    bundle: str, image: Path | None, cohort: Path, tmp_path: Path
) -> None:
    image = image or cohort / "imagesTs" / "phantom_test_001.nii.gz"
    if not image.is_file():
        pytest.skip(f"the real volume is not at {image}")
    run(ROOT / "bundles" / bundle, "inference", dataset_dir=str(image), output_dir=str(tmp_path), device="cpu")
    case = image.name.removesuffix(".nii.gz")
    source, source_itk = nib.load(image), SimpleITK.ReadImage(str(image))
    for name, dtype in (("importance", np.float32), ("seg", np.uint8)):
        path = tmp_path / case / f"{case}_{name}.nii.gz"
        written, written_itk = nib.load(path), SimpleITK.ReadImage(str(path))
        assert written.shape == source.shape
        assert written.get_data_dtype() == dtype
        assert (int(written.header["qform_code"]), int(written.header["sform_code"])) == (1, 1)
        np.testing.assert_allclose(written.affine, source.affine, atol=1e-5)
        assert written_itk.GetSize() == source_itk.GetSize()
        np.testing.assert_allclose(written_itk.GetOrigin(), source_itk.GetOrigin(), atol=1e-4)
        np.testing.assert_allclose(written_itk.GetSpacing(), source_itk.GetSpacing(), atol=1e-5)
        np.testing.assert_allclose(written_itk.GetDirection(), source_itk.GetDirection(), atol=1e-5)
    importance = nib.load(tmp_path / case / f"{case}_importance.nii.gz").get_fdata()
    assert 0 <= importance.min() < importance.max() <= 1
    for picture in ("montage", "mip"):
        assert (tmp_path / case / f"{case}_{picture}.png").stat().st_size > 0
