"""Explains volumes by many methods, scores every map, and goes on where it was interrupted."""

from __future__ import annotations

import hashlib
import json
import logging
import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from monai.data import MetaTensor
from monai.transforms import Invertd, LoadImage, ResampleToMatch
from numpy.typing import NDArray
from torch import Tensor, nn
from tqdm import tqdm

from unoise_monai.atomic import atomic_path
from unoise_monai.attribution.base import Attributor, Score, signed
from unoise_monai.attribution.registry import make_attributor, method_names
from unoise_monai.attribution.targets import foreground_sum
from unoise_monai.checks import check_choice
from unoise_monai.data.datasets import PARTS, split_cases
from unoise_monai.data.finding import Case, find_images, list_cases
from unoise_monai.data.task import SegmentationTask
from unoise_monai.data.transforms import preprocessing
from unoise_monai.handlers.savers import on_scan_grid, save_nifti, to_numpy
from unoise_monai.inference.tiling import VolumeNetwork
from unoise_monai.metrics.cost import measure_cost
from unoise_monai.metrics.visibility import distance_map
from unoise_monai.networks.modes import attributing, evaluating, segmentation
from unoise_monai.render.canvas import DISPLAY_PERCENTILE, display_scale, save_png, to_canonical
from unoise_monai.render.mip import mips
from unoise_monai.render.slices import montage
from unoise_monai.runs.scoreboard import MethodRow, write_scoreboard
from unoise_monai.runs.scoring import MapScorer, per_intensity, truth_figures
from unoise_monai.types import Image, LabelMap, Logits, VoxelMap
from unoise_monai.unoise import ExplainedSegmenter

logger = logging.getLogger(__name__)


def weights_sha256(network: nn.Module) -> str:
    """Digest of the names, types, shapes and values of all weights and buffers; the same on every device."""
    digest = hashlib.sha256()
    for name, value in network.state_dict().items():
        plain = value.detach().cpu().contiguous()
        digest.update(f"{name} {plain.dtype} {tuple(plain.shape)}\n".encode())
        # As bytes, for NumPy has no bfloat16.
        digest.update(plain.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def file_identity(path: str | Path) -> dict[str, str | int | None]:
    """Name and size of a file, or of a folder and all files in it; not its time, which a copy changes.

    The size is None where there is no such file: whoever reads it says so.
    """
    path = Path(path)
    if path.is_dir():
        size: int | None = sum(file.stat().st_size for file in path.iterdir() if file.is_file())
    else:
        size = path.stat().st_size if path.is_file() else None
    return {"name": path.name, "bytes": size}


def find_cases(
    path: str | Path,
    split_file: str | Path | None = None,
    part: str | None = None,
    lister: Callable[[Path], list[Case]] = list_cases,
    choice: int | str | Sequence[str] | None = None,
) -> list[Case]:
    """The cases to explain: of a Decathlon folder those with labels, else every volume that is found.

    Args:
        path: a Decathlon folder, a folder of volumes, or a file.
        split_file: of the training, see `split_cases`; with ``part``, the cases of one of its parts, such as the
            validation cases that no network was trained on.
        part: ``"training"``, ``"validation"``, ``"test"``, or None for all.
        lister: lists the cases of a folder that holds labels; that with a ``dataset.json`` by default.
        choice: the first so many, or a case or several by name; None for all.

    Raises:
        ValueError: when ``part`` is unknown, or given for cases without labels or a split.
        ValueError: when ``choice`` is below 1 or names a case that is not there.
        CaseError: as `list_cases`, `find_images` and `split_cases`.
    """
    path = Path(path)
    labelled = (lister is not list_cases and path.is_dir()) or (path / "dataset.json").is_file()
    cases = lister(path) if labelled else find_images(path)
    if part is not None:
        check_choice("part", part, PARTS)
        if split_file is None or not labelled:
            raise ValueError(f"part must be null where there is no split of labelled cases, got {part!r} for {path}")
        cases = split_cases(cases, split_file)[part]
    if choice is None:
        return cases
    if isinstance(choice, int):
        if choice < 1:
            raise ValueError(f"cases must be at least 1, got {choice}")
        return cases[:choice]
    choice = [choice] if isinstance(choice, str) else choice
    by_name = {case["case"]: case for case in cases}
    missing = [name for name in choice if name not in by_name]
    if missing:
        raise ValueError(
            f"cases must be named as in {path}, got {missing[:3]}; there are {len(by_name)}, such as "
            f"{list(by_name)[:3]}"
        )
    return [by_name[name] for name in choice]


@dataclass(frozen=True)
class CaseVolumes:
    """One case as the network sees it, and the way back to its file."""

    name: str
    source: Path
    image: Image
    """Normalised, ``(1, C, *spatial)``, a MetaTensor."""
    label: LabelMap | None
    """Class indices, ``(1, 1, *spatial)``, where the case has a label."""
    item: dict[str, Any]
    """What the preprocessing made, which knows how to undo itself."""
    preprocess: Any

    @property
    def spacing_mm(self) -> tuple[float, ...]:
        """Voxel size of the network's grid, mm."""
        return tuple(float(size) for size in self.item["image"].pixdim)

    def on_file_grid(self, values: VoxelMap) -> MetaTensor:
        """A map ``(1, 1, *spatial)`` interpolated to the input file's own grid, ``(1, X, Y, Z)``."""
        item = {
            **self.item,
            "map": MetaTensor(values[0].detach().as_subclass(Tensor).cpu(), meta=self.item["image"].meta),
        }
        inverted = Invertd("map", self.preprocess, orig_keys="image", nearest_interp=False, to_tensor=True)(item)["map"]
        # The file's own affine to the bit, not the one that inverting every step in turn rounded.
        inverted.affine = inverted.meta["original_affine"]
        return inverted

    def labels_from(self, path: Path) -> LabelMap:
        """Another label map of the case, such as its organs, on the network's grid, ``(1, 1, *spatial)``.

        Raises:
            FileNotFoundError: when there is no such file.
        """
        if not path.is_file():
            raise FileNotFoundError(f"{self.name} must have a label map {path}, got none")
        labels = LoadImage(image_only=True, ensure_channel_first=True)(path)
        # The network's grid may reach half a voxel beyond the file's: what lies there is as the voxel beside it.
        matched = ResampleToMatch(mode="nearest", padding_mode="border")(labels, self.item["image"])
        return matched.as_tensor().round().long()[None].to(self.image.device)


def load_case(case: Case, task: SegmentationTask, device: torch.device) -> CaseVolumes:
    """Read and normalise one case.

    Raises:
        CaseError: when a volume is bad, see `preprocessing`.
    """
    preprocess = preprocessing(task, with_label="label" in case)
    item = preprocess(dict(case))
    label = item.get("label")
    return CaseVolumes(
        name=case["case"],
        source=Path(case["image"]),
        image=item["image"][None].to(device),
        label=None if label is None else label.as_tensor()[None].round().long().to(device),
        item=item,
        preprocess=preprocess,
    )


PICTURES: Mapping[str, Callable[..., NDArray[Any]]] = {"mip": mips, "montage": montage}


class CaseFiles:
    """Where a comparison's results lie.

    Args:
        output_dir: holds a folder for each case, and in it one for each method.
        pictures: whether to draw maps.
    """

    def __init__(self, output_dir: str | Path, pictures: bool = True) -> None:
        self.output_dir = Path(output_dir)
        self.pictures = pictures
        self._scan: Any = None
        self._outline: NDArray[Any] | None = None

    def folder(self, case: str, method: str) -> Path:
        return self.output_dir / case / method

    def _stem(self, case: str, method: str) -> Path:
        return self.folder(case, method) / f"{case}_{method}"

    def read(self, case: str, method: str) -> dict[str, Any]:
        """What is known of a method on a case.

        Raises:
            FileNotFoundError: when it was never run.
        """
        return json.loads((self.folder(case, method) / "scores.json").read_text())

    def done(self, case: str, method: str, settings: dict[str, Any]) -> bool:
        """Whether a result is there, with its map and the pictures that are asked for, that was made with these
        settings and did not fail."""
        folder, stem = self.folder(case, method), self._stem(case, method).name
        drawn = [f"{stem}_{name}.png" for name in PICTURES] if self.pictures else []
        if not all((folder / name).is_file() for name in ("scores.json", f"{stem}.nii.gz", *drawn)):
            return False
        known = self.read(case, method)
        return "failed" not in known and known["settings"] == settings

    def write(self, result: dict[str, Any]) -> None:
        """Save the scores: last of all, for they say that the rest is there.

        Raises:
            TypeError: when the result holds what JSON does not know.
        """
        text = json.dumps(finite(result), indent=1, allow_nan=False)
        with atomic_path(self.folder(result["case"], result["method"]) / "scores.json") as temporary:
            temporary.write_text(text + "\n")

    def start(self, volumes: CaseVolumes, outline: LabelMap) -> None:
        """Read the scan that a case's pictures show, with the intensities that the clinic knows."""
        if self.pictures:
            self._scan = LoadImage(image_only=True, ensure_channel_first=True)(volumes.source)
            on_file = volumes.on_file_grid(outline.float())
            self._outline = on_scan_grid(
                to_numpy(on_file)[0].round().astype(np.uint8), on_file, self._scan, "seg", volumes.source
            )

    def write_map(self, method: str, volumes: CaseVolumes, importance: VoxelMap) -> None:
        """Write one map as NIfTI on the input file's grid, and its pictures."""
        stem = self._stem(volumes.name, method)
        on_file = volumes.on_file_grid(importance)
        voxels, affine = to_numpy(on_file)
        save_nifti(voxels, affine, f"{stem}.nii.gz", volumes.source, f"attribution by {method}, raw values")
        if self.pictures:
            image, spacing_mm = to_canonical(*to_numpy(self._scan))
            shown = display_scale(on_scan_grid(voxels, on_file, self._scan, method, volumes.source))
            label = f"{method}, share of its {DISPLAY_PERCENTILE:g}th percentile"
            for name, draw in PICTURES.items():
                rgb = draw(image, spacing_mm, importance=shown, segmentation=self._outline, label=label)
                save_png(rgb, f"{stem}_{name}.png")


def finite(value: Any) -> Any:
    """A result as JSON takes it: None for numbers that are not finite, in dictionaries and lists of any depth."""
    if isinstance(value, Mapping):
        return {key: finite(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def reason(error: Exception, case: Case, truth_dir: Path | None = None) -> str:
    """Why a case or a method failed, with the case's files by their names alone."""
    text = f"{type(error).__name__}: {error}"
    folders = [Path(case[key]).parent for key in ("image", "label") if key in case]
    for folder in folders if truth_dir is None else [*folders, truth_dir]:
        text = text.replace(f"{folder}{os.sep}", "")
    return text


class Subject(NamedTuple):
    """What every method on a case shares."""

    volumes: CaseVolumes
    logits: Logits
    """Of the whole image, ``(1, K, *spatial)``."""
    outline: LabelMap
    """The network's own segmentation, ``(1, 1, *spatial)``."""
    label: LabelMap
    """What maps are scored against: the case's label, or the network's own segmentation where it has none."""
    visibility: Callable[[VoxelMap], tuple[dict[str, Any], dict[str, float]]]
    """See `MapScorer.visibility`."""
    truth: LabelMap | None
    """What every voxel of a phantom is, where that is known."""


def prepare(
    case: Case, task: SegmentationTask, volume: VolumeNetwork, scorer: MapScorer, truth_dir: Path | None = None
) -> Subject:
    """Read a case, segment it, and make ready to score its maps.

    Args:
        case: see `find_cases`.
        task: how volumes are read.
        volume: the network, on its device.
        scorer: what is measured of a map.
        truth_dir: folder with ``<case>.nii.gz``, what every voxel of a phantom is.

    Raises:
        CaseError: when a volume is bad, see `load_case`.
        FileNotFoundError: when ``truth_dir`` lacks the case.
    """
    device = next((weight.device for weight in volume.parameters()), torch.device("cpu"))
    volumes = load_case(case, task, device)
    with evaluating(volume):
        logits = volume(volumes.image.as_subclass(Tensor))
    outline = segmentation(logits)
    label = outline if volumes.label is None else volumes.label
    return Subject(
        volumes=volumes,
        logits=logits,
        outline=outline,
        label=label,
        visibility=scorer.visibility(volume, volumes.image, label, volumes.spacing_mm),
        truth=None if truth_dir is None else volumes.labels_from(truth_dir / f"{volumes.name}.nii.gz"),
    )


CEILING = "label_distance"
"""Not a method: voxels ranked by their distance to the label, which a network without need of context would follow."""


class Comparison:
    """Runs every method on every case: writes maps and pictures, scores them, and makes the scoreboard.

    ``OUTPUT/<case>/<method>/`` gets the map as NIfTI on the input file's grid, pictures, and ``scores.json``, which is
    written last: what has it is done, and a run that was interrupted goes on with what has not, or was made with other
    options, weights or volumes. A method that fails on a case, or a case that fails as a whole, is noted there, stands
    in the table, and is tried again by the next run. Cases without a label are scored against the network's own
    segmentation of the whole image.

    Args:
        segmenter: the network to explain and its noise model, on their device.
        task: how volumes are read.
        cases: see `find_cases`.
        methods: names of `METHODS`, or ``"label_distance"``, the ceiling.
        output_dir: where all is written.
        options: of single methods, by name.
        scorer: what is measured.
        robust_cases: on how many cases sensitivity and randomisation are measured, which take many maps each.
        robust_passes: methods whose map takes more passes, forward and back together, are left out of them; the first
            of these cases decides, so that a method has all of them or none.
        pictures: write MIP and montage of every map.
        truth_dir: folder with ``<case>.nii.gz``, what every voxel of a phantom is (`Truth`).
        memory_gb: see `Attributor`.
        precision: see `Attributor`.

    Raises:
        ValueError: when there is no method or case, or a method is unknown.
    """

    def __init__(
        self,
        segmenter: ExplainedSegmenter,
        task: SegmentationTask,
        cases: Sequence[Case],
        methods: Sequence[str],
        output_dir: str | Path,
        options: Mapping[str, Mapping[str, Any]] | None = None,
        scorer: MapScorer | None = None,
        robust_cases: int = 3,
        robust_passes: float = 150.0,
        pictures: bool = True,
        truth_dir: str | Path | None = None,
        memory_gb: float | None = None,
        precision: str = "auto",
    ) -> None:
        if not cases or not methods:
            raise ValueError(f"cases and methods must be at least one each, got {len(cases)} and {len(methods)}")
        for method in methods:
            check_choice("method", method, (*method_names(), CEILING))
        self.segmenter, self.task, self.cases, self.methods = segmenter, task, list(cases), list(dict.fromkeys(methods))
        self.files = CaseFiles(output_dir, pictures)
        self.options = {name: dict(chosen) for name, chosen in (options or {}).items()}
        self.scorer = MapScorer() if scorer is None else scorer
        self.robust_cases, self.robust_passes = robust_cases, robust_passes
        self.truth_dir = None if truth_dir is None else Path(truth_dir)
        self.running = {"memory_gb": memory_gb, "precision": precision}
        self.volume = VolumeNetwork(segmenter.utility, memory_gb, precision)
        self._passes: dict[str, float] = {}  # of a map of each method, on the first robust case

    def run(self) -> list[MethodRow]:
        """Do what is missing, then write the scoreboard of all that is there."""
        # A new noise model changes no map but its own.
        weights = {"unoise": weights_sha256(self.segmenter), "": weights_sha256(self.segmenter.utility)}
        for number, case in enumerate(tqdm(self.cases, desc="cases")):
            settings = {name: self._settings(name, case, number, weights) for name in self.methods}
            missing = [name for name in self.methods if not self.files.done(case["case"], name, settings[name])]
            if number < self.robust_cases:
                for name in set(self.methods) - set(missing):
                    found = self.files.read(case["case"], name)
                    self._passes.setdefault(name, found.get("forward_passes", 0) + found.get("backward_passes", 0))
            if missing:
                self._explain(case, missing, settings)
        results = [self.files.read(case["case"], name) for case in self.cases for name in self.methods]
        return write_scoreboard(results, self.files.output_dir)

    def _settings(self, method: str, case: Case, number: int, weights: Mapping[str, str]) -> dict[str, Any]:
        """All that a result hangs on, as JSON gives it back."""
        robust = number < self.robust_cases
        settings = {
            "options": self.options.get(method, {}),
            "scorer": repr(self.scorer),
            "robust": robust,
            "robust_passes": self.robust_passes if robust else None,
            "weights": weights.get(method, weights[""]),
            "files": {key: file_identity(case[key]) for key in ("image", "label") if key in case},
            "truth": self.truth_dir is not None,
            **self.running,
        }
        return json.loads(json.dumps(settings, default=repr))

    def _explain(self, case: Case, methods: Sequence[str], settings: Mapping[str, dict[str, Any]]) -> None:
        known = {name: {"case": case["case"], "method": name, "settings": settings[name]} for name in methods}
        # Whatever goes wrong with a case or a method, the others count: it is noted, and logged with its trace.
        try:
            subject = prepare(case, self.task, self.volume, self.scorer, self.truth_dir)
            self.files.start(subject.volumes, subject.outline)
        except Exception as error:
            logger.exception("%s failed", case["case"])
            for name in methods:
                self.files.write(known[name] | {"failed": reason(error, case, self.truth_dir)})
            return
        for method in tqdm(methods, desc=case["case"], leave=False):
            try:
                self.files.write(known[method] | self._result(method, subject, settings[method]["robust"]))
            except Exception as error:
                logger.exception("%s failed on %s", method, case["case"])
                self.files.write(known[method] | {"failed": reason(error, case, self.truth_dir)})

    def _result(self, method: str, subject: Subject, robust: bool) -> dict[str, Any]:
        """Everything that is to be said of a method on a case, once its map is written."""
        importance, found, scores = self._map(method, subject, robust)
        curves, areas = subject.visibility(importance)
        scores = {**areas, **scores}
        if subject.truth is not None:
            scores |= truth_figures(importance, subject.truth)
        self.files.write_map(method, subject.volumes, importance)
        return {
            "label": "own segmentation" if subject.volumes.label is None else "label",
            **found,
            "curves": curves,
            "scores": {name: value for name, value in scores.items() if math.isfinite(value)},
        }

    def _map(self, method: str, subject: Subject, robust: bool) -> tuple[Tensor, dict[str, Any], dict[str, float]]:
        """The map that ranks voxels, what is to be said of it, and the scores that need the method again."""
        if method == CEILING:
            return distance_map(subject.label, subject.volumes.spacing_mm), {}, {}
        image, target = subject.volumes.image, foreground_sum(subject.logits)
        attributor = self.attributor(method)
        with attributing(attributor.network):
            attributor.volume.copies(image, attributor.differentiates)
        with measure_cost(attributor.network, image) as cost:
            values = attributor(image, target)
        contribution = values.as_tensor()
        importance = signed(contribution, type(attributor).default_sign)
        if attributor.contributes:
            contribution = per_intensity(contribution, image, attributor)
        scores = self.scorer.faithfulness(Score(self.volume, target), image, contribution)
        peak_bytes = None
        passes = self._passes.setdefault(method, cost.forward_passes + cost.backward_passes) if robust else math.inf
        if passes <= self.robust_passes:
            scores |= self.scorer.robustness(self.attributor(method, None), image, target, subject.outline > 0)
            # Watching the memory takes time, so it is another run than the one that is timed.
            with measure_cost(attributor.network, image, memory=True) as watched:
                attributor(image, target)
            peak_bytes = watched.peak_bytes
        found = {
            "seconds": cost.seconds,
            "peak_gb": None if peak_bytes is None else peak_bytes / 1e9,
            "forward_passes": cost.forward_passes,
            "backward_passes": cost.backward_passes,
            "notes": values.meta["attribution"][0],
            "constant": bool(importance.amax() == importance.amin()),
        }
        return importance, found, scores

    def attributor(self, method: str, sign: str | None = "signed") -> Attributor:
        """The method as it is run here."""
        options = {**self.running, **self.options.get(method, {}), "sign": sign}
        if method == "unoise":
            options["noise_model"] = self.segmenter.noise_model
        return make_attributor(method, self.segmenter.utility, **options)
