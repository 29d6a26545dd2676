"""What is done stays, what is missing is made, and no two settings meet."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeAlias

import pytest
from killing import check_same, contents, table

from unoise_monai.bundle import Bundle
from unoise_monai.data.cases import Case
from unoise_monai.runs import Comparison, Summary, explain_cases, settings_of
from unoise_monai.runs.explain import Job
from unoise_monai.runs.records import OutputFault, OutputInUse, Records, claimed
from unoise_monai.runs.run import part_of
from unoise_monai.runs.settings import PACKAGES, OtherSettings, read_run

Explain: TypeAlias = Callable[..., Summary]


@pytest.fixture
def explain(cases: list[Case], make_bundle: Callable[..., Bundle], output: Path) -> Explain:
    def run(
        chosen: list[Case] | None = None,
        methods: Sequence[str] = (),
        anonymised: bool = False,
        pictures: Sequence[str] = (),
        **options: Any,
    ) -> Summary:
        changes = {"pictures": list(pictures)}
        bundle = make_bundle(**changes)
        return explain_cases(
            cases if chosen is None else chosen,
            bundle,
            settings_of(bundle, changes, anonymised),
            output,
            Comparison(methods),
            **{"quiet": True, "workers": 0, **options},
        )

    return run


@pytest.fixture
def output(tmp_path: Path) -> Path:
    return tmp_path / "out"


@pytest.fixture
def bad(tmp_path: Path) -> Case:
    (tmp_path / "scan.nii.gz").write_bytes(b"nothing")
    return Case("bad", (tmp_path / "scan.nii.gz",), "scan.nii.gz")


def fail(*arguments: object) -> None:
    raise KeyError("late")


def test_a_second_run_does_nothing_and_a_third_what_is_missing(
    explain: Explain, cases: list[Case], output: Path
) -> None:
    assert explain() == Summary(cases=4, done=4, kept=0, failed=0)
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


def test_other_processes_read_the_same(explain: Explain, cases: list[Case], output: Path, tmp_path: Path) -> None:
    explain(cases[:2], ["saliency"], workers=1)
    output.rename(tmp_path / "read by others")
    explain(cases[:2], ["saliency"])
    check_same(tmp_path / "read by others", output)


def test_a_failed_case_is_tried_again_and_its_failure_leaves_with_its_file(
    explain: Explain, cases: list[Case], bad: Case, output: Path
) -> None:
    assert explain([cases[0], bad]) == Summary(cases=2, done=1, kept=0, failed=1)
    (row,) = table(output, "failures.csv")
    assert (row["case"], row["file"], row["stage"]) == ("bad", "scan.nii.gz", "load")
    assert str(bad.files[0].parent) not in row["reason"]
    assert explain([cases[0]]) == Summary(cases=1, done=0, kept=1, failed=0)
    assert table(output, "failures.csv") == []
    assert explain([cases[0], bad]).failed == 1
    bad.files[0].write_bytes(cases[1].files[0].read_bytes())
    assert explain([cases[0], bad]) == Summary(cases=2, done=1, kept=1, failed=0)
    assert table(output, "failures.csv") == []


def test_other_settings_are_refused_unless_asked_for(explain: Explain, cases: list[Case], output: Path) -> None:
    explain(cases[:2])
    with pytest.raises(OtherSettings, match=r"pictures was \[\], now \['mip'\]"):
        explain(cases[:2], pictures=["mip"])
    assert explain(cases[:2], pictures=["mip"], overwrite=True) == Summary(cases=2, done=2, kept=0, failed=0)
    assert (output / cases[0].name / f"{cases[0].name}_mip.png").is_file()
    assert explain(cases[:2], pictures=["mip"]) == Summary(cases=2, done=0, kept=2, failed=0)


def test_another_patient_s_file_of_the_same_name_is_refused(explain: Explain, cases: list[Case], output: Path) -> None:
    explain(cases[:1])
    kept = contents(output)
    other = replace(cases[1], name=cases[0].name)
    with pytest.raises(OtherSettings, match=f"results of other files than those that are now called {cases[0].name}"):
        explain([other])
    assert contents(output) == kept
    assert explain([other], overwrite=True).done == 1


def test_parts_fill_one_output(explain: Explain, output: Path) -> None:
    assert explain(part=(1, 3)) == Summary(cases=2, done=2, kept=0, failed=0)
    assert explain(part=(2, 3)).done == explain(part=(3, 3)).done == 1
    assert len(table(output, "cohort.csv")) == 4
    assert explain() == Summary(cases=4, done=0, kept=4, failed=0)
    assert explain(part=(2, 3), overwrite=True) == Summary(cases=1, done=1, kept=0, failed=0)


def test_parts_are_all_cases_once(cases: list[Case]) -> None:
    parts = [part_of(cases, (k, 3)) for k in (1, 2, 3)]
    assert sorted((case for part in parts for case in part), key=lambda case: case.name) == cases
    assert part_of(cases, None) == cases
    for wrong in ((0, 3), (4, 3)):
        with pytest.raises(ValueError, match="part must be K/N"):
            part_of(cases, wrong)


def test_taking_over_leaves_nothing_of_other_settings(explain: Explain, cases: list[Case], output: Path) -> None:
    explain(cases[:2])
    with pytest.raises(OtherSettings):
        explain(cases[:2], pictures=["mip"], overwrite=True, part=(1, 2))
    hidden = [replace(case, name=f"case-{number}", shown=f"case-{number}") for number, case in enumerate(cases[:2])]
    assert explain(hidden, anonymised=True, overwrite=True).done == 2
    assert {path.name for path in output.iterdir()} == {
        ".unoise",
        "case-0",
        "case-1",
        "cohort.csv",
        "failures.csv",
        "run.json",
    }
    assert cases[0].name not in (output / "cohort.csv").read_text(encoding="utf-8")
    assert sorted(path.name for path in (output / ".unoise" / "records").iterdir()) == ["case-0.json", "case-1.json"]


def test_a_case_that_fails_late_leaves_no_file(
    explain: Explain, cases: list[Case], output: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("unoise_monai.runs.save.case_numbers", fail)
    assert explain(cases[:1]).failed == 1
    assert not (output / cases[0].name).exists()
    (row,) = table(output, "failures.csv")
    assert row["stage"] == "save"


def test_an_output_that_cannot_be_written_is_reported(explain: Explain, cases: list[Case], output: Path) -> None:
    output.write_text("a file", encoding="utf-8")
    with pytest.raises(OutputFault, match="output must be writable"):
        explain(cases[:1])


def test_an_output_in_use_is_left_alone(explain: Explain, output: Path) -> None:
    output.mkdir()
    with claimed(output), pytest.raises(OutputInUse):
        explain()
    assert not (output / "run.json").exists()


def test_run_json_says_what_ran(explain: Explain, cases: list[Case], bundle: Bundle, output: Path) -> None:
    explain(cases[:1], command="unoise explain BUNDLE INPUT OUTPUT")
    run = read_run(output)
    assert run["command"] == "unoise explain BUNDLE INPUT OUTPUT"
    assert run["versions"].keys() == set(PACKAGES)
    assert run["device"].startswith("cpu")
    assert run["settings"]["weights_sha256"] == bundle.weights_sha256


@pytest.mark.parametrize("overwrite", [False, True])
def test_an_engine_runs_what_is_missing(overwrite: bool, explain: Explain, cases: list[Case], output: Path) -> None:
    explain(cases[:1])
    asked: list[str] = []

    def engine(jobs: Sequence[Job], note: Callable[[dict[str, Any]], None]) -> None:
        for job in jobs:
            asked.append(job.case.name)
            # Whoever looks whether another worker has done it finds nothing.
            assert Records(output).read(job.case.name) is None
            note({"case": job.case.name, "status": "failed", "stage": "load", "reason": "no", "shown": ""})

    missing = cases if overwrite else cases[1:]
    expected = Summary(cases=4, done=0, kept=4 - len(missing), failed=len(missing))
    assert explain(engine=engine, overwrite=overwrite) == expected
    assert asked == [case.name for case in missing]


def test_methods_that_are_added_leave_what_is_there_byte_for_byte(
    explain: Explain, cases: list[Case], output: Path
) -> None:
    explain(cases[:2], ["saliency"], pictures=["mip"])
    before = contents(output)
    assert explain(cases[:2], ["saliency", "intensity"], pictures=["mip"]) == Summary(2, done=2, kept=0, failed=0)
    after = contents(output)
    new = {f"{case.name}/{case.name}_intensity{end}" for case in cases[:2] for end in (".nii.gz", "_mip.png")}
    assert after.keys() - before.keys() == new
    made_anew = {"cohort.csv", *(f".unoise/records/{case.name}.json" for case in cases[:2])}
    assert {name for name in before if after[name] != before[name]} == made_anew
    assert explain(cases[:2], ["intensity"], pictures=["mip"]) == Summary(2, done=0, kept=2, failed=0)
    assert contents(output) == after
    for row in table(output, "cohort.csv"):
        assert row["saliency_sha256"]
        assert row["intensity_sha256"]


def test_a_method_that_fails_is_a_failure_of_its_case_and_is_tried_again(
    explain: Explain, cases: list[Case], output: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patched:
        patched.delattr("unoise_monai.attribution.Saliency.explain", raising=False)
        patched.setattr("unoise_monai.attribution.Saliency.__call__", fail, raising=False)
        assert explain(cases[:1], ["saliency", "intensity"]) == Summary(1, done=0, kept=0, failed=1)
    (row,) = table(output, "failures.csv")
    assert (row["case"], row["stage"], row["reason"]) == (cases[0].name, "saliency", "KeyError: 'late'")
    (row,) = table(output, "cohort.csv")
    assert (row["status"], bool(row["intensity_sha256"])) == ("done", True)
    before = contents(output / cases[0].name)
    assert explain(cases[:1], ["saliency", "intensity"]) == Summary(1, done=1, kept=0, failed=0)
    assert table(output, "failures.csv") == []
    after = contents(output / cases[0].name)
    assert after.keys() - before.keys() == {f"{cases[0].name}_saliency.nii.gz"}
    assert {name: after[name] for name in before} == before


@pytest.mark.parametrize("stage", ["load", "save"])
def test_a_case_that_fails_when_methods_are_added_keeps_its_results(
    stage: str, explain: Explain, cases: list[Case], output: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    explain(cases[:1], ["intensity"])
    before = contents(output / cases[0].name)
    with monkeypatch.context() as patched:
        place = "explain.CaseReader.__call__" if stage == "load" else "save.CaseWriter.__call__"
        patched.setattr(f"unoise_monai.runs.{place}", fail)
        assert explain(cases[:1], ["intensity", "saliency"]) == Summary(1, done=0, kept=0, failed=1)
    assert contents(output / cases[0].name) == before
    (row,) = table(output, "failures.csv")
    assert (row["stage"], row["reason"]) == ("saliency", "KeyError: 'late'")
    (row,) = table(output, "cohort.csv")
    assert row["status"] == "done"
    assert explain(cases[:1], ["intensity", "saliency"]) == Summary(1, done=1, kept=0, failed=0)
    assert table(output, "failures.csv") == []
