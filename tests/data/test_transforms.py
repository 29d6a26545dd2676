"""A volume becomes a network's input in one way, and every voxel keeps its place in the patient."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from nibabel.affines import apply_affine, voxel_sizes
from tasks import hippocampus, pancreas

from unoise_monai.data.finding import list_cases
from unoise_monai.data.headers import CaseError
from unoise_monai.data.transforms import SegmentationTask, preprocessing, scaled_to_percentile, training_transforms

Write = Callable[..., Path]
CT = SegmentationTask("CT", ("background", "organ", "tumour"), (1.0, 1.5, 1.25), (16, 16, 16), (-200.0, 300.0))
MR = SegmentationTask("MR", ("background", "organ", "tumour"), (1.0, 1.0, 1.0), (16, 16, 16))
SHAPE = (24, 20, 14)


def places(shape: tuple[int, ...], affine: np.ndarray) -> np.ndarray:
    """Where every voxel lies, in RAS mm, ``(*shape, 3)``."""
    return apply_affine(affine, np.moveaxis(np.indices(shape), 0, -1))


def ramp(mm: np.ndarray) -> np.ndarray:
    """Hounsfield units that tell every direction apart; linear, so that interpolation keeps them."""
    return 3.0 * (mm[..., 0] - 41) + 1.5 * (mm[..., 1] + 20) - 2.0 * (mm[..., 2] - 33)


@pytest.fixture
def case(tmp_path: Path, write: Write, affine: np.ndarray) -> dict[str, str]:
    """A ramp, with a box of label 1 in the middle whose first half along x is label 2."""
    mm = places(SHAPE, affine)
    label = np.zeros(SHAPE, np.uint8)
    label[6:18, 5:15, 4:10] = 1
    label[6:12, 5:15, 4:10] = 2
    image = write(tmp_path / "imagesTr/case_1.nii.gz", ramp(mm).astype(np.float32))
    return {"case": "case_1", "image": str(image), "label": str(write(tmp_path / "labelsTr/case_1.nii.gz", label))}


def test_every_voxel_keeps_its_place(case: dict[str, str], affine: np.ndarray) -> None:
    item = preprocessing(CT)(case)
    image, label = item["image"], item["label"]
    assert image.dtype == label.dtype == torch.float32
    assert image.shape == label.shape
    assert nib.aff2axcodes(image.affine.numpy()) == ("R", "A", "S")
    np.testing.assert_allclose(voxel_sizes(image.affine.numpy()), CT.spacing_mm, atol=1e-5)
    # Where the voxels of the result lay in the file; beyond its outermost centres the edge is repeated.
    mm = places(image.shape[1:], image.affine.numpy())
    source = apply_affine(np.linalg.inv(affine), mm)
    inside = ((source >= 0) & (source <= np.array(SHAPE) - 1)).all(axis=-1)
    assert inside.mean() > 0.7
    expected = ramp(mm) / 500 * 4 - 0.4
    np.testing.assert_allclose(image[0].numpy()[inside], expected[inside], atol=2e-3)
    nearest = np.clip(np.rint(source), 0, np.array(SHAPE) - 1).astype(int)
    labels = np.asarray(nib.load(case["label"]).dataobj)[tuple(np.moveaxis(nearest, -1, 0))]
    # Centres that lie half way between two voxels may go either way.
    assert (label[0].numpy() == labels).mean() > 0.99
    assert set(label.unique().tolist()) == {0, 1, 2}


def test_inference_reads_as_training_does(case: dict[str, str]) -> None:
    labelled = preprocessing(MR)(case)
    alone = preprocessing(MR, with_label=False)({"case": "case_1", "image": case["image"]})
    assert torch.equal(labelled["image"].as_tensor(), alone["image"].as_tensor())
    assert torch.equal(labelled["image"].affine, alone["image"].affine)
    whole = replace(MR, patch_size=alone["image"].shape[1:])
    crop = training_transforms(preprocessing(whole), whole.patch_size, augment=False)(case)[0]
    assert torch.equal(crop["image"], alone["image"].as_tensor())
    assert torch.equal(crop["label"], labelled["label"].as_tensor())
    # A case without a label passes the labelled chain too.
    assert "label" not in preprocessing(MR)({"case": "case_1", "image": case["image"]})


def test_ct_window(case: dict[str, str], write: Write) -> None:
    voxels = np.full(SHAPE, 50.0, np.float32)
    voxels[:, :10] = -1000
    voxels[:, 16:] = 3000
    write(Path(case["image"]), voxels)
    image = preprocessing(CT)(case)["image"]
    assert image.min() == -2
    assert image.max() == 2
    assert ((image - 0).abs() < 1e-6).float().mean() > 0.1, "50 HU, the middle of the window, must become 0"


def test_z_score_of_the_foreground(case: dict[str, str], write: Write, affine: np.ndarray) -> None:
    voxels = np.random.default_rng(0).normal(700, 90, SHAPE).astype(np.float32)
    voxels[:4] = 0
    write(Path(case["image"]), voxels)
    same_grid = replace(MR, spacing_mm=voxel_sizes(affine).tolist())
    image = preprocessing(same_grid)(case)["image"].as_tensor()
    foreground = image[image != 0]
    assert foreground.numel() == (voxels != 0).sum()
    assert abs(float(foreground.mean())) < 1e-4
    assert float(foreground.std()) == pytest.approx(1, abs=1e-3)


def test_top_percentile(case: dict[str, str], write: Write, affine: np.ndarray) -> None:
    """Whether the soft tissue is there or not, background is -1 and the vessels' top 3."""
    same_grid = replace(MR, spacing_mm=voxel_sizes(affine).tolist(), top_percentile=99.5)
    for tissue in (300, 0):
        voxels = np.full(SHAPE, tissue, np.float32)
        voxels[:4] = 0
        voxels[10:13, 8:12, 4:9] = 900
        voxels[11, 9, 5] = 5000
        write(Path(case["image"]), voxels)
        image = preprocessing(same_grid)(case)["image"].as_tensor()
        expected = np.minimum(voxels / 900 * 4 - 1, 3)
        np.testing.assert_allclose(np.unique(image.numpy().round(4)), np.unique(expected.round(4)), atol=1e-4)
        assert float(image.mean()) == pytest.approx(float(expected.mean()), abs=1e-3)


def test_a_percentile_of_background_gives_way_to_the_highest(case: dict[str, str], write: Write) -> None:
    voxels = np.zeros(SHAPE, np.float32)
    voxels[12, 9, 5] = 7
    write(Path(case["image"]), voxels)
    image = preprocessing(replace(MR, top_percentile=99.0))(case)["image"]
    assert torch.isfinite(image).all()
    assert image.min() == -1
    assert image.max() == 3


def test_the_bias_is_corrected_where_the_task_says_so(case: dict[str, str]) -> None:
    names = [type(step).__name__ for step in preprocessing(MR).transforms]
    corrected = [type(step).__name__ for step in preprocessing(replace(MR, bias_correction=True)).transforms]
    assert "N4BiasCorrectiond" not in names
    assert corrected.index("Orientationd") < corrected.index("N4BiasCorrectiond") < corrected.index("Spacingd")


def test_a_constant_volume_is_refused(case: dict[str, str], write: Write) -> None:
    for value in (0, 7):
        write(Path(case["image"]), np.full(SHAPE, value, np.float32))
        with pytest.raises(CaseError, match=f"case case_1: image file .* must not be constant, got {value} everywhere"):
            preprocessing(MR)(case)


@pytest.mark.parametrize(("sampling", "share"), [("foreground", 0.5), ("uniform", 0.0)])
def test_crops_are_centred_on_the_foreground_or_anywhere(
    case: dict[str, str], write: Write, sampling: str, share: float
) -> None:
    label = np.zeros(SHAPE, np.uint8)
    label[11:13, 9:11, 6:8] = 1
    write(Path(case["label"]), label)
    small = replace(MR, patch_size=(4, 4, 4))
    found = training_transforms(preprocessing(small), small.patch_size, samples=60, augment=False, sampling=sampling)
    centred = [bool(crop["label"][0, 2, 2, 2]) for crop in found.set_random_state(0)(case)]
    assert abs(np.mean(centred) - share) < 0.15
    assert all(crop["image"].shape == (1, 4, 4, 4) for crop in found(case))


def test_an_unknown_sampling_is_refused() -> None:
    with pytest.raises(ValueError, match="sampling must be one of 'foreground', 'uniform', got 'dense'"):
        training_transforms(preprocessing(MR), MR.patch_size, sampling="dense")


def test_labels_are_merged_or_kept_apart(case: dict[str, str]) -> None:
    apart = preprocessing(MR)(case)["label"]
    merged = preprocessing(replace(MR, merge_labels=True))(case)["label"]
    assert set(apart.unique().tolist()) == {0, 1, 2}
    assert torch.equal(merged.as_tensor(), (apart.as_tensor() > 0).float())


def test_label_values_are_checked_before_merging(case: dict[str, str], write: Write) -> None:
    write(Path(case["label"]), np.full(SHAPE, 3, np.uint8))
    with pytest.raises(CaseError, match=r"case case_1: label file .* must hold the task's values 0 to 2, got \[3.0\]"):
        preprocessing(replace(MR, merge_labels=True))(case)


@pytest.mark.parametrize("patch", [(16, 16, 16), (64, 8, 40), (64, 64, 64)])
@pytest.mark.parametrize("augment", [True, False])
def test_crops_have_the_patch_size(case: dict[str, str], patch: tuple[int, ...], augment: bool) -> None:
    task = replace(CT, patch_size=patch)
    crops = training_transforms(
        preprocessing(task), task.patch_size, samples=3, augment=augment, flip_axes=(1,)
    ).set_random_state(0)(case)
    assert len(crops) == 3
    for crop in crops:
        assert crop["image"].shape == crop["label"].shape == (1, *patch)
        assert type(crop["image"]) is type(crop["label"]) is torch.Tensor
        assert torch.isfinite(crop["image"]).all()
        assert set(crop["label"].unique().tolist()) <= {0, 1, 2}
    [other] = training_transforms(preprocessing(task), patch_size=(8, 16, 12))(case)
    assert other["image"].shape == (1, 8, 16, 12)


def test_small_volumes_are_padded_with_their_edge_and_background(case: dict[str, str]) -> None:
    whole = preprocessing(CT)(case)
    size = np.array(whole["image"].shape[1:])
    task = replace(CT, patch_size=(size + 6).tolist())
    crop = training_transforms(preprocessing(task), task.patch_size, augment=False)(case)[0]
    inner = (0, *(slice(3, 3 + side) for side in size))
    assert torch.equal(crop["image"][inner], whole["image"].as_tensor()[0])
    assert torch.equal(crop["image"][0, 0], crop["image"][0, 3])
    assert crop["label"].sum() == whole["label"].sum()


def test_empty_foreground_still_gives_crops(case: dict[str, str], write: Write) -> None:
    write(Path(case["label"]), np.zeros(SHAPE, np.uint8))
    crop = training_transforms(preprocessing(CT), CT.patch_size)(case)[0]
    assert crop["image"].shape == (1, 16, 16, 16)
    assert crop["label"].max() == 0


def test_augmentation_moves_image_and_label_together(case: dict[str, str], write: Write) -> None:
    label = np.asarray(nib.load(case["label"]).dataobj) > 0
    write(Path(case["label"]), label.astype(np.uint8))
    write(Path(case["image"]), np.where(label, 300, -200).astype(np.float32))
    task = replace(CT, patch_size=(24, 20, 24))
    chain = training_transforms(preprocessing(task), task.patch_size, samples=8, flip_axes=(0, 2)).set_random_state(1)
    dice, labels = [], []
    for crop in chain(case):
        middle = (crop["image"].min() + crop["image"].max()) / 2
        seen, truth = crop["image"] > middle, crop["label"] > 0
        dice.append(2 * float((seen & truth).sum()) / float(seen.sum() + truth.sum()))
        labels.append(truth)
    assert min(dice) > 0.85
    assert any(not torch.equal(labels[0], other) for other in labels[1:])


def test_real_hippocampus(shared: Callable[[str], Path]) -> None:
    folder = shared("Task04_Hippocampus")
    task = hippocampus()
    for case in list_cases(folder, check_headers=False)[:2]:
        item = preprocessing(task)(case)
        assert abs(float(item["image"].mean())) < 0.1
        assert float(item["image"].std()) == pytest.approx(1, abs=0.1)
        assert set(item["label"].unique().tolist()) == {0, 1, 2}
        crop = training_transforms(preprocessing(task), task.patch_size)(case)[0]
        assert crop["image"].shape == (1, 48, 64, 48)
        assert crop["label"].max() > 0


def test_real_abdomen(shared: Callable[[str], Path]) -> None:
    folder = shared("abdomen_ct")
    (case,) = list_cases(folder)
    item = preprocessing(pancreas())(case)
    assert item["image"].shape == (1, 122, 101, 112)
    assert (float(item["image"].min()), float(item["image"].max())) == (-2, 2)
    assert set(item["label"].unique().tolist()) == {0, 1}
    image, label = (np.asarray(nib.load(case[key]).dataobj) for key in ("image", "label"))
    hounsfield = np.clip(image[label > 0], -96, 215)
    organ = item["image"][item["label"] > 0]
    assert float(organ.mean()) == pytest.approx((hounsfield.mean() + 96) / 311 * 4 - 2, abs=0.01)


def test_where_nearly_all_is_background_the_highest_stands_for_the_percentile() -> None:
    image = torch.zeros(1, 10, 10, 10)
    image[0, 0, 0, :3] = torch.tensor([1.0, 2.0, 4.0])
    scaled = scaled_to_percentile(image, 99.0)
    assert scaled[0, 0, 0, :4].tolist() == [0.0, 1.0, 3.0, -1.0]
