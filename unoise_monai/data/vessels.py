"""Folders of angiograms: which cases they have, and which label belongs to which volume."""

from __future__ import annotations

import logging
import re
from collections import defaultdict
from pathlib import Path

from unoise_monai.checks import check_choice
from unoise_monai.data.decathlon import Case, find_images, list_cases
from unoise_monai.data.validation import DICOM, EXTENSIONS, CaseError, LoadCased, case_name, check_grids
from unoise_monai.data.vessel_labels import SEMI_AUTOMATIC, label_vessels, semi_automatic_path

logger = logging.getLogger(__name__)

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
