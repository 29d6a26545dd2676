"""A case's layers lie where its files lie, and what cannot be read is said without a path."""

from __future__ import annotations

import gzip
import logging
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from nibabel.affines import apply_affine
from outputs import ODD, write_output

from unoise_monai.handlers.savers import QUANTITIES, map_quantity
from unoise_monai.report.cases import SiteCase, read_cases
from unoise_monai.report.volumes import Layer, read_layers


@pytest.fixture
def run(cohort: Path, tmp_path: Path) -> tuple[list[SiteCase], dict[str, Path]]:
    scans = write_output(tmp_path, cohort, pictures=False)
    # The cases of the cohort, the one that failed, and the one that left nothing.
    return sorted(read_cases(tmp_path), key=lambda case: case.name == ODD), scans


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
def test_layers_lie_where_the_files_lie(run: tuple[list[SiteCase], dict[str, Path]], most: int) -> None:
    cases, scans = run
    case = cases[0]
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


def test_ranges(run: tuple[list[SiteCase], dict[str, Path]]) -> None:
    case, scans = run[0][0], run[1]
    layers = by_key(read_layers(case, scans[case.name]).layers)
    assert (layers["importance"].low, layers["importance"].high) == (0, 1)
    # A method's map of any range is shown as shares of its high values.
    assert nib.load(case.maps["saliency"]).get_fdata().max() == pytest.approx(40)
    assert layers["saliency"].voxels.max() == 1
    assert layers["saliency"].title == "saliency, share of its 99.9th percentile"
    assert layers["seg"].high == 1
    assert layers["seg"].voxels.dtype == np.uint8
    assert layers["scan"].low < layers["scan"].high


def test_without_a_scan_the_maps_lie_over_nothing(run: tuple[list[SiteCase], dict[str, Path]]) -> None:
    found = read_layers(run[0][0], None)
    assert [layer.kind for layer in found.layers] == ["ground", "map", "map", "seg"]
    assert not found.layers[0].voxels.any()
    assert "without it" in found.notes[0]
    assert read_layers(run[0][-1], None).layers == []
    assert read_layers(run[0][-1], None).notes == []


def test_a_look_begins_inside(run: tuple[list[SiteCase], dict[str, Path]]) -> None:
    case = run[0][0]

    def at(found: object, layer: Layer) -> float:
        start = found.start()  # type: ignore[attr-defined]
        return float(
            layer.voxels[tuple(int(part * size) for part, size in zip(start, layer.voxels.shape, strict=True))]
        )

    found = read_layers(case, None)
    assert at(found, by_key(found.layers)["seg"]) > 0
    found = read_layers(replace(case, segmentation=None), None)
    assert at(found, by_key(found.layers)["importance"]) == 1


@pytest.mark.parametrize("name", QUANTITIES)
def test_importance_is_told_from_what_the_run_wrote(
    run: tuple[list[SiteCase], dict[str, Path]], name: str, tmp_path: Path
) -> None:
    case = run[0][0]
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


def test_a_method_is_no_importance(run: tuple[list[SiteCase], dict[str, Path]]) -> None:
    case = run[0][0]
    case.maps["importance"].write_bytes(b"broken")
    found = read_layers(case, None)
    assert [layer.key for layer in found.maps()] == ["saliency"]
    assert found.importance() is None


def test_a_scan_is_read_beneath_maps_only(run: tuple[list[SiteCase], dict[str, Path]]) -> None:
    def never(folder: Path) -> Path:
        raise AssertionError("was read")

    found = read_layers(run[0][-2], never)
    assert found.layers == []
    assert found.notes == []


def test_what_cannot_be_read_is_left_out(
    run: tuple[list[SiteCase], dict[str, Path]], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    case = run[0][0]
    case.maps["saliency"].write_bytes(case.maps["saliency"].read_bytes()[:200])
    bad = tmp_path / "DOE^JANE.nii.gz"
    bad.write_text("nothing")
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


def test_another_case_s_scan_is_not_shown(run: tuple[list[SiteCase], dict[str, Path]], tmp_path: Path) -> None:
    case, scans = run[0][0], run[1]
    image = nib.load(scans[case.name])
    moved = tmp_path / "moved.nii.gz"
    nib.save(nib.Nifti1Image(np.asarray(image.dataobj), image.affine + np.outer([5, 0, 0, 0], [0, 0, 0, 1])), moved)
    found = read_layers(case, moved)
    assert "scan" not in by_key(found.layers)
    assert "another grid" in found.notes[0]


@pytest.mark.parametrize("value", [300, -1, np.nan])
def test_class_indices_out_of_range_are_left_out(
    run: tuple[list[SiteCase], dict[str, Path]], tmp_path: Path, value: float
) -> None:
    case = run[0][0]
    assert case.segmentation is not None
    image = nib.load(case.segmentation)
    voxels = image.get_fdata().astype(np.float32)
    voxels[0, 0, 0] = value
    path = tmp_path / "other.nii.gz"
    nib.save(nib.Nifti1Image(voxels, image.affine), path)
    found = read_layers(replace(case, segmentation=path), None)
    assert found.segmentation() is None
    assert "segmentation could not be read" in found.notes[0]
