"""What is computed once is kept, with its geometry, and the random part is not."""

import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from monai.data import DataLoader, MetaTensor
from monai.transforms import Invertd
from tasks import hippocampus

from unoise_monai.data.datasets import CACHES, case_dataset
from unoise_monai.data.finding import Case, list_cases
from unoise_monai.data.headers import CaseError
from unoise_monai.data.reading import LoadCased
from unoise_monai.data.transforms import preprocessing, training_transforms

TASK = hippocampus(patch_size=(8, 8, 8))


@pytest.fixture
def cases(decathlon: Path) -> list[Case]:
    return list_cases(decathlon)


@pytest.fixture
def loads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The case of every load from its files."""
    seen: list[str] = []
    load: Callable = LoadCased.__call__

    def counted(self: LoadCased, data: Mapping) -> Any:
        seen.append(data["case"])
        return load(self, data)

    monkeypatch.setattr(LoadCased, "__call__", counted)
    return seen


def test_memory_loads_each_case_once(cases: list[Case], loads: list[str]) -> None:
    dataset = case_dataset(cases, training_transforms(preprocessing(TASK), TASK.patch_size), "memory")
    assert sorted(loads) == sorted(case["case"] for case in cases)
    crops = [dataset[0][0]["image"] for _ in range(4)]
    assert len(loads) == 3
    assert any(not torch.equal(crops[0], crop) for crop in crops[1:]), "the random part must not be kept"


def test_no_cache_loads_each_time(cases: list[Case], loads: list[str]) -> None:
    dataset = case_dataset(cases, preprocessing(TASK), "none")
    assert loads == []
    for _ in range(2):
        assert isinstance(dataset[1]["image"], MetaTensor)
    assert loads == ["hippocampus_001"] * 2


def test_disk_survives_the_run(cases: list[Case], loads: list[str], tmp_path: Path, affine: np.ndarray) -> None:
    first = case_dataset(cases, preprocessing(TASK), "disk", tmp_path / "cache")[2]
    assert loads == ["hippocampus_002"]
    with warnings.catch_warnings():
        # MONAI warns of a corrupt file, and computes it again, where torch refuses to load it.
        warnings.filterwarnings("error", "Corrupt cache")
        again = case_dataset(cases, preprocessing(TASK), "disk", tmp_path / "cache")[2]
    assert loads == ["hippocampus_002"]
    assert again["case"] == "hippocampus_002"
    for key in ("image", "label"):
        assert isinstance(again[key], MetaTensor)
        assert torch.equal(again[key].as_tensor(), first[key].as_tensor())
        assert torch.equal(again[key].affine, first[key].affine)
        assert again[key].meta["filename_or_obj"] == cases[2][key]
        np.testing.assert_allclose(again[key].meta["original_affine"], affine, atol=1e-5)


def test_what_comes_from_disk_goes_back_to_the_files_grid(cases: list[Case], tmp_path: Path) -> None:
    preprocess = preprocessing(TASK)
    for _ in range(2):
        item = case_dataset(cases, preprocess, "disk", tmp_path / "cache")[0]
        item["pred"] = MetaTensor(item["label"].as_tensor(), meta=item["image"].meta)
        back = Invertd("pred", preprocess, orig_keys="image")(item)["pred"]
        assert back.shape == (1, 14, 12, 8)
        np.testing.assert_allclose(back.affine, item["image"].meta["original_affine"], atol=1e-5)


def test_disk_keeps_the_deterministic_part_only(cases: list[Case], loads: list[str], tmp_path: Path) -> None:
    dataset = case_dataset(cases, training_transforms(preprocessing(TASK), TASK.patch_size), "disk", tmp_path / "cache")
    crops = [dataset[0][0]["image"] for _ in range(5)]
    assert len(loads) == 1
    assert any(not torch.equal(crops[0], crop) for crop in crops[1:])
    batch = next(iter(DataLoader(dataset, batch_size=3)))
    assert batch["image"].shape == (3, 1, 8, 8, 8)
    # Seen and unseen cases alike.
    assert sorted(loads) == ["hippocampus_001", "hippocampus_002", "hippocampus_003"]


def test_a_cached_file_appears_whole(cases: list[Case], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Other processes, such as the ranks of one training, read the folder while files are written."""
    save, seen = torch.save, []

    def watched(item: object, path: Path) -> None:
        save(item, path)
        seen.append([file.name for file in (tmp_path / "cache").glob("[!.]*")])

    monkeypatch.setattr(torch, "save", watched)
    dataset = case_dataset(cases, preprocessing(TASK), "disk", tmp_path / "cache")
    assert torch.equal(dataset[0]["image"], dataset[0]["image"])
    assert seen == [[]]
    assert len(list((tmp_path / "cache").iterdir())) == 1


def test_disk_tells_preprocessings_apart(cases: list[Case], tmp_path: Path) -> None:
    """One folder serves the training, the validation and another task, also where they share a case."""
    cache = tmp_path / "cache"
    coarse = hippocampus(spacing_mm=(2.0, 2.0, 2.0))
    merged = hippocampus(merge_labels=True)
    for _ in range(2):
        assert case_dataset(cases, preprocessing(TASK), "disk", cache)[0]["label"].max() == 2
        assert case_dataset(cases, preprocessing(merged), "disk", cache)[0]["label"].max() == 1
        item = case_dataset(cases, preprocessing(coarse), "disk", cache)[0]
        np.testing.assert_allclose(np.linalg.norm(item["image"].affine[:3, :3], axis=0), 2.0, atol=1e-5)
        patches = training_transforms(preprocessing(hippocampus()), hippocampus().patch_size, augment=False)
        assert case_dataset(cases, patches, "disk", cache)[0][0]["image"].shape == (1, 48, 64, 48)


@pytest.mark.parametrize("cache", CACHES)
def test_bad_cases_are_named(cases: list[Case], tmp_path: Path, cache: str) -> None:
    Path(cases[1]["label"]).unlink()
    with pytest.raises(CaseError, match=r"case hippocampus_001: label file .* is missing"):
        _ = case_dataset(cases, preprocessing(TASK), cache, tmp_path / "cache")[1]


def test_refuses_bad_arguments(cases: list[Case]) -> None:
    with pytest.raises(ValueError, match="cache must be one of 'memory', 'disk', 'none', got 'ram'"):
        case_dataset(cases, preprocessing(TASK), "ram")
    with pytest.raises(ValueError, match="cache_dir must name a folder where cache is 'disk', got None"):
        case_dataset(cases, preprocessing(TASK), "disk")
