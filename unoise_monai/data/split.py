"""Which patient serves for training, validation and test: drawn once, kept beside the run."""

from __future__ import annotations

import json
import logging
import re
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import TypeAlias

import numpy as np

from unoise_monai.atomic import atomic_path
from unoise_monai.data.decathlon import Case
from unoise_monai.data.validation import CaseError

logger = logging.getLogger(__name__)

Split: TypeAlias = dict[str, list[Case]]
"""The cases of each part: ``training``, ``validation``, ``test``."""

PARTS = ("training", "validation", "test")


def split_cases(
    cases: Sequence[Case],
    path: str | Path,
    validation_share: float = 0.2,
    test_share: float = 0.1,
    seed: int = 0,
) -> Split:
    """Draw the parts and save them as JSON, or read them back where they were drawn before.

    Cases whose names begin with the same BIDS subject (``sub-01_ses-1_angio``, ``sub-01_ses-2_angio``) are one patient
    and stay together. A Decathlon case is one patient in most tasks, and then a split of cases is a split of patients;
    Task04 has a patient's left and right hippocampus as two cases and does not tell which belong together. Every case
    lands in one part; training and validation get at least one patient each, unless ``validation_share`` is 0. A single
    patient serves as both, with a warning. Cases that a saved split does not know were never trained on: they join its
    test part.

    Args:
        cases: what `list_cases` gave.
        path: the JSON file, beside the run: case names for each part, and the seed.
        validation_share: share of the patients for validation, at least 0 and below 1.
        test_share: share for the test, likewise; together below 1.
        seed: of the draw.

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
    names = [case["case"] for case in cases]
    if not path.is_file():
        parts = _drawn(names, validation_share, test_share, seed)
        with atomic_path(path) as temporary:
            temporary.write_text(json.dumps({"seed": seed, **parts}, indent=1))
    try:
        saved = json.loads(path.read_text())
        listed = {name for part in PARTS for name in saved[part]}
    except (ValueError, KeyError, TypeError) as error:
        raise CaseError(f"the split {path} must be JSON with lists named {', '.join(PARTS)}: {error!r}") from error
    by_name = dict(zip(names, cases, strict=True))
    missing = sorted(listed - set(names))
    if missing:
        raise CaseError(
            f"the split {path} must name cases of the data, got {len(missing)} that are not there, e.g. {missing[:3]};"
            " name another split_file to draw a new split"
        )
    new = [name for name in names if name not in listed]
    if new:
        logger.info("%d cases that the split %s does not know join the test part", len(new), path.name)
    split = {part: [by_name[name] for name in saved[part]] for part in PARTS}
    split["test"] += [by_name[name] for name in new]
    return split


def _drawn(names: Sequence[str], validation_share: float, test_share: float, seed: int) -> dict[str, list[str]]:
    patients: dict[str, list[str]] = defaultdict(list)
    for name in sorted(names):
        patients[patient_of(name)].append(name)
    if len(patients) == 1:
        logger.warning("a single patient serves for training and for validation: the scores say little")
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
