"""On a Ray cluster of two nodes the files are those of a local run, also when a node dies half-way."""

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest

from unoise_monai.bundle import Bundle, find_bundle, load_bundle
from unoise_monai.data.cases import Case
from unoise_monai.data.finding import find_cases
from unoise_monai.phantoms import write_phantom_cohort
from unoise_monai.runs import Comparison, Settings, Summary, explain_cases, settings_of
from unoise_monai.runs.explain import Job
from unoise_monai.runs.ray_engine import RayEngine, Work, explain_case

ray = pytest.importorskip("ray", reason="Ray is an optional extra")
cluster_utils = pytest.importorskip("ray.cluster_utils")

BUNDLE = find_bundle("pancreas_ct_unoise")
CHANGES: dict[str, Any] = {"pictures": [], "precision": "fp32"}
COMPARISON = Comparison(("saliency",))
CASES = 8


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> list[Case]:
    folder = write_phantom_cohort(
        tmp_path_factory.mktemp("ray") / "phantoms", CASES, size=(24, 20, 16), spacing_mm=(6, 6, 6), progress=False
    )
    return find_cases(folder)


@pytest.fixture(scope="module")
def bundle() -> Bundle:
    return load_bundle(BUNDLE, "cpu", changes=CHANGES)


@pytest.fixture(scope="module")
def settings(bundle: Bundle) -> Settings:
    return settings_of(bundle, CHANGES, remote=True)


@pytest.fixture
def run(bundle: Bundle, settings: Settings) -> Callable[..., Summary]:
    def run(
        cases: list[Case], output: Path, engine: Callable[..., None] | None = None, overwrite: bool = False
    ) -> Summary:
        more: dict[str, Any] = {"quiet": True, "workers": 0, "engine": engine, "overwrite": overwrite}
        return explain_cases(cases, bundle, settings, output, COMPARISON, **more)

    return run


@pytest.fixture
def cluster() -> Iterator[Any]:
    """Two nodes of one core each; the head has none, so that it runs no case."""
    made = cluster_utils.Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
    for _ in range(2):
        made.add_node(num_cpus=1)
    ray.init(address=made.address, log_to_driver=False)
    yield made
    ray.shutdown()
    made.shutdown()


def work(settings: Settings, output: Path, timeout: float = 300.0) -> Work:
    return Work(BUNDLE, None, False, CHANGES, (), settings, COMPARISON, output, "cpu", timeout)


def check_same(cases: list[Case], found: Path, expected: Path) -> None:
    for case in cases:
        for name in ("importance", "seg", "saliency"):
            one, other = (nib.load(path / case.name / f"{case.name}_{name}.nii.gz") for path in (found, expected))
            np.testing.assert_allclose(one.affine, other.affine)
            # Threads differ from machine to machine, and with them the order of sums.
            np.testing.assert_allclose(one.get_fdata(), other.get_fdata(), atol=1e-4)
        records = [
            json.loads((path / ".unoise" / "records" / f"{case.name}.json").read_text()) for path in (found, expected)
        ]
        assert records[0].keys() == records[1].keys()
        assert records[0]["files"].keys() == records[1]["files"].keys()


def test_a_node_that_dies_half_way_loses_nothing(
    cohort: list[Case], settings: Settings, run: Callable[..., Summary], cluster: Any, tmp_path: Path
) -> None:
    engine = RayEngine(work(settings, tmp_path / "ray"))
    noted: list[str] = []
    nodes = sorted(cluster.worker_nodes, key=lambda node: node.node_id)

    def killing(jobs: Sequence[Job], note: Callable[[dict[str, Any]], None]) -> None:
        def count(record: dict[str, Any]) -> None:
            note(record)
            noted.append(record["case"])
            if len(noted) == CASES // 2:
                # The node and its worker, at once, whatever they are at.
                cluster.remove_node(nodes[0], allow_graceful=False)

        engine(jobs, count)

    assert run(cohort, tmp_path / "ray", killing) == Summary(CASES, CASES, 0, 0)
    assert sorted(noted) == [case.name for case in cohort]
    assert cluster.worker_nodes == {nodes[1]}
    assert run(cohort, tmp_path / "local") == Summary(CASES, CASES, 0, 0)
    check_same(cohort, tmp_path / "ray", tmp_path / "local")


def test_a_bad_case_and_one_whose_worker_dies_are_one_line_each(
    cohort: list[Case], settings: Settings, run: Callable[..., Summary], cluster: Any, tmp_path: Path
) -> None:
    bad = Case("bad", (tmp_path / "gone.nii.gz",), "gone.nii.gz")
    engine = RayEngine(work(settings, tmp_path / "out"))
    assert run([cohort[0], bad], tmp_path / "out", engine) == Summary(2, 1, 0, 1)
    assert "gone.nii.gz is missing" in (tmp_path / "out" / "failures.csv").read_text(encoding="utf-8")
    before = (tmp_path / "out" / ".unoise" / "records" / f"{cohort[0].name}.json").read_bytes()
    assert run(cohort[:1], tmp_path / "out", engine, overwrite=True) == Summary(1, 1, 0, 0)
    assert (tmp_path / "out" / ".unoise" / "records" / f"{cohort[0].name}.json").read_bytes() != before
    # No time to read: each worker that tries is ended.
    slow = RayEngine(work(settings, tmp_path / "slow", timeout=0.0))
    assert run(cohort[:1], tmp_path / "slow", slow) == Summary(1, 0, 0, 1)
    assert "worker" in (tmp_path / "slow" / "failures.csv").read_text(encoding="utf-8")


def test_a_case_that_a_dead_worker_had_done_is_not_done_again(
    cohort: list[Case], settings: Settings, tmp_path: Path
) -> None:
    here, job = work(settings, tmp_path), Job(cohort[0], methods=COMPARISON.digests(False))
    first = explain_case(here, job)
    assert (first["status"], list(first["methods"])) == ("done", ["saliency"])
    assert explain_case(here, job) == first


def test_shares_below_nothing_are_refused(settings: Settings, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="at least 0, got -1 GPUs"):
        RayEngine(work(settings, tmp_path), gpus=-1)
