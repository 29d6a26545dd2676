"""What was once read wrongly, without a word, is refused or read rightly on every route."""

from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from bad_scans import BAD, two_series
from bad_volumes import nifti
from dicom_slices import PATIENT, SPACING_MM, TURN, write_series
from monai.data import DataLoader, MetaTensor
from nibabel.affines import apply_affine

from unoise_monai.data.cases import scrub
from unoise_monai.data.datasets import CaseDataset
from unoise_monai.data.finding import find_cases, find_items
from unoise_monai.data.headers import CaseError
from unoise_monai.data.reading import LoadCased, load_again
from unoise_monai.data.transforms import SegmentationTask, preprocessing, training_transforms
from unoise_monai.handlers import CaseEvaluator, ImportanceSaver, PictureSaver
from unoise_monai.inference import TiledInferer
from unoise_monai.inference.explain import Explainer, postprocessing
from unoise_monai.networks import UNet
from unoise_monai.unoise import ExplainedSegmenter

TASK = SegmentationTask("MR", ("background", "organ"), (1.0, 1.0, 1.0), (8, 8, 8))
LOAD = LoadCased(["image"], labels=2, spacing_mm=TASK.spacing_mm)


def explained(item: dict) -> MetaTensor:
    networks = UNet(3, 1, 2, depth=2, channel_factor=2), UNet(3, 1, 1, depth=2, channel_factor=2)
    return Explainer(ExplainedSegmenter(*networks), preprocessing(TASK, with_label=False))(item["image"]).importance


ROUTES: dict[str, Callable[[dict], MetaTensor]] = {
    "LoadCased": lambda item: LOAD(item)["image"],
    "preprocessing": lambda item: preprocessing(TASK, with_label=False)(item)["image"],
    "training": lambda item: training_transforms(preprocessing(TASK), TASK.patch_size)(
        {**item, "label": item["image"]}
    )[0]["image"],
    "Explainer": explained,
}


@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize("name", BAD)
def test_refused(tmp_path: Path, name: str, route: str) -> None:
    write, reason = BAD[name]
    folder = tmp_path / "in"
    write(folder)
    file = folder / "scan.nii"
    with pytest.raises(CaseError, match=reason):
        ROUTES[route]({"image": str(file if file.exists() else folder)})


@pytest.mark.parametrize("name", [name for name in BAD if name != "two series"])
def test_refused_as_found_in_a_folder_and_no_message_names_it(tmp_path: Path, name: str) -> None:
    write, reason = BAD[name]
    write(tmp_path / PATIENT)
    (case,) = find_cases(tmp_path / PATIENT, key=b"k" * 32)
    for route in (LOAD, preprocessing(TASK)):
        with pytest.raises(CaseError, match=reason) as caught:
            route(case.item())
        assert str(caught.value).startswith(f"case {case.name}: ")
        assert PATIENT not in scrub(str(caught.value), case)
        assert not case.series or PATIENT not in str(caught.value)


def test_two_series_in_a_folder_are_two_cases(tmp_path: Path) -> None:
    two_series(tmp_path)
    items = find_items(tmp_path)
    volumes = [LOAD(item)["image"] for item in items]
    assert {volume.shape[-1] for volume in volumes} == {6, 3}
    for volume, item in zip(volumes, items, strict=True):
        assert volume.meta["case"] == item["case"]
        assert volume.meta["filename_or_obj"] == str(tmp_path)
        np.testing.assert_array_equal(load_again(volume.meta), volume[0])


def test_what_is_written_of_two_series_in_a_folder(tmp_path: Path) -> None:
    """In a bundle's own run, whose savers see what the loader made batches of."""
    two_series(tmp_path / "in")
    items, output = find_items(tmp_path / "in"), tmp_path / "out"
    network, chain = ExplainedSegmenter(UNet(3, 1, 2, 2, 2), UNet(3, 1, 1, 2, 2)), preprocessing(TASK, with_label=False)
    CaseEvaluator(
        output,
        device=torch.device("cpu"),
        val_data_loader=DataLoader(CaseDataset(items, chain), batch_size=1),
        network=network,
        inferer=TiledInferer(),
        postprocessing=postprocessing(chain),
        val_handlers=[ImportanceSaver(output), PictureSaver(output, ["mip"])],
        decollate=True,
    ).run()
    for case in (item["case"] for item in items):
        assert {path.name for path in (output / case).iterdir()} == {
            f"{case}_importance.nii.gz",
            f"{case}_seg.nii.gz",
            f"{case}_mip.png",
        }


def test_a_tilted_gantry_stays_tilted(tmp_path: Path) -> None:
    """Every voxel lies where its slice's header puts it, in what is read and in the map that is made of it."""
    step = 2.0 * TURN[:, 2] + 0.5 * TURN[:, 1]
    write_series(tmp_path / "in", step_mm=step.tolist())
    for volume in (ROUTES["LoadCased"]({"image": str(tmp_path / "in")}), explained({"image": str(tmp_path / "in")})):
        assert volume.shape == (1, 12, 10, 6)
        for number in range(6):
            lps = np.array([10.0, -20.0, 30.0]) + number * step + TURN[:, :2] @ (np.array(SPACING_MM) * (4, 7))
            found = apply_affine(volume.affine.numpy(), (4, 7, number))
            np.testing.assert_allclose(found, np.diag([-1, -1, 1]) @ lps, atol=1e-5)


def test_a_series_is_the_same_by_its_folder_by_its_files_and_as_nifti(tmp_path: Path) -> None:
    paths = write_series(tmp_path / "in")
    folder, files = (LOAD({"case": "x", "image": source})["image"] for source in (str(tmp_path / "in"), [*paths]))
    nib.save(nib.Nifti1Image(folder[0].numpy(), folder.affine.numpy()), tmp_path / "scan.nii")
    file = LOAD({"image": str(tmp_path / "scan.nii")})["image"]
    for volume in (files, file):
        np.testing.assert_array_equal(volume.numpy(), folder.numpy())
        np.testing.assert_array_equal(volume.affine.numpy(), folder.affine.numpy())
    assert folder.meta["filename_or_obj"] == files.meta["filename_or_obj"] == str(tmp_path / "in")


def test_what_will_not_fit_on_the_network_s_grid_is_refused(tmp_path: Path) -> None:
    write_series(tmp_path / "in")
    (tmp_path / "scan.nii").write_bytes(nifti())
    for source in (tmp_path / "in", tmp_path / "scan.nii"):
        with pytest.raises(CaseError, match=r"resampled to \(0.0001, .* must fit in this machine's memory"):
            LoadCased(["image"], labels=2, spacing_mm=(1e-4, 1e-4, 1e-4))({"image": str(source)})
