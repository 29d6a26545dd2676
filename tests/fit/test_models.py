"""What belongs to a model: a zoo bundle's own ids as they are, and descriptions of ten lines."""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from bright import AFFINE, Bright, volume, write_balls
from monai.data import MetaTensor
from monai.inferers import SlidingWindowInferer

from unoise_monai.bundle import load_bundle
from unoise_monai.data.finding import find_cases
from unoise_monai.fit import BundleModel, DescribedModel, Description, load
from unoise_monai.fit.checking import explainer_of
from unoise_monai.networks import ClassLogits

SCRIPT = """\
import torch


class Net(torch.nn.Module):
    def __init__(self, gain):
        super().__init__()
        self.conv = torch.nn.Conv3d(1, 1, 3, padding=1)
        self.gain = gain

    def forward(self, x):
        y = self.conv(x)
        return torch.cat([-y, y], dim=1)
"""


def zoo_config(network: dict[str, Any], after: list[dict[str, Any]]) -> dict[str, Any]:
    """In the form of the zoo's spleen_ct_segmentation."""
    keys = "@image_key"
    return {
        "imports": ["$import glob", "$import numpy"],
        "bundle_root": ".",
        "image_key": "image",
        "output_dir": "$@bundle_root + '/eval'",
        "device": "$torch.device('cuda:0' if torch.cuda.is_available() else 'cpu')",
        "network_def": network,
        "network": "$@network_def.to(@device)",
        "preprocessing": {
            "_target_": "Compose",
            "transforms": [
                {"_target_": "LoadImaged", "keys": keys},
                {"_target_": "EnsureChannelFirstd", "keys": keys},
                {"_target_": "Orientationd", "keys": keys, "axcodes": "RAS"},
                {"_target_": "Spacingd", "keys": keys, "pixdim": [1.0, 1.0, 1.0], "mode": "bilinear"},
                {"_target_": "ScaleIntensityRanged", "keys": keys, "a_min": 0, "a_max": 2, "b_min": 0, "b_max": 2},
                {"_target_": "EnsureTyped", "keys": keys},
            ],
        },
        "inferer": {"_target_": "SlidingWindowInferer", "roi_size": [16, 16, 16], "overlap": 0.5},
        "postprocessing": {"_target_": "Compose", "transforms": after},
    }


INVERT = {"_target_": "Invertd", "keys": "pred", "transform": "@preprocessing", "orig_keys": "@image_key"}
SOFTMAX = [
    {"_target_": "Activationsd", "keys": "pred", "softmax": True},
    {**INVERT, "nearest_interp": False, "to_tensor": True},
    {"_target_": "AsDiscreted", "keys": "pred", "argmax": True},
    {"_target_": "SaveImaged", "keys": "pred", "output_dir": "@output_dir"},
]


@pytest.fixture(params=["without scripts", "with scripts"])
def bundle(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    folder = tmp_path / "ball_segmentation"
    (folder / "configs").mkdir(parents=True)
    (folder / "models").mkdir()
    network: dict[str, Any] = {"_target_": "bright.Bright"}
    if request.param == "with scripts":
        (folder / "scripts").mkdir()
        (folder / "scripts" / "__init__.py").write_text("", encoding="utf-8")
        (folder / "scripts" / "net.py").write_text(SCRIPT, encoding="utf-8")
        network = {"_target_": "scripts.net.Net", "gain": 1}
    config = json.dumps(zoo_config(network, SOFTMAX))
    (folder / "configs" / "inference.json").write_text(config, encoding="utf-8")
    channels = {"0": "background", "1": "ball"}
    formats = {"inputs": {"image": {"num_channels": 1}}, "outputs": {"pred": {"channel_def": channels}}}
    (folder / "configs" / "metadata.json").write_text(json.dumps({"network_data_format": formats}), encoding="utf-8")
    torch.save(Bright().state_dict(), folder / "models" / "model.pt")
    return folder


def test_a_zoo_bundle_is_taken_as_it_is(bundle: Path, tmp_path: Path) -> None:
    path = list(sys.path)
    found = load(bundle, trusted=True)
    assert sys.path == path
    model = found.model
    assert (model.class_names, model.channels, model.regions) == (("background", "ball"), 1, False)
    assert model.patch_size == (16, 16, 16)
    assert isinstance(model.inferer(), SlidingWindowInferer)
    cases = find_cases(write_balls(tmp_path / "data", 1))
    explained = explainer_of(found, ClassLogits(found.network))(cases[0].item()["image"])
    ball = torch.as_tensor(volume(0)[1])
    found_ball = explained.segmentation[0].as_tensor() > 0
    assert 2 * float((found_ball & (ball > 0)).sum()) / float(found_ball.sum() + ball.sum()) > 0.85
    np.testing.assert_allclose(np.asarray(explained.segmentation.affine), AFFINE)


def test_a_zoo_bundle_cannot_explain_and_says_what_can(bundle: Path) -> None:
    metadata = json.loads((bundle / "configs" / "metadata.json").read_text(encoding="utf-8"))
    (bundle / "configs" / "metadata.json").write_text(json.dumps({**metadata, "version": "1"}), encoding="utf-8")
    with pytest.raises(ValueError, match=r"it has no savers; `unoise fit` makes a bundle of any network"):
        load_bundle(bundle, trusted=True)


def test_a_copied_zoo_bundle_is_the_same_model(bundle: Path, tmp_path: Path) -> None:
    model = BundleModel(bundle)
    model.copy(tmp_path / "model")
    copied = BundleModel(tmp_path / "model")
    assert copied.class_names == model.class_names
    assert not (tmp_path / "model" / "models").exists()
    assert {k: v.shape for k, v in copied.network().state_dict().items()} == {
        k: v.shape for k, v in Bright().state_dict().items()
    }


def test_the_segmentation_is_what_the_bundles_own_steps_make_of_it(tmp_path: Path) -> None:
    folder = tmp_path / "bundle"
    (folder / "configs").mkdir(parents=True)
    filled = {"_target_": "FillHolesd", "keys": "pred"}
    config = zoo_config({"_target_": "bright.Bright"}, [*SOFTMAX[:3], filled])
    (folder / "configs" / "inference.json").write_text(json.dumps(config), encoding="utf-8")
    model = BundleModel(folder)
    model.class_names = ("background", "ball")
    pred = torch.zeros(3, 8, 8, 8)
    pred[1] = -1
    pred[1, 1:4, 1:4, 1:4] = 1
    pred[1, 2, 2, 2] = -1
    meta = {"original_affine": torch.eye(4), "affine": torch.eye(4)}
    decide = model.postprocessing(model.preprocessing()).transforms[-1]  # type: ignore[attr-defined]
    seg = decide({"pred": MetaTensor(pred, meta=meta)})["seg"]
    assert (int(seg.sum()), int(seg[0, 2, 2, 2])) == (27, 1)


def test_sigmoids_are_regions(tmp_path: Path) -> None:
    folder = tmp_path / "bundle"
    (folder / "configs").mkdir(parents=True)
    sigmoid = [{"_target_": "Activationsd", "keys": "pred", "sigmoid": True}, *SOFTMAX[1:2]]
    config = zoo_config({"_target_": "bright.Bright"}, sigmoid)
    (folder / "configs" / "inference.json").write_text(json.dumps(config), encoding="utf-8")
    channels = {"0": "TC", "1": "WT"}
    metadata = {"network_data_format": {"outputs": {"pred": {"channel_def": channels}}}}
    (folder / "configs" / "metadata.json").write_text(json.dumps(metadata), encoding="utf-8")
    model = BundleModel(folder)
    assert (model.regions, model.class_names) == (True, ("background", "TC", "WT"))


def test_a_bundle_that_lacks_an_id_says_which_file(tmp_path: Path) -> None:
    (tmp_path / "configs").mkdir()
    with pytest.raises(ValueError, match=r"must hold configs/inference.yaml or .json, got neither"):
        BundleModel(tmp_path)
    (tmp_path / "configs" / "inference.json").write_text("{}", encoding="utf-8")
    with pytest.raises(ValueError, match="must define network_def, preprocessing and inferer"):
        BundleModel(tmp_path)


def described(folder: Path, text: str) -> DescribedModel:
    (folder / "like.yaml").write_text(text, encoding="utf-8")
    return DescribedModel(folder)


@pytest.mark.parametrize(
    ("intensities", "low", "high"),
    [
        ("{window: [-100, 200], to: [0, 1]}", 0.0, 1.0),
        ("{percentiles: [0, 100], to: [-1, 1]}", -1.0, 1.0),
        ("null", -200.0, 300.0),
    ],
)
def test_intensities_become_what_is_said(intensities: str, low: float, high: float, tmp_path: Path) -> None:
    model = described(tmp_path, f"labels: [background, liver]\norientation: null\nintensities: {intensities}\n")
    image = MetaTensor(torch.linspace(-200, 300, 64).view(1, 4, 4, 4))
    data: Any = {"image": image}
    for step in model.steps():
        data = step(data)
    assert (float(data["image"].min()), float(data["image"].max())) == pytest.approx((low, high))


def test_z_scores_and_the_grid(tmp_path: Path) -> None:
    model = described(tmp_path, "labels: [background, liver]\nspacing_mm: [2, 2, 2]\norientation: LPS\n")
    data: Any = {"image": MetaTensor(torch.rand(1, 8, 8, 8), affine=torch.eye(4))}
    for step in model.steps():
        data = step(data)
    assert float(data["image"].std(unbiased=False)) == pytest.approx(1, abs=1e-4)
    assert [float(size) for size in data["image"].pixdim] == [2, 2, 2]
    assert float(data["image"].affine[0, 0]) < 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"labels": ["background"]}, "labels must name the background and at least one class"),
        ({"outputs": "logits"}, "outputs must be one of"),
        ({"intensities": "minmax"}, "intensities must be one of"),
        ({"intensities": {"window": [1, 0], "to": [0, 1]}}, "each of two rising numbers"),
        ({"intensities": {"window": [0, 1]}}, "must name window or percentiles, and to"),
    ],
)
def test_what_no_description_can_say(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Description(**{"labels": ["background", "liver"], **options})


def test_a_description_with_an_unknown_word(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"like.yaml must describe a network.*colour"):
        described(tmp_path, "labels: [background, liver]\ncolour: red\n")
