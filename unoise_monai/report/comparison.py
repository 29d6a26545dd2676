"""Explains volumes by many methods, scores every map, and goes on where it was interrupted."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor
from tqdm import tqdm

from unoise_monai.attribution.base import Attributor, Score, signed
from unoise_monai.attribution.registry import make_attributor, method_names
from unoise_monai.attribution.targets import foreground_sum
from unoise_monai.checks import check_choice
from unoise_monai.data import SegmentationTask
from unoise_monai.data.decathlon import Case
from unoise_monai.inference.volume import VolumeNetwork
from unoise_monai.metrics.cost import measure_cost
from unoise_monai.metrics.ranking import distance_map
from unoise_monai.networks.modes import attributing
from unoise_monai.report.files import CaseFiles, reason
from unoise_monai.report.rows import MethodRow
from unoise_monai.report.scoreboard import write_scoreboard
from unoise_monai.report.scoring import MapScorer, per_intensity, truth_figures
from unoise_monai.report.settings import file_identity, weights_sha256
from unoise_monai.report.subject import Subject, prepare
from unoise_monai.unoise import ExplainedSegmenter

logger = logging.getLogger(__name__)

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
