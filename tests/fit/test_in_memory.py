"""Noise models of networks in memory, from batches: 2-D, several channels, no labels, any outputs; and notebooks."""

import copy
import gzip
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from bright import AFFINE, LIKE, Bright, volume, write_balls
from torch import Tensor, nn

import unoise_monai
from unoise_monai.bundle import build
from unoise_monai.fit import Fitted, UnfitModel, fit_network, in_memory
from unoise_monai.fit import fitting as module
from unoise_monai.fit.loading import copy_model
from unoise_monai.handlers import ImportanceSaver
from unoise_monai.inference import TiledInferer
from unoise_monai.metrics.visibility import Hiding, VisibilityScorer
from unoise_monai.networks.outputs import ClassLogits
from unoise_monai.networks.weights import segmentation
from unoise_monai.phantoms import abdomen_phantom

Batches = list[dict[str, Tensor]]


class Bright2d(nn.Module):
    """Two classes by the mean of 3 x 3 pixels of the first channel: below and above 1/2; ``stride`` sides at a time."""

    def __init__(self, channels: int = 1, stride: int = 1) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, 1, 3, padding=1)
        self.stride = stride
        with torch.no_grad():
            self.conv.weight.zero_()
            self.conv.weight[:, 0] = 20 / 9
            self.conv.bias.fill_(-10)

    def forward(self, x: Tensor) -> Tensor:
        if any(side % self.stride for side in x.shape[2:]):
            raise RuntimeError(f"sides must be multiples of {self.stride}")
        y = self.conv(x)
        return torch.cat([-y, y], dim=1)


class Deep2d(Bright2d):
    """As networks with deep supervision, by name, and as probabilities."""

    def forward(self, x: Tensor) -> dict[str, Tensor]:  # type: ignore[override]
        p = super().forward(x).softmax(dim=1)
        return {"half": p[..., ::2, ::2], "whole": p}


def slices(channels: int = 1, batches: int = 3, label: bool = True) -> Batches:
    """Axial slices of the abdominal phantom, ``(4, C, 45, 38)``, bone at 1, its classes those of the bright network."""
    found: Batches = []
    for seed in range(batches):
        voxels = torch.from_numpy(abdomen_phantom(seed, (45, 38, 16), (7.0, 7.0, 12.0)).image).float() / 250
        image = voxels.clamp(-0.5, 1.5).permute(2, 0, 1)[4:8, None]
        noise = torch.randn(4, channels - 1, 45, 38, generator=torch.Generator().manual_seed(seed))
        item = {"image": torch.cat([image, noise], dim=1)}
        if label:
            with torch.no_grad():
                item["label"] = Bright2d()(image).argmax(dim=1, keepdim=True)
        found.append(item)
    return found


def steps(monkeypatch: pytest.MonkeyPatch, count: int) -> dict[str, Any]:
    """Options of about so many steps, whatever the machine."""
    monkeypatch.setattr(in_memory, "time_step", lambda *_: 48.0 / (count + 0.5))
    return {"minutes": 1.0, "device": "cpu", "tell": lambda _: None}


def gain(explained: nn.Module, batch: Mapping[str, Tensor], sigma: float = 1.0) -> float:
    """By how much mean Dice with 5 to 30% visible is above that of a random order."""
    shares = (0.05, 0.1, 0.2, 0.3)
    scorer = VisibilityScorer(explained.utility, batch["image"], batch["label"], Hiding("noise", sigma=sigma))
    with torch.no_grad():
        importance = explained(batch["image"])[:, -1:]
    chance = torch.rand(importance.shape, generator=torch.Generator().manual_seed(0))
    own, random = (float(scorer(each, shares).curve("dice").mean_score.mean()) for each in (importance, chance))
    return own - random


@pytest.mark.parametrize("objective", ["visible", "noise"])
def test_slices_of_several_channels_get_a_map_that_beats_chance(
    objective: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    batches = slices(channels=3)
    explained = fit_network(Bright2d(3), batches, objective=objective, **steps(monkeypatch, 60))
    assert gain(explained, slices(channels=3, batches=4)[-1]) > 0.1
    assert not explained.training


def test_sides_are_padded_with_their_last_voxels_and_cut_back(monkeypatch: pytest.MonkeyPatch) -> None:
    batches = slices()
    lines: list[str] = []
    options = {**steps(monkeypatch, 10), "tell": lines.append}
    explained = fit_network(Bright2d(stride=8), batches, **options)
    assert lines[1] == "sides: any multiple of 8; a voxel sees 8 voxels far"
    assert explained.stride == 8
    image = batches[0]["image"]
    padded = torch.from_numpy(np.pad(image.numpy(), [(0, 0), (0, 0), (0, 3), (0, 2)], "edge"))
    with torch.no_grad():
        torch.testing.assert_close(explained(image), explained(padded)[..., :45, :38])
        torch.testing.assert_close(explained.utility(image), Bright2d()(padded)[..., :45, :38])
    torch.testing.assert_close(TiledInferer(precision="fp32")(image, explained), explained(image))


def test_without_labels_the_networks_own_segmentation_is_the_target(monkeypatch: pytest.MonkeyPatch) -> None:
    options = steps(monkeypatch, 10)
    labelled, own = (fit_network(Bright2d(), slices(label=label), **options) for label in (True, False))
    for name, value in labelled.state_dict().items():
        assert torch.equal(value, own.state_dict()[name]), name


def test_the_output_at_full_resolution_is_found_and_probabilities_become_logits(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    lines: list[str] = []
    batches = slices()
    explained = fit_network(Deep2d(), batches, **{**steps(monkeypatch, 10), "tell": lines.append})
    assert "at 'whole' of 2 outputs; they are probabilities already (softmax)" in lines[0]
    image = batches[0]["image"]
    with torch.no_grad():
        p = explained.utility(image).softmax(dim=1)
        torch.testing.assert_close(p, Bright2d()(image).softmax(dim=1), atol=1e-5, rtol=0)


class Regions2d(Bright2d):
    """One logit a region: what is bright, and within it what is brighter."""

    def __init__(self, count: int) -> None:
        super().__init__()
        self.count = count

    def forward(self, x: Tensor) -> Tensor:
        logits = self.conv(x)
        return torch.cat([logits - 5 * index for index in range(self.count)], dim=1)


@pytest.mark.parametrize("count", [1, 2])
def test_regions_are_classes_as_they_are_painted(count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    batches = slices(label=False)
    network = Regions2d(count) if count == 1 else ClassLogits(Regions2d(count), "sigmoid")
    explained = fit_network(network, batches, **steps(monkeypatch, 10))
    image = batches[0]["image"]
    with torch.no_grad():
        painted = (Regions2d(count)(image) > 0).sum(dim=1, keepdim=True)
        found = segmentation(explained(image)[:, :-1])
    assert torch.equal(found, painted)
    assert painted.max() == count


def test_training_ends_with_the_minutes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(in_memory, "time_step", lambda *_: 1e-9)
    lines: list[str] = []
    start = time.perf_counter()
    fit_network(Bright2d(), slices(), minutes=0.02, sigma_max=1.0, device="cpu", tell=lines.append)
    assert time.perf_counter() - start < 15
    assert lines[-1] == "training: the minutes are over before the last step"


def test_the_callers_network_and_batches_come_back_untouched(monkeypatch: pytest.MonkeyPatch) -> None:
    network, batches = nn.Sequential(Bright2d(), nn.BatchNorm2d(2)).train(), slices()
    before, values = copy.deepcopy(network.state_dict()), copy.deepcopy(batches)
    explained = fit_network(network, batches, **steps(monkeypatch, 10))
    assert all(module.training for module in network.modules())
    assert all(parameter.requires_grad and parameter.grad is None for parameter in network.parameters())
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert all(torch.equal(a[key], b[key]) for a, b in zip(values, batches, strict=True) for key in a)
    # The frozen copy did not learn, either.
    assert all(
        torch.equal(value, before[name]) for name, value in explained.utility.network.network.state_dict().items()
    )


def test_a_wrapped_network_explains_files_from_a_loader(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "like.yaml").write_text(LIKE, encoding="utf-8")
    dataset = [{"image": image[None], "label": ball[None].astype(np.int64)} for image, ball in map(volume, range(4))]
    loader = torch.utils.data.DataLoader(dataset, batch_size=2, shuffle=True)
    network = Bright().train()
    model = unoise_monai.wrap(network, like=tmp_path / "like.yaml")
    explained = unoise_monai.fit(model, loader, **steps(monkeypatch, 10))
    assert network.training
    assert all(parameter.requires_grad for parameter in network.parameters())
    scan = write_balls(tmp_path / "balls", 1) / "imagesTr" / "ball_0.nii.gz"
    assert not explained.network.noise_model.training
    explanation = explained.explain(scan)
    assert explanation.importance.shape == (1, 20, 24, 16)
    explanation.save(tmp_path / "out")
    check_files(tmp_path / "out", scan)
    # As the bundles' own saver writes them.
    maps = {"importance": explanation.importance, "seg": explanation.segmentation}
    ImportanceSaver().save(maps, explanation.case, tmp_path / "saved")
    for path in (tmp_path / "saved").iterdir():
        assert gzip.decompress(path.read_bytes()) == gzip.decompress((tmp_path / "out" / path.name).read_bytes())


class Deep3d(nn.Module):
    """Gives a list, and asks Python what TorchScript cannot."""

    def __init__(self) -> None:
        super().__init__()
        self.bright = Bright()

    def forward(self, x: Tensor) -> list[Tensor]:
        y = self.bright(x)
        return [*(y[..., ::step, ::step, ::step] for step in (2, 4)), y]


def test_a_network_that_is_wrapped_by_tracing_comes_back_from_its_file(tmp_path: Path) -> None:
    (tmp_path / "like.yaml").write_text(LIKE, encoding="utf-8")
    with pytest.raises(ValueError, match="pass an example to trace it with"):
        unoise_monai.wrap(Deep3d(), tmp_path / "like.yaml")
    image = torch.randn(1, 1, 16, 16, 16)
    network = Deep3d()
    model = unoise_monai.wrap(network, tmp_path / "like.yaml", image)
    other = Deep3d()
    with torch.no_grad():
        other.bright.conv.bias.zero_()
    assert unoise_monai.wrap(other, tmp_path / "like.yaml", image).weights_sha256 != model.weights_sha256
    copy_model(model, tmp_path / "model")
    loaded = build({"bundle_root": str(tmp_path), "network": model.config}, "network")
    # By the same names, for the weights of a bundle.
    loaded.load_state_dict(network.state_dict())
    for found, wanted in zip(loaded(image), network(image), strict=True):
        torch.testing.assert_close(found, wanted)


def check_files(folder: Path, scan: Path) -> None:
    """Both maps of a scan lie on its grid, and the segmentation is the bright network's."""
    assert sorted(path.name for path in folder.iterdir()) == ["ball_0_importance.nii.gz", "ball_0_seg.nii.gz"]
    importance, seg = (nib.load(folder / f"ball_0_{name}.nii.gz") for name in ("importance", "seg"))
    for image in (importance, seg):
        np.testing.assert_allclose(image.affine, AFFINE, atol=1e-5)
    assert np.asarray(importance.dataobj).std() > 0
    voxels = torch.from_numpy(nib.load(scan).get_fdata(dtype=np.float32))[None, None]
    assert np.array_equal(np.asarray(seg.dataobj), Bright()(voxels).argmax(dim=1)[0].numpy())


def test_the_three_lines_of_a_notebook(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UNOISE_TRUSTED_BUNDLES", str(tmp_path / "trusted"))
    monkeypatch.setattr(module.tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(module, "time_step", lambda *_: 1.0)
    (tmp_path / "like.yaml").write_text(LIKE, encoding="utf-8")
    cases = write_balls(tmp_path / "balls")
    scan = cases / "imagesTr" / "ball_0.nii.gz"

    model = unoise_monai.wrap(Bright(), like=tmp_path / "like.yaml")
    explained = unoise_monai.fit(model, cases, minutes=0.2, device="cpu", tell=lambda _: None)
    explained.explain(scan).save(tmp_path / "out")

    check_files(tmp_path / "out", scan)
    assert isinstance(explained, Fitted)
    assert explained.believed
    assert explained.folder.parent.parent == tmp_path
    assert (explained.folder / "configs" / "inference.yaml").is_file()


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"objective": "labels"}, ValueError, "objective must be one of"),
        ({"minutes": 0}, ValueError, "minutes must be above 0, got 0"),
        ({"batches": iter(slices(batches=1))}, ValueError, r"must be a DataLoader or a list.*got list_iterator"),
        ({"batches": []}, ValueError, "batches must hold at least one, got none"),
        (
            {"batches": [{"image": torch.zeros(1, 8, 8)}]},
            ValueError,
            r"images must be \(B, C, \*spatial\).*\(1, 8, 8\)",
        ),
        ({"network": Bright2d(3)}, UnfitModel, "network must take 1 channels of 2-D volumes"),
        ({"batches": [{"image": torch.zeros(1, 1, 16, 16)}]}, UnfitModel, "must segment something"),
    ],
)
def test_what_cannot_be_fitted_is_refused(changes: dict[str, Any], error: type[Exception], message: str) -> None:
    given = {"network": Bright2d(), "batches": slices(batches=1), "device": "cpu", "tell": lambda _: None, **changes}
    with pytest.raises(error, match=message):
        fit_network(**given)


def test_options_for_files_are_refused_with_batches_and_plain_networks_with_files(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="out, labels, split and check_only must be left out with batches"):
        unoise_monai.fit(Bright2d(), slices(batches=1), tmp_path)
    with pytest.raises(ValueError, match=r"must be wrapped, see `wrap`, to read files, got Bright2d"):
        unoise_monai.fit(Bright2d(), tmp_path)


def test_the_folder_is_the_function_and_still_a_module() -> None:
    """Whatever was imported first; configurations name what is in the folder."""
    lines = "import sys, unoise_monai; assert 'torch' not in sys.modules; import unoise_monai.fit.loading"
    lines += "; from pydoc import locate; assert callable(unoise_monai.fit) and callable(unoise_monai.load)"
    lines += "; assert unoise_monai.fit.fit is not unoise_monai.fit"
    lines += "; assert locate('unoise_monai.fit.Program') is unoise_monai.fit.Program"
    subprocess.run([sys.executable, "-c", lines], check=True)
