"""Splits of cases, data sets with their cache, and the share of each rank."""

import json
import logging
import math
import re
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any, TypeAlias, TypeVar

import ignite.distributed as idist
import numpy as np
import torch
from monai.data import CacheDataset, Dataset, PersistentDataset, pickle_hashing
from monai.utils import TraceKeys, convert_to_tensor

from unoise_monai.atomic import atomic_path
from unoise_monai.checks import check_choice
from unoise_monai.data.cases import Item
from unoise_monai.data.headers import CaseError

logger = logging.getLogger(__name__)

Split: TypeAlias = dict[str, list[Item]]
"""The cases of each part: ``training``, ``validation``, ``test``."""

PARTS = ("training", "validation", "test")


def split_cases(
    cases: Sequence[Item], path: str | Path, validation_share: float = 0.2, test_share: float = 0.1, seed: int = 0
) -> Split:
    """Draw the parts and save them as JSON, or read them back where they were drawn before.

    Cases whose names begin with the same BIDS subject (``sub-01_ses-1_angio``, ``sub-01_ses-2_angio``) are one patient
    and stay together; any other case is a patient of its own. (Not so in Task04, where the two hippocampi of a patient
    are two cases and which ones is not known.) Training and validation get at least one patient each,
    unless ``validation_share`` is 0; a single patient serves as both, with a warning. Cases that a saved split does not
    know were never trained on: they join its test part.

    Args:
        path: the JSON file, beside the run: case names for each part, and the seed.
        validation_share, test_share: shares of the patients, at least 0, together below 1.

    Raises:
        ValueError: when the shares do not fit, or there are no cases.
        CaseError: when the saved split is not JSON with all parts, or names cases that are not there.
    """
    path = Path(path)
    for name, share in (("validation_share", validation_share), ("test_share", test_share)):
        if not 0 <= share < 1:
            raise ValueError(f"{name} must be at least 0 and below 1, got {share}")
    if validation_share + test_share >= 1:
        raise ValueError(f"validation_share + test_share must be below 1, got {validation_share} + {test_share}")
    if not cases:
        raise ValueError("cases must hold at least one case, got none")
    by_name = {case["case"]: case for case in cases}
    if not path.is_file():
        parts = _drawn(list(by_name), validation_share, test_share, seed)
        with atomic_path(path) as temporary:
            temporary.write_text(json.dumps({"seed": seed, **parts}, indent=1), encoding="utf-8")
    try:
        saved = json.loads(path.read_text(encoding="utf-8"))
        listed = {name for part in PARTS for name in saved[part]}
    except (ValueError, KeyError, TypeError) as error:
        raise CaseError(f"the split {path} must be JSON with lists named {', '.join(PARTS)}: {error!r}") from error
    if missing := sorted(listed - by_name.keys()):
        raise CaseError(
            f"the split {path} must name cases of the data, got {len(missing)} that are not there, e.g. {missing[:3]};"
            " name another split_file to draw a new split"
        )
    if new := [name for name in by_name if name not in listed]:
        logger.info("%d cases that the split %s does not know join the test part", len(new), path.name)
    split = {part: [by_name[name] for name in saved[part]] for part in PARTS}
    split["test"] += [by_name[name] for name in new]
    return split


def choose_cases(
    cases: Sequence[Item],
    split_file: str | Path | None = None,
    part: str | None = None,
    choice: int | str | Sequence[str] | None = None,
) -> list[Item]:
    """Some of the cases: those of one part of a split, the first so many, or those of some names.

    Args:
        split_file: of the training, see `split_cases`.
        part: of the split: ``"training"``, ``"validation"``, ``"test"``, or None for all cases.
        choice: the first so many, or a case or several by name; None for all.

    Raises:
        ValueError: when ``part`` is unknown, or given for cases without labels or a split; when ``choice`` is below 1
            or names a case that is not there.
        CaseError: as `split_cases`.
    """
    if part is not None:
        check_choice("part", part, PARTS)
        if split_file is None or not any("label" in case for case in cases):
            raise ValueError(f"part must be null where there is no split of labelled cases, got {part!r}")
        cases = split_cases(cases, split_file)[part]
    if choice is None:
        return list(cases)
    if isinstance(choice, int):
        if choice < 1:
            raise ValueError(f"choice must be at least 1, got {choice}")
        return list(cases[:choice])
    choice = [choice] if isinstance(choice, str) else choice
    by_name = {case["case"]: case for case in cases}
    if missing := [name for name in choice if name not in by_name]:
        there = f"there are {len(by_name)}, such as {list(by_name)[:3]}"
        raise ValueError(f"choice must name cases of the data, got {missing[:3]}; {there}")
    return [by_name[name] for name in choice]


def _drawn(names: Sequence[str], validation_share: float, test_share: float, seed: int) -> dict[str, list[str]]:
    patients: dict[str, list[str]] = defaultdict(list)
    for name in sorted(names):
        patients[patient_of(name)].append(name)
    if len(patients) == 1:
        logger.warning("a single patient serves for training and for validation: the scores mean little")
        return {"training": list(names), "validation": list(names), "test": []}
    order = np.random.default_rng(seed).permutation(sorted(patients)).tolist()
    count = len(patients)
    validation = max(1, min(round(validation_share * count), count - 1)) if validation_share else 0
    test = min(round(test_share * count), count - validation - 1)
    parts = (order[validation + test :], order[:validation], order[validation : validation + test])
    return {
        part: sorted(name for patient in drawn for name in patients[patient])
        for part, drawn in zip(PARTS, parts, strict=True)
    }


def patient_of(name: str) -> str:
    """The BIDS subject that a case's name begins with, or the whole name."""
    subject = re.match(r"sub-[0-9A-Za-z]+(?=_|$)", name)
    return subject[0] if subject else name


CACHES = ("memory", "disk", "none")

METADATA_TYPES = [
    *(TraceKeys, np.ndarray, np.dtype, np.zeros(0).__reduce__()[0]),
    *(getattr(np.dtypes, name) for name in np.dtypes.__all__),
]
"""What the metadata of a `MetaTensor` are made of: plain data, which MONAI 1.6 does not allow torch to load."""


class CaseCache(PersistentDataset):
    """MONAI's `PersistentDataset`, but volumes come back with their geometry, and files appear whole.

    MONAI's defaults give a plain tensor from the second read on, do not distinguish two tasks' preprocessing, and with
    ``track_meta=True`` find every file of theirs corrupt; a process may read what another is still writing.
    """

    def __init__(self, cases: Sequence[Item], transform: Callable, cache_dir: str | Path) -> None:
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
    data: Sequence[Item], transform: Callable, cache: str = "memory", cache_dir: str | Path | None = None
) -> Dataset:
    """The cases with their transforms, the deterministic ones computed once and kept.

    Args:
        data: the cases; named as MONAI Label, which puts its own list here, expects it.
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


T = TypeVar("T")


class CaseDataset(Dataset):
    """MONAI's `Dataset`, in which a case that cannot be used is an item with the keys ``case`` and ``failed`` (why)."""

    def __getitem__(self, index: int) -> Any:
        try:
            return super().__getitem__(index)
        except CaseError as error:
            return {"case": self.data[index]["case"], "failed": str(error)}


def rank_share(items: Sequence[T], rank: int, world_size: int) -> list[T]:
    """The items that one rank evaluates, so that a mean over all ranks is the mean over all items.

    The ranks take successive parts, which differ in length by at most 1: gathered in the order of the ranks, results
    are in the order of the items. With fewer items than ranks, every item is taken by equally many ranks (all of them,
    where the numbers have no common divisor): an idle rank would leave the others waiting.

    Raises:
        ValueError: when ``rank`` is not at least 0 and below ``world_size``.
    """
    if not 0 <= rank < world_size:
        raise ValueError(f"rank must be at least 0 and below world_size, got {rank} and {world_size}")
    items = list(items)
    if len(items) < world_size:
        items *= world_size // math.gcd(len(items), world_size)
    count = len(items)
    return items[rank * count // world_size : (rank + 1) * count // world_size]


def rank_0_first(make: Callable[[], T]) -> T:
    """The result of ``make``, called on rank 0 first, then on the others, which find the files that it wrote."""
    with idist.one_rank_first():
        return make()
