"""What is written lies on the file's grid, and the record says what it is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from PIL import Image
from unoise_monai.runs.comparison import load_case

from unoise_monai.attribution import Saliency, foreground_sum
from unoise_monai.bundle import LoadedBundle
from unoise_monai.data.cases import CohortCase
from unoise_monai.inference import Explainer, TiledInferer
from unoise_monai.inference.tiling import VolumeNetwork
from unoise_monai.runs.explain import CohortExplainer
from unoise_monai.runs.load import load
from unoise_monai.runs.records import Records, State, fingerprint
from unoise_monai.runs.save import CaseWriter
from unoise_monai.runs.settings import Settings

Make = Callable[..., Settings]


@pytest.fixture
def written(
    bundle: LoadedBundle, settings: Make, cases: list[CohortCase], tmp_path: Path
) -> Callable[..., tuple[CohortCase, dict]]:
    def make(case: CohortCase | None = None, **changes: object) -> tuple[CohortCase, dict]:
        chosen = next(each for each in cases if each.label) if case is None else case
        explainer = CohortExplainer(bundle, settings(**changes), torch.device("cpu"))
        return chosen, CaseWriter(explainer, tmp_path)(explainer(load(chosen, explainer.task)))

    return make


def test_the_files_are_those_of_the_explainer(
    written: Callable[..., tuple[CohortCase, dict]], bundle: LoadedBundle, tmp_path: Path
) -> None:
    case, record = written(methods=("saliency",))
    expected = Explainer(bundle.segmenter, bundle.task, TiledInferer(precision="fp32"))(case.files[0])
    folder = tmp_path / case.name
    scan = nib.load(case.files[0])
    for name, voxels in (("importance", expected.importance), ("seg", expected.segmentation), ("saliency", None)):
        found = nib.load(folder / f"{case.name}_{name}.nii.gz")
        assert found.shape == scan.shape
        np.testing.assert_allclose(found.affine, scan.affine, atol=1e-5)
        if voxels is not None:
            np.testing.assert_allclose(found.get_fdata(), voxels[0].numpy(), atol=1e-6)
    volumes = load_case({"case": case.name, "image": str(case.files[0])}, bundle.task, torch.device("cpu"))
    logits = VolumeNetwork(bundle.segmenter.utility)(volumes.image.as_tensor()).detach()
    values = Saliency(bundle.segmenter.utility)(volumes.image, foreground_sum(logits))
    saliency = nib.load(folder / f"{case.name}_saliency.nii.gz").get_fdata()
    np.testing.assert_allclose(saliency, volumes.on_file_grid(values)[0].numpy(), rtol=1e-4, atol=1e-5)
    assert sorted(record["files"]) == sorted(path.name for path in folder.iterdir())
    assert len(record["files"]) == 7
    assert record["files"] == {path.name: fingerprint([path]) for path in folder.iterdir()}


def test_pictures_show_something(written: Callable[..., tuple[CohortCase, dict]], tmp_path: Path) -> None:
    case, _ = written()
    for picture in ("mip", "montage"):
        pixels = np.asarray(Image.open(tmp_path / case.name / f"{case.name}_{picture}.png"))
        assert pixels.std() > 5


def test_the_record_has_figures_and_is_kept(
    written: Callable[..., tuple[CohortCase, dict]], tmp_path: Path, settings: Make
) -> None:
    case, record = written(images=False)
    records = Records(tmp_path)
    assert records.read(case.name) == record
    assert records.state(case, settings(images=False).digest) is State.DONE
    assert 0 <= record["figures"]["dice"] <= 1
    found = nib.load(tmp_path / case.name / f"{case.name}_seg.nii.gz")
    volume_ml = (np.asarray(found.dataobj) == 1).sum() * 15.0 * 16.0 * 18.0 / 1000
    assert record["figures"]["volume_ml_pancreas+cancer"] == pytest.approx(volume_ml, rel=1e-4)


def test_written_again_without_pictures_leaves_none(
    written: Callable[..., tuple[CohortCase, dict]], tmp_path: Path
) -> None:
    case, _ = written()
    written(images=False)
    assert sorted(path.suffix for path in (tmp_path / case.name).iterdir()) == [".gz", ".gz"]


def test_a_quantity_takes_the_importance_s_place(
    written: Callable[..., tuple[CohortCase, dict]], tmp_path: Path
) -> None:
    case, _ = written(images=False)
    importance = nib.load(tmp_path / case.name / f"{case.name}_importance.nii.gz").get_fdata()
    written(images=False, quantity="tolerance")
    tolerance = nib.load(tmp_path / case.name / f"{case.name}_tolerance.nii.gz").get_fdata()
    np.testing.assert_allclose(tolerance, 1 - importance, atol=1e-6)
    assert not (tmp_path / case.name / f"{case.name}_importance.nii.gz").exists()


def test_no_path_of_the_input_is_in_what_is_written(
    written: Callable[..., tuple[CohortCase, dict]], cases: list[CohortCase], tmp_path: Path
) -> None:
    _, record = written(replace(cases[0], name="case-1", shown="case-1"))
    words = {str(cases[0].files[0].parent).encode(), cases[0].files[0].name.encode()}
    kept = [str(record).encode()]
    for path in (tmp_path / "case-1").iterdir():
        kept.append(nib.load(path).header.binaryblock if path.suffix == ".gz" else path.read_bytes())
    assert not any(word in block for word in words for block in kept)


def test_volumes_of_a_sheared_grid_are_its_determinant_s(
    written: Callable[..., tuple[CohortCase, dict]], cases: list[CohortCase], tmp_path: Path
) -> None:
    """As a gantry that is tilted makes it."""
    scan = nib.load(cases[0].files[0])
    affine = scan.affine @ np.array([[1, 0, 0.3, 0], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1.0]])
    image = nib.Nifti1Image(np.asarray(scan.dataobj), affine)
    nib.save(image, tmp_path / "tilted.nii.gz")
    _, record = written(CohortCase("tilted", (tmp_path / "tilted.nii.gz",), "tilted.nii.gz"), images=False)
    found = nib.load(tmp_path / "tilted" / "tilted_seg.nii.gz")
    expected = (np.asarray(found.dataobj) == 1).sum() * abs(np.linalg.det(affine[:3, :3])) / 1000
    assert record["figures"]["volume_ml_pancreas+cancer"] == pytest.approx(expected, rel=1e-5)
