"""What is done stays, what is missing is made, and no two settings meet."""

from __future__ import annotations

import csv
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from unoise_monai.bundle import LoadedBundle
from unoise_monai.data.cases import CohortCase
from unoise_monai.runs.records import OutputInUse, claimed
from unoise_monai.runs.run import Summary, explain_cohort, part_of
from unoise_monai.runs.settings import PACKAGES, OtherSettings, OutputFault, Settings, read_run

Make = Callable[..., Settings]
CPU = torch.device("cpu")


@pytest.fixture
def explain(cases: list[CohortCase], bundle: LoadedBundle, settings: Make, tmp_path: Path) -> Callable[..., Summary]:
    def run(
        chosen: list[CohortCase] | None = None, images: bool = False, anonymised: bool = False, **options: Any
    ) -> Summary:
        return explain_cohort(
            cases if chosen is None else chosen,
            bundle,
            settings(images=images, anonymised=anonymised),
            tmp_path / "out",
            CPU,
            quiet=True,
            workers=0,
            **options,
        )

    return run


def table(output: Path, name: str) -> list[dict[str, str]]:
    with (output / name).open(newline="") as file:
        return list(csv.DictReader(file))


def contents(output: Path) -> dict[str, bytes]:
    return {str(path.relative_to(output)): path.read_bytes() for path in output.rglob("*") if path.is_file()}


def test_a_second_run_does_nothing_and_a_third_what_is_missing(
    explain: Callable[..., Summary], cases: list[CohortCase], tmp_path: Path
) -> None:
    assert explain() == Summary(cases=4, done=4, kept=0, failed=0)
    output = tmp_path / "out"
    before = contents(output)
    assert explain() == Summary(cases=4, done=0, kept=4, failed=0)
    assert contents(output) == before
    (output / cases[1].name / f"{cases[1].name}_seg.nii.gz").write_bytes(b"broken")
    assert explain() == Summary(cases=4, done=1, kept=3, failed=0)
    after = contents(output)
    assert after.keys() == before.keys()
    assert {name for name in after if after[name] != before[name]} <= {
        "cohort.csv",
        f".unoise/records/{cases[1].name}.json",
    }
    rows = table(output, "cohort.csv")
    assert [row["case"] for row in rows] == [case.name for case in cases]
    assert {row["status"] for row in rows} == {"done"}
    assert sorted(bool(row["dice"]) for row in rows) == [False, True, True, True]
    assert table(output, "failures.csv") == []


def test_a_failed_case_is_tried_again(explain: Callable[..., Summary], cases: list[CohortCase], tmp_path: Path) -> None:
    file = tmp_path / "scan.nii.gz"
    file.write_bytes(b"nothing")
    bad = CohortCase("bad", (file,), "scan.nii.gz")
    assert explain([cases[0], bad]) == Summary(cases=2, done=1, kept=0, failed=1)
    (row,) = table(tmp_path / "out", "failures.csv")
    assert (row["case"], row["file"], row["stage"]) == ("bad", "scan.nii.gz", "load")
    assert str(tmp_path) not in row["reason"]
    file.write_bytes(cases[1].files[0].read_bytes())
    assert explain([cases[0], bad]) == Summary(cases=2, done=1, kept=1, failed=0)
    assert table(tmp_path / "out", "failures.csv") == []


def test_other_settings_are_refused_unless_asked_for(
    explain: Callable[..., Summary], cases: list[CohortCase], tmp_path: Path
) -> None:
    explain(cases[:2])
    with pytest.raises(OtherSettings, match="images was False, now True"):
        explain(cases[:2], images=True)
    assert explain(cases[:2], images=True, overwrite=True) == Summary(cases=2, done=2, kept=0, failed=0)
    assert (tmp_path / "out" / cases[0].name / f"{cases[0].name}_mip.png").is_file()
    assert explain(cases[:2], images=True) == Summary(cases=2, done=0, kept=2, failed=0)


def test_another_patient_s_file_of_the_same_name_is_refused(
    explain: Callable[..., Summary], cases: list[CohortCase], tmp_path: Path
) -> None:
    explain(cases[:1])
    kept = contents(tmp_path / "out")
    other = replace(cases[1], name=cases[0].name)
    with pytest.raises(OtherSettings, match=f"results of other files than those that are now called {cases[0].name}"):
        explain([other])
    assert contents(tmp_path / "out") == kept
    assert explain([other], overwrite=True).done == 1


def test_parts_fill_one_output(explain: Callable[..., Summary], cases: list[CohortCase], tmp_path: Path) -> None:
    assert explain(part=(1, 3)) == Summary(cases=2, done=2, kept=0, failed=0)
    assert explain(part=(2, 3)).done == 1
    assert explain(part=(3, 3)).done == 1
    assert len(table(tmp_path / "out", "cohort.csv")) == 4
    assert explain() == Summary(cases=4, done=0, kept=4, failed=0)


def test_parts_are_all_cases_once(cases: list[CohortCase]) -> None:
    parts = [part_of(cases, (k, 3)) for k in (1, 2, 3)]
    assert sorted((case for part in parts for case in part), key=lambda case: case.name) == cases
    assert part_of(cases, None) == cases
    for wrong in ((0, 3), (4, 3)):
        with pytest.raises(ValueError, match="part must be K/N"):
            part_of(cases, wrong)


def test_taking_over_leaves_nothing_of_other_settings(
    explain: Callable[..., Summary], cases: list[CohortCase], tmp_path: Path
) -> None:
    explain(cases[:2])
    with pytest.raises(OtherSettings):
        explain(cases[:2], images=True, overwrite=True, part=(1, 2))
    hidden = [replace(case, name=f"case-{number}", shown=f"case-{number}") for number, case in enumerate(cases[:2])]
    assert explain(hidden, anonymised=True, overwrite=True).done == 2
    output = tmp_path / "out"
    assert {path.name for path in output.iterdir()} == {
        ".unoise",
        "case-0",
        "case-1",
        "cohort.csv",
        "failures.csv",
        "run.json",
    }
    assert cases[0].name not in (output / "cohort.csv").read_text()
    assert sorted(path.name for path in (output / ".unoise" / "records").iterdir()) == ["case-0.json", "case-1.json"]


def test_a_failure_leaves_with_its_file(
    explain: Callable[..., Summary], cases: list[CohortCase], tmp_path: Path
) -> None:
    file = tmp_path / "scan.nii.gz"
    file.write_bytes(b"nothing")
    explain([cases[0], CohortCase("bad", (file,), "scan.nii.gz")])
    assert explain([cases[0]]).failed == 0
    assert table(tmp_path / "out", "failures.csv") == []


def test_a_case_that_fails_late_leaves_no_file(
    explain: Callable[..., Summary], cases: list[CohortCase], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*arguments: object) -> None:
        raise KeyError("late")

    monkeypatch.setattr("unoise_monai.runs.save.case_figures", fail)
    assert explain(cases[:1]).failed == 1
    assert not (tmp_path / "out" / cases[0].name).exists()
    (row,) = table(tmp_path / "out", "failures.csv")
    assert row["stage"] == "save"


def test_an_output_that_cannot_be_written_is_said(
    explain: Callable[..., Summary], cases: list[CohortCase], tmp_path: Path
) -> None:
    (tmp_path / "out").write_text("a file")
    with pytest.raises(OutputFault, match="output must be writable"):
        explain(cases[:1])


def test_an_output_in_use_is_left_alone(explain: Callable[..., Summary], tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    with claimed(tmp_path / "out"), pytest.raises(OutputInUse):
        explain()
    assert not (tmp_path / "out" / "run.json").exists()


def test_run_json_says_what_ran(explain: Callable[..., Summary], cases: list[CohortCase], tmp_path: Path) -> None:
    explain(cases[:1], command="unoise explain BUNDLE INPUT OUTPUT")
    told = read_run(tmp_path / "out")
    assert told["command"] == "unoise explain BUNDLE INPUT OUTPUT"
    assert told["versions"].keys() == set(PACKAGES)
    assert told["device"].startswith("cpu")
    assert told["settings"]["weights_sha256"] == "0" * 64


def test_an_engine_runs_what_is_missing(
    explain: Callable[..., Summary], cases: list[CohortCase], tmp_path: Path
) -> None:
    explain(cases[:1])
    asked: list[str] = []

    def engine(missing: list[CohortCase], note: Callable[[dict[str, Any]], None]) -> None:
        asked.extend(case.name for case in missing)
        for case in missing:
            note({"case": case.name, "status": "failed", "stage": "load", "reason": "no", "shown": case.shown})

    assert explain(engine=engine) == Summary(cases=4, done=0, kept=1, failed=3)
    assert asked == [case.name for case in cases[1:]]
