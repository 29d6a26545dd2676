"""The data sets of a run: cases with their transforms, the deterministic ones computed once and kept."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.data import CacheDataset, Dataset, PersistentDataset, pickle_hashing
from monai.utils import TraceKeys, convert_to_tensor

from unoise_monai.atomic import atomic_path
from unoise_monai.checks import check_choice
from unoise_monai.data.decathlon import Case

CACHES = ("memory", "disk", "none")

METADATA_TYPES = [
    *(TraceKeys, np.ndarray, np.dtype, np.zeros(0).__reduce__()[0]),
    *(getattr(np.dtypes, name) for name in np.dtypes.__all__),
]
"""What the metadata of a `MetaTensor` are made of: plain data, which MONAI 1.6 does not allow torch to load."""


class CaseCache(PersistentDataset):
    """MONAI's `PersistentDataset`, whose volumes come back with their geometry.

    MONAI's defaults give a plain tensor from the second read on, do not tell two tasks' preprocessing apart, and with
    ``track_meta=True`` find every file of theirs corrupt. They also copy each file into the folder from the system's
    folder for temporary ones, so that a process may read what another is still copying; here files appear whole.
    """

    def __init__(self, cases: Sequence[Case], transform: Callable, cache_dir: str | Path) -> None:
        super().__init__(
            list(cases), transform, Path(cache_dir), hash_transform=pickle_hashing, track_meta=True, weights_only=True
        )

    def _cachecheck(self, item_transformed: Mapping[str, Any]) -> Any:
        path = self.cache_dir / f"{self.hash_func(item_transformed).decode()}{self.transform_hash}.pt"
        if path.is_file():
            with torch.serialization.safe_globals(METADATA_TYPES):
                return torch.load(path, weights_only=True)
        # A copy: the transforms change the item, whose hash names the file.
        item = self._pre_transform(deepcopy(item_transformed))
        with atomic_path(path) as temporary:
            torch.save(convert_to_tensor(item, convert_numeric=False, track_meta=True), temporary)
        return item


def case_dataset(
    data: Sequence[Case], transform: Callable, cache: str = "memory", cache_dir: str | Path | None = None
) -> Dataset:
    """The cases with their transforms, the deterministic ones computed once and kept.

    Args:
        data: what `list_cases` gave, or a split of it; MONAI Label puts its own list here.
        transform: from `preprocessing` or `training_transforms`.
        cache: ``"memory"`` (`CacheDataset`), ``"disk"`` (`CaseCache`, survives the run) or ``"none"``.
        cache_dir: where ``"disk"`` keeps its files.

    Raises:
        ValueError: when ``cache`` is unknown, or is ``"disk"`` without a folder.
    """
    check_choice("cache", cache, CACHES)
    if cache == "memory":
        return CacheDataset(list(data), transform, num_workers=2)
    if cache == "disk":
        if cache_dir is None:
            raise ValueError("cache_dir must name a folder where cache is 'disk', got None")
        return CaseCache(data, transform, cache_dir)
    return Dataset(list(data), transform)
