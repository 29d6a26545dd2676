"""One run at a time; a record stands for files that are there, whole, and made as the run makes them."""

import hashlib
import multiprocessing
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from unoise_monai.atomic import atomic_path
from unoise_monai.bundle import fingerprint
from unoise_monai.data.cases import Case
from unoise_monai.runs.records import OutputInUse, Records, State, claimed, failures, inputs_of


@pytest.fixture
def case(tmp_path: Path) -> Case:
    scan, label = tmp_path / "in" / "scan.nii", tmp_path / "in" / "label.nii"
    scan.parent.mkdir()
    scan.write_bytes(b"voxels")
    label.write_bytes(b"classes")
    return Case("a [1]", (scan,), "scan.nii", label)


@pytest.fixture
def records(tmp_path: Path, case: Case) -> Records:
    records = Records(tmp_path / "out")
    file = tmp_path / "out" / case.name / "map.nii.gz"
    file.parent.mkdir(parents=True)
    file.write_bytes(b"importance")
    records.write(
        {
            "case": case.name,
            "status": "done",
            "settings": "digest",
            "source": fingerprint(inputs_of(case)),
            "files": {"map.nii.gz": fingerprint([file])},
        }
    )
    return records


def test_a_fingerprint_is_that_of_the_contents_in_a_row(case: Case) -> None:
    found = fingerprint(inputs_of(case))
    assert found == {"bytes": 13, "sha256": hashlib.sha256(b"voxelsclasses").hexdigest()}


def test_voxels_beside_their_header_count(tmp_path: Path) -> None:
    sitk.WriteImage(sitk.GetImageFromArray(np.ones((4, 5, 6), np.float32)), str(tmp_path / "scan.mhd"))
    case = Case("scan", (tmp_path / "scan.mhd",), "scan.mhd")
    assert [path.name for path in inputs_of(case)] == ["scan.mhd", "scan.raw"]
    (tmp_path / "scan.mhd").write_text("nothing", encoding="utf-8")
    assert inputs_of(case) == [tmp_path / "scan.mhd"]


@pytest.mark.parametrize("change", ["none", "settings", "cut", "gone", "input", "label", "record", "failed"])
def test_what_is_not_as_it_was_made_is_not_done(change: str, records: Records, case: Case) -> None:
    file = records.output / case.name / "map.nii.gz"
    if change == "cut":
        file.write_bytes(b"importanc")
    elif change == "gone":
        file.unlink()
    elif change == "input":
        case.files[0].write_bytes(b"others")
    elif change == "label":
        assert case.label is not None
        case.label.write_bytes(b"others!")
    elif change == "record":
        (records.folder / f"{case.name}.json").unlink()
    elif change == "failed":
        records.write({**(records.read(case.name) or {}), "status": "failed"})
    expected = {"none": State.DONE, "input": State.OTHER, "label": State.OTHER}.get(change, State.MISSING)
    assert records.state(case, "other" if change == "settings" else "digest") is expected


@pytest.mark.parametrize("fault", ["refused", "gone", "unread"])
def test_an_input_that_cannot_be_read_says_nothing_against_results(
    fault: str, records: Records, case: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = Path.open

    def refuse(path: Path, *arguments: object, **options: object) -> object:
        if path in case.files:
            raise PermissionError("no")
        return opened(path, *arguments, **options)  # type: ignore[call-overload]

    if fault == "refused":
        case = replace(case, files=(), label=None, problem="gone")
    elif fault == "gone":
        case.files[0].unlink()
    else:
        monkeypatch.setattr(Path, "open", refuse)
    assert records.state(case, "digest") is State.DONE


def test_forgetting_takes_the_record_and_its_files_only(records: Records, case: Case) -> None:
    other = records.output / case.name / "notes.txt"
    other.write_text("mine", encoding="utf-8")
    records.forget(case.name)
    assert records.read(case.name) is None
    assert records.state(case, "digest") is State.MISSING
    assert [path.name for path in (records.output / case.name).iterdir()] == ["notes.txt"]
    records.forget(case.name)


def test_what_a_killed_run_leaves_is_swept(records: Records, case: Case) -> None:
    left = records.output / case.name / ".0123456789abcdef0123456789abcdef.nii.gz"
    left.write_bytes(b"half")
    mine = records.output / case.name / ".abc123"
    mine.write_text("mine", encoding="utf-8")
    with atomic_path(records.output / "cohort.csv") as temporary:
        temporary.write_text("", encoding="utf-8")
        pattern = temporary.name
    (records.output / pattern).write_bytes(b"half")
    records.sweep([case.name, "not there"], whole=False)
    assert not left.exists()
    assert (records.output / pattern).exists()
    records.sweep([], whole=True)
    assert not (records.output / pattern).exists()
    assert mine.exists()


def test_all_are_read_by_name_but_for_half_written_ones(records: Records) -> None:
    records.write({"case": "A", "status": "failed"})
    (records.folder / ".0123456789abcdef0123456789abcdef.json").write_text("{", encoding="utf-8")
    assert [record["case"] for record in records.all()] == ["A", "a [1]"]
    assert Records(records.output / "nothing").all() == []


def test_a_damaged_record_counts_as_none(records: Records, case: Case, caplog: pytest.LogCaptureFixture) -> None:
    (records.folder / f"{case.name}.json").write_text("", encoding="utf-8")
    assert records.state(case, "digest") is State.MISSING
    assert records.all() == []
    assert f"{case.name}: its record is damaged" in caplog.text


def test_what_was_begun_is_forgotten_with_all_its_files(records: Records, case: Case) -> None:
    records.begin(case.name, "digest", ["one.nii.gz", "two.png"])
    folder = records.output / case.name
    assert not (folder / "map.nii.gz").exists()
    folder.mkdir()
    (folder / "one.nii.gz").write_bytes(b"half a case")
    assert records.state(case, "digest") is State.MISSING
    records.forget(case.name)
    assert not folder.exists()


def test_what_is_kept_stays_when_more_is_begun(records: Records, case: Case) -> None:
    kept = (records.output / case.name / "map.nii.gz").read_bytes()
    records.begin(case.name, "digest", ["more.nii.gz"], keep=["map.nii.gz"])
    assert (records.output / case.name / "map.nii.gz").read_bytes() == kept
    assert list((records.read(case.name) or {})["files"]) == ["map.nii.gz", "more.nii.gz"]


def test_methods_without_a_result_of_the_same_digest_are_missing(records: Records, case: Case) -> None:
    done = records.read(case.name) or {}
    asked = {"saliency": "1", "rise": "2", "lime": "3"}
    assert records.missing_methods(case.name, asked) == tuple(asked)
    methods = {"saliency": {"settings": "1"}, "rise": {"settings": "other"}, "lime": {"settings": "3", "failed": "no"}}
    records.write({**done, "methods": methods})
    assert records.missing_methods(case.name, asked) == ("rise", "lime")


def test_a_method_that_failed_is_a_failure_of_its_case() -> None:
    done = {"status": "done", "methods": {"saliency": {"scores": {}}}}
    assert failures(done) == failures({"status": "done"}) == []
    assert failures({**done, "methods": {**done["methods"], "rise": {"failed": "no"}}}) == [("rise", "no")]
    assert failures({"status": "failed", "stage": "load", "reason": "empty"}) == [("load", "empty")]


def test_organ_maps_and_their_names_are_an_input(case: Case, tmp_path: Path) -> None:
    (tmp_path / "organs.nii").write_bytes(b"organs")
    with_organs = replace(case, organs=tmp_path / "organs.nii")
    assert inputs_of(with_organs)[-1] == tmp_path / "organs.nii"
    (tmp_path / "organs.json").write_text("{}", encoding="utf-8")
    assert inputs_of(with_organs)[-1] == tmp_path / "organs.json"


def hold(output: Path, end: Connection) -> None:
    with claimed(output):
        end.send(os.getpid())
        end.recv()


@contextmanager
def held_elsewhere(output: Path) -> Iterator[int]:
    """Another process, by its number, holds an output until it is killed."""
    end, other = multiprocessing.Pipe()
    process = multiprocessing.get_context("spawn").Process(target=hold, args=(output, other))
    process.start()
    other.close()
    try:
        yield end.recv()
    finally:
        os.kill(process.pid or 0, signal.SIGKILL)
        process.join()


def test_a_second_run_is_refused_and_learns_by_whom_until_the_first_is_killed(tmp_path: Path) -> None:
    with held_elsewhere(tmp_path) as process:
        with pytest.raises(OutputInUse, match=f"process {process} on"), claimed(tmp_path):
            pass
        with pytest.raises(OutputInUse), claimed(tmp_path, (1, 2)):
            pass
    with claimed(tmp_path):
        pass


def test_parts_of_one_whole_run_beside_each_other_and_nothing_else_does(tmp_path: Path) -> None:
    with claimed(tmp_path, (1, 2)), claimed(tmp_path, (2, 2)):
        for part in (None, (1, 2), (1, 3)):
            with pytest.raises(OutputInUse), claimed(tmp_path, part):
                pass
    with claimed(tmp_path):
        pass


def test_a_run_that_ends_leaves_no_owner(tmp_path: Path) -> None:
    with claimed(tmp_path):
        assert [path.name for path in (tmp_path / ".unoise").glob("*.owner")] == ["whole.owner"]
    assert list((tmp_path / ".unoise").glob("*.owner")) == []
