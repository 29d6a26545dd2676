"""Memory stays flat over a long cohort."""

from pathlib import Path
from statistics import median

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
    processes = [Path("/proc/self")]
    for process in processes:
        for children in process.glob("task/*/children"):
            processes += [Path("/proc", number) for number in children.read_text().split()]
    return sum(map(resident, processes))


def resident(process: Path) -> int:
    fields = dict(line.split(":", 1) for line in (process / "status").read_text().splitlines() if ":" in line)
    return int(fields["VmRSS"].split()[0]) * 1024 if "VmRSS" in fields else 0


@pytest.mark.slow
def test_two_hundred_cases_grow_by_less_than_two_percent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if not Path("/proc/self/status").exists():
        pytest.skip("resident memory is read from /proc")
    folder = write_phantom_cohort(tmp_path / "phantoms", CASES, size=(48, 40, 32), spacing_mm=(6, 6, 6), progress=False)
    bundle = load_bundle("pancreas_ct_unoise", "cpu")
    taken: list[int] = []
    update = "unoise_monai.runs.run.Progress.__call__"

    def measured(self: object, record: dict[str, object]) -> None:
        self.done += 1  # type: ignore[attr-defined]
        taken.append(resident_bytes())

    monkeypatch.setattr(update, measured)
    summary = explain_cases(find_cases(folder), bundle, settings_of(bundle), tmp_path / "out", quiet=True)
    assert summary.done == CASES
    early, late = median(taken[WARM : WARM + 50]), median(taken[-50:])
    print(f"{CASES} cases: {early / 1e6:.1f} MB at case {WARM} to {WARM + 50}, {late / 1e6:.1f} MB at the end")  # noqa: T201
    assert late < 1.02 * early
