"""Tables hold what the records hold, and nothing that a spreadsheet would run."""

import csv
from pathlib import Path
from typing import Any

import pytest

from unoise_monai.runs.records import Records
from unoise_monai.runs.save import write_tables


def done(name: str, numbers: dict[str, float], organs: tuple[dict[str, Any], ...] = ()) -> dict[str, Any]:
    return {
        "case": name,
        "status": "done",
        "settings": "digest",
        "source": {"bytes": 1, "sha256": "f00"},
        "files": {f"{name}_importance.nii.gz": {"sha256": "abc"}, f"{name}_mip.png": {"sha256": "def"}},
        "numbers": numbers,
        "organs": list(organs),
        "voxels": [3, 4, 5],
        "spacing_mm": [1.0, 0.5, 2.0],
        "device": "cpu",
        "note": "",
        "seconds": 1.23456789,
        "peak_memory_gb": 0.5,
    }


def failed(name: str, reason: str) -> dict[str, Any]:
    return {"case": name, "status": "failed", "shown": f"{name}.nii", "stage": "load", "reason": reason}


def read(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture
def records(tmp_path: Path) -> Records:
    records = Records(tmp_path)
    records.write(done("b", {"volume_ml_x": 2.0, "dice": 0.5, "dice_x": 0.5}))
    records.write(done("a", {"volume_ml_x": float("nan")}, ({"organ": "liver", "importance_share": 0.25},)))
    records.write(failed("c", '=1+1, "quoted"\nand a line'))
    return records


def test_a_row_a_case_in_order_with_all_columns(records: Records) -> None:
    write_tables(records)
    rows = read(records.output / "cohort.csv")
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
    (row,) = read(records.output / "failures.csv")
    assert row == {"case": "c", "file": "c.nii", "stage": "load", "reason": '\'=1+1, "quoted"\nand a line'}


def test_organs_have_their_table_where_there_are_any(records: Records) -> None:
    write_tables(records)
    assert read(records.output / "organs.csv") == [{"case": "a", "organ": "liver", "importance_share": "0.25"}]
    records.write(failed("a", "gone"))
    write_tables(records)
    assert not (records.output / "organs.csv").exists()


def test_nothing_done_still_makes_tables(tmp_path: Path) -> None:
    write_tables(Records(tmp_path))
    assert (tmp_path / "cohort.csv").read_text(encoding="utf-8") == "case,status\n"
    assert (tmp_path / "failures.csv").read_text(encoding="utf-8") == "case,file,stage,reason\n"
