import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from monai.data import load_decathlon_datalist

from unoise_monai.phantoms.abdomen import Truth, abdomen_phantom
from unoise_monai.phantoms.cohort import KINDS, write_phantom_cohort
from unoise_monai.phantoms.vessels import vessel_phantom

GRID = {"spacing_mm": (3.5, 4.0, 5.0), "oblique_degrees": 25.0, "left_handed": True, "size": (32, 24, 20)}
KIND_AND_DRAW = pytest.mark.parametrize(("kind", "draw"), [("abdomen", abdomen_phantom), ("vessels", vessel_phantom)])


@pytest.mark.parametrize(("kind", "modality", "target"), [("abdomen", "CT", "pancreas"), ("vessels", "MRA", "vessel")])
def test_the_cohort_is_a_decathlon_folder_with_its_truth(kind: str, modality: str, target: str, tmp_path: Path) -> None:
    root = write_phantom_cohort(tmp_path / "Task99", 2, test_count=1, kind=kind, progress=False, **GRID)
    cases = load_decathlon_datalist(str(root / "dataset.json"), True, "training")
    tests = load_decathlon_datalist(str(root / "dataset.json"), True, "test")
    assert [Path(case["image"]).name for case in cases] == ["phantom_001.nii.gz", "phantom_002.nii.gz"]
    index = json.loads((root / "dataset.json").read_text(encoding="utf-8"))
    assert (index["numTraining"], index["numTest"]) == (2, 1)
    assert index["labels"] == {"0": "background", "1": target}
    assert index["modality"] == {"0": modality}
    assert index["reference"] == f"unoise_monai.phantoms.{kind}"

    files = [Path(case[key]) for case in cases for key in ("image", "label")] + [Path(tests[0]["image"])]
    files += [root / "truthTr" / "phantom_001.nii.gz", root / "truthTs" / Path(tests[0]["image"]).name]
    for file in files:
        image = nib.load(file)
        assert image.shape == (32, 24, 20)
        assert image.get_data_dtype() == (np.int16 if "images" in file.parent.name else np.uint8)
        assert (int(image.header["qform_code"]), int(image.header["sform_code"])) == (1, 1)
        assert image.header.get_xyzt_units()[0] == "mm"
        np.testing.assert_allclose(image.get_qform(), image.get_sform(), atol=1e-4)
        np.testing.assert_allclose(nib.affines.voxel_sizes(image.affine), GRID["spacing_mm"], rtol=1e-5)
        assert np.linalg.det(image.affine) < 0
    truth = np.asarray(nib.load(root / "truthTr" / "phantom_001.nii.gz").dataobj)
    label = np.asarray(nib.load(cases[0]["label"]).dataobj)
    np.testing.assert_array_equal(truth == Truth.TARGET, label == 1)
    assert label.any()
    assert not [path for path in root.rglob("*") if "part" in path.name]


@KIND_AND_DRAW
def test_a_case_is_the_phantom_of_its_number(kind: str, draw, tmp_path: Path) -> None:
    write_phantom_cohort(tmp_path, 1, seed=7, kind=kind, noise=5.0, progress=False, **GRID)
    seed = int(np.random.SeedSequence([7, 0, 1]).generate_state(1)[0])
    expected = draw(seed, noise=5.0, **GRID)
    written = nib.load(tmp_path / "imagesTr" / "phantom_001.nii.gz")
    np.testing.assert_array_equal(np.asarray(written.dataobj), expected.image)
    np.testing.assert_allclose(written.affine, expected.affine, atol=1e-5)


@KIND_AND_DRAW
def test_grid_and_noise_are_the_kinds_own_unless_given(kind: str, draw, monkeypatch, tmp_path: Path) -> None:
    asked = []

    def spy(seed: int, **options: object):
        asked.append(options)
        return draw(seed, size=(16, 16, 16))

    monkeypatch.setitem(KINDS, kind, KINDS[kind]._replace(draw=spy))
    write_phantom_cohort(tmp_path, 1, kind=kind, progress=False)
    assert asked == [{"oblique_degrees": 0.0, "left_handed": False}]


def test_a_case_does_not_depend_on_how_many_there_are(tmp_path: Path) -> None:
    for count in (1, 2):
        write_phantom_cohort(tmp_path / str(count), count, test_count=1, seed=4, size=(16, 16, 16), progress=False)
    for name in ("imagesTr/phantom_001.nii.gz", "imagesTs/phantom_test_001.nii.gz"):
        one, two = (np.asarray(nib.load(tmp_path / str(count) / name).dataobj) for count in (1, 2))
        np.testing.assert_array_equal(one, two)


def test_an_existing_data_set_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "dataset.json").write_text("{}", encoding="utf-8")
    with pytest.raises(FileExistsError, match=r"root must not hold a data set already, got .*dataset\.json"):
        write_phantom_cohort(tmp_path, 1, size=(16, 16, 16), progress=False)
    assert [path.name for path in tmp_path.iterdir()] == ["dataset.json"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"count": 0}, "^count must be an integer of at least 1, got 0"),
        ({"count": 1.5}, "^count must be an integer of at least 1, got 1.5"),
        ({"test_count": -1}, "^test_count must be an integer of at least 0, got -1"),
        ({"kind": "brain"}, "kind must be one of 'abdomen', 'vessels', got 'brain'"),
        ({"seed": -1}, "seed must be an integer of at least 0, got -1"),
        ({"size": (96, 96, 15), "kind": "vessels"}, "size must be three integers of at least 16"),
        ({"spacing_mm": 3.0}, "spacing_mm must be three positive finite numbers, got 3.0"),
        ({"noise": -1.0, "kind": "vessels"}, "noise must be a finite number of at least 0, got -1.0"),
    ],
)
def test_bad_options_are_refused_before_anything_is_written(options: dict, message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        write_phantom_cohort(**({"root": tmp_path / "root", "count": 1} | options))
    assert not (tmp_path / "root").exists()
