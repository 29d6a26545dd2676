"""A case's layers lie where its files lie, and what cannot be read is said without a path."""

import gzip
import logging
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from nibabel.affines import apply_affine
from outputs import FAILED, ODD, write_output

from unoise_monai.handlers.savers import QUANTITIES, map_quantity
from unoise_monai.report import volumes
from unoise_monai.report.cases import SiteCase, read_cases
from unoise_monai.report.volumes import Layer, read_layers


@pytest.fixture
def scans(cohort: Path, tmp_path: Path) -> dict[str, Path]:
    return write_output(tmp_path, cohort, pictures=False)


@pytest.fixture
def cases(scans: dict[str, Path], tmp_path: Path) -> dict[str, SiteCase]:
    return {case.name: case for case in read_cases(tmp_path)}


@pytest.fixture
def case(cases: dict[str, SiteCase]) -> SiteCase:
    return cases["phantom_001"]


def middle_mm(voxels: np.ndarray, affine: np.ndarray) -> np.ndarray:
    """Where a volume's values, weighed by their distance to the lowest, have their middle, mm."""
    weights = voxels.astype(float).ravel() - voxels.min()
    return apply_affine(affine, np.indices(voxels.shape).reshape(3, -1) @ weights / weights.sum())


def by_key(layers: list[Layer]) -> dict[str, Layer]:
    return {layer.key: layer for layer in layers}


def quantity_of(case: SiteCase, name: str, folder: Path) -> SiteCase:
    """The case as a run leaves it that writes another quantity of the same importance."""
    image = nib.load(case.maps["importance"])
    path = folder / f"{name}.nii.gz"
    nib.save(nib.Nifti1Image(map_quantity(image.get_fdata(), name), image.affine), path)
    return replace(case, maps={name: path, "saliency": case.maps["saliency"]})


@pytest.mark.parametrize("most", [8_000_000, 1000])
def test_layers_lie_where_the_files_lie(case: SiteCase, scans: dict[str, Path], most: int) -> None:
    found = read_layers(case, scans[case.name], most)
    layers = by_key(found.layers)
    assert list(layers) == ["scan", "importance", "saliency", "seg"]
    assert found.notes == []
    assert (found.factors == (1, 1, 1)) == (most > 1000)
    assert case.segmentation is not None
    files = {"scan": scans[case.name], "importance": case.maps["importance"], "seg": case.segmentation}
    for key, path in files.items():
        image, layer = nib.load(path), layers[key]
        assert layer.voxels.size <= most
        assert nib.aff2axcodes(layer.affine) == ("R", "A", "S")
        tolerance_mm = 0.01 if most > 1000 else 8
        distance = np.linalg.norm(middle_mm(image.get_fdata(), image.affine) - middle_mm(layer.voxels, layer.affine))
        assert distance < tolerance_mm
    # The cohort's files are left-handed: their voxels are not the layers'.
    assert np.linalg.det(nib.load(files["scan"]).affine) < 0
    if most > 1000:
        np.testing.assert_array_equal(
            layers["seg"].voxels, nib.as_closest_canonical(nib.load(files["seg"])).get_fdata()
        )


def test_ranges(case: SiteCase, scans: dict[str, Path]) -> None:
    layers = by_key(read_layers(case, scans[case.name]).layers)
    assert (layers["importance"].low, layers["importance"].high) == (0, 1)
    # A method's map of any range is shown as shares of its high values.
    assert nib.load(case.maps["saliency"]).get_fdata().max() == pytest.approx(40)
    assert layers["saliency"].voxels.max() == 1
    assert layers["saliency"].title == "saliency, share of its 99.9th percentile"
    assert layers["seg"].high == 1
    assert layers["seg"].voxels.dtype == np.uint8
    assert layers["scan"].low < layers["scan"].high


def test_without_a_scan_the_maps_lie_over_nothing(case: SiteCase, cases: dict[str, SiteCase]) -> None:
    found = read_layers(case, None)
    assert [layer.kind for layer in found.layers] == ["ground", "map", "map", "seg"]
    assert not found.layers[0].voxels.any()
    assert "without it" in found.notes[0]
    # A case that left nothing.
    assert read_layers(cases[ODD], None) == ([], [], (1, 1, 1))


@pytest.mark.parametrize("key", ["seg", "importance"])
def test_a_look_begins_inside(case: SiteCase, key: str) -> None:
    found = read_layers(case if key == "seg" else replace(case, segmentation=None), None)
    voxels = by_key(found.layers)[key].voxels
    at = tuple(int(part * size) for part, size in zip(found.start(), voxels.shape, strict=True))
    assert voxels[at] == 1


@pytest.mark.parametrize("name", QUANTITIES)
def test_importance_is_told_from_what_the_run_wrote(case: SiteCase, name: str, tmp_path: Path) -> None:
    plain = read_layers(case, None)
    found = read_layers(replace(quantity_of(case, name, tmp_path), segmentation=None), None)
    importance, expected = found.importance(), plain.importance()
    assert expected is not None
    np.testing.assert_array_equal(expected, by_key(plain.layers)["importance"].voxels)
    if name in ("importance", "tolerance"):
        assert importance is not None
        np.testing.assert_allclose(importance, expected, atol=1e-6)
    else:
        assert importance is None
    # Of each quantity, the look begins at what is most important.
    place = [int(part * size) for part, size in zip(found.start(), expected.shape, strict=True)]
    assert expected[tuple(place)] == pytest.approx(1, abs=1e-6)


def test_a_method_is_no_importance(case: SiteCase) -> None:
    case.maps["importance"].write_bytes(b"broken")
    found = read_layers(case, None)
    assert [layer.key for layer in found.maps()] == ["saliency"]
    assert found.importance() is None


def test_a_scan_is_read_beneath_maps_only(cases: dict[str, SiteCase], monkeypatch: pytest.MonkeyPatch) -> None:
    def never(scan: Path) -> None:
        raise AssertionError("was read")

    monkeypatch.setattr(volumes, "read_scan", never)
    assert read_layers(cases[FAILED], Path("scan.nii")) == ([], [], (1, 1, 1))


def test_what_cannot_be_read_is_left_out(case: SiteCase, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    case.maps["saliency"].write_bytes(case.maps["saliency"].read_bytes()[:200])
    bad = tmp_path / "DOE^JANE.nii.gz"
    bad.write_text("nothing", encoding="utf-8")
    segmentation = case.segmentation
    assert segmentation is not None
    content = bytearray(gzip.decompress(segmentation.read_bytes()))
    content[70:72] = b"\x0f\x27"  # a type of voxels that there is not
    segmentation.write_bytes(gzip.compress(bytes(content)))
    with caplog.at_level(logging.WARNING):
        found = read_layers(case, bad)
    assert list(by_key(found.layers)) == ["ground", "importance"]
    assert len(found.notes) == 3
    assert all("could not be read" in note for note in found.notes)
    assert "DOE" not in caplog.text + " ".join(found.notes)
    assert str(tmp_path) not in caplog.text + " ".join(found.notes)


def test_another_case_s_scan_is_not_shown(case: SiteCase, scans: dict[str, Path], tmp_path: Path) -> None:
    image = nib.load(scans[case.name])
    moved = tmp_path / "moved.nii.gz"
    nib.save(nib.Nifti1Image(np.asarray(image.dataobj), image.affine + np.outer([5, 0, 0, 0], [0, 0, 0, 1])), moved)
    found = read_layers(case, moved)
    assert "scan" not in by_key(found.layers)
    assert "another grid" in found.notes[0]


@pytest.mark.parametrize("value", [300, -1, np.nan])
def test_class_indices_out_of_range_are_left_out(case: SiteCase, tmp_path: Path, value: float) -> None:
    assert case.segmentation is not None
    image = nib.load(case.segmentation)
    voxels = image.get_fdata().astype(np.float32)
    voxels[0, 0, 0] = value
    path = tmp_path / "other.nii.gz"
    nib.save(nib.Nifti1Image(voxels, image.affine), path)
    found = read_layers(replace(case, segmentation=path), None)
    assert found.segmentation() is None
    assert "segmentation could not be read" in found.notes[0]
