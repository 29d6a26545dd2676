"""explain.yaml of every bundle, and every method on the hippocampus bundle."""

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from killing import table
from monai.bundle.config_parser import ConfigParser
from small_bundle import PHANTOMS, bundle_parametrize, run, workflow
from tasks import hippocampus

from unoise_monai.attribution import METHODS, border_mean, foreground_sum, make_attributor
from unoise_monai.data import Case, choose_cases, find_labelled, preprocessing
from unoise_monai.networks import UNet, load_state
from unoise_monai.phantoms import write_phantom_cohort
from unoise_monai.runs.records import Records
from unoise_monai.unoise import ExplainedSegmenter

ROOT = Path(__file__).parents[2]
REAL = ROOT.parent / "shared" / "data" / "Task04_Hippocampus"
UTILITY = {"vessel_tof_mra_unoise": {"utility#channels": [4, 8]}}
SMALL = {
    "task#spacing_mm": [9.0, 9.0, 9.0],
    "noise_model#depth": 2,
    "noise_model#channel_factor": 2,
    "device": "cpu",
    "precision": "fp32",
    "pictures": ["montage"],
    "count": 1,
    "cases": 1,
    "part": None,
    "scorer#scores#0#shares": [0.0, 0.3, 1.0],
    "scorer#scores#1#samples": 4,
    "scorer#scores#2#samples": 1,
    "scorer#scores#3#steps": 1,
}


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_phantom_cohort(
        tmp_path_factory.mktemp("explain") / "phantoms",
        count=2,
        **{**PHANTOMS, "size": (28, 24, 26)},
    )


@bundle_parametrize
def test_from_a_folder_to_a_scoreboard(bundle: Path, cohort: Path, tmp_path: Path) -> None:
    small = {**SMALL, **UTILITY.get(bundle.name, {"utility#depth": 2, "utility#channel_factor": 2})}
    changes = {**small, "dataset_dir": str(cohort), "output_dir": str(tmp_path / "out"), "ckpt_dir": str(tmp_path)}
    methods = ["saliency", "grad_cam", "unoise", "random", "label_distance"]
    torch.manual_seed(0)
    parser = workflow(bundle, ["inference", "explain"], **changes).parser
    network, chain = parser.get_parsed_content("network_def").eval(), parser.get_parsed_content("preprocessing")
    (case,) = map(Case.of, choose_cases(find_labelled(cohort), choice=1))
    # An untrained network that segments half of the volume.
    image = chain({"case": case.name, "image": str(case.files[0])})["image"].as_tensor()[None]
    with torch.no_grad():
        logits = network.utility(image[:, :, :24, :20, :24])
        against = logits[:, 0] if logits.shape[1] > 1 else 0
        network.utility.head.bias[-1] += 0.01 - (logits[:, -1] - against).median()
    torch.save(network.state_dict(), tmp_path / "model.pt")

    run(bundle, ["inference", "explain"], **changes, methods=methods)
    rows = {row["method"]: row for row in table(tmp_path / "out", "scoreboard.csv")}
    assert set(rows) == set(methods)
    assert {row["failed"] for row in rows.values()} == {"0"}
    for operator in parser["scorer#scores#0#hidings"]:
        assert np.isfinite(float(rows["saliency"][f"insertion_{operator}"]))
        assert (tmp_path / "out" / f"curves_insertion_{operator}.png").stat().st_size > 0
    folder = tmp_path / "out" / case.name
    written, scan = nib.load(folder / f"{case.name}_saliency.nii.gz"), nib.load(case.files[0])
    assert written.shape == scan.shape
    np.testing.assert_allclose(written.affine, scan.affine, atol=1e-5)
    names = {path.name for path in folder.iterdir()}
    assert {
        f"{case.name}_{name}" for name in ("importance.nii.gz", "seg.nii.gz", "montage.png", "saliency_montage.png")
    } <= names
    record = Records(tmp_path / "out").read(case.name)
    assert record is not None
    scores = record["methods"]["saliency"]["scores"]
    assert {"infidelity", "sensitivity", "randomisation_correlation"} <= set(scores)


@bundle_parametrize
def test_its_methods_are_known(bundle: Path) -> None:
    explain = ConfigParser.load_config_file(bundle / "configs" / "explain.yaml")
    assert explain["methods"] == [name for name in explain["methods"] if name in (*METHODS, "label_distance")]
    assert set(explain["options"]) <= set(explain["methods"])


CHEAP = {
    "integrated_gradients": {"steps": 4},
    "gradient_shap": {"samples": 2},
    "layer_conductance": {"steps": 4},
    "internal_influence": {"steps": 4},
    "layer_integrated_gradients": {"steps": 4},
    "smooth_grad": {"samples": 2},
    "smooth_grad_squared": {"samples": 2},
    "var_grad": {"samples": 3},
    "occlusion": {"window": 16, "stride": 12},
    "rise": {"masks": 10},
    "lime": {"samples": 30},
    "kernel_shap": {"samples": 40},
    "iterative_roi": {"max_rounds": 2},
    "voxelwise_mean": {"max_voxels": 3},
}


@pytest.mark.skipif(not REAL.is_dir(), reason=f"Task04 is not at {REAL}")
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_every_method_gives_a_finite_map_with_contrast_on_a_real_volume(precision: str) -> None:
    segmenter = ExplainedSegmenter(UNet(3, 1, 3, depth=4, channel_factor=4), UNet(3, 1, 1, depth=3, channel_factor=4))
    segmenter.load_state_dict(load_state(ROOT / "bundles" / "hippocampus_mr_unoise" / "models" / "model.pt"))
    segmenter.eval()
    # Gradients of whole volumes by forty methods take their time: the middle of one, where the hippocampus is.
    (case,) = map(Case.of, choose_cases(find_labelled(REAL), choice=1))
    chain = preprocessing(hippocampus(), with_label=False)
    image = chain({"case": case.name, "image": str(case.files[0])})["image"][None, :, 2:26, 8:40, 4:28].clone()
    with torch.no_grad():
        logits = segmenter.utility(image.as_tensor())
    state = {name: value.clone() for name, value in segmenter.state_dict().items()}
    for name in METHODS:
        options = {**CHEAP.get(name, {}), "precision": precision}
        if name == "unoise":
            options["noise_model"] = segmenter.noise_model
        target = border_mean(logits, 1) if name == "voxelwise_mean" else foreground_sum(logits)
        result = make_attributor(name, segmenter.utility, **options)(image, target)
        assert result.shape == image.shape, name
        assert torch.equal(result.affine, image.affine), name
        assert bool(result.isfinite().all()), name
        assert float(result.max()) > float(result.min()), name
    for name, value in segmenter.state_dict().items():
        assert torch.equal(value, state[name]), name
    assert not any(module._forward_hooks or module._backward_hooks for module in segmenter.modules())
