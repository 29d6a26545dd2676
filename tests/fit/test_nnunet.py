"""The route through an nnU-Net v2 gives what nnU-Net gives, on the scan's own grid."""

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from scipy.spatial.transform import Rotation
from torch import Tensor, nn

from unoise_monai.data.cases import Case
from unoise_monai.data.nifti import write_nifti
from unoise_monai.fit import NnUNetModel, NnUNetPreprocessd, load
from unoise_monai.fit.checking import check_network, explainer_of, scan_dice
from unoise_monai.networks.outputs import ClassLogits

ROTATION = Rotation.from_euler("xyz", (20, -15, 10), degrees=True).as_matrix()
SIZE = (21, 55, 26)
CLASSES = {"background": 0, "left": 1, "right": 2}
REGIONS = {"background": 0, "kidney": [1, 2, 3], "mass": [2, 3], "tumour": 2}
MODULES = "nnunetv2", "nnunetv2.utilities.plans_handling.plans_handler"


def affine_of(spacing_mm: tuple[float, ...]) -> Any:
    """Oblique, and left-handed where one spacing is below 0."""
    return nib.affines.from_matvec(ROTATION * spacing_mm, (11.0, -7.0, 3.0))


def write_results(
    folder: Path,
    labels: dict[str, Any] = CLASSES,
    order: list[int] | None = None,
    transpose: tuple[int, ...] = (0, 1, 2),
    channels: int = 1,
    scheme: str = "ZScoreNormalization",
    reader: str = "SimpleITKIO",
    strides: Sequence[Sequence[int]] = ((1, 1, 1), (2, 2, 2)),
    patch_size: Sequence[int] = (12, 24, 16),
    spacing: Sequence[float] = (1.2, 1.0, 1.0),
) -> Path:
    """A results folder of nnU-Net, without weights."""
    out = folder / "nnUNetTrainer__nnUNetPlans__3d_fullres"
    out.mkdir(parents=True)
    names = {str(index): f"channel {index}" for index in range(channels)}
    dataset = {"channel_names": names, "labels": labels, "numTraining": 1, "file_ending": ".nii.gz"}
    if order is not None:
        dataset["regions_class_order"] = order
    (out / "dataset.json").write_text(json.dumps(dataset))
    resampling: dict[str, Any] = {}
    for name, order_of in (("data", 1), ("seg", 1), ("probabilities", 1)):
        resampling[f"resampling_fn_{name}"] = "resample_data_or_seg_to_shape"
        resampling[f"resampling_fn_{name}_kwargs"] = {"is_seg": name == "seg", "order": order_of, "order_z": 0}
        resampling[f"resampling_fn_{name}_kwargs"]["force_separate_z"] = None
    network = {
        **{
            "n_stages": len(strides),
            "features_per_stage": [4] * len(strides),
            "conv_op": "torch.nn.modules.conv.Conv3d",
        },
        **{"kernel_sizes": [[3, 3, 3]] * len(strides), "strides": strides, "n_conv_per_stage": [1] * len(strides)},
        **{"n_conv_per_stage_decoder": [1] * (len(strides) - 1), "conv_bias": True},
        **{"dropout_op": None, "dropout_op_kwargs": None},
        **{"norm_op": "torch.nn.modules.instancenorm.InstanceNorm3d", "norm_op_kwargs": {"affine": True}},
        **{"nonlin": "torch.nn.LeakyReLU", "nonlin_kwargs": {"inplace": True}},
    }
    fullres = {
        **{"preprocessor_name": "DefaultPreprocessor", "patch_size": patch_size, "spacing": spacing},
        **{"normalization_schemes": [scheme] * channels, "use_mask_for_norm": [False] * channels, "batch_size": 2},
        **resampling,
        "architecture": {
            "network_class_name": "dynamic_network_architectures.architectures.unet.PlainConvUNet",
            "arch_kwargs": network,
            "_kw_requires_import": ["conv_op", "norm_op", "dropout_op", "nonlin"],
        },
    }
    plans = {
        **{"dataset_name": "Dataset001_Phantom", "plans_name": "nnUNetPlans", "image_reader_writer": reader},
        **{"transpose_forward": list(transpose), "transpose_backward": np.argsort(transpose).tolist()},
        "configurations": {
            "2d": {**fullres, "patch_size": [24, 16], "spacing": [1.0, 1.0]},
            "3d_fullres": fullres,
            "3d_cascade_fullres": {"inherits_from": "3d_fullres", "previous_stage": "3d_lowres"},
        },
        **{"experiment_planner_used": "ExperimentPlanner", "label_manager": "LabelManager"},
        "foreground_intensity_properties_per_channel": {key: {} for key in names},
    }
    (out / "plans.json").write_text(json.dumps(plans))
    return out


@pytest.fixture
def results(tmp_path: Path) -> Any:
    """Writes a results folder with random weights."""
    pytest.importorskip("nnunetv2", reason="nnU-Net is not installed")

    def make(mirrored: tuple[int, ...] | None = (0, 1, 2), **options: Any) -> Path:
        folder = write_results(tmp_path / "results", **options)
        torch.manual_seed(0)
        network = NnUNetModel(folder).network()
        for parameter in network.parameters():
            parameter.data += 0.3 * torch.randn_like(parameter)
        (folder / "fold_0").mkdir()
        checkpoint = {
            **{"network_weights": network.state_dict(), "trainer_name": "nnUNetTrainer"},
            **{"init_args": {"configuration": "3d_fullres"}, "inference_allowed_mirroring_axes": mirrored},
            # As nnU-Net's own, which are no plain numbers.
            "logging": {"mean_fg_dice": [np.float64(0.5), np.float32(0.25)]},
        }
        torch.save(checkpoint, folder / "fold_0" / "checkpoint_final.pth")
        return folder

    return make


def predictor_of(folder: Path) -> Any:
    """nnU-Net's own predictor; in float16, as it adds windows up, ties would fall to the other side."""
    from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

    class InFloat32(nnUNetPredictor):
        def predict_sliding_window_return_logits(self, image: Tensor) -> Any:
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(torch, "half", torch.float32)
                return super().predict_sliding_window_return_logits(image)

    predictor = InFloat32(use_mirroring=True, device=torch.device("cpu"), allow_tqdm=False)
    predictor.initialize_from_trained_model_folder(str(folder), (0,), "checkpoint_final.pth")
    return predictor


@pytest.fixture
def scan(tmp_path: Path) -> Path:
    """Noise with zeros around it, oblique, of voxels of which nnU-Net's rounding of sizes meets a half."""
    noise = np.random.default_rng(0).normal(100, 20, SIZE).astype(np.float32)
    voxels = np.pad(noise, ((3, 1), (0, 0), (2, 4)))
    path = tmp_path / "scan_0000.nii.gz"
    write_nifti(path, voxels, affine_of((-0.5, 0.9, 1.3)))
    return path


def ramp(spacing_mm: tuple[float, ...], *directions: tuple[float, ...]) -> MetaTensor:
    """An image whose channels grow linearly in mm, with zeros around it."""
    affine = affine_of(spacing_mm)
    points = nib.affines.apply_affine(affine, np.stack(np.indices((14, 16, 18)), axis=-1))
    voxels = np.stack([points @ np.array(direction) + 200 for direction in directions])
    voxels[:, :3], voxels[..., -2:] = 0, 0
    return MetaTensor(torch.tensor(voxels, dtype=torch.float32), affine=torch.tensor(affine))


@pytest.mark.parametrize("transpose", [(0, 1, 2), (2, 0, 1)])
def test_the_affine_of_the_network_s_input_says_where_its_voxels_lie(results: Any, transpose: tuple[int, ...]) -> None:
    directions = (1.0, 0.0, 0.5), (-0.3, 2.0, 0.0)
    folder = results(transpose=transpose, channels=2, scheme="NoNormalization")
    image = NnUNetPreprocessd(folder, "3d_fullres")({"image": ramp((-0.8, 1.1, 1.5), *directions)})["image"]
    # Not the outermost voxels, whose neighbours beyond the image are its edge again.
    inside = (slice(2, -2),) * 3
    points = nib.affines.apply_affine(image.affine.numpy(), np.stack(np.indices(image.shape[1:]), axis=-1)[inside])
    for channel, direction in zip(image.numpy(), directions, strict=True):
        np.testing.assert_allclose(channel[inside], points @ np.array(direction) + 200, atol=1e-3)


@pytest.mark.parametrize("transpose", [(0, 1, 2), (2, 0, 1), (1, 2, 0)])
def test_the_inverse_brings_crop_and_order_of_axes_back(results: Any, transpose: tuple[int, ...]) -> None:
    folder = results(transpose=transpose, channels=2, scheme="NoNormalization")
    chain = NnUNetPreprocessd(folder, "3d_fullres")
    # Voxels of the plans: nothing is resampled.
    image = ramp(tuple(np.array([1.2, 1.0, 1.0])[np.argsort(transpose)][::-1]), (1.0, 0, 0), (0, 1.0, 0))
    prepared = chain({"image": image})
    assert prepared["image"].shape[1:] != image.shape[1:]
    back = chain.inverse(prepared)["image"]
    torch.testing.assert_close(back.as_tensor(), image.as_tensor())
    torch.testing.assert_close(back.affine, image.affine)


def test_the_inverse_brings_an_indicator_back(results: Any) -> None:
    folder = results(transpose=(2, 0, 1), scheme="NoNormalization")
    chain = NnUNetPreprocessd(folder, "3d_fullres")
    image = ramp((-0.8, 1.1, 1.5), (0.0, 0.0, 0.0))
    box = torch.zeros(image.shape, dtype=torch.bool)
    box[:, 6:11, 4:12, 5:13] = True
    image[box] = 300
    back = chain.inverse(chain({"image": image}))["image"]
    assert back.shape == image.shape
    both = ((back > 250) & box).sum()
    assert 2 * both / ((back > 250).sum() + box.sum()) > 0.9
    assert not back[image == 0].any()


@pytest.mark.parametrize("reader", ["SimpleITKIO", "SimpleITKIOWithReorient", "NibabelIO", "NibabelIOWithReorient"])
def test_the_network_gets_what_nnunet_s_gets(results: Any, scan: Path, reader: str) -> None:
    model = NnUNetModel(results(reader=reader, transpose=(0, 2, 1)))
    plans = model.plans
    preprocessor = plans.configuration.preprocessor_class(verbose=False)
    array, _, _ = preprocessor.run_case([str(scan)], None, plans.manager, plans.configuration, plans.dataset)
    image = model.preprocessing()({"image": str(scan)})["image"]
    np.testing.assert_allclose(image.numpy(), array, atol=1e-4)


ONE_PASS = {"patch_size": (32, 56, 32), "spacing": (1.3, 0.9, 0.5), "mirrored": None}
"""Where nothing is averaged or resampled: of regions that is done with the classes' logits, not with the regions'."""


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"transpose": (2, 0, 1), "reader": "NibabelIOWithReorient"},
        {"labels": REGIONS, "order": [1, 3, 2], **ONE_PASS},
        {"labels": {"background": 0, "whole": [1, 2]}, "order": [1]},
    ],
)
def test_the_segmentation_is_nnunet_s(results: Any, scan: Path, options: Any) -> None:
    folder = results(**options)
    found = load(folder)
    assert found.model.mirrored_axes == (options.get("mirrored", (0, 1, 2)) or ())
    predictor = predictor_of(folder)
    files = predictor.plans_manager.image_reader_writer_class()
    image, properties = files.read_images([str(scan)])
    files.write_seg(predictor.predict_single_npy_array(image, properties), str(scan.parent / "own.nii.gz"), properties)
    theirs = nib.load(scan.parent / "own.nii.gz")
    outputs = "sigmoid" if found.model.regions else "softmax"
    explained = explainer_of(found, ClassLogits(found.network, outputs, labels=found.model.region_labels))(scan)
    voxels, ours = np.asarray(theirs.dataobj), explained.segmentation[0].numpy()
    assert set(np.unique(voxels)) == set(range(len(found.model.class_names)))
    assert (ours != voxels).mean() < 2e-4
    np.testing.assert_allclose(explained.segmentation.affine, nib.load(scan).affine, atol=1e-6)
    np.testing.assert_allclose(explained.importance.affine, nib.load(scan).affine, atol=1e-6)


@pytest.mark.parametrize("size", [(30, 31, 40), (7, 40, 9)])
def test_windows_are_nnunet_s(results: Any, size: tuple[int, ...]) -> None:
    folder = results()
    found, predictor = load(folder), predictor_of(folder)
    image = torch.randn(1, *size, generator=torch.Generator().manual_seed(3))
    theirs = predictor.predict_logits_from_preprocessed_data(image).float()
    with torch.no_grad():
        ours = found.model.inferer()(image[None], found.network)[0]
    # nnU-Net's weights of windows are float16: the smallest, at corners, have few digits.
    apart = (ours - theirs).abs() > 2e-3 * theirs.abs().max()
    assert apart.float().mean() < 1e-3


@pytest.mark.parametrize(
    ("configuration", "message"),
    [
        ("2d", "configuration must be a 3-D one that needs no other before it, such as 3d_fullres, got 2d"),
        ("3d_cascade_fullres", "needs no other before it, such as 3d_fullres, got 3d_cascade_fullres"),
        ("3d_lowres", "must be one of the plans', 2d, 3d_fullres, 3d_cascade_fullres, got 3d_lowres"),
    ],
)
def test_other_configurations_are_refused(results: Any, configuration: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        NnUNetModel(results(), configuration)


def test_regions_that_share_a_label_are_refused(results: Any) -> None:
    with pytest.raises(ValueError, match="regions_class_order must hold each of 1 to 3 once"):
        results(labels=REGIONS, order=[1, 2, 2])


def test_another_reader_is_refused(results: Any) -> None:
    with pytest.raises(ValueError, match=r"image_reader_writer must be one of 'SimpleITKIO', .*got 'Nat"):
        results(reader="NaturalImage2DIO")


def test_a_trainer_that_nnunet_does_not_find_is_named(results: Any) -> None:
    with pytest.raises(ValueError, match="trainer must be a class that nnU-Net finds, got MyTrainer"):
        NnUNetModel(results(), trainer="MyTrainer").network()


def test_the_trainer_builds_the_network(results: Any) -> None:
    network = NnUNetModel(results(), trainer="nnUNetTrainerBN").network()
    assert any(isinstance(module, nn.BatchNorm3d) for module in network.modules())


def test_a_volume_with_fewer_slices_than_the_stride_is_checked(results: Any) -> None:
    found = load(results(strides=[(1, 1, 1), (1, 2, 2), (1, 2, 2), (2, 2, 2), (2, 2, 2)]))
    utility = check_network(found, torch.randn(1, 1, 10, 44, 40), lambda line: None)
    assert utility.stride == 16


def test_classes_have_the_labels_that_regions_are_painted_with(results: Any) -> None:
    model = NnUNetModel(results(labels=REGIONS, order=[1, 3, 2]))
    assert model.class_names == ("background", "kidney", "tumour", "mass")


@pytest.mark.parametrize(
    ("labels", "order", "others"),
    [({**CLASSES, "ignore": 3}, None, "3"), ({"background": 0, "whole": [1, 2]}, [1], "2")],
)
def test_labels_without_a_class_are_not_trained_on(results: Any, labels: Any, order: Any, others: str) -> None:
    model = NnUNetModel(results(labels=labels, order=order))
    assert model.preprocessing()
    with pytest.raises(ValueError, match=rf"to train on them, got \[{others}\] in dataset.json; use --labels model"):
        model.preprocessing(with_label=True)


def test_voxels_of_no_class_do_not_count_in_dice(results: Any, scan: Path) -> None:
    found = load(results(labels={**CLASSES, "ignore": 3}))
    utility = ClassLogits(found.network)
    label = explainer_of(found, utility)(scan).segmentation[0].numpy()
    label[5:9] = 3
    write_nifti(scan.parent / "label.nii.gz", label, nib.load(scan).affine)
    case = Case("scan", (scan,), scan.name, scan.parent / "label.nii.gz")
    assert scan_dice(found, utility, [case]) == {"scan": 1.0}


def test_without_nnunet_the_error_names_what_installs_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_results(tmp_path)
    for name in MODULES:
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ValueError, match="need nnU-Net, which is not here: pip install nnunetv2"):
        load(folder)


def test_regions_are_painted_in_order_with_their_labels() -> None:
    values = torch.randn(2, 3, 4, 5, 6, generator=torch.Generator().manual_seed(0))
    order = (1, 3, 2)
    painted = torch.zeros(2, 4, 5, 6, dtype=torch.long)
    for channel, label in enumerate(order):
        painted[values[:, channel] > 0] = label

    class Regions(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x

    classes = ClassLogits(Regions(), "sigmoid", labels=order)(values)
    torch.testing.assert_close(classes.argmax(dim=1), painted)


def test_labels_of_regions_are_numbered_from_1() -> None:
    with pytest.raises(ValueError, match=r"labels must be 1 to the number of regions, in any order, got \(1, 3\)"):
        ClassLogits(nn.Identity(), "sigmoid", labels=(1, 3))
