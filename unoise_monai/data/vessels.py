"""Folders of angiograms, and semi-automatic labels of their vessels."""

import json
import logging
import os
import re
from collections import defaultdict
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import itk
import numpy as np
import SimpleITK
from nibabel.affines import voxel_sizes
from numpy.typing import NDArray

from unoise_monai.atomic import atomic_path
from unoise_monai.checks import check_choice, check_finite
from unoise_monai.data.cases import Case, Entry, Item, look_at, stem, walk
from unoise_monai.data.finding import (
    INDEX,
    find_images,
    find_labelled,
    list_cases,
    volumes_among,
    with_distinct_names,
    with_map,
)
from unoise_monai.data.headers import EXTENSIONS, CaseError, kind_of
from unoise_monai.data.nifti import write_nifti
from unoise_monai.data.reading import LoadCased, Source, check_item

logger = logging.getLogger(__name__)

SIGMAS_MM, SCALES = (0.4, 2.5), 5
"""Smallest and largest scale, and how many there are."""
REACH_MM = 1.0
"""How far a vessel's edge may lie from its core."""
ISLAND_MM3 = 5.0
"""Connected parts of less volume are removed."""
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


def vesselness(image: NDArray[Any], spacing_mm: Sequence[float]) -> NDArray[np.float32]:
    """How much each voxel looks like part of a bright tube, whatever the tube's direction and calibre.

    The largest response over the scales from 0.4 to 2.5 mm of ITK's Hessian objectness: Frangi et al. 1998, eq. 13 and
    14, as Antiga 2007 generalises it, with alpha = beta = 0.5; a tube answers most at the scale of 0.7 times its
    radius. The Hessian is taken in mm and normalised by its scale. Its norm, S in eq. 12, is measured in units of the
    volume's own contrast, from the median to the 99.9th percentile; gamma is a quarter of that: half the norm at the
    middle of a tube of full contrast.

    Args:
        image: intensities ``(X, Y, Z)`` in any unit, bright vessels.

    Returns:
        ``(X, Y, Z)`` in [0, 1].

    Raises:
        ValueError: when ``image`` is not 3-D, has a side below 4, holds NaN or infinite values, or one value only;
            when ``spacing_mm`` is not three positive finite numbers.
    """
    if image.ndim != 3:
        raise ValueError(f"image must be 3-D, got shape {image.shape}")
    if min(image.shape) < SMALLEST_SIDE:
        raise ValueError(f"image must have at least {SMALLEST_SIDE} voxels a side, got shape {image.shape}")
    if np.shape(spacing_mm) != (3,) or any(not 0 < size < np.inf for size in spacing_mm):
        raise ValueError(f"spacing_mm must be three positive finite numbers, got {spacing_mm}")
    check_finite(image, "image")
    if image.min() == image.max():
        raise ValueError(f"image must hold more than one value, got {image.min()} everywhere")
    median, bright = np.percentile(image, (50, 99.9))
    # Where the volume is almost empty, its brightest voxel is the vessels'.
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
    scales.SetSigmaMinimum(SIGMAS_MM[0])
    scales.SetSigmaMaximum(SIGMAS_MM[1])
    scales.SetSigmaStepMethodToLogarithmic()
    scales.Update()
    return np.ascontiguousarray(itk.array_from_image(scales.GetOutput()).T)


def vessel_label(image: NDArray[Any], spacing_mm: Sequence[float]) -> NDArray[np.uint8]:
    """Segment the bright vessels of an angiogram, with or without its soft tissue, without a threshold to choose.

    1. `vesselness`, whose responses Otsu's method divides in three: nothing, doubtful, clear.
    2. Cores: what is clear, and what is doubtful and connected to it (hysteresis); below `ISLAND_MM3` it is removed.
    3. Flanks: within `REACH_MM` of a core, what is tube-like at all and brighter than halfway between the local means
       of the vessel and its surroundings: the full width at half maximum, whatever the bias field.

    Returns:
        ``(X, Y, Z)``, 1 in vessels, 0 elsewhere; all 0 where nothing looks like a vessel.

    Raises:
        ValueError: as `vesselness`.
    """
    response = vesselness(image, spacing_mm)
    least = int(np.ceil(ISLAND_MM3 / np.prod(spacing_mm)))
    answers = response[response > ROUNDING]
    if answers.size == 0:
        return np.zeros(image.shape, np.uint8)
    otsu = SimpleITK.OtsuMultipleThresholdsImageFilter()
    otsu.SetNumberOfThresholds(2)
    otsu.SetNumberOfHistogramBins(512)
    otsu.Execute(SimpleITK.GetImageFromArray(answers[None]))
    doubtful, clear = otsu.GetThresholds()
    cores = SimpleITK.DoubleThreshold(_to_itk(response, spacing_mm), doubtful, clear, 2.0, 2.0, 1, 0, True)
    cores = _without_islands(cores, least)
    core = _from_itk(cores) > 0
    if not core.any():
        return np.zeros(image.shape, np.uint8)
    distance_mm = _from_itk(SimpleITK.SignedMaurerDistanceMap(cores, False, False, True))
    middle = (_local_mean(image, core, spacing_mm) + _local_mean(image, distance_mm > FLANK_MM, spacing_mm)) / 2
    vessel = (distance_mm <= REACH_MM) & (response > FAINT * doubtful) & (image > middle)
    return _from_itk(_without_islands(_to_itk(vessel.astype(np.uint8), spacing_mm), least))


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

SIDECAR = {
    "Description": "Vessels, 1, by multi-scale Hessian vesselness, hysteresis and half the local contrast."
    " Semi-automatic: made by a program, corrected by nobody, to be checked before use.",
    "Type": "ROI",
    "Manual": False,
    "GeneratedBy": [{"Name": "unoise-monai", "Version": version("unoise-monai")}],
    "Filter": "itk.MultiScaleHessianBasedMeasureImageFilter with itk.HessianToObjectnessMeasureImageFilter,"
    " hysteresis between Otsu's two thresholds of its response",
    "Parameters": {
        **{"sigmas_mm": SIGMAS_MM, "scales": SCALES, "reach_mm": REACH_MM, "island_mm3": ISLAND_MM3},
        **{"faint": FAINT, "local_mm": LOCAL_MM, "flank_mm": FLANK_MM},
    },
}
"""What BIDS requires of a derived mask, and the settings that it was made with."""


def label_vessels(item: Item) -> Path:
    """Write a case's semi-automatic label beside its volume, marked as such, and return its path.

    ``<image>_desc-semiauto_mask.nii.gz`` lies on the image's grid; its name, its header's ``descrip`` and the ``.json``
    beside it (with the filter, its parameters and the version) mark it as semi-automatic. The label of a DICOM series
    goes beside the series' folder, not into it. A person who has corrected the label renames it:
    ``<image>_desc-manual_mask.nii.gz``.

    Args:
        item: ``image``, see `LoadCased`, and, where it has one, ``case`` (its name).

    Raises:
        FileExistsError: when the label is there already: a person may have corrected it.
        CaseError: when the volume is bad, see `LoadCased`, or shows no vessel.
    """
    source, path = _place(item["image"]), semi_automatic_path(item["image"])
    # A series' folder often has the patient's name.
    name = "DICOM series" if source.is_dir() else f"image file {source}"
    if path.exists():
        raise FileExistsError(f"a semi-automatic label must not take the place of a file, got {path}")
    loaded = LoadCased(["image"], labels=2)({key: value for key, value in item.items() if key != "label"})
    image, affine = loaded["image"].numpy()[0], np.asarray(loaded["image"].affine)
    try:
        label = vessel_label(image, voxel_sizes(affine).tolist())
    except ValueError as error:
        raise CaseError(f"case {loaded['case']}: {name} cannot be labelled: {error}") from error
    if not label.any():
        raise CaseError(f"case {loaded['case']}: {name} must show vessels to label, got none")
    # The notice first: a label must never lie there without it.
    note = SIDECAR | {"Sources": [source.name]}
    with atomic_path(path.with_name(f"{stem(path.name)}.json")) as temporary:
        temporary.write_text(json.dumps(note, indent=2) + "\n", encoding="utf-8")
    write_nifti(path, label, affine, "semi-automatic vessel label, not hand-made")
    return path


def semi_automatic_path(image: Source) -> Path:
    """Where a volume's semi-automatic label lies, or would lie."""
    place = _place(image)
    return place.parent / f"{place.name if place.is_dir() else stem(place.name)}{SEMI_AUTOMATIC}.nii.gz"


def _place(image: Source) -> Path:
    """The file of a volume, or the folder of a series."""
    path = Path(image) if isinstance(image, (str, os.PathLike)) else Path(image[0]).parent
    # The parent of "." is "." again, which would put the label of a series among its slices.
    return path.resolve() if path.is_dir() else path


MISSING_LABELS = ("refuse", "drop", "keep", "make")

LABEL = re.compile(
    r"((_(label|desc|space|res)-[^_]+)*(_(mask|dseg|seg|labels?|vessels?))+|_label-[^_]+)$", re.IGNORECASE
)
"""How the name of a label goes on after the name of its image."""
OTHER_LABEL = re.compile(r"_label-(?!vessel)|^(?!.*_label-).*_desc-(?!vessel|manual|semiauto)", re.IGNORECASE)
"""Labels of something else than vessels, such as ``_desc-brain_mask``."""
ANGIOGRAM = re.compile(r"(?<![a-z])(angio|tof|mra)(?![a-z])", re.IGNORECASE)
"""What an angiogram's name has where other volumes lie beside it."""
LABEL_FOLDER = re.compile(r"^(l)abel(s?(?:Tr|Ts)?)$", re.IGNORECASE)


def list_vessel_cases(folder: str | Path, missing_labels: str = "refuse", check_headers: bool = True) -> list[Item]:
    """The angiograms of a folder with their vessel labels, sorted by name.

    A folder with a ``dataset.json`` is a Decathlon task, see `list_cases`. Any other is searched as by `find_cases`:

    - Where some names contain ``angio``, ``TOF`` or ``MRA``, only those are images; volumes under ``derivatives`` are
      never.
    - A label has the name of its image, with or without a last part ``angio``, ``TOF`` or ``MRA``, followed by
      ``_mask``, ``_dseg``, ``_seg``, ``_label``, ``_vessel`` or ``_label-vessel``, with BIDS entities between. It lies
      beside its image; or under ``derivatives/<pipeline>/``, in the same subfolders; or in a folder ``labels``
      (``labelsTr``) for images in ``images`` (``imagesTr``), where it may have the image's very name. That of a DICOM
      series has the name of the folder of its slices and lies beside it.
    - A hand-made label goes before a semi-automatic one (`label_vessels`), which is used only by ``"make"``.

    Args:
        folder: of the volumes, or of one DICOM series.
        missing_labels: for volumes without a hand-made label: ``"refuse"`` them all, naming the cases; ``"drop"`` them;
            ``"keep"`` them unlabelled; ``"make"`` semi-automatic labels, once, beside the volumes.
        check_headers: refuse a bad header now, before work starts.

    Raises:
        ValueError: when ``missing_labels`` is unknown.
        CaseError: when the folder does not exist or holds no volume, an image has two labels or a label two images, or
            labels are missing that must not; see `list_cases`.
    """
    check_choice("missing_labels", missing_labels, MISSING_LABELS)
    folder = Path(folder).resolve()
    items = list_cases(folder, check_headers=False) if (folder / INDEX).is_file() else _paired(folder)
    unlabelled = [item for item in items if "label" not in item]
    if missing_labels == "refuse" and unlabelled:
        names = ", ".join(item["case"] for item in unlabelled)
        raise CaseError(f"folder {folder} must hold a hand-made label for every volume, got none for {names}")
    if missing_labels == "drop":
        items = [item for item in items if "label" in item]
        if not items:
            raise CaseError(f"folder {folder} must hold volumes with labels, got {len(unlabelled)} without")
    for item in items if check_headers else ():
        check_item(item)
    for item in unlabelled if missing_labels == "make" else ():
        path = semi_automatic_path(item["image"])
        item["label"] = str(path if path.is_file() else label_vessels(item))
        logger.warning("case %s: its label is semi-automatic, %s", item["case"], item["label"])
        if check_headers:
            check_item(item)
    return items


def find_angiograms(path: str | Path, labelled: bool = False) -> list[Item]:
    """The angiograms to explain: of a folder those that `list_vessel_cases` finds, of any other input all.

    Args:
        path: see `find_images`, with ``labelled`` `find_labelled`.
        labelled: with their labels.
    """
    if kind_of(Path(path)) != "folder" or (Path(path) / INDEX).is_file():
        return find_labelled(path) if labelled else find_images(path)
    items = list_vessel_cases(path, "keep", check_headers=False)
    return items if labelled else [{key: value for key, value in item.items() if key != "label"} for item in items]


def _paired(folder: Path) -> list[Item]:
    """The angiograms below a folder, with their hand-made labels."""
    if kind_of(folder) != "folder":
        raise CaseError(f"vessel data must be a folder, got {folder}, which does not exist")
    images, labels = _images_and_labels(folder)
    if not images:
        raise CaseError(f"folder {folder} must hold volumes ({', '.join(EXTENSIONS)}), got none")
    owners: dict[Path, list[Case]] = defaultdict(list)
    for case in images:
        for place in _label_places(case):
            owners[place].append(case)
    owned: dict[str, list[Entry]] = defaultdict(list)
    for label in labels:
        found = owners.get(_image_of(label, folder), [])
        if len(found) > 1:
            both = f"{found[0].shown} and {found[1].shown}"
            raise CaseError(f"label file {label.path} must belong to one image, got {both}")
        if not found:
            logger.warning("label file %s belongs to no image", label.path)
        for case in found:
            owned[case.name].append(label)
    items = []
    for case in sorted(images, key=lambda case: case.name):
        hand_made = [entry for entry in owned[case.name] if not stem(entry.place.name).endswith(SEMI_AUTOMATIC)]
        if len(hand_made) > 1:
            both = " and ".join(str(entry.path) for entry in hand_made[:2])
            raise CaseError(f"case {case.name}: an image must have one label, got {both}")
        items.append(with_map(case, "label", next(iter(hand_made), None)).item())
    return items


def _label_places(case: Case) -> set[Path]:
    """The paths, without an extension, that a case's label is named after."""
    if not case.files:
        return set()
    if case.series:
        return {file.parent for file in case.files}
    name = stem(case.files[0].name)
    short = re.sub(rf"[_-]({ANGIOGRAM.pattern})$", "", name, flags=re.IGNORECASE)
    return {case.files[0].parent / each for each in (name, short)}


def _images_and_labels(folder: Path) -> tuple[list[Case], list[Entry]]:
    """The angiograms and the vessel labels below a folder."""
    entries = walk(folder)
    labels = [entry for entry in entries if entry.is_volume and _is_label(entry)]
    cases = with_distinct_names(
        volumes_among(each for each in entries if each not in labels and "derivatives" not in each.place.parts[:-1])
    )
    if any(case.series and case.files and case.files[0].parent == folder for case in cases):
        # Beside a series means outside of this folder.
        names = (file.name for file in sorted(folder.parent.iterdir()) if LABEL.sub("", stem(file.name)) == folder.name)
        beside = [look_at(folder.parent, Path(name)) for name in names]
        labels += [entry for entry in beside if entry is not None and entry.is_volume]
    angiograms = [case for case in cases if any(ANGIOGRAM.search(place.name) for place in _label_places(case))]
    if angiograms and len(angiograms) < len(cases):
        logger.warning("folder %s: %d volumes are no angiograms by their names", folder, len(cases) - len(angiograms))
    return angiograms or cases, [entry for entry in labels if not OTHER_LABEL.search(stem(entry.place.name))]


def _is_label(entry: Entry) -> bool:
    in_folder = any(LABEL_FOLDER.fullmatch(part) for part in entry.place.parts[:-1])
    return in_folder or LABEL.search(stem(entry.place.name)) is not None


def _image_of(label: Entry, folder: Path) -> Path:
    """The path, without an extension, of the image that a label is named after."""
    name = LABEL.sub("", stem(label.place.name))
    if not label.path.is_relative_to(folder):
        return label.path.parent / name
    parts = label.place.parts[:-1]
    if "derivatives" in parts:
        start = parts.index("derivatives")
        parts = parts[:start] + parts[start + 2 :]
    # The folder of images beside a folder of labels.
    images = (
        LABEL_FOLDER.sub(lambda found: f"{'I' if found[1] == 'L' else 'i'}mage{found[2]}", part) for part in parts
    )
    return folder.joinpath(*images, name)
