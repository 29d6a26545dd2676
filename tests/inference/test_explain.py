"""Importance and segmentation lie on the file's own grid, and each value in its own voxel."""

from collections.abc import Hashable, Mapping
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
import torch
from monai.data import MetaTensor
from monai.inferers import Inferer, SimpleInferer
from monai.transforms import Compose, EnsureChannelFirstd, LoadImaged, Orientationd
from nibabel.affines import apply_affine, from_matvec, voxel_sizes
from nibabel.eulerangles import euler2mat
from tasks import hippocampus
from torch import Tensor, nn

from unoise_monai.data import CaseError, SegmentationTask, preprocessing
from unoise_monai.data.reading import CaseCompose
from unoise_monai.inference import TiledInferer
from unoise_monai.inference.explain import Explainer, SplitExplanationd, postprocessing
from unoise_monai.unoise import ExplainedSegmenter

SHARED = Path(__file__).resolve().parents[3] / "shared" / "data"
# Oblique, anisotropic, left-handed, away from the origin.
AFFINE = from_matvec(euler2mat(0.4, -0.3, 0.2) @ np.diag([0.9, 1.2, -2.0]), [41.3, -20.7, 33.1])
SHAPE = (25, 21, 14)
TASK = SegmentationTask("CT", ("background", "organ"), (1.0, 1.5, 1.25), (16, 16, 16), (-100.0, 100.0))
SAME_GRID = SegmentationTask("CT", TASK.labels, tuple(voxel_sizes(AFFINE).tolist()), TASK.patch_size, TASK.ct_window_hu)


def chain(task: SegmentationTask = TASK) -> CaseCompose:
    return preprocessing(task, with_label=False)


class Voxelwise(nn.Module):
    """A 1x1x1 convolution with fixed weights: what it gives for a voxel is known from its intensity."""

    stride = 1
    halo = 0

    def __init__(self, *weights: float) -> None:
        super().__init__()
        self.dropout = nn.Dropout(0.5)
        self.convolution = nn.Conv3d(1, len(weights), 1, bias=False)
        with torch.no_grad():
            self.convolution.weight.copy_(torch.tensor(weights).view(-1, 1, 1, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.convolution(self.dropout(x))


def segmenter(*weights: float) -> ExplainedSegmenter:
    """Its importance is ``sigmoid(x)`` of the normalised intensity x."""
    return ExplainedSegmenter(Voxelwise(*weights), Voxelwise(-1.0))


def explainer(network: ExplainedSegmenter, task: SegmentationTask = TASK) -> Explainer:
    return Explainer(network, chain(task), TiledInferer(precision="fp32"))


def importance_of(hounsfield: np.ndarray) -> np.ndarray:
    """What `segmenter` must give under `TASK`'s window."""
    return 1 / (1 + np.exp(-np.clip(hounsfield / 50, -2, 2)))


@pytest.fixture
def scan(tmp_path: Path) -> Path:
    """Smooth, and different under every flip and every exchange of axes."""
    mm = apply_affine(AFFINE, np.moveaxis(np.indices(SHAPE), 0, -1)) - apply_affine(AFFINE, np.array(SHAPE) / 2)
    hounsfield = 90 * np.sin(mm[..., 0] / 6 + 0.5) * np.cos(mm[..., 1] / 9 + 0.7) + 2 * mm[..., 2]
    path = tmp_path / "scan_3.nii.gz"
    nib.save(nib.Nifti1Image(hounsfield.astype(np.float32), AFFINE), path)
    return path


@pytest.mark.parametrize("weights", [(-1.0, 1.0), (1.0,)])
def test_values_lie_in_their_voxels(scan: Path, weights: tuple[float, ...]) -> None:
    hounsfield = np.asarray(nib.load(scan).dataobj)
    explanation = explainer(segmenter(*weights))(scan)
    assert explanation.case == "scan_3"
    for volume in (explanation.importance, explanation.segmentation):
        assert volume.shape == (1, *SHAPE)
        np.testing.assert_allclose(volume.affine, AFFINE, atol=1e-5)
    importance, truth = explanation.importance[0].numpy(), importance_of(hounsfield)
    # What is left is the interpolation to the task's spacing and back.
    assert np.corrcoef(importance.ravel(), truth.ravel())[0, 1] > 0.99
    assert np.abs(importance - truth).mean() < 0.01
    for axis in range(3):
        assert np.corrcoef(np.flip(importance, axis).ravel(), truth.ravel())[0, 1] < 0.9
    segmentation = explanation.segmentation[0].numpy()
    assert set(np.unique(segmentation)) == {0, 1}
    assert (segmentation == (hounsfield > 0)).mean() > 0.98


def test_nothing_is_lost_on_the_networks_own_spacing(scan: Path) -> None:
    hounsfield = np.asarray(nib.load(scan).dataobj)
    explanation = explainer(segmenter(-1.0, 1.0), SAME_GRID)(scan)
    np.testing.assert_allclose(explanation.importance[0].numpy(), importance_of(hounsfield), atol=1e-4)
    np.testing.assert_array_equal(explanation.segmentation[0].numpy(), hounsfield > 0)


def test_types_and_ranges(scan: Path) -> None:
    explanation = explainer(ExplainedSegmenter(Voxelwise(-1.0, 1.0), Voxelwise(-50.0)))(scan)
    assert explanation.importance.dtype == torch.float32
    assert explanation.segmentation.dtype == torch.uint8
    assert float(explanation.importance.min()) >= 0
    assert float(explanation.importance.max()) <= 1
    assert explanation.importance.meta["filename_or_obj"] == str(scan)


def test_classes_are_decided_from_interpolated_logits(scan: Path) -> None:
    """The middle logit is never the largest, but interpolated class indices would pass through it."""
    explanation = explainer(segmenter(-1.0, 0.0, 1.0))(scan)
    assert set(explanation.segmentation.unique().tolist()) == {0, 2}


class Failing(Inferer):
    def __call__(self, inputs: Tensor, network: nn.Module, *args: object, **kwargs: object) -> Tensor:
        assert not network.training
        raise MemoryError("no room")


@pytest.mark.parametrize("mode", [True, False])
def test_the_network_comes_back_in_its_mode(scan: Path, mode: bool) -> None:
    network = segmenter(-1.0, 1.0).train(mode)
    network.noise_model.dropout.train(not mode)
    before = {name: module.training for name, module in network.named_modules()}
    values = explainer(network)(scan).importance
    assert {name: module.training for name, module in network.named_modules()} == before
    # In evaluation mode the dropout is off.
    torch.testing.assert_close(values, explainer(network.eval())(scan).importance)
    network.train(mode).noise_model.dropout.train(not mode)
    with pytest.raises(MemoryError, match="no room"):
        Explainer(network, chain(), Failing())(scan)
    assert {name: module.training for name, module in network.named_modules()} == before


def test_any_inferer_will_do(scan: Path) -> None:
    class Plain(Inferer):
        def __call__(self, inputs: Tensor, network: nn.Module, *args: object, **kwargs: object) -> Tensor:
            return network(inputs.as_tensor())

    expected = explainer(segmenter(-1.0, 1.0))(scan).importance
    for inferer in (Plain(), SimpleInferer()):
        actual = Explainer(segmenter(-1.0, 1.0), chain(), inferer)(scan).importance
        torch.testing.assert_close(actual.as_tensor(), expected.as_tensor())


def test_default_inferer_and_device(scan: Path) -> None:
    explanation = Explainer(segmenter(-1.0, 1.0), chain())(scan)
    assert explanation.importance.device.type == "cpu"
    hounsfield = np.asarray(nib.load(scan).dataobj)
    assert np.abs(explanation.importance[0].numpy() - importance_of(hounsfield)).mean() < 0.02


def test_any_chain_and_any_way_back_will_do(scan: Path) -> None:
    """MONAI's own transforms, and a postprocessing that gives something else."""
    plain = Compose([LoadImaged("image"), EnsureChannelFirstd("image"), Orientationd("image", "RAS", labels=None)])

    def decided(item: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        restored = postprocessing(plain)(item)
        return {**restored, "importance": (restored["importance"] > 0.5).float()}

    explanation = Explainer(segmenter(-1.0, 1.0), plain, TiledInferer(precision="fp32"), decided)(scan)
    intensity = np.asarray(nib.load(scan).dataobj)
    assert explanation.case == "scan_3"
    np.testing.assert_array_equal(explanation.importance[0].numpy(), 1 / (1 + np.exp(-intensity)) > 0.5)
    np.testing.assert_array_equal(explanation.importance.affine, nib.load(scan).affine)


def test_a_map_goes_back_to_the_grid_of_the_file(scan: Path) -> None:
    """As the importance does, if by another way: of the same values the same."""
    run = explainer(segmenter(-1.0, 1.0))
    item = run.preprocess({"image": str(scan), "case": "a"})
    pred = run.predict(item["image"])
    assert pred.shape == (3, *item["image"].shape[1:])
    expected = run(scan).importance
    restored = run.on_file_grid(pred[None, -1:], item)
    assert restored.shape == (1, *SHAPE)
    np.testing.assert_allclose(restored.as_tensor(), expected.as_tensor(), atol=1e-6)
    np.testing.assert_array_equal(restored.affine, nib.load(scan).affine)
    # The item is as it was: another map of it goes the same way.
    torch.testing.assert_close(run.on_file_grid(pred[None, -1:], item), restored)


def test_errors_name_the_case(scan: Path) -> None:
    run = explainer(segmenter(-1.0, 1.0))
    voxels = np.asarray(nib.load(scan).dataobj).copy()
    voxels[0, 0, 0] = np.nan
    nib.save(nib.Nifti1Image(voxels, AFFINE), scan)
    with pytest.raises(CaseError, match=r"case scan_3: image file .*scan_3.nii.gz must hold finite voxels, got 1"):
        run(scan)
    nib.save(nib.Nifti1Image(np.zeros((4, 4, 4, 3), np.float32), AFFINE), scan)
    with pytest.raises(CaseError, match=r"case scan_3: image file .* must be a 3-D volume, got shape \(4, 4, 4, 3\)"):
        run(scan)
    scan.write_bytes(scan.read_bytes()[:50])
    with pytest.raises(CaseError, match=r"case scan_3: image file .* is unreadable"):
        run(scan)
    scan.unlink()
    with pytest.raises(CaseError, match=r"case scan_3: image file .* is missing"):
        run(scan)


def test_split_takes_the_files_own_affine() -> None:
    rounded = torch.from_numpy(AFFINE + 1e-4)
    pred = MetaTensor(torch.tensor([0.0, 2.0, 1.1]).view(3, 1, 1, 1), affine=rounded, meta={"original_affine": AFFINE})
    item = SplitExplanationd()({"pred": pred, "case": "a"})
    assert set(item) == {"case", "importance", "seg"}
    assert float(item["importance"]) == 1
    assert int(item["seg"]) == 1
    for key in ("importance", "seg"):
        np.testing.assert_array_equal(item[key].affine, AFFINE)


def test_real_series() -> None:
    folder = SHARED / "dicom_series"
    if not folder.is_dir():
        pytest.skip(f"real data is not there: {folder}")
    reader = sitk.ImageSeriesReader()
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(folder)))
    series = reader.Execute()
    explanation = explainer(segmenter(-1.0, 1.0), hippocampus())(folder)
    assert explanation.case == "dicom_series"
    assert explanation.importance.shape == (1, *series.GetSize()) == (1, 35, 51, 32)
    # DICOM counts millimetres to the left and to the back, NIfTI to the right and to the front.
    lps_to_ras = np.diag([-1.0, -1.0, 1.0])
    steps = np.reshape(series.GetDirection(), (3, 3)) @ np.diag(series.GetSpacing())
    expected = from_matvec(lps_to_ras @ steps, lps_to_ras @ series.GetOrigin())
    np.testing.assert_allclose(explanation.importance.affine, expected, atol=1e-5)
    voxels = sitk.GetArrayFromImage(series).T.astype(float)
    normalised = (voxels - voxels[voxels != 0].mean()) / voxels[voxels != 0].std()
    truth = np.where(voxels != 0, 1 / (1 + np.exp(-normalised)), 0.5)
    np.testing.assert_allclose(explanation.importance[0].numpy(), truth, atol=1e-3)
