"""Semi-automatic labels for vessel volumes that have none, stored so that nobody takes them for hand-made ones.

As the labels that DS6 (Chatterjee et al. 2020, arXiv 2006.10802) learned from, they are a start: for a person to
correct, or for a network that shall learn from imperfect examples.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path

import numpy as np
from nibabel.affines import voxel_sizes

from unoise_monai.atomic import atomic_path
from unoise_monai.data import vesselness
from unoise_monai.data.nifti import write_nifti
from unoise_monai.data.validation import CaseError, LoadCased, case_name

SEMI_AUTOMATIC = "_desc-semiauto_mask"
"""How the name of a semi-automatic label ends, before the extension."""

DESCRIPTION = "semi-automatic vessel label, not hand-made"
"""What the header's ``descrip`` says."""


def label_vessels(case: Mapping[str, str]) -> Path:
    """Write a case's semi-automatic label beside its volume, marked as such, and say where.

    ``<image>_desc-semiauto_mask.nii.gz`` lies on the image's grid. That it is semi-automatic stands in its name, in
    its header's ``descrip`` and in the ``.json`` beside it, with the filter, its parameters and the version. The label
    of a DICOM series goes beside the series' folder, not into it. A person who has corrected the label says so by its
    name: ``<image>_desc-manual_mask.nii.gz``.

    Args:
        case: ``image`` (a volume's path, or a folder of DICOM files) and, where it has one, ``case`` (its name).

    Raises:
        FileExistsError: when the label is there already: a person may have corrected it.
        CaseError: when the volume is bad, see `LoadCased`, has one value only, or shows no vessel.
    """
    source, path = Path(case["image"]), semi_automatic_path(case["image"])
    if path.exists():
        raise FileExistsError(f"a semi-automatic label must not take the place of a file, got {path}")
    loaded = LoadCased(["image"], labels=2)({key: case[key] for key in ("case", "image") if key in case})
    image, affine = loaded["image"].numpy()[0], np.asarray(loaded["image"].affine)
    try:
        label = vesselness.vessel_label(image, voxel_sizes(affine).tolist())
    except ValueError as error:
        raise CaseError(f"case {loaded['case']}: image file {source} cannot be labelled: {error}") from error
    if not label.any():
        raise CaseError(f"case {loaded['case']}: image file {source} must show vessels to label, got none")
    # The notice first: a label must never lie there without it.
    with atomic_path(path.with_name(f"{case_name(path)}.json")) as temporary:
        temporary.write_text(json.dumps(_sidecar(source), indent=2) + "\n", encoding="utf-8")
    write_nifti(path, label, affine, DESCRIPTION)
    return path


def semi_automatic_path(image: str | Path) -> Path:
    """Where a volume's semi-automatic label lies, or would lie."""
    source = Path(image)
    # The parent of "." is "." again, which would put the label of a series among its slices.
    folder = (source.resolve() if source.is_dir() else source).parent
    return folder / f"{case_name(source)}{SEMI_AUTOMATIC}.nii.gz"


def _sidecar(source: Path) -> dict[str, object]:
    """What BIDS asks of a derived mask, and the settings that it was made with."""
    parameters = ("SIGMAS_MM", "SCALES", "REACH_MM", "ISLAND_MM3", "FAINT", "LOCAL_MM", "FLANK_MM")
    return {
        "Description": "Vessels, 1, by multi-scale Hessian vesselness, hysteresis and half the local contrast."
        " Semi-automatic: made by a program, corrected by nobody, to be checked before use.",
        "Type": "ROI",
        "Manual": False,
        "Sources": [source.name],
        "GeneratedBy": [{"Name": "unoise-monai", "Version": version("unoise-monai")}],
        "Filter": "itk.MultiScaleHessianBasedMeasureImageFilter with itk.HessianToObjectnessMeasureImageFilter,"
        " hysteresis between Otsu's two thresholds of its response",
        "Parameters": {name.lower(): getattr(vesselness, name) for name in parameters},
    }
