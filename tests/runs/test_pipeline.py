"""Whatever a bundle's configuration reads volumes with, the maps lie on the file's grid; here without a task."""

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK
from dicom_slices import slices, write_series
from small_bundle import CONFIG, write_small_bundle

from unoise_monai.bundle import Bundle, load_bundle
from unoise_monai.data.cases import Case
from unoise_monai.data.finding import find_cases
from unoise_monai.runs import Comparison, Summary, explain_cases, settings_of

CHAIN = """
preprocessing:
  _target_: Compose
  transforms:
  - {_target_: LoadImaged, keys: image}
  - {_target_: EnsureChannelFirstd, keys: image}
  - {_target_: Orientationd, keys: image, axcodes: LPS, labels: null}
  - {_target_: Spacingd, keys: image, pixdim: [12.0, 13.0, 14.0]}
  - {_target_: NormalizeIntensityd, keys: image}
"""


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """A bundle of MONAI's own transforms, without a `SegmentationTask`."""
    before, rest = (
        CONFIG[: CONFIG.index("task:")],
        CONFIG[CONFIG.index("utility:") :].replace("$@task.num_classes", "3"),
    )
    own = rest[rest.index("preprocessing:") : rest.index("dataset:")]
    path = tmp_path_factory.mktemp("bundles") / "plain"
    write_small_bundle(path, before + rest.replace(own, CHAIN.lstrip()), seed=2)
    return load_bundle(path, "cpu", trusted=True, changes={"pictures": ["mip"], "count": 2})


def run(cases: list[Case], bundle: Bundle, output: Path, workers: int) -> Summary:
    settings, comparison = settings_of(bundle), Comparison(("intensity",), {"intensity": {"sign": "signed"}})
    return explain_cases(cases, bundle, settings, output, comparison, quiet=True, workers=workers)


@pytest.mark.parametrize("workers", [0, 1])
def test_volumes(bundle: Bundle, cases: list[Case], tmp_path: Path, workers: int) -> None:
    assert (bundle.task, bundle.class_names) == (None, ("background", "anterior", "posterior"))
    assert run(cases[:1], bundle, tmp_path / "out", workers) == Summary(1, 1, 0, 0)
    name, file = cases[0].name, cases[0].files[0]
    scan, expected = nib.load(file), bundle.explain(file)
    found = {
        kind: nib.load(tmp_path / "out" / name / f"{name}_{kind}.nii.gz") for kind in ("importance", "seg", "intensity")
    }
    for volume in found.values():
        assert volume.shape == scan.shape
        np.testing.assert_allclose(volume.affine, scan.affine, atol=1e-5)
    np.testing.assert_allclose(found["importance"].get_fdata(), expected.importance[0].numpy(), atol=1e-5)
    np.testing.assert_array_equal(found["seg"].get_fdata(), expected.segmentation[0].numpy())
    # The map of intensities is that of the scan itself, but for its resampling there and back.
    assert np.corrcoef(found["intensity"].get_fdata().ravel(), scan.get_fdata().ravel())[0, 1] > 0.9
    record = json.loads((tmp_path / "out" / ".unoise" / "records" / f"{name}.json").read_text(encoding="utf-8"))
    assert 0 <= record["numbers"]["dice"] <= 1


@pytest.mark.parametrize("workers", [0, 1])
def test_a_dicom_series(bundle: Bundle, tmp_path: Path, workers: int) -> None:
    # Thick enough for a grid of centimetres.
    voxels = slices(30)
    paths = write_series(tmp_path / "in", voxels)
    cases = find_cases(tmp_path / "in")
    assert run(cases, bundle, tmp_path / "out", workers) == Summary(1, 1, 0, 0)
    name = cases[0].name
    expected = SimpleITK.ReadImage([str(path) for path in paths])
    for kind in ("importance", "seg", "intensity"):
        found = SimpleITK.ReadImage(str(tmp_path / "out" / name / f"{name}_{kind}.nii.gz"))
        assert found.GetSize() == expected.GetSize()
        for corner in ((0, 0, 0), tuple(side - 1 for side in expected.GetSize())):
            places = [image.TransformIndexToPhysicalPoint(corner) for image in (found, expected)]
            np.testing.assert_allclose(*places, atol=1e-3)
