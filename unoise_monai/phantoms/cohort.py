"""Many phantoms as a Decathlon folder, so that they train and test what real tasks do."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from tqdm import tqdm

from unoise_monai.atomic import atomic_path
from unoise_monai.checks import check_choice
from unoise_monai.data.nifti import write_nifti
from unoise_monai.phantoms.abdomen import Phantom, Truth, abdomen_phantom, check_integer
from unoise_monai.phantoms.vessels import vessel_phantom


class Kind(NamedTuple):
    """One family of phantoms and what ``dataset.json`` has of it."""

    draw: Callable[..., Phantom]
    description: str
    modality: str
    target: str


KINDS = {
    "abdomen": Kind(
        abdomen_phantom, "Synthetic portal-venous CT of the abdomen, generated, of no patient", "CT", "pancreas"
    ),
    "vessels": Kind(
        vessel_phantom, "Synthetic time-of-flight angiograms of the head, generated, of no patient", "MRA", "vessel"
    ),
}


def write_phantom_cohort(
    root: str | Path,
    count: int,
    test_count: int = 0,
    seed: int = 0,
    size: Sequence[int] | None = None,
    spacing_mm: Sequence[float] | None = None,
    oblique_degrees: float = 0.0,
    left_handed: bool = False,
    noise: float | None = None,
    kind: str = "abdomen",
    name: str = "Phantom",
    progress: bool = True,
) -> Path:
    """Write phantoms as a Decathlon folder, with the truth maps beside it in ``truthTr`` and ``truthTs``.

    A case depends on ``seed`` and its number only, whatever ``count`` is. ``dataset.json`` comes last, so that an
    interrupted run leaves none and may simply be started again.

    Args:
        count: of labelled training cases, at least 1.
        test_count: of test cases, at least 0.
        seed: of the cohort, at least 0.
        size, spacing_mm, oblique_degrees, left_handed, noise: as `abdomen_phantom` and `vessel_phantom` take them, by
            default their own.
        kind: ``"abdomen"`` (CT, the target a pancreas) or ``"vessels"`` (TOF-MRA of the head).

    Returns:
        ``root``.

    Raises:
        ValueError: when ``count`` is below 1, ``test_count`` below 0, ``kind`` neither, or as `abdomen_phantom`.
        FileExistsError: when ``root`` already holds a ``dataset.json``.
    """
    for key, value, least in (("count", count, 1), ("test_count", test_count, 0), ("seed", seed, 0)):
        check_integer(key, value, least)
    check_choice("kind", kind, tuple(KINDS))
    given = {"size": size, "spacing_mm": spacing_mm, "noise": noise}
    options = {key: value for key, value in given.items() if value is not None}
    options |= {"oblique_degrees": oblique_degrees, "left_handed": left_handed}
    root = Path(root)
    index_file = root / "dataset.json"
    if index_file.exists():
        raise FileExistsError(f"root must not hold a data set already, got {index_file}")

    cases = [("Tr", 0, k, f"phantom_{k:03d}") for k in range(1, count + 1)]
    cases += [("Ts", 1, k, f"phantom_test_{k:03d}") for k in range(1, test_count + 1)]
    for split, stream, number, case in tqdm(cases, desc=name, unit="case", disable=not progress):
        case_seed = int(np.random.SeedSequence([seed, stream, number]).generate_state(1)[0])
        phantom = KINDS[kind].draw(case_seed, **options)
        write_nifti(root / f"images{split}" / f"{case}.nii.gz", phantom.image, phantom.affine)
        write_nifti(root / f"truth{split}" / f"{case}.nii.gz", phantom.truth, phantom.affine)
        if split == "Tr":
            write_nifti(root / "labelsTr" / f"{case}.nii.gz", phantom.label, phantom.affine)

    index = {
        "name": name,
        "description": KINDS[kind].description,
        "reference": KINDS[kind].draw.__module__,
        "licence": "Apache-2.0, generated",
        "release": "1.0",
        "tensorImageSize": "3D",
        "modality": {"0": KINDS[kind].modality},
        "labels": {"0": "background", "1": KINDS[kind].target},
        "truth": {str(value.value): value.name.lower() for value in Truth},
        "numTraining": count,
        "numTest": test_count,
        "training": [
            {"image": f"./imagesTr/{case}.nii.gz", "label": f"./labelsTr/{case}.nii.gz"} for *_, case in cases[:count]
        ],
        "test": [f"./imagesTs/{case}.nii.gz" for *_, case in cases[count:]],
    }
    with atomic_path(index_file) as temporary:
        temporary.write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
    return root
