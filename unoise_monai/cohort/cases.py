"""A case of a cohort, as the search finds it; and messages about it that tell no path."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

from unoise_monai.data.validation import EXTENSIONS


@dataclass(frozen=True)
class CohortCase:
    """One volume to explain.

    Args:
        name: what files and tables call it: a safe file name, unlike any other's in the cohort.
        files: absolute; one file, or the slices of a DICOM series in their order; none where there is a ``problem``,
            unless it is that something is not there.
        shown: what messages and tables call its file: its path below the input, or, where that may tell who the
            patient is (DICOM, and cases made anonymous), its name.
        label: its segmentation by hand, where there is one.
        organs: a label map of its organs, where there is one.
        series: whether its files are the slices of a DICOM series.
        problem: why it cannot be loaded, where the search has seen that already; the end of a sentence.
    """

    name: str
    files: tuple[Path, ...]
    shown: str
    label: Path | None = None
    organs: Path | None = None
    series: bool = False
    problem: str = ""


def stem(file_name: str) -> str:
    """A file's name without the extension of a volume."""
    extension = next((each for each in (*EXTENSIONS, ".img") if file_name.lower().endswith(each)), "")
    return file_name[: len(file_name) - len(extension)]


def scrub(text: str, case: CohortCase) -> str:
    """A message without the paths of a case's files: ``shown`` stands for them.

    Where ``shown`` is the case's name, because the path may tell who the patient is, the names of the files and their
    folders go, too, and the path of the file that a series was copied to.
    """
    private = case.shown == case.name
    words: dict[str, str] = {}
    for file in [*case.files, *(each for each in (case.label, case.organs) if each is not None)]:
        own = case.shown if private or file in case.files else file.name
        for path in {file, Path(os.path.realpath(file))}:
            words |= {str(path): own, str(path.parent): own if private else "its folder"}
            if private:
                words |= {path.name: own, stem(path.name): own}
    # As Python's errors print them, with escapes. Bare numbers, as slices are often called, count slices, too; those of
    # other files may be patients'.
    words |= {repr(word)[1:-1]: own for word, own in words.items()}
    told = (word for word in words if len(word) > 1 and not (case.series and word.isdigit()))
    longest_first = sorted(told, key=len, reverse=True)
    if longest_first:
        found = "|".join(map(re.escape, longest_first))
        text = re.sub(rf"(?<!\w)(?:{found})(?!\w)", lambda match: words[match[0]], text)
    return re.sub(rf"[^\s'\":]*/{re.escape(case.name)}\.nii\b", lambda _: case.shown, text) if case.series else text
