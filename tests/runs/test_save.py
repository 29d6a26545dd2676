"""Files lie on the scan's grid, records and tables say what they are; numbers equal those counted by hand."""

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeAlias

import nibabel as nib
import numpy as np
import pytest
from killing import table
from PIL import Image

from unoise_monai.attribution import Saliency, foreground_sum
from unoise_monai.bundle import Bundle, fingerprint
from unoise_monai.data.cases import Case
from unoise_monai.runs import Comparison
from unoise_monai.runs.explain import CaseExplainer, CaseReader, Job
from unoise_monai.runs.records import Records, State
from unoise_monai.runs.save import CaseWriter, case_numbers, organ_rows, write_tables

Record: TypeAlias = dict[str, Any]
Write: TypeAlias = Callable[..., Record]
PICTURES = {"pictures": ["mip", "montage"], "count": 2}
SEGMENTATION = np.zeros((4, 3, 2), np.uint8)
SEGMENTATION[0] = 1
SEGMENTATION[1, 0] = 2
IMPORTANCE = np.where(SEGMENTATION > 0, 0.75, 0.25).astype(np.float32)
VOXEL_ML = 0.2


@pytest.fixture
def write(make_bundle: Callable[..., Bundle], case: Case, tmp_path: Path) -> Write:
    """Explain and write a case, one with a label by default, into ``tmp_path / "out"``."""

    def make(chosen: Case = case, methods: tuple[str, ...] = (), **changes: Any) -> Record:
        bundle, comparison = make_bundle(**{"pictures": [], **changes}), Comparison(methods)
        job = Job(chosen, methods=comparison.digests(False))
        explained = CaseExplainer(bundle, comparison)(CaseReader(bundle)(chosen), job)
        return CaseWriter(bundle, Records(tmp_path / "out"), "digest")(explained)

    return make


@pytest.fixture
def folder_of(case: Case, tmp_path: Path) -> Path:
    return tmp_path / "out" / case.name


def voxels(path: Path) -> np.ndarray:
    return np.asarray(nib.load(path).get_fdata())


def test_the_files_are_those_of_the_explainer(write: Write, bundle: Bundle, case: Case, folder_of: Path) -> None:
    record = write(methods=("saliency",), **PICTURES)
    expected = bundle.explain(case.files[0])
    item = bundle.explainer.preprocess({"image": str(case.files[0])})
    logits = bundle.explainer.predict(item["image"]).as_tensor()[None, :-1]
    saliency = Saliency(bundle.explainer.network.utility)(item["image"][None], foreground_sum(logits))
    scan = nib.load(case.files[0])
    for name, volume in (
        ("importance", expected.importance),
        ("seg", expected.segmentation),
        ("saliency", bundle.explainer.on_file_grid(saliency, item)),
    ):
        found = nib.load(folder_of / f"{case.name}_{name}.nii.gz")
        assert found.shape == scan.shape
        np.testing.assert_allclose(found.affine, scan.affine, atol=1e-5)
        np.testing.assert_allclose(found.get_fdata(), volume[0].numpy(), rtol=1e-4, atol=1e-5)
    assert len(record["files"]) == 7
    assert record["files"] == {path.name: fingerprint([path]) for path in folder_of.iterdir()}
    assert sorted(record["methods"]["saliency"]["files"]) == [
        f"{case.name}_saliency{end}" for end in (".nii.gz", "_mip.png", "_montage.png")
    ]
    for picture in ("mip", "montage", "saliency_mip", "saliency_montage"):
        pixels = np.asarray(Image.open(folder_of / f"{case.name}_{picture}.png"))
        assert pixels.std() > 5


def test_the_record_has_figures_and_is_kept(write: Write, case: Case, folder_of: Path, tmp_path: Path) -> None:
    record = write()
    records = Records(tmp_path / "out")
    assert json.dumps(records.read(case.name)) == json.dumps(record)
    assert records.state(case, "digest") is State.DONE
    assert 0 <= record["numbers"]["dice"] <= 1
    seg = voxels(folder_of / f"{case.name}_seg.nii.gz")
    for label, name in ((1, "anterior"), (2, "posterior")):
        volume_ml = (seg == label).sum() * 15.0 * 16.0 * 18.0 / 1000
        assert record["numbers"][f"volume_ml_{name}"] == pytest.approx(volume_ml, rel=1e-4)


def test_written_again_with_less_nothing_is_left_of_before(write: Write, case: Case, folder_of: Path) -> None:
    write(methods=("saliency",), **PICTURES)
    importance = voxels(folder_of / f"{case.name}_importance.nii.gz")
    write(quantity="tolerance")
    assert sorted(path.name for path in folder_of.iterdir()) == [
        f"{case.name}_{name}.nii.gz" for name in ("seg", "tolerance")
    ]
    np.testing.assert_allclose(voxels(folder_of / f"{case.name}_tolerance.nii.gz"), 1 - importance, atol=1e-6)


def test_no_path_of_the_input_is_in_what_is_written(write: Write, case: Case, tmp_path: Path) -> None:
    record = write(replace(case, name="case-1", shown="case-1"), methods=("saliency",), **PICTURES)
    secrets = {str(case.files[0].parent).encode(), case.files[0].name.encode()}
    kept = [str(record).encode()]
    for path in (tmp_path / "out" / "case-1").iterdir():
        kept.append(nib.load(path).header.binaryblock if path.suffix == ".gz" else path.read_bytes())
    assert not any(secret in block for secret in secrets for block in kept)


def test_volumes_of_a_sheared_grid_are_its_determinant_s(
    write: Write, case: Case, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """As a gantry that is tilted makes it."""
    scan = nib.load(case.files[0])
    affine = scan.affine @ np.array([[1, 0, 0.3, 0], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1.0]])
    nib.save(nib.Nifti1Image(np.asarray(scan.dataobj), affine), tmp_path / "tilted.nii.gz")
    record = write(Case("tilted", (tmp_path / "tilted.nii.gz",), "tilted.nii.gz"))
    seg = voxels(tmp_path / "out" / "tilted" / "tilted_seg.nii.gz")
    expected = (seg == 1).sum() * abs(np.linalg.det(affine[:3, :3])) / 1000
    assert record["numbers"]["volume_ml_anterior"] == pytest.approx(expected, rel=1e-5)
    assert "tilted_importance.nii.gz has a sheared affine" in caplog.text


def test_volumes_and_importance_by_hand() -> None:
    found = case_numbers(IMPORTANCE, SEGMENTATION, None, ("background", "a", "b", "c"), VOXEL_ML)
    assert found["volume_ml_a"] == pytest.approx(6 * 0.2)
    assert found["volume_ml_b"] == pytest.approx(2 * 0.2)
    assert found["volume_ml_c"] == 0
    assert found["importance_in_foreground"] == 0.75
    assert found["importance_in_background"] == 0.25
    assert found["importance_mean"] == pytest.approx((8 * 0.75 + 16 * 0.25) / 24)
    assert found["importance_p50"] == 0.25
    assert "dice" not in found


def test_dice_by_hand_and_of_a_class_that_the_label_lacks() -> None:
    label = np.zeros_like(SEGMENTATION)
    label[0, :2] = 1
    found = case_numbers(IMPORTANCE, SEGMENTATION, label, ("background", "a", "b"), VOXEL_ML)
    assert found["dice_a"] == pytest.approx(2 * 4 / (6 + 4))
    assert math.isnan(found["dice_b"])
    assert found["dice"] == found["dice_a"]


def test_where_nothing_is_segmented_there_is_no_mean() -> None:
    found = case_numbers(IMPORTANCE, np.zeros_like(SEGMENTATION), None, ("background", "a"), VOXEL_ML)
    assert math.isnan(found["importance_in_foreground"])


def test_organs_by_hand() -> None:
    organs = np.zeros((4, 3, 2), np.int64)
    organs[0] = 7
    liver, elsewhere = organ_rows(IMPORTANCE, organs, {7: "liver"}, VOXEL_ML)
    assert (liver.organ, elsewhere.organ) == ("liver", "elsewhere")
    assert liver.importance_share == pytest.approx(6 * 0.75 / (8 * 0.75 + 16 * 0.25))
    assert liver.volume_share == pytest.approx(0.25)
    assert liver.volume_ml == pytest.approx(1.2)
    assert liver.mean_importance == pytest.approx(0.75)


def done(name: str, numbers: dict[str, float], organs: tuple[dict[str, Any], ...] = ()) -> dict[str, Any]:
    record = {"case": name, "status": "done", "settings": "digest", "numbers": numbers, "organs": list(organs)}
    record["files"] = {f"{name}_importance.nii.gz": {"sha256": "abc"}, f"{name}_mip.png": {"sha256": "def"}}
    record |= {"source": {"bytes": 1, "sha256": "f00"}, "voxels": [3, 4, 5], "spacing_mm": [1.0, 0.5, 2.0]}
    return record | {"device": "cpu", "note": "", "seconds": 1.23456789, "peak_memory_gb": 0.5}


def failed(name: str, reason: str) -> dict[str, Any]:
    return {"case": name, "status": "failed", "shown": f"{name}.nii", "stage": "load", "reason": reason}


@pytest.fixture
def records(tmp_path: Path) -> Records:
    records = Records(tmp_path)
    records.write(done("b", {"volume_ml_x": 2.0, "dice": 0.5, "dice_x": 0.5}))
    records.write(done("a", {"volume_ml_x": float("nan")}, ({"organ": "liver", "importance_share": 0.25},)))
    records.write(failed("c", '=1+1, "quoted"\nand a line'))
    return records


def test_a_row_a_case_in_order_with_all_columns(records: Records) -> None:
    write_tables(records)
    rows = table(records.output, "cohort.csv")
    assert [(row["case"], row["status"]) for row in rows] == [("a", "done"), ("b", "done"), ("c", "failed")]
    assert rows[0]["volume_ml_x"] == ""
    assert rows[1]["dice"] == "0.5"
    assert rows[0]["organ_liver"] == "0.25"
    assert rows[0]["seconds"] == "1.23457"
    assert rows[0]["voxels"] == "3 x 4 x 5"
    assert rows[0]["image_sha256"] == "f00"
    assert rows[0]["importance_sha256"] == "abc"
    names = list(rows[0])
    assert names[:5] == ["case", "status", "dice", "dice_x", "volume_ml_x"]
    assert "mip_sha256" not in names


def test_failures_have_a_line_each_and_no_formula(records: Records) -> None:
    write_tables(records)
    (row,) = table(records.output, "failures.csv")
    assert row == {"case": "c", "file": "c.nii", "stage": "load", "reason": '\'=1+1, "quoted"\nand a line'}


def test_organs_have_their_table_where_there_are_any(records: Records) -> None:
    write_tables(records)
    assert table(records.output, "organs.csv") == [{"case": "a", "organ": "liver", "importance_share": "0.25"}]
    records.write(failed("a", "gone"))
    write_tables(records)
    assert not (records.output / "organs.csv").exists()


def test_nothing_done_still_makes_tables(tmp_path: Path) -> None:
    write_tables(Records(tmp_path))
    assert (tmp_path / "cohort.csv").read_text(encoding="utf-8") == "case,status\n"
    assert (tmp_path / "failures.csv").read_text(encoding="utf-8") == "case,file,stage,reason\n"
