"""Folders of angiograms, and semi-automatic labels of their vessels."""

from __future__ import annotations

import json
import logging
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import itk
import numpy as np
import SimpleITK
from nibabel.affines import voxel_sizes
from numpy.typing import NDArray

from unoise_monai.atomic import atomic_path
from unoise_monai.checks import check_choice
from unoise_monai.data.cases import CohortCase
from unoise_monai.data.finding import Case, find_cohort, find_images, list_cases
from unoise_monai.data.nifti import write_nifti
from unoise_monai.data.reading import DICOM, EXTENSIONS, CaseError, LoadCased, case_name, check_grids

logger = logging.getLogger(__name__)

SIGMAS_MM = (0.4, 2.5)
REACH_MM = 1.0
ISLAND_MM3 = 5.0

SCALES = 5
SMALLEST_SIDE = 4
"""Voxels that the recursive filters need."""
ROUNDING = 1e-4
"""Responses below this are the rounding errors of the recursive filters."""
FAINT = 0.2
"""Share of the hysteresis' lower threshold that a vessel's flank must reach."""
LOCAL_MM = 3.0
"""Standard deviation of the neighbourhood over which vessel and surroundings are averaged."""
FLANK_MM = 0.5
"""The part around a vessel that belongs to neither: its voxels hold both."""


def vesselness(
    image: NDArray[Any], spacing_mm: Sequence[float], sigmas_mm: tuple[float, float] = SIGMAS_MM
) -> NDArray[np.float32]:
    """How much each voxel looks like part of a bright tube, whatever the tube's direction and calibre.

    The largest response over scales of ITK's Hessian objectness: Frangi et al. 1998, eq. 13 and 14, as Antiga 2007
    generalises it, with alpha = beta = 0.5. The Hessian is taken in mm and normalised by its scale. Its norm, S in
    eq. 12, is measured in units of the volume's own contrast, which runs from the median to the 99.9th percentile;
    gamma is a quarter of that: half the norm at the middle of a tube of full contrast.

    Args:
        image: intensities ``(X, Y, Z)`` in any unit, bright vessels.
        spacing_mm: voxel sizes.
        sigmas_mm: smallest and largest scale. A tube answers most at 0.7 times its radius.

    Returns:
        ``(X, Y, Z)`` in [0, 1].

    Raises:
        ValueError: when ``image`` is not 3-D, has a side below 4, holds NaN or infinite values, or one value only.
        ValueError: when ``spacing_mm`` is not three positive finite numbers, or ``sigmas_mm`` not positive and rising.
    """
    _check(image, spacing_mm, sigmas_mm)
    median, bright = np.percentile(image, (50, 99.9))
    # Where next to all of the volume is empty, its brightest voxel is the vessels'.
    contrast = (bright if bright > median else image.max()) - median
    if contrast == 0:
        return np.zeros(image.shape, np.float32)
    volume = itk.image_from_array(np.ascontiguousarray(((image - median) / contrast).astype(np.float32).T))
    volume.SetSpacing([float(size) for size in spacing_mm])
    volume_type = itk.Image[itk.F, 3]
    hessian_type = itk.Image[itk.SymmetricSecondRankTensor[itk.D, 3], 3]
    tubes = itk.HessianToObjectnessMeasureImageFilter[hessian_type, volume_type].New(
        ObjectDimension=1, BrightObject=True, Alpha=0.5, Beta=0.5, Gamma=0.25, ScaleObjectnessMeasure=False
    )
    scales = itk.MultiScaleHessianBasedMeasureImageFilter[volume_type, hessian_type, volume_type].New(
        volume, NumberOfSigmaSteps=SCALES, NonNegativeHessianBasedMeasure=True
    )
    scales.SetHessianToMeasureFilter(tubes)
    scales.SetSigmaMinimum(sigmas_mm[0])
    scales.SetSigmaMaximum(sigmas_mm[1])
    scales.SetSigmaStepMethodToLogarithmic()
    scales.Update()
    return np.ascontiguousarray(itk.array_from_image(scales.GetOutput()).T)


def vessel_label(
    image: NDArray[Any],
    spacing_mm: Sequence[float],
    sigmas_mm: tuple[float, float] = SIGMAS_MM,
    reach_mm: float = REACH_MM,
    island_mm3: float = ISLAND_MM3,
) -> NDArray[np.uint8]:
    """Segment the bright vessels of an angiogram, with or without its soft tissue, without a threshold to choose.

    1. `vesselness`, whose responses Otsu's method parts in three: nothing, doubtful, clear.
    2. Cores: what is clear, and what is doubtful and connected to it (hysteresis); small islands go.
    3. Flanks: within ``reach_mm`` of a core, what is tube-like at all and brighter than halfway between the vessel
       and its surroundings, both averaged nearby: the full width at half maximum, wherever the bias field has it.

    Args:
        image: intensities ``(X, Y, Z)`` in any unit, bright vessels.
        spacing_mm: voxel sizes.
        sigmas_mm: smallest and largest scale of `vesselness`.
        reach_mm: how far a vessel's edge may lie from its core.
        island_mm3: connected parts of less volume are removed.

    Returns:
        ``(X, Y, Z)``, 1 in vessels, 0 elsewhere; all 0 where nothing looks like a vessel.

    Raises:
        ValueError: when ``reach_mm`` or ``island_mm3`` is negative, or as in `vesselness`.
    """
    for name, value in (("reach_mm", reach_mm), ("island_mm3", island_mm3)):
        if not 0 <= value < np.inf:
            raise ValueError(f"{name} must be a finite number of at least 0, got {value}")
    response = vesselness(image, spacing_mm, sigmas_mm)
    least = int(np.ceil(island_mm3 / np.prod(spacing_mm)))
    felt = response[response > ROUNDING]
    if felt.size == 0:
        return np.zeros(image.shape, np.uint8)
    otsu = SimpleITK.OtsuMultipleThresholdsImageFilter()
    otsu.SetNumberOfThresholds(2)
    otsu.SetNumberOfHistogramBins(512)
    otsu.Execute(SimpleITK.GetImageFromArray(felt[None]))
    doubtful, clear = otsu.GetThresholds()
    cores = SimpleITK.DoubleThreshold(_to_itk(response, spacing_mm), doubtful, clear, 2.0, 2.0, 1, 0, True)
    cores = _without_islands(cores, least)
    core = _from_itk(cores) > 0
    if not core.any():
        return core.astype(np.uint8)
    distance_mm = _from_itk(SimpleITK.SignedMaurerDistanceMap(cores, False, False, True))
    middle = (_local_mean(image, core, spacing_mm) + _local_mean(image, distance_mm > FLANK_MM, spacing_mm)) / 2
    vessel = (distance_mm <= reach_mm) & (response > FAINT * doubtful) & (image > middle)
    return _from_itk(_without_islands(_to_itk(vessel.astype(np.uint8), spacing_mm), least))


def _check(image: NDArray[Any], spacing_mm: Sequence[float], sigmas_mm: tuple[float, float]) -> None:
    if image.ndim != 3:
        raise ValueError(f"image must be 3-D, got shape {image.shape}")
    if min(image.shape) < SMALLEST_SIDE:
        raise ValueError(f"image must have at least {SMALLEST_SIDE} voxels a side, got shape {image.shape}")
    if np.shape(spacing_mm) != (3,) or any(not 0 < size < np.inf for size in spacing_mm):
        raise ValueError(f"spacing_mm must be three positive finite numbers, got {spacing_mm}")
    if np.shape(sigmas_mm) != (2,) or not 0 < sigmas_mm[0] < sigmas_mm[1] < np.inf:
        raise ValueError(f"sigmas_mm must be two positive numbers in rising order, got {sigmas_mm}")
    if not np.isfinite(image).all():
        raise ValueError(f"image must hold finite voxels only, got {int((~np.isfinite(image)).sum())} NaN or infinite")
    if image.min() == image.max():
        raise ValueError(f"image must hold more than one value, got {image.min()} everywhere")


def _without_islands(mask: SimpleITK.Image, least: int) -> SimpleITK.Image:
    """The parts of a 0/1 image, connected by face, edge or corner, that have at least ``least`` voxels."""
    parts = SimpleITK.RelabelComponent(SimpleITK.ConnectedComponent(mask, True), least)
    return SimpleITK.Cast(parts > 0, SimpleITK.sitkUInt8)


def _local_mean(image: NDArray[Any], where: NDArray[np.bool_], spacing_mm: Sequence[float]) -> NDArray[np.float32]:
    """The mean of ``image`` over ``where``, weighted by a Gaussian around each voxel."""
    weight, total = (
        _from_itk(SimpleITK.SmoothingRecursiveGaussian(_to_itk(each.astype(np.float32), spacing_mm), LOCAL_MM))
        for each in (where, image * where)
    )
    return total / np.maximum(weight, 1e-6)


def _to_itk(array: NDArray[Any], spacing_mm: Sequence[float]) -> SimpleITK.Image:
    volume = SimpleITK.GetImageFromArray(np.ascontiguousarray(array.T))
    volume.SetSpacing([float(size) for size in spacing_mm])
    return volume


def _from_itk(volume: SimpleITK.Image) -> NDArray[Any]:
    return np.ascontiguousarray(SimpleITK.GetArrayFromImage(volume).T)


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
        label = vessel_label(image, voxel_sizes(affine).tolist())
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
    parameters = {
        "sigmas_mm": SIGMAS_MM,
        "scales": SCALES,
        "reach_mm": REACH_MM,
        "island_mm3": ISLAND_MM3,
        "faint": FAINT,
        "local_mm": LOCAL_MM,
        "flank_mm": FLANK_MM,
    }
    return {
        "Description": "Vessels, 1, by multi-scale Hessian vesselness, hysteresis and half the local contrast."
        " Semi-automatic: made by a program, corrected by nobody, to be checked before use.",
        "Type": "ROI",
        "Manual": False,
        "Sources": [source.name],
        "GeneratedBy": [{"Name": "unoise-monai", "Version": version("unoise-monai")}],
        "Filter": "itk.MultiScaleHessianBasedMeasureImageFilter with itk.HessianToObjectnessMeasureImageFilter,"
        " hysteresis between Otsu's two thresholds of its response",
        "Parameters": parameters,
    }


MISSING_LABELS = ("refuse", "drop", "keep", "make")

LABEL = re.compile(
    r"((_(label|desc|space|res)-[^_]+)*(_(mask|dseg|seg|labels?|vessels?))+|_label-[^_]+)$", re.IGNORECASE
)
"""How the name of a label goes on after the name of its image."""
OTHER_LABEL = re.compile(r"_label-(?!vessel)|^(?!.*_label-).*_desc-(?!vessel|manual|semiauto)", re.IGNORECASE)
"""Labels of something else than vessels, such as ``_desc-brain_mask``."""
ANGIOGRAM = re.compile(r"(?<![a-z])(angio|tof|mra)(?![a-z])", re.IGNORECASE)
"""What an angiogram's name has where other volumes lie beside it."""
LABEL_FOLDER = re.compile(r"(l)abel(s?)(Tr|Ts|)", re.IGNORECASE)
NIFTI = (".nii", ".nii.gz", ".hdr")


def list_vessel_cases(folder: str | Path, missing_labels: str = "refuse", check_headers: bool = True) -> list[Case]:
    """The angiograms of a folder with their vessel labels, in the order of their paths.

    A folder with a ``dataset.json`` is a Decathlon task, see `list_cases`. Any other is searched with all its
    subfolders:

    - Volumes are the files of `EXTENSIONS`; a folder of DICOM files is one, named after the folder. Where some names
      say ``angio``, ``TOF`` or ``MRA``, only those are taken. Hidden files are none, nor is what is under
      ``derivatives`` and no label.
    - A label is named as its image, with or without the image's last part where that says ``angio``, ``TOF`` or
      ``MRA``, followed by ``_mask``, ``_dseg``, ``_seg``, ``_label``, ``_vessel`` or ``_label-vessel``; BIDS
      entities may stand between. It lies beside its image; or under ``derivatives/<pipeline>/``, in the same
      subfolders; or in a folder ``labels`` (``labelsTr``) for images in ``images`` (``imagesTr``), where it may bear
      the image's very name.
    - A hand-made label goes before a semi-automatic one (`label_vessels`), which counts only where it is asked for.

    Args:
        folder: of the volumes, or of one DICOM series.
        missing_labels: what becomes of volumes without a hand-made label: ``"refuse"`` them all, naming the cases;
            ``"drop"`` them; ``"keep"`` them unlabelled; ``"make"`` semi-automatic labels, which are written beside the
            volumes and read back from there the next time.
        check_headers: read every header now (DICOM series and other formats than NIfTI: every voxel), so that a bad
            file is refused before work starts.

    Raises:
        ValueError: when ``missing_labels`` is unknown.
        CaseError: when the folder does not exist or holds no volume, two volumes share a name, an image has two
            labels or a label two images; when labels are missing that must not; as in `list_cases`.
    """
    check_choice("missing_labels", missing_labels, MISSING_LABELS)
    folder = Path(folder).resolve()
    cases = list_cases(folder, check_headers=False) if (folder / "dataset.json").is_file() else _find_cases(folder)
    unlabelled = [case for case in cases if "label" not in case]
    if missing_labels == "refuse" and unlabelled:
        names = ", ".join(case["case"] for case in unlabelled)
        raise CaseError(f"folder {folder} must hold a hand-made label for every volume, got none for {names}")
    if missing_labels == "drop":
        cases = [case for case in cases if "label" in case]
        if not cases:
            raise CaseError(f"folder {folder} must hold volumes with labels, got {len(unlabelled)} without")
    if check_headers:
        for case in cases:
            _check_headers(case)
    if missing_labels == "make":
        for case in unlabelled:
            path = semi_automatic_path(case["image"])
            case["label"] = str(path if path.is_file() else label_vessels(case))
            logger.warning("case %s: its label is semi-automatic, %s", case["case"], case["label"])
            if check_headers:
                _check_headers(case)
    return cases


def vessel_cohort(path: str | Path) -> list[CohortCase]:
    """As `find_cohort`, but the volumes of a folder and their labels are those of `list_vessel_cases`.

    Raises:
        CaseError: as these two.
    """
    if not Path(path).is_dir():
        return find_cohort(path)
    return [
        replace(
            find_cohort(item["image"])[0], name=item["case"], label=Path(item["label"]) if "label" in item else None
        )
        for item in list_vessel_cases(path, "keep", check_headers=False)
    ]


def find_angiograms(path: str | Path) -> list[Case]:
    """The angiograms to explain: one file, or a folder's as `list_vessel_cases` finds them, without their labels.

    Of a Decathlon folder the unlabelled cases, see `find_images`.

    Raises:
        CaseError: when there is no such file or folder, or no volume in it; as in `list_vessel_cases`.
    """
    path = Path(path)
    if not path.is_dir() or (path / "dataset.json").is_file():
        return find_images(path)
    cases = list_vessel_cases(path, "keep", check_headers=False)
    return [{"case": case["case"], "image": case["image"]} for case in cases]


def _find_cases(folder: Path) -> list[Case]:
    if not folder.is_dir():
        raise CaseError(f"vessel data must be a folder, got {folder}, which does not exist")
    images, labels = _images_and_labels(folder)
    if not images:
        raise CaseError(f"folder {folder} must hold volumes ({', '.join(EXTENSIONS)}), got none")
    by_name: dict[str, list[Path]] = defaultdict(list)
    places: dict[Path, list[Path]] = defaultdict(list)
    for image in images:
        name = case_name(image)
        by_name[name].append(image)
        short = re.sub(rf"[_-]({ANGIOGRAM.pattern})$", "", name, flags=re.IGNORECASE)
        for each in {name, short}:
            places[image.parent / each].append(image)
    for name, same in by_name.items():
        if len(same) > 1:
            raise CaseError(f"folder {folder} must hold one volume a case name, got {same[0]} and {same[1]} for {name}")
    owned: dict[Path, list[Path]] = defaultdict(list)
    for label in labels:
        owners = places.get(_image_of(label, folder), [])
        if len(owners) > 1:
            raise CaseError(f"label file {label} must belong to one image, got {owners[0]} and {owners[1]}")
        if not owners:
            logger.warning("label file %s belongs to no image", label)
        for image in owners:
            owned[image].append(label)
    cases = []
    for image in images:
        case = {"case": case_name(image), "image": str(image)}
        hand_made = [label for label in owned[image] if not case_name(label).endswith(SEMI_AUTOMATIC)]
        if len(hand_made) > 1:
            raise CaseError(f"case {case['case']}: an image must have one label, got {hand_made[0]} and {hand_made[1]}")
        if hand_made:
            case["label"] = str(hand_made[0])
        cases.append(case)
    return cases


def _images_and_labels(folder: Path) -> tuple[list[Path], list[Path]]:
    """Volumes and vessel labels under a folder, each in the order of their paths; a series is its folder."""
    files = [file for file in sorted(folder.rglob("*")) if _is_volume(file.relative_to(folder))]
    # The slices of a series are one volume, their folder.
    volumes = list(dict.fromkeys(file.parent if file.name.lower().endswith(DICOM) else file for file in files))
    if folder in volumes:
        # Beside a series means outside of this folder.
        beside = [file for file in sorted(folder.parent.iterdir()) if _is_volume(Path(file.name))]
        volumes += [file for file in beside if LABEL.sub("", case_name(file)) == folder.name and file != folder]
    labels = [file for file in volumes if file != folder and _is_label(file, folder)]
    images = [file for file in volumes if file not in labels and "derivatives" not in _parts(file, folder)]
    angiograms = [image for image in images if ANGIOGRAM.search(case_name(image))]
    if angiograms and len(angiograms) < len(images):
        logger.warning("folder %s: %d volumes are no angiograms by their names", folder, len(images) - len(angiograms))
    return angiograms or images, [label for label in labels if not OTHER_LABEL.search(case_name(label))]


def _is_volume(path: Path) -> bool:
    hidden = any(part.startswith(".") for part in path.parts)
    return path.name.lower().endswith(EXTENSIONS) and not hidden


def _is_label(file: Path, folder: Path) -> bool:
    named = LABEL.search(case_name(file)) is not None
    return named or any(LABEL_FOLDER.fullmatch(part) for part in _parts(file, folder))


def _parts(file: Path, folder: Path) -> tuple[str, ...]:
    """The folders between a file and the folder that was asked for."""
    return file.parent.relative_to(folder).parts if file.is_relative_to(folder) and file != folder else ()


def _image_of(label: Path, folder: Path) -> Path:
    """The path, without an extension, of the image that a label is named after."""
    parts = _parts(label, folder)
    if "derivatives" in parts:
        start = parts.index("derivatives")
        parts = parts[:start] + parts[start + 2 :]
    home = folder.joinpath(*(_image_folder(part) for part in parts))
    return (home if label.is_relative_to(folder) else label.parent) / LABEL.sub("", case_name(label))


def _image_folder(part: str) -> str:
    """The folder of images beside a folder of labels, in its case; any other as it is."""
    found = LABEL_FOLDER.fullmatch(part)
    return f"{'I' if found[1] == 'L' else 'i'}mage{found[2]}{found[3]}" if found else part


def _check_headers(case: Case) -> None:
    if all(case[key].lower().endswith(NIFTI) for key in ("image", "label") if key in case):
        check_grids(case)
    else:
        LoadCased(["image", "label"], labels=2)({key: path for key, path in case.items()})
