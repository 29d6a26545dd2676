"""From a user's trained network to a bundle that explains it: checks, training, and whether the map may be believed."""

import json
import os
import shutil
import tempfile
import uuid
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, overload

import numpy as np
import torch
from monai.bundle import ConfigParser
from monai.utils import set_determinism
from numpy.typing import NDArray
from torch import nn

from unoise_monai.atomic import atomic_path
from unoise_monai.bundle import Bundle, file_sha256, load_bundle, run_configuration, trust
from unoise_monai.checks import check_choice, check_fraction
from unoise_monai.data.cases import Case
from unoise_monai.data.datasets import split_cases
from unoise_monai.data.finding import find_cases
from unoise_monai.fit.checking import (
    CHECKED,
    Checked,
    Tell,
    check_dice,
    check_network,
    crop_size_of,
    explainer_of,
    foreground_crop,
    measure_noise,
    scan_dice,
    time_step,
    write_segmentations,
)
from unoise_monai.fit.in_memory import Batch, fit_network
from unoise_monai.fit.loading import TrainedModel
from unoise_monai.fit.writing import add_metrics, write_bundle, write_readme
from unoise_monai.inference.explain import Explainer
from unoise_monai.metrics.bootstrap import bootstrap_difference
from unoise_monai.metrics.scores import MapScorer, Visibility
from unoise_monai.metrics.visibility import MODES, Hiding
from unoise_monai.networks.outputs import ClassLogits
from unoise_monai.networks.unet import UNet
from unoise_monai.runs.records import Records
from unoise_monai.runs.run import explain_cases, method_results
from unoise_monai.runs.settings import Comparison, settings_of
from unoise_monai.unoise import ExplainedSegmenter

OBJECTIVES = {"visible": ("train", "train_visible"), "noise": ("train",)}
"""What a noise model is trained on, and the configurations that do: Dice with a share of the voxels visible, or the
published noise."""
SHARES = (0.1, 0.2, 0.3, 0.5, 1.0)
RIVALS = ("unoise", "saliency", "random")
LABELS = "labels"
"""Folder of a bundle with the model's own segmentations."""
BATCH = 4
JUDGED = 12
"""Cases, at most, on which the finished map is measured."""
SPARE = 0.7
"""The share of the minutes that the planned steps take; validation and what varies have the others."""


@dataclass(frozen=True)
class Fitted:
    """A bundle that explains a user's network, and how well."""

    folder: Path
    dice: Mapping[str, Mapping[str, float]]
    """By method, by share of the voxels that are visible and how the others are hidden, mean Dice."""
    believed: bool
    """Whether the map is better than a random order of the voxels, beyond chance."""

    def explain(self, image: str | Path) -> Any:
        """Explain the segmentation of one file; see `Explainer`."""
        return load_bundle(self.folder).explain(image)


@overload
def fit(found: TrainedModel, data: str | Path, *args: Any, **options: Any) -> Fitted | None: ...
@overload
def fit(found: TrainedModel, data: Iterable[Batch], *args: Any, **options: Any) -> Explainer: ...
@overload
def fit(found: nn.Module, data: Iterable[Batch], *args: Any, **options: Any) -> ExplainedSegmenter: ...
def fit(
    found: TrainedModel | nn.Module,
    data: str | Path | Iterable[Batch],
    out: str | Path | None = None,
    labels: str | Path | None = None,
    split: str | Path | None = None,
    objective: str = "visible",
    minutes: float = 30.0,
    min_dice: float = 0.5,
    device: str | torch.device | None = None,
    check_only: bool = False,
    tell: Tell = print,
) -> Fitted | Explainer | ExplainedSegmenter | None:
    """Train a noise model for a network, and write the bundle that explains with both.

    Started again with the same arguments, it goes on where it was stopped. Of batches in memory nothing is written, see
    `fit_network`.

    Args:
        found: the model, see `load`; with batches any network.
        data: cases with or without labels, see `find_cases`; or batches, a DataLoader or a list.
        out: the bundle's folder, new or of a fit that was stopped; by default a new temporary one, which stays.
        labels: ``"model"`` for the model's own segmentation, or a folder with ``<case>.nii.gz``; by default the labels
            of the data, or where there are none the model's.
        split: the cases that the network was trained on, a JSON as `split_cases` writes it; by default they are drawn.
        objective: of `OBJECTIVES`.
        minutes: that training takes at most.
        min_dice: that the model must reach on cases with labels by people.
        device: where it runs; a GPU where there is one by default.
        check_only: stop before anything is written.
        tell: takes the lines that say what was found.

    Returns:
        None where only checked; with batches what explains a file, or of a plain network, for which no file is read,
        the network with its noise model.

    Raises:
        UnfitModel: when a check fails.
        FileExistsError: when ``out`` holds something else.
        CaseError: when there are no cases, or one that is checked is bad.
        ValueError: when an argument is out of its range, or is for files and there are batches or a plain network.
    """
    if not isinstance(data, str | Path):
        if (out, labels, split, check_only) != (None, None, None, False):
            raise ValueError(
                "out, labels, split and check_only must be left out with batches, of which none is written"
            )
        options: dict[str, Any] = {"minutes": minutes, "objective": objective, "device": device, "tell": tell}
        if not isinstance(found, TrainedModel):
            return fit_network(found, data, **options)
        segmenter = fit_network(found, data, **options)
        explainer = explainer_of(found, segmenter.utility, segmenter.noise_model)
        explainer.network.eval()
        return explainer
    if not isinstance(found, TrainedModel):
        raise ValueError(f"a network must be wrapped, see `wrap`, to read files, got {type(found).__name__}")
    check_choice("objective", objective, tuple(OBJECTIVES))
    check_fraction("min_dice", min_dice)
    if not minutes > 0:
        raise ValueError(f"minutes must be above 0, got {minutes}")
    # Not made before the checks have passed.
    temporary = Path(tempfile.gettempdir()) / f"unoise-fit-{uuid.uuid4().hex}" / found.name
    out, data = Path(temporary if out is None else out).resolve(), Path(data).absolute()
    settings = {
        "weights_sha256": found.weights_sha256,
        "labels": str(labels),
        "objective": objective,
        "minutes": minutes,
    }
    before = _before(out, settings)
    if before is None:
        set_determinism(seed=0)
        lines: list[str] = []

        def note(line: str) -> None:
            lines.append(line)
            tell(line)

        prepared = _checked(found, data, labels, split, min_dice, torch.device(device or _device()), note)
        if check_only:
            return None
        facts = {**settings, "lines": lines}
        before = _begin(found, prepared, data, out, labels, split, objective, minutes, facts, tell)
    if "table" in before:
        tell(f"{out.name} is finished; its table stands in docs/README.md")
        return Fitted(out, before["table"], before["believed"])
    if not before["trained"]:
        # Statistics are told at the end.
        run_configuration(out, OBJECTIVES[objective], {"is_not_rank0": True})
        before["trained"] = True
        _save(out, before)
    return judge(out, found.name, before, device, tell)


def _device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"


def _before(out: Path, settings: Mapping[str, Any]) -> dict[str, Any] | None:
    """What ``fit.json`` says of a fit that was stopped; None where the folder is new."""
    if not out.exists():
        return None
    file = out / "fit.json"
    if not file.is_file():
        raise FileExistsError(f"OUT must be a new folder or one of unoise fit, got {out}")
    before: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    if differing := [name for name, value in settings.items() if before.get(name) != value]:
        raise FileExistsError(f"{out} must be of the same {', '.join(differing)}; choose another OUT, or remove it")
    return before


def _save(out: Path, facts: Mapping[str, Any]) -> None:
    with atomic_path(out / "fit.json") as temporary:
        temporary.write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")


@dataclass
class _Prepared:
    checked: Checked
    cases: list[Case]
    own_labels: bool
    """Whether the model's own segmentation is the target."""


def _checked(
    found: TrainedModel,
    data: Path,
    labels: str | Path | None,
    split: str | Path | None,
    min_dice: float,
    device: torch.device,
    tell: Tell,
) -> _Prepared:
    for line in found.notes:
        tell(line)
    cases = [case for case in find_cases(data, None if labels == "model" else labels) if not case.problem]
    labelled = [case for case in cases if case.label is not None]
    own = labels == "model" or not labelled
    cases = cases if own else labelled
    tell(f"data: {len(cases)} cases, {'the model segments them itself' if own else 'with labels'}")
    found.network.to(device)
    chain = found.model.preprocessing()
    unseen = (
        cases
        if split is None
        else [Case.of(item) for item in split_cases([c.item() for c in cases], split)["validation"]]
    )
    chosen = [unseen[index] for index in np.linspace(0, len(unseen) - 1, min(CHECKED, len(unseen))).round().astype(int)]
    items = [chain({key: value for key, value in case.item().items() if key != "label"}) for case in chosen]
    utility = check_network(found, items[0]["image"][None].as_tensor().to(device), tell)
    checked = Checked(utility, crop_size=())
    if not own:
        checked.dice = scan_dice(found, utility, chosen)
        check_dice(found, checked.dice, items[0], min_dice, tell)
    noise_model = UNet(items[0]["image"].ndim - 1, found.model.channels, 1, depth=3, channel_factor=4).to(device)
    checked.crop_size = crop_size_of(found, utility, [item["image"].shape[1:] for item in items], noise_model.stride)
    pairs = [
        _pair(item, case, found, utility, own, checked.crop_size) for item, case in zip(items, chosen, strict=True)
    ]
    checked.sigma_max = measure_noise(utility, pairs, len(found.model.class_names))
    checked.hidden_value = float(torch.cat([image.flatten() for image, _ in pairs]).mean())
    checked.seconds_a_step = time_step(utility, noise_model, pairs[0], checked.sigma_max, BATCH)
    size = " x ".join(map(str, checked.crop_size))
    tell(f"noise: Dice falls to half with a standard deviation of {checked.sigma_max:.3g}, in the network's own units")
    tell(f"training: crops of {size} voxels, {checked.seconds_a_step:.2f} s each, {BATCH} a step, on {device}")
    return _Prepared(checked, cases, own)


def _pair(
    item: dict[str, Any], case: Case, found: TrainedModel, utility: ClassLogits, own: bool, size: Sequence[int]
) -> tuple[torch.Tensor, torch.Tensor]:
    """A crop and its classes, by people or by the network."""
    device = next(utility.parameters()).device
    if own:
        inferer = found.model.inferer()
        with torch.no_grad():
            logits = inferer(item["image"][None].to(device), utility)
        label = logits.argmax(dim=1) if logits.shape[1] > 1 else (logits > 0)[:, 0]
        item = {**item, "label": torch.as_tensor(label).cpu().float()}
    else:
        item = found.model.preprocessing(with_label=True)(case.item())
    image, label = foreground_crop(item, size, utility.stride or 1)
    return image.to(device), label.to(device)


def _begin(
    found: TrainedModel,
    prepared: _Prepared,
    data: Path,
    out: Path,
    labels: str | Path | None,
    split: str | Path | None,
    objective: str,
    minutes: float,
    facts: dict[str, Any],
    tell: Tell,
) -> dict[str, Any]:
    """Write the bundle with the user's weights in it, and plan the training."""
    checked, cases = prepared.checked, prepared.cases
    steps = max(1, int(0.7 * len(cases)) // BATCH)
    seconds = 60 * minutes * SPARE
    epochs = int(min(200, max(2, seconds / (steps * BATCH * checked.seconds_a_step))))
    place = LABELS if prepared.own_labels else None if labels is None else os.path.relpath(labels, out)
    # Beside its place, so that it is there whole or not at all.
    new = out.with_name(f".{out.name}.unfinished")
    if new.exists():
        shutil.rmtree(new)
    write_bundle(found, checked, new, out.name, data, place, minutes, epochs, objective)
    if split is not None:
        shutil.copy(split, new / "models" / "split.json")
    if prepared.own_labels:
        write_segmentations(found, checked.utility, cases, new / LABELS, tell)
    segmenter = ExplainedSegmenter(checked.utility, UNet(len(checked.crop_size), found.model.channels, 1, 3, 4))
    torch.save(segmenter.cpu().state_dict(), new / "models" / "model.pt")
    tell(f"plan: {epochs} epochs of {steps} steps, {epochs * steps * BATCH * checked.seconds_a_step / 60:.0f} minutes")
    dice = [round(value, 4) for value in checked.dice.values()]
    facts |= {"model": found.name, "cases": len(cases), "dice": dice, "epochs": epochs, "trained": False}
    _save(new, facts)
    new.rename(out)
    return facts


def judge(out: Path, name: str, facts: dict[str, Any], device: Any, tell: Tell) -> Fitted:
    """Measure the finished map beside saliency and a random order, on cases that it was not trained on."""
    trust(out)
    bundle = load_bundle(out, device)
    sigma = float(bundle.parsed("sigma_max"))
    hidings = {"mean": Hiding("mean"), "noise": Hiding("noise", sigma=sigma)}
    scorer = MapScorer([Visibility(hidings=hidings, shares=(0.0, *SHARES))])
    comparison = Comparison(methods=RIVALS, scorer=scorer, robust_cases=0)
    cases = _unseen(out, bundle)
    folder = out / "eval" / "fit"
    explain_cases(cases, bundle, settings_of(bundle, {}), folder, comparison, workers=0, quiet=True)
    results = method_results(Records(folder), comparison)
    return verdict(out, name, facts, results, tell)


def _unseen(out: Path, bundle: Bundle) -> list[Case]:
    parser = ConfigParser(ConfigParser.load_config_files([out / "configs" / "train.yaml"]))
    parser.update({"bundle_root": str(out)})
    return [Case.of(item) for item in parser.get_parsed_content("split")["validation"]][:JUDGED]


def verdict(out: Path, name: str, facts: dict[str, Any], results: Sequence[Mapping[str, Any]], tell: Tell) -> Fitted:
    """The table of mean Dice, whether the map beats a random order, and all of it on the bundle's page.

    Raises:
        RuntimeError: when the map or the random order could not be measured on a case.
    """
    if failed := [result["failed"] for result in results if "failed" in result and result["method"] != "saliency"]:
        raise RuntimeError(f"the map must be measured on every case, got {failed[0]}")
    done: dict[str, list[Any]] = defaultdict(list)
    for result in results:
        if "failed" not in result:
            done[result["method"]].append(result["curves"])
    curves = {
        (method, operator): np.array([each[operator][MODES[0]]["dice"] for each in found], np.float64)
        for method, found in done.items()
        for operator in ("mean", "noise")
    }
    dice = {f"{method}, {operator}": _by_share(values) for (method, operator), values in curves.items()}
    header = " | ".join(f"{share:.0%}" for share in SHARES)
    table = [f"| Dice with the others hidden | {header} |", "|---" * (len(SHARES) + 1) + "|"]
    table += [f"| {row} | {' | '.join(f'{value:.3f}' for value in values.values())} |" for row, values in dice.items()]
    means = {key: np.nanmean(values[:, 1:-1], axis=1) for key, values in curves.items()}
    scores = {method: (means[method, "mean"] + means[method, "noise"]) / 2 for method in done}
    better = bootstrap_difference(scores["unoise"], scores["random"])
    cases = len(scores["unoise"])
    believed = bool(better.low > 0) if cases > 1 else bool(better.mean > 0)
    gain = f"mean Dice with 10 to 50% visible, map minus random order: {better.mean:+.3f}"
    gain += f" (95% of {better.low:+.3f} to {better.high:+.3f}) on {cases} cases" if cases > 1 else " on one case"
    start = "Better than a random order" if believed else "Do not use this map: no better than a random order"
    sentence = f"{start}: {gain}."
    # A method that needs no training is worth knowing of, too.
    if len(scores.get("saliency", ())) == cases:
        sentence += f" Map minus saliency: {bootstrap_difference(scores['unoise'], scores['saliency']).mean:+.3f}."
    for line in (*table, sentence):
        tell(line)
    write_readme(out, name, facts["lines"], table, sentence)
    add_metrics(out, {f"mean Dice, {row}, {share} visible": v for row, own in dice.items() for share, v in own.items()})
    # Its metadata have changed.
    trust(out)
    _save(out, {**facts, "table": dice, "believed": believed, "model_sha256": file_sha256(out / "models" / "model.pt")})
    return Fitted(out, dice, believed)


def _by_share(values: NDArray[np.float64]) -> dict[str, float]:
    """The mean over cases ``(N, shares)``, of which the first share, none, is left out."""
    return {
        f"{share:.0%}": round(float(mean), 4)
        for share, mean in zip(SHARES, np.nanmean(values, axis=0)[1:], strict=True)
    }
