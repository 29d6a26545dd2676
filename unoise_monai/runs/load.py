"""Reads all that a case needs; runs in a process of its own, so that no file can end or hang a run."""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from monai.data import MetaTensor
from monai.utils import TraceKeys
from numpy.typing import NDArray

from unoise_monai.bundle import Bundle, build
from unoise_monai.data.cases import Case
from unoise_monai.data.dicom import volume_file
from unoise_monai.data.headers import CaseError
from unoise_monai.data.reading import LoadCased, check_same_grid, grid_of, load_volume
from unoise_monai.runs.records import ORGAN_NAMES, fingerprint, inputs_of

LARGEST_ORGAN = 2**15


@dataclass
class Loaded:
    """One case, read; the preprocessed image and the volumes on the grid of its file."""

    case: Case
    item: dict[str, Any]
    """As the bundle's ``preprocessing`` makes it."""
    scan: MetaTensor
    """``(1, X, Y, Z)``, the intensities of the file."""
    label: NDArray[np.int64] | None
    """Class indices, ``(X, Y, Z)``."""
    organs: NDArray[np.int64] | None
    """Organ labels, ``(X, Y, Z)``."""
    organ_names: dict[int, str] = field(default_factory=dict)
    source: dict[str, Any] = field(default_factory=dict)
    """Size and SHA-256 of what was read."""
    seconds: float = 0.0


class CaseReader:
    """Reads cases with a bundle's ``preprocessing``; sent to another process, it builds that from the configuration.

    Args:
        bundle: whose configuration says how volumes are read.
    """

    def __init__(self, bundle: Bundle) -> None:
        task = bundle.task
        self.config = bundle.config
        self.labels = len(bundle.class_names) if task is None else len(task.labels)
        self.merge_labels = task is not None and task.merge_labels
        self.spacing_mm = None if task is None else task.spacing_mm
        self._chain: Callable[[Mapping[str, Any]], Any] | None = bundle.explainer.preprocess

    def __getstate__(self) -> dict[str, Any]:
        # A chain may hold what cannot be sent; without a configuration it has to be.
        return {**self.__dict__, "_chain": None if self.config else self._chain}

    def __call__(self, case: Case) -> Loaded:
        """Read and preprocess a case.

        Raises:
            CaseError: when the search has found a problem, or a volume is bad, see `LoadCased`; when the organ map is
                not on the image's grid.
        """
        start = time.perf_counter()
        # Before it is read: what changes meanwhile is another input then. A missing file is named below.
        with suppress(FileNotFoundError):
            source = fingerprint(inputs_of(case))
        volumes = LoadCased(["image", "label"], self.labels, self.spacing_mm)(case.item())
        scan: MetaTensor = volumes["image"]
        label = _whole_numbers(volumes["label"]) if "label" in volumes else None
        if label is not None and self.merge_labels:
            label = (label > 0).astype(np.int64)
        organs, names = (None, {}) if case.organs is None else _organs(case, case.organs, scan)
        item = self._preprocess(case, scan)
        return Loaded(case, item, scan, label, organs, names, source, time.perf_counter() - start)

    def _preprocess(self, case: Case, scan: MetaTensor) -> dict[str, Any]:
        if self._chain is None:
            self._chain = build(self.config or {}, "preprocessing")
        steps = getattr(self._chain, "transforms", ())
        if steps and isinstance(steps[0], LoadCased):
            return dict(self._chain({"case": case.name, "image": scan.clone()}))
        # A chain that reads for itself is given one file, of a DICOM series, too.
        with tempfile.TemporaryDirectory(prefix="unoise-") as folder:
            return dict(self._chain({"case": case.name, "image": str(volume_file(case, Path(folder)))}))


def portable(loaded: Loaded) -> Loaded:
    """A case whose preprocessing another process can undo.

    MONAI knows the steps that it undoes by where they lie in memory; `TraceKeys.NONE` lets any equal step undo them.
    """
    for value in loaded.item.values():
        for step in getattr(value, "applied_operations", ()):
            step[TraceKeys.ID] = TraceKeys.NONE
    return loaded


def _organs(case: Case, path: Path, scan: MetaTensor) -> tuple[NDArray[np.int64], dict[int, str]]:
    volume = load_volume(path)[None]
    check_same_grid(f"case {case.name}: organ map", grid_of(volume[0]), "the image", grid_of(scan[0]))
    labels = _whole_numbers(volume)
    if not 0 <= labels.min() <= labels.max() <= LARGEST_ORGAN:
        raise CaseError(
            f"case {case.name}: organ map must hold labels 0 to {LARGEST_ORGAN}, got {labels.min()} to {labels.max()}"
        )
    names = {int(label): f"label {label}" for label in np.unique(labels) if label}
    table = path.parent / ORGAN_NAMES
    if table.is_file():
        try:
            names |= {int(label): str(name) for label, name in json.loads(table.read_text()).items()}
        except (ValueError, AttributeError) as error:
            raise CaseError(f"case {case.name}: {ORGAN_NAMES} must map labels to names: {error}") from error
    return labels, names


def _whole_numbers(volume: MetaTensor) -> NDArray[np.int64]:
    values = volume.as_tensor()[0].numpy()
    if not np.isfinite(values).all() or not np.array_equal(values, np.rint(values)):
        raise CaseError("label maps must hold whole numbers")
    return np.asarray(values.astype(np.int64))
