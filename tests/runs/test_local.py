"""No case ends a run: not one that crashes its reader, hangs it, or fails anywhere."""

from __future__ import annotations

import errno
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from reading import misread, read_slowly

from unoise_monai.bundle import LoadedBundle
from unoise_monai.data.cases import CohortCase
from unoise_monai.runs.explain import CohortExplainer, Explained
from unoise_monai.runs.load import Loaded
from unoise_monai.runs.run import run_local
from unoise_monai.runs.save import CaseWriter
from unoise_monai.runs.settings import OutputFault, Settings

Make = Callable[..., Settings]


@pytest.fixture
def explainer(bundle: LoadedBundle, settings: Make) -> CohortExplainer:
    return CohortExplainer(bundle, settings(images=False), torch.device("cpu"))


def test_each_fault_is_one_line_and_the_others_are_done(
    explainer: CohortExplainer, cases: list[CohortCase], tmp_path: Path
) -> None:
    class Fails(CohortExplainer):
        def __call__(self, loaded: Loaded) -> Explained:
            if loaded.case.name == "fails":
                raise RuntimeError(f"no {loaded.case.files[0]}")
            return super().__call__(loaded)

    class Unwritable(CaseWriter):
        def __call__(self, explained: Explained) -> dict[str, Any]:
            if explained.loaded.case.name == "unwritable":
                raise OSError(errno.ENAMETOOLONG, "name too long")
            return super().__call__(explained)

    bad = [replace(cases[0], name=name) for name in ("crashes", "raises", "fails", "hangs", "unwritable")]
    mixed = [cases[0], bad[0], cases[1], *bad[1:], cases[2]]
    records: list[dict[str, Any]] = []
    failing = Fails(explainer.bundle, explainer.settings, explainer.device)
    # Time enough to begin a process on a busy machine.
    run_local(mixed, failing, Unwritable(failing, tmp_path), records.append, workers=2, timeout=40, read=misread)
    assert [record["case"] for record in records] == [case.name for case in mixed]
    found = {record["case"]: record for record in records}
    assert [found[case.name]["status"] for case in cases[:3]] == ["done"] * 3
    assert {name: found[name]["stage"] for name in found if "stage" in found[name]} == {
        "crashes": "load",
        "raises": "load",
        "hangs": "load",
        "fails": "explain",
        "unwritable": "save",
    }
    assert "process ended with code" in found["crashes"]["reason"]
    assert "took too long" in found["hangs"]["reason"]
    assert not any(str(cases[0].files[0].parent) in record.get("reason", "") for record in records)
    assert {path.name for path in tmp_path.iterdir()} == {".unoise", *(case.name for case in cases[:3])}


def test_a_full_disk_ends_the_run_and_says_so(
    explainer: CohortExplainer, cases: list[CohortCase], tmp_path: Path
) -> None:
    class Full(CaseWriter):
        def __call__(self, explained: Explained) -> dict[str, Any]:
            raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(OutputFault, match="No space left on device"):
        run_local(cases, explainer, Full(explainer, tmp_path), lambda record: None)


def test_reading_and_saving_overlap_the_network(
    explainer: CohortExplainer, cases: list[CohortCase], tmp_path: Path
) -> None:
    """The next case is read before this one is explained, and explained before this one is saved."""
    read: list[tuple[float, float]] = []
    explained: list[tuple[float, float]] = []
    saved: list[tuple[float, float]] = []

    class Slow(CohortExplainer):
        def __call__(self, loaded: Loaded) -> Explained:
            start = time.monotonic()
            read.append(loaded.item.pop("read"))
            time.sleep(0.5)
            result = super().__call__(loaded)
            explained.append((start, time.monotonic()))
            return result

    class SlowWriter(CaseWriter):
        def __call__(self, explained: Explained) -> dict[str, Any]:
            start = time.monotonic()
            time.sleep(0.5)
            record = super().__call__(explained)
            saved.append((start, time.monotonic()))
            return record

    slow = Slow(explainer.bundle, explainer.settings, explainer.device)
    run_local(cases, slow, SlowWriter(slow, tmp_path), lambda record: None, read=read_slowly)
    assert len(read) == len(explained) == len(saved) == len(cases)
    for now, following in zip(range(len(cases)), range(1, len(cases)), strict=False):
        assert read[following][0] < explained[now][1]
        assert explained[following][0] < saved[now][1]
