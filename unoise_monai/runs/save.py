"""Writes what there is to say of a case, its record last, and the tables of all cases."""

import csv
import math
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from nibabel.affines import voxel_sizes
from numpy.typing import NDArray

from unoise_monai.atomic import atomic_path
from unoise_monai.bundle import Bundle, fingerprint
from unoise_monai.handlers.savers import to_numpy
from unoise_monai.metrics.overlap import dice_per_class
from unoise_monai.metrics.regions import region_importance
from unoise_monai.runs.explain import Explained
from unoise_monai.runs.records import Records, failures, tables_locked

LAST_COLUMNS = ("voxels", "spacing_mm", "device", "note", "seconds", "peak_memory_gb")
VOLUME = ".nii.gz"
FORMULA = ("=", "+", "-", "@", "\t", "\r")
"""What a cell of text must not begin with: spreadsheets would run it."""


def write_tables(records: Records) -> None:
    """Write the tables of all that is known; of two runs that write at once, the last knows everything."""
    with tables_locked(records.output):
        # What another part has just begun is neither done nor failed.
        known = [record for record in records.all() if record["status"] != "begun"]
        rows = [{"case": record["case"], "status": record["status"], **case_values(record)} for record in known]
        hashes = [{f"{name}_sha256": value for name, value in file_hashes(record).items()} for record in known]
        columns = ["case", "status", *ordered(rows), *dict.fromkeys(name for row in hashes for name in row)]
        _write(records.output / "cohort.csv", columns, [row | found for row, found in zip(rows, hashes, strict=True)])
        failed = [
            {"case": record["case"], "file": record["shown"], "stage": stage, "reason": reason}
            for record in known
            for stage, reason in failures(record)
        ]
        _write(records.output / "failures.csv", ("case", "file", "stage", "reason"), failed)
        organs = [{"case": record["case"], **row} for record in known for row in record.get("organs", [])]
        if organs:
            _write(records.output / "organs.csv", list(organs[0]), organs)
        else:
            (records.output / "organs.csv").unlink(missing_ok=True)


def case_values(record: Mapping[str, Any]) -> dict[str, Any]:
    """A case's measures, the shares of its organs, its grid and what it cost, by column, from its record."""
    values = dict(record.get("numbers", {}))
    values |= {f"organ_{each['organ']}": each["importance_share"] for each in record.get("organs", [])}
    values |= {name: record[name] for name in LAST_COLUMNS if name in record}
    sides = {name: record[name] for name in ("voxels", "spacing_mm") if name in record}
    return values | {name: " x ".join(f"{side:g}" for side in value) for name, value in sides.items()}


def file_hashes(record: Mapping[str, Any]) -> dict[str, str]:
    """SHA-256 of what a case that is done was read from, ``image``, and of each of its volumes, by its name."""
    if record["status"] != "done":
        return {}
    names = {name: name.removeprefix(f"{record['case']}_").removesuffix(VOLUME) for name in record["files"]}
    volumes = {names[name]: file["sha256"] for name, file in record["files"].items() if name.endswith(VOLUME)}
    return {"image": record["source"]["sha256"], **volumes}


def ordered(rows: Iterable[Mapping[str, Any]]) -> list[str]:
    """The columns of `case_values` that the rows have: Dice (its mean before the classes), other numbers, the organs,
    which not every case has, and the rest."""

    def place(name: str) -> tuple[int, str]:
        if name in LAST_COLUMNS:
            return 4, ""
        if name.startswith("organ_"):
            return 3, name
        return (0 if name == "dice" else 1 if name.startswith("dice_") else 2), ""

    names = dict.fromkeys(name for row in rows for name in row)
    return sorted((name for name in names if name not in ("case", "status")), key=place)


def _write(path: Path, columns: Sequence[str], rows: Iterable[Mapping[str, Any]]) -> None:
    with atomic_path(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns, restval="", lineterminator="\n")
        writer.writeheader()
        writer.writerows({name: _cell(value) for name, value in row.items()} for row in rows)


def _cell(value: Any) -> Any:
    if isinstance(value, float):
        return "" if math.isnan(value) else f"{value:.6g}"
    text = str(value)
    return f"'{text}" if isinstance(value, str) and text.startswith(FORMULA) else value


@dataclass(frozen=True)
class OrganRow:
    """How much importance lies in one organ of a case."""

    organ: str
    volume_ml: float
    volume_share: float
    importance_share: float
    ratio: float
    """Share of the importance over share of the volume."""
    ratio_low: float
    """95% block-bootstrap interval, see `region_importance`; NaN of an organ within one block."""
    ratio_high: float
    mean_importance: float


def case_numbers(
    importance: NDArray[np.float32],
    segmentation: NDArray[np.integer[Any]],
    label: NDArray[np.integer[Any]] | None,
    classes: Sequence[str],
    voxel_ml: float,
) -> dict[str, float]:
    """The columns of ``cohort.csv`` for a case, from its importance in [0, 1] and its class indices, ``(X, Y, Z)``.

    They are ``volume_ml_<class>``; ``importance_mean``, its percentiles ``_p50`` and ``_p95``, its means
    ``_in_foreground`` and ``_in_background``; with a label ``dice_<class>`` and their mean, ``dice``. NaN where there
    is nothing to measure. ``classes`` name the classes, background first.
    """
    counts = np.bincount(segmentation.ravel(), minlength=len(classes))
    numbers = {f"volume_ml_{name}": float(counts[k]) * voxel_ml for k, name in enumerate(classes) if k}
    inside = segmentation > 0
    p50, p95 = np.percentile(importance, [50, 95])
    numbers |= {
        "importance_mean": float(importance.mean(dtype=np.float64)),
        "importance_p50": float(p50),
        "importance_p95": float(p95),
        "importance_in_foreground": _mean(importance[inside]),
        "importance_in_background": _mean(importance[~inside]),
    }
    if label is not None:
        values = dice_per_class(segmentation, label, len(classes))
        dice = {f"dice_{name}": value for name, value in zip(classes[1:], values, strict=True)}
        there = [value for value in dice.values() if not math.isnan(value)]
        numbers |= {"dice": sum(there) / len(there) if there else math.nan, **dice}
    return numbers


def organ_rows(
    importance: NDArray[np.float32], organs: NDArray[np.integer[Any]], names: Mapping[int, str], voxel_ml: float
) -> list[OrganRow]:
    """The importance of each organ, the one that matters most for its size first; label 0 is "elsewhere"."""
    rows = region_importance(
        torch.from_numpy(np.ascontiguousarray(importance))[None, None],
        torch.from_numpy(organs.astype(np.int64))[None, None],
        names,
    )
    return [
        OrganRow(
            row.name,
            row.volume_share * organs.size * voxel_ml,
            row.volume_share,
            row.importance_share.mean,
            row.ratio.mean,
            row.ratio.low,
            row.ratio.high,
            row.density.mean,
        )
        for row in rows
    ]


def _mean(values: NDArray[np.float32]) -> float:
    return float(values.mean(dtype=np.float64)) if values.size else math.nan


class CaseWriter:
    """Writes cases into an output, with the savers of their bundle; ``digest`` is that of the run's settings."""

    def __init__(self, bundle: Bundle, records: Records, digest: str) -> None:
        self.bundle, self.records, self.digest = bundle, records, digest

    def __call__(self, explained: Explained) -> dict[str, Any]:
        """Write a case's files, then its record, which is also returned.

        Of a case that is done already, only the methods that were run are written: all else stays as it is.

        Raises:
            OSError: when the output cannot be written.
        """
        start = time.perf_counter()
        loaded, explainer = explained.loaded, self.bundle.explainer
        name, folder = loaded.case.name, self.records.output / loaded.case.name
        item: dict[Any, Any] = dict(explainer.postprocess({**loaded.item, "pred": explained.pred}))
        for method, values in explained.maps.items():
            item[method] = explainer.on_file_grid(values, loaded.item)
        known = self.records.read(name) if explained.job.done else None
        # Another worker may have begun it, and died.
        if known is None or known["status"] != "done":
            known = {}
        kept = {name: result for name, result in known.get("methods", {}).items() if name not in explained.results}
        again = {file for method in explained.results for file in self._files(name, method)}
        keep = {file: known_as for file, known_as in known.get("files", {}).items() if file not in again}
        written = {method: self._files(name, method) for method in (*(() if known else ("",)), *explained.maps)}
        self.records.begin(name, self.digest, [file for files in written.values() for file in files], keep)
        for method in written:
            for saver in self.bundle.savers:
                saver.save(item, name, folder, loaded.scan, method)
        record = {
            **(known or self._facts(item, explained)),
            "files": keep | {file: fingerprint([folder / file]) for files in written.values() for file in files},
            "methods": kept
            | {method: {**result, "files": written.get(method, [])} for method, result in explained.results.items()},
        }
        if not known:
            record["seconds"] = loaded.seconds + explained.seconds + time.perf_counter() - start
        self.records.write(record)
        return record

    def _files(self, name: str, method: str) -> list[str]:
        return [file for saver in self.bundle.savers for file in saver.files(name, method)]

    def _facts(self, item: Mapping[Any, Any], explained: Explained) -> dict[str, Any]:
        """What the record says of the case itself."""
        loaded = explained.loaded
        importance, affine = to_numpy(item["importance"])
        # Of a sheared grid, that of a tilted gantry, the sides' product would be too much.
        voxel_ml = abs(float(np.linalg.det(affine[:3, :3]))) / 1000
        organs = [] if loaded.organs is None else organ_rows(importance, loaded.organs, loaded.organ_names, voxel_ml)
        segmentation = to_numpy(item["seg"])[0]
        return {
            "case": loaded.case.name,
            "status": "done",
            "settings": self.digest,
            "source": loaded.source,
            "shown": loaded.case.shown,
            "numbers": case_numbers(importance, segmentation, loaded.label, self.bundle.class_names, voxel_ml),
            "organs": [asdict(row) for row in organs],
            "voxels": list(importance.shape),
            "spacing_mm": [round(float(side), 4) for side in voxel_sizes(affine)],
            "device": explained.device,
            "note": explained.note,
            "peak_memory_gb": explained.peak_memory_gb,
        }
