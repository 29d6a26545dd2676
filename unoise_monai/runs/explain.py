"""Reads a case, runs the network and the attribution methods on it, and scores their maps."""

import copy
import json
import math
import resource
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.data import MetaTensor
from monai.transforms import LoadImage, ResampleToMatch
from monai.utils import TraceKeys
from numpy.typing import NDArray
from torch import Tensor

from unoise_monai.attribution.base import METHODS, Attributor, make_attributor, signed
from unoise_monai.attribution.targets import foreground_sum
from unoise_monai.bundle import Bundle, build, fingerprint
from unoise_monai.data.cases import Case
from unoise_monai.data.dicom import volume_file
from unoise_monai.data.headers import CaseError
from unoise_monai.data.reading import LoadCased, check_same_grid, grid_of, load_volume
from unoise_monai.inference.explain import Explainer
from unoise_monai.inference.memory import Attempt, with_less_memory
from unoise_monai.inference.tiling import VolumeNetwork
from unoise_monai.metrics.cost import measure_cost
from unoise_monai.metrics.scores import ScoredMap, per_intensity
from unoise_monai.metrics.visibility import distance_map
from unoise_monai.networks.weights import attributing, segmentation
from unoise_monai.runs.records import ORGAN_NAMES, inputs_of, reason_for
from unoise_monai.runs.settings import CEILING, Comparison
from unoise_monai.types import LabelMap, VoxelMap

LARGEST_ORGAN = 2**15


@dataclass
class Loaded:
    """One case, read; the preprocessed image and the volumes on the grid of its file."""

    case: Case
    item: dict[str, Any]
    """As the bundle's ``preprocessing`` makes it."""
    scan: MetaTensor
    """``(1, X, Y, Z)``, the intensities of the file; of several channels the first."""
    label: NDArray[np.int64] | None
    """Class indices, ``(X, Y, Z)``."""
    organs: NDArray[np.int64] | None
    """Organ labels, ``(X, Y, Z)``."""
    organ_names: dict[int, str] = field(default_factory=dict)
    source: dict[str, Any] = field(default_factory=dict)
    """Size and SHA-256 of what was read."""
    seconds: float = 0.0


class CaseReader:
    """Reads cases with a bundle's ``preprocessing``; sent to another process, it builds that from the configuration."""

    def __init__(self, bundle: Bundle) -> None:
        task = bundle.task
        self.config = bundle.config
        self.labels = len(bundle.class_names) if task is None else len(task.labels)
        self.merge_labels = task is not None and task.merge_labels
        self.spacing_mm = None if task is None else task.spacing_mm
        self._chain: Callable[[Mapping[str, Any]], Any] | None = bundle.explainer.preprocess
        self.channels = getattr(next(iter(getattr(self._chain, "transforms", ())), None), "channels", None)

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
        volumes = LoadCased(["image", "label"], self.labels, self.spacing_mm, self.channels)(case.item())
        scan: MetaTensor = volumes["image"]
        label = _whole_numbers(volumes["label"]) if "label" in volumes else None
        if label is not None and self.merge_labels:
            label = (label > 0).astype(np.int64)
        organs, names = (None, {}) if case.organs is None else _organs(case, case.organs, scan)
        item = self._preprocess(case, scan)
        return Loaded(case, item, scan[:1], label, organs, names, source, time.perf_counter() - start)

    def _preprocess(self, case: Case, scan: MetaTensor) -> dict[str, Any]:
        if self._chain is None:
            self._chain = build(self.config or {}, "preprocessing")
        steps = getattr(self._chain, "transforms", ())
        if steps and isinstance(steps[0], LoadCased):
            return dict(self._chain({"case": case.name, "image": scan.clone()}))
        # A chain that reads for itself is given one file, of a DICOM series, too.
        with tempfile.TemporaryDirectory(prefix="unoise-") as folder:
            file = str(volume_file(case, Path(folder))) if case.series or len(case.files) == 1 else case.item()["image"]
            return dict(self._chain({"case": case.name, "image": file}))


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
            names |= {int(label): str(name) for label, name in json.loads(table.read_text(encoding="utf-8")).items()}
        except (ValueError, AttributeError) as error:
            raise CaseError(f"case {case.name}: {ORGAN_NAMES} must map labels to names: {error}") from error
    return labels, names


def _whole_numbers(volume: MetaTensor) -> NDArray[np.int64]:
    values = volume.as_tensor()[0].numpy()
    if not np.isfinite(values).all() or not np.array_equal(values, np.rint(values)):
        raise CaseError("label maps must hold whole numbers")
    return np.asarray(values.astype(np.int64))


STATUS = Path("/proc/self/status")
RESET = Path("/proc/self/clear_refs")


def reset_peak(device: torch.device) -> None:
    """Begin to watch: on a GPU its memory, else the process's own, where the system can forget the peak so far."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    elif RESET.exists():
        # Not every container lets a process; the peak is then that of the whole run.
        with suppress(OSError):
            RESET.write_text("5", encoding="utf-8")


def peak_gb(device: torch.device) -> float:
    """The most memory that was taken since `reset_peak`, in 1e9 bytes."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e9
    if STATUS.exists():
        fields = dict(line.split(":", 1) for line in STATUS.read_text(encoding="utf-8").splitlines() if ":" in line)
        if "VmHWM" in fields:
            return int(fields["VmHWM"].split()[0]) * 1024 / 1e9
    # macOS counts bytes, Linux kilobytes.
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024) / 1e9


def as_json(value: Any) -> Any:
    """A result as JSON gives it back, None for numbers that are not finite; a `TypeError` for what JSON can't hold."""

    def finite(value: Any) -> Any:
        if isinstance(value, Mapping):
            return {key: finite(each) for key, each in value.items()}
        if isinstance(value, (list, tuple)):
            return [finite(each) for each in value]
        return None if isinstance(value, float) and not math.isfinite(value) else value

    return json.loads(json.dumps(finite(value), allow_nan=False))


@dataclass(frozen=True)
class Job:
    """What is to be done of a case, besides its importance."""

    case: Case
    done: bool = False
    """Whether all but these methods is done already, and stays if they fail."""
    methods: Mapping[str, str] = field(default_factory=dict)
    """Names of the methods to run, and the digests of what their results depend on."""
    robust: bool = False
    """Whether what takes many maps is measured, too."""
    passes: Mapping[str, float] = field(default_factory=dict)
    """Passes that a map of each method takes, forward and back together, as counted on an earlier case."""


@dataclass
class Explained:
    """Predictions and maps of a case, on the network's grid."""

    loaded: Loaded
    job: Job
    pred: MetaTensor
    """``(K + 1, *spatial)``: logits, then importance; on the CPU."""
    maps: dict[str, Tensor]
    """Of each further method, ``(1, 1, *spatial)``, on the CPU."""
    results: dict[str, dict[str, Any]]
    """Of each further method what its record says: scores, costs, or why it failed."""
    device: str
    note: str
    """Why it ran otherwise than asked for, else empty."""
    seconds: float
    peak_memory_gb: float


class CaseExplainer:
    """Explains cases with one bundle, on its device, and the further methods of a comparison, if any."""

    def __init__(self, bundle: Bundle, comparison: Comparison | None = None) -> None:
        self.bundle = bundle
        self.comparison = Comparison() if comparison is None else comparison
        self.device = next(bundle.explainer.network.parameters()).device
        self.memory_gb: float | None = getattr(bundle.explainer.inferer, "memory_gb", None)
        self.precision: str = getattr(bundle.explainer.inferer, "precision", "auto")
        self._on_cpu = bundle.explainer.network if self.device.type == "cpu" else None

    def __call__(self, loaded: Loaded, job: Job) -> Explained:
        """Explain one case, with less memory or on the CPU where it has to be.

        Raises:
            MemoryError: when not even the CPU has enough for the noise model's map.
        """
        start = time.perf_counter()
        reset_peak(self.device)
        name = loaded.case.name

        def predict(attempt: Attempt) -> tuple[MetaTensor, str]:
            return self.explainer(attempt).predict(loaded.item["image"]), str(attempt.device)

        (pred, device), note = with_less_memory(predict, self.device, self.memory_gb, name)
        maps: dict[str, Tensor] = {}
        results: dict[str, dict[str, Any]] = {}
        subject: _Subject | None = None
        for method, digest in job.methods.items():
            # Whatever goes wrong with a method, the others count: its record says what.
            try:
                subject = _Subject(self, loaded, pred) if subject is None else subject
                (maps[method], found), less = with_less_memory(
                    lambda attempt, method=method, subject=subject: self._map(method, subject, job, attempt),  # type: ignore[misc]
                    self.device,
                    self.memory_gb,
                    f"{name}, {method}",
                )
                note, found = note or less, as_json(found)
            except Exception as error:
                folders = [] if self.comparison.truth_dir is None else [self.comparison.truth_dir]
                found = {"failed": reason_for(loaded.case, error, folders)}
            results[method] = {"settings": digest, **found}
        plain = MetaTensor(pred.as_tensor().float().cpu(), meta=pred.meta)
        seconds = time.perf_counter() - start
        return Explained(loaded, job, plain, maps, results, device, note, seconds, peak_gb(self.device))

    def explainer(self, attempt: Attempt) -> Explainer:
        """The bundle's own, with the memory and on the device of an attempt."""
        own = self.bundle.explainer
        network, inferer = own.network, own.inferer
        if attempt.device != self.device:
            if self._on_cpu is None:
                self._on_cpu = copy.deepcopy(network).to(attempt.device)
            network = self._on_cpu
        if attempt.memory_gb != self.memory_gb and hasattr(inferer, "memory_gb"):
            inferer = copy.copy(inferer)
            inferer.memory_gb = attempt.memory_gb
        return Explainer(network, own.preprocess, inferer, own.postprocess)

    def attributor(self, method: str, attempt: Attempt, **options: Any) -> Attributor:
        """A method as it is run here."""
        network = self.explainer(attempt).network
        running = {"memory_gb": attempt.memory_gb, "precision": self.precision}
        if "noise_model" in METHODS[method].needs:
            options["noise_model"] = network.noise_model
        chosen = {**running, **self.comparison.options.get(method, {}), **options}
        return make_attributor(method, network.utility, **chosen)

    def _map(self, method: str, subject: "_Subject", job: Job, attempt: Attempt) -> tuple[Tensor, dict[str, Any]]:
        """A method's map, and what its record says of it."""
        scorer = self.comparison.scorer
        if scorer is None:
            values = self.attributor(method, attempt)(subject.image.to(attempt.device), subject.target)
            return values.as_tensor().cpu(), {"notes": values.meta["attribution"][0]}
        found: dict[str, Any]
        if method == CEILING:
            scored = subject.scored_map(distance_map(subject.label, subject.spacing_mm))
            found, many_passes = {}, job.robust
        else:
            scored, found, many_passes = self._scored_map(method, subject, job, attempt)
        return scored.importance.as_subclass(Tensor).cpu(), {
            "label": "label" if scored.labelled else "own segmentation",
            **found,
            **scorer(scored, many_passes),
        }

    def _scored_map(
        self, method: str, subject: "_Subject", job: Job, attempt: Attempt
    ) -> tuple[ScoredMap, dict[str, Any], bool]:
        """A method's map, what it cost, and whether it is scored by what takes many passes."""
        image, target = subject.image, subject.target
        attributor = self.attributor(method, attempt, sign="signed")
        with attributing(attributor.network):
            attributor.volume.copies(image, attributor.differentiates)
        with measure_cost(attributor.network, image) as cost:
            values = attributor(image, target)
        contribution = values.as_tensor()
        importance = signed(contribution, type(attributor).default_sign)
        if attributor.contributes:
            contribution = per_intensity(contribution, image, attributor)
        passes = job.passes.get(method, cost.forward_passes + cost.backward_passes)
        many_passes = job.robust and passes <= self.comparison.robust_passes
        peak_gb = None
        if many_passes:
            # Watching the memory takes time, so it is another run than the one that is timed.
            with measure_cost(attributor.network, image, memory=True) as watched:
                attributor(image, target)
            peak_gb = None if watched.peak_bytes is None else watched.peak_bytes / 1e9
        found = {
            "seconds": cost.seconds,
            "peak_gb": peak_gb,
            "forward_passes": cost.forward_passes,
            "backward_passes": cost.backward_passes,
            "notes": values.meta["attribution"][0],
            "constant": bool(importance.amax() == importance.amin()),
        }
        again = self.attributor(method, attempt, sign=None)
        return subject.scored_map(importance, contribution=contribution, attributor=again), found, many_passes


class _Subject:
    """What all methods on a case share; a `FileNotFoundError` where ``truth_dir`` lacks the case."""

    def __init__(self, explainer: CaseExplainer, loaded: Loaded, pred: MetaTensor) -> None:
        self.loaded = loaded
        self.logits = pred.as_tensor()[None, :-1].float()
        self.image = loaded.item["image"][None].to(self.logits.device)
        self.target = foreground_sum(self.logits)
        comparison = explainer.comparison
        if comparison.scorer is None:
            return
        utility = explainer.bundle.explainer.network.utility
        self.volume = VolumeNetwork(utility, explainer.memory_gb, explainer.precision)
        self.spacing_mm = tuple(float(size) for size in loaded.item["image"].pixdim)
        self.outline = segmentation(self.logits)
        self.label = self.outline if loaded.label is None else self._on_grid(torch.from_numpy(loaded.label))
        self.shared: dict[str, Any] = {}
        self.truth: LabelMap | None = None
        if comparison.truth_dir is not None:
            path = Path(comparison.truth_dir) / f"{loaded.case.name}.nii.gz"
            if not path.is_file():
                raise FileNotFoundError(f"{loaded.case.name} must have a label map {path}, got none")
            self.truth = self._on_grid(LoadImage(image_only=True)(path))

    def scored_map(self, importance: VoxelMap, **method: Any) -> ScoredMap:
        """A map of the case, for scores; ``method`` is what else a `ScoredMap` holds."""
        return ScoredMap(
            importance,
            self.image,
            self.volume,
            self.logits,
            self.label,
            where=self.outline > 0,
            target=self.target,
            spacing_mm=self.spacing_mm,
            labelled=self.loaded.label is not None,
            truth=self.truth,
            case_cache=self.shared,
            **method,
        )

    def _on_grid(self, labels: Tensor) -> LabelMap:
        """Labels ``(X, Y, Z)`` on the file's grid, or with an affine of their own, brought to the network's."""
        affine = labels.affine if isinstance(labels, MetaTensor) else self.loaded.scan.affine
        volume = MetaTensor(labels.as_subclass(Tensor)[None].float(), affine=affine)
        # The network's grid may reach half a voxel beyond the file's: what lies there is as the voxel beside it.
        matched = ResampleToMatch(mode="nearest", padding_mode="border")(volume, self.loaded.item["image"])
        return matched.as_tensor().round().long()[None].to(self.image.device)
