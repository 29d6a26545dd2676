"""From a network to a bundle that explains it, with a network that is known to segment what is bright."""

import json
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from bright import AFFINE, LIKE, Bright, write_balls
from torch import Tensor, nn

from unoise_monai.bundle import is_trusted, load_bundle
from unoise_monai.cli import Exit
from unoise_monai.cli.main import main
from unoise_monai.data.finding import find_cases
from unoise_monai.fit import Fitted, UnfitModel, fit, load, wrap
from unoise_monai.fit import fitting as module
from unoise_monai.fit.checking import check_network, measure_noise


@pytest.fixture(autouse=True)
def trust_list(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "trusted"
    monkeypatch.setenv("UNOISE_TRUSTED_BUNDLES", str(path))
    return path


@pytest.fixture
def like(tmp_path: Path) -> Path:
    path = tmp_path / "like.yaml"
    path.write_text(LIKE, encoding="utf-8")
    return path


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    path = tmp_path / "weights.pt"
    torch.save({"state_dict": Bright().state_dict()}, path)
    return path


@pytest.fixture
def balls(tmp_path: Path) -> Path:
    return write_balls(tmp_path / "balls")


def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """Few epochs, whatever the machine."""
    monkeypatch.setattr(module, "time_step", lambda *_: 1.0)


def test_a_bundle_is_made_that_explains_the_network(
    like: Path, weights: Path, balls: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    short(monkeypatch)
    lines: list[str] = []
    out = tmp_path / "out"
    found = load("bright:Bright", weights, like)
    fitted = fit(found, balls, out, minutes=0.2, device="cpu", tell=lines.append)
    assert isinstance(fitted, Fitted)
    assert fitted.believed
    text = "\n".join(lines)
    for part in ("weights: all 2", "6 cases, with labels", "logits of exclusive classes", "sides: any multiple of 1"):
        assert part in text
    # Most of a ball's voxels are its inside: what is visible of it is found.
    assert fitted.dice["unoise, mean"]["30%"] > fitted.dice["random, mean"]["30%"] + 0.1
    assert fitted.dice["unoise, mean"]["100%"] > 0.85
    assert is_trusted(out)
    facts = json.loads((out / "fit.json").read_text(encoding="utf-8"))
    assert (facts["believed"], facts["trained"], len(facts["model_sha256"])) == (True, True, 64)
    assert "| unoise, mean |" in (out / "docs" / "README.md").read_text(encoding="utf-8")
    # What it writes lies on the scan's own grid, and its segmentation is the network's.
    results = tmp_path / "results"
    scan = balls / "imagesTr" / "ball_0.nii.gz"
    assert main(["explain", str(out), str(scan), str(results), "--no-images"]) == Exit.DONE
    importance, seg = (nib.load(results / "ball_0" / f"ball_0_{kind}.nii.gz") for kind in ("importance", "seg"))
    image = nib.load(scan)
    assert importance.shape == image.shape
    np.testing.assert_allclose(importance.affine, AFFINE, atol=1e-5)
    voxels = torch.from_numpy(image.get_fdata(dtype=np.float32))[None, None]
    assert np.array_equal(np.asarray(seg.dataobj), Bright()(voxels).argmax(dim=1)[0].numpy())
    assert np.asarray(importance.dataobj).std() > 0
    # Given again, the command finds that all is done.
    again: list[str] = []
    monkeypatch.setattr(module, "judge", lambda *_: pytest.fail("must not be measured again"))
    fit(load("bright:Bright", weights, like), balls, out, minutes=0.2, device="cpu", tell=again.append)
    assert again == ["out is finished; its table stands in docs/README.md"]
    with pytest.raises(FileExistsError, match="must be of the same minutes"):
        fit(load("bright:Bright", weights, like), balls, out, minutes=3, device="cpu", tell=again.append)


def test_the_models_own_segmentation_is_the_target(
    like: Path, weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    short(monkeypatch)
    unlabelled = write_balls(tmp_path / "balls", label=False)
    lines: list[str] = []
    found = load("bright:Bright", weights, like)
    assert fit(found, unlabelled, tmp_path / "out", minutes=0.2, device="cpu", tell=lines.append) is not None
    assert "data: 6 cases, the model segments them itself" in lines
    image = nib.load(unlabelled / "imagesTr" / "ball_2.nii.gz")
    own = nib.load(tmp_path / "out" / "labels" / "ball_2.nii.gz")
    voxels = torch.from_numpy(image.get_fdata(dtype=np.float32))[None, None]
    assert np.array_equal(np.asarray(own.dataobj), Bright()(voxels).argmax(dim=1)[0].numpy())
    np.testing.assert_allclose(own.affine, image.affine, atol=1e-5)


def test_checks_alone_write_nothing(like: Path, weights: Path, balls: Path, tmp_path: Path, capsys: Any) -> None:
    arguments = [
        "fit",
        "bright:Bright",
        str(balls),
        str(tmp_path / "out"),
        "--weights",
        str(weights),
        "--like",
        str(like),
    ]
    assert main([*arguments, "--check", "--device", "cpu"]) == Exit.DONE
    assert "All checks passed" in capsys.readouterr().out
    assert not (tmp_path / "out").exists()


def test_a_network_that_gets_other_intensities_is_refused(weights: Path, balls: Path, tmp_path: Path) -> None:
    like = tmp_path / "other.yaml"
    window = "intensities: {window: [0, 100], to: [0, 1]}"
    like.write_text(LIKE.replace("intensities: null", window), encoding="utf-8")
    with pytest.raises(UnfitModel, match=r"Dice 0.00 on 5 cases.*below --min-dice 0.5: the model probably expects"):
        fit(load("bright:Bright", weights, like), balls, tmp_path / "out", device="cpu", tell=lambda _: None)
    assert not (tmp_path / "out").exists()


def results_of(gain: float) -> list[dict[str, Any]]:
    """Of three cases: Dice of a random order, and of the map that is better by ``gain``."""
    results = []
    for case in range(3):
        for method, more in (("unoise", gain), ("random", 0.0), ("saliency", 0.3)):
            dice = [0.0, *(0.1 * case + 0.2 * share + more for share in module.SHARES)]
            curves = {operator: {"insertion": {"dice": dice}} for operator in ("mean", "noise")}
            results.append({"method": method, "case": str(case), "curves": curves})
    return results


@pytest.mark.parametrize(("gain", "believed"), [(0.2, True), (0.0, False), (-0.1, False)])
def test_a_map_no_better_than_chance_is_not_to_be_used(gain: float, believed: bool, tmp_path: Path) -> None:
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "model.pt").touch()
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "metadata.json").write_text("{}", encoding="utf-8")
    lines: list[str] = []
    fitted = module.verdict(tmp_path, "Bright", {"lines": []}, results_of(gain), lines.append)
    assert fitted.believed is believed
    assert ("Do not use this map" in lines[-1]) is not believed
    assert f"map minus random order: {gain:+.3f} (95% of {gain:+.3f} to {gain:+.3f}) on 3 cases" in lines[-1]
    assert lines[-1].endswith(f"Map minus saliency: {gain - 0.3:+.3f}.")
    assert lines[-1] in (tmp_path / "docs" / "README.md").read_text(encoding="utf-8")
    assert json.loads((tmp_path / "fit.json").read_text(encoding="utf-8"))["believed"] is believed


def test_its_exit_status_is_3(
    like: Path, weights: Path, balls: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("unoise_monai.fit.fit", lambda *_, **__: Fitted(tmp_path, {}, False))
    command = [
        "fit",
        "bright:Bright",
        str(balls),
        str(tmp_path / "out"),
        "--weights",
        str(weights),
        "--like",
        str(like),
    ]
    assert main(command) == Exit.SOME_FAILED


def test_a_folder_of_something_else_is_left_alone(like: Path, weights: Path, balls: Path, tmp_path: Path) -> None:
    with pytest.raises(FileExistsError, match="must be a new folder or one of unoise fit"):
        fit(load("bright:Bright", weights, like), balls, tmp_path, device="cpu")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"objective": "labels"}, "objective must be one of"),
        ({"minutes": 0}, "minutes must be above 0, got 0"),
        ({"min_dice": 2}, "min_dice must be"),
    ],
)
def test_options_out_of_range(options: dict[str, Any], message: str, like: Path, weights: Path, balls: Path) -> None:
    with pytest.raises(ValueError, match=message):
        fit(load("bright:Bright", weights, like), balls, balls.parent / "out", **options)


class Deep(nn.Module):
    """Gives several resolutions, as networks with deep supervision, as probabilities."""

    def __init__(self) -> None:
        super().__init__()
        self.bright = Bright()

    def forward(self, x: Tensor) -> list[Tensor]:
        p = self.bright(x).softmax(dim=1)
        return [p[..., ::2, ::2, ::2], p]


def test_deep_supervision_and_probabilities_are_found(like: Path) -> None:
    lines: list[str] = []
    utility = check_network(wrap(Deep(), like), torch.randn(1, 1, 16, 16, 16), lines.append)
    assert (utility.pick, utility.outputs) == (1, "probabilities")
    assert "at 1 of 2 outputs; they are probabilities already (softmax)" in lines[0]


def test_another_number_of_channels_than_classes_is_refused(like: Path) -> None:
    like.write_text(LIKE.replace("[background, ball]", "[background, ball, cube]"), encoding="utf-8")
    with pytest.raises(UnfitModel, match="a channel for each of the classes background, ball, cube, got 2"):
        check_network(wrap(Bright(), like), torch.randn(1, 1, 16, 16, 16), lambda _: None)


def test_the_noise_that_halves_dice_does(balls: Path) -> None:
    pairs = []
    for case in find_cases(balls):
        image, label = (nib.load(path).get_fdata(dtype=np.float32)[None, None] for path in (case.files[0], case.label))
        pairs.append((torch.from_numpy(image), torch.from_numpy(label).long()))
    sigma = measure_noise(Bright().eval(), pairs, 2)  # type: ignore[arg-type]
    dice = []
    for seed, (image, label) in enumerate(pairs):
        eps = torch.randn(image.shape, generator=torch.Generator().manual_seed(seed))
        found = Bright()(image + sigma * eps).argmax(dim=1, keepdim=True)
        dice.append(2 * float((found * label).sum()) / float(found.sum() + label.sum()))
    assert 0.35 < np.mean(dice) < 0.6


def test_a_fitted_bundle_is_an_ordinary_one(
    like: Path, weights: Path, balls: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    short(monkeypatch)
    monkeypatch.setattr(module, "run_configuration", lambda *_: None)
    out = tmp_path / "out"
    fit(
        load("bright:Bright", weights, like),
        balls,
        out,
        minutes=1,
        objective="noise",
        device="cpu",
        tell=lambda _: None,
    )
    bundle = load_bundle(out)
    assert bundle.class_names == ("background", "ball")
    metadata = json.loads((out / "configs" / "metadata.json").read_text(encoding="utf-8"))
    assert metadata["name"] == "out"
    assert metadata["network_data_format"]["outputs"]["pred"]["channel_def"]["2"] == "importance"
    assert "mean Dice, unoise, mean, 20% visible" in metadata["eval_metrics"]
    assert bundle.task is None
    assert bundle.explainer.network.utility.stride == 1
    evaluated = tmp_path / "evaluated"
    assert main(["evaluate", str(out), str(balls), str(evaluated)]) == Exit.DONE
    table = (evaluated / "quantile.csv").read_text(encoding="utf-8")
    assert capsys.readouterr().out.endswith(table)
    assert json.loads((evaluated / "evaluation.json").read_text(encoding="utf-8"))


def test_four_channels_of_regions(tmp_path: Path, like: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    short(monkeypatch)
    monkeypatch.setattr(module, "run_configuration", lambda *_: None)
    balls = write_balls(tmp_path / "balls")
    for path in sorted((balls / "imagesTr").iterdir()):
        image = nib.load(path)
        voxels = image.get_fdata(dtype=np.float32)
        nib.save(nib.Nifti1Image(np.stack([voxels, -voxels, 2 * voxels, voxels], axis=-1), image.affine), path)
    channels = LIKE.replace("channels: 1", "channels: 4").replace("outputs: softmax", "outputs: sigmoid")
    like.write_text(channels.replace("[background, ball]", "[background, air, ball]"), encoding="utf-8")
    weights = tmp_path / "weights.pt"
    torch.save(Bright(4).state_dict(), weights)
    like.write_text(f"network: {{channels: 4}}\n{like.read_text(encoding='utf-8')}", encoding="utf-8")
    lines: list[str] = []
    out = tmp_path / "out"
    fit(load("bright:Bright", weights, like), balls, out, labels="model", minutes=1, device="cpu", tell=lines.append)
    assert any("logits of regions that may overlap" in line for line in lines)
    scan = balls / "imagesTr" / "ball_0.nii.gz"
    assert main(["explain", str(out), str(scan), str(tmp_path / "results")]) == Exit.DONE
    importance, seg = (
        nib.load(tmp_path / "results" / "ball_0" / f"ball_0_{kind}.nii.gz") for kind in ("importance", "seg")
    )
    assert importance.shape == seg.shape == nib.load(scan).shape[:3]
    # Air and ball are each other's complement, so every voxel is painted.
    assert set(np.unique(np.asarray(seg.dataobj))) == {1, 2}
    assert load_bundle(out).class_names == ("background", "air", "ball")
