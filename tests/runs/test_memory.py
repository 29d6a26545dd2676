"""Memory stays flat over a long cohort."""

from pathlib import Path
from statistics import median

import psutil
import pytest

from unoise_monai.bundle import load_bundle
from unoise_monai.data.finding import find_cases
from unoise_monai.phantoms import write_phantom_cohort
from unoise_monai.runs import explain_cases, settings_of

CASES = 200
WARM = 50
"""Cases until the allocators have what they need."""


def resident_bytes() -> int:
    """Of this process and of those that it has begun: the readers."""
    own = psutil.Process()
    return sum(process.memory_info().rss for process in (own, *own.children(recursive=True)))


@pytest.mark.slow
def test_two_hundred_cases_grow_by_less_than_two_percent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_phantom_cohort(tmp_path / "phantoms", CASES, size=(48, 40, 32), spacing_mm=(6, 6, 6), progress=False)
    bundle = load_bundle("pancreas_ct_unoise", "cpu")
    taken: list[int] = []

    def measured(self: object, record: dict[str, object]) -> None:
        self.done += 1  # type: ignore[attr-defined]
        taken.append(resident_bytes())

    monkeypatch.setattr("unoise_monai.runs.run.Progress.__call__", measured)
    summary = explain_cases(find_cases(folder), bundle, settings_of(bundle), tmp_path / "out", quiet=True)
    assert summary.done == CASES
    early, late = median(taken[WARM : WARM + 50]), median(taken[-50:])
    print(f"{CASES} cases: {early / 1e6:.1f} MB at case {WARM} to {WARM + 50}, {late / 1e6:.1f} MB at the end")  # noqa: T201
    assert late < 1.02 * early
