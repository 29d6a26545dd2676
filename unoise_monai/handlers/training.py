"""Handlers of a training: checkpoints, progress, the noise ratio, several ranks, and Dice by visible share."""

import csv
import json
import logging
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import ignite.distributed as idist
import numpy as np
import torch
import torch.distributed as dist
from ignite.engine import Engine, Events
from ignite.handlers import ProgressBar, TimeLimit, Timer
from monai.data import decollate_batch
from monai.engines import SupervisedTrainer
from monai.utils import evenly_divisible_all_gather
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from unoise_monai.atomic import atomic_path
from unoise_monai.checks import check_fraction
from unoise_monai.data.reading import case_name
from unoise_monai.handlers.savers import to_numpy
from unoise_monai.losses.noise import DualNoiseRatio, utility_loss
from unoise_monai.metrics.overlap import foreground_dice
from unoise_monai.metrics.visibility import VisibilityCurve
from unoise_monai.render.canvas import save_png, to_canonical
from unoise_monai.render.curves import plot_visibility
from unoise_monai.render.slices import DECILES, PAPER_THRESHOLDS, decile_pictures
from unoise_monai.unoise import UNoise

logger = logging.getLogger(__name__)


class RunCheckpoint:
    """Save the state of a run after every epoch, continue from it when started again, remove it when the run is done.

    Unlike MONAI's `CheckpointSaver`, it writes files whole or not at all and keeps the best score over a restart.
    Attach it after the validation, whose best metric belongs to the epoch. All ranks continue from it, rank 0 writes.

    Args:
        path: the run's checkpoint; it exists while the run is unfinished.
        objects: what to save, by name: networks, optimizer, loss, schedule; anything with a ``state_dict``.
        evaluator: its best metric is kept across a restart.

    Raises:
        ValueError: on start, when the checkpoint lacks one of the objects, or is of a run of another length, whose
            learning rate follows another schedule; or when the ranks would continue after different epochs.
    """

    def __init__(self, path: str | Path, objects: Mapping[str, Any], evaluator: Engine | None = None) -> None:
        self.path, self.objects, self.evaluator = Path(path), dict(objects), evaluator

    def attach(self, engine: Engine) -> None:
        engine.add_event_handler(Events.STARTED, self.resume)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self.save)
        engine.add_event_handler(Events.COMPLETED, self.finish)

    def resume(self, engine: Engine) -> None:
        if self.path.is_file():
            self._load(engine)
        epochs = idist.all_gather(engine.state.epoch)
        if len(set(epochs)) > 1:
            raise ValueError(
                f"all ranks must continue after the same epoch, got {epochs}; {self.path.parent} must be a folder that"
                " all machines share"
            )

    def _load(self, engine: Engine) -> None:
        state = torch.load(self.path, map_location=engine.state.device, weights_only=True)
        missing = sorted(set(self.objects) - set(state["objects"]))
        if missing:
            raise ValueError(f"the checkpoint {self.path} must hold every object of the run, got none for {missing}")
        if state["max_epochs"] != engine.state.max_epochs:
            raise ValueError(
                f"the run that {self.path} continues must have {state['max_epochs']} epochs, got"
                f" {engine.state.max_epochs}; remove the file to start anew"
            )
        for name, target in self.objects.items():
            target.load_state_dict(state["objects"][name])
        engine.state.epoch, engine.state.iteration = state["epoch"], state["iteration"]
        if self.evaluator is not None and state["best_metric"] is not None:
            self.evaluator.state.best_metric = state["best_metric"]
            self.evaluator.state.best_metric_epoch = state["best_metric_epoch"]
        logger.info("continued from %s after epoch %d", self.path.name, engine.state.epoch)

    def save(self, engine: Engine) -> None:
        if idist.get_rank() > 0:
            return
        best = None if self.evaluator is None else self.evaluator.state
        state = {
            "objects": {name: source.state_dict() for name, source in self.objects.items()},
            **{name: getattr(engine.state, name) for name in ("epoch", "iteration", "max_epochs")},
            "best_metric": None if best is None else float(best.best_metric),
            "best_metric_epoch": None if best is None else best.best_metric_epoch,
        }
        with atomic_path(self.path) as temporary:
            torch.save(state, temporary)

    def finish(self, engine: Engine) -> None:
        if idist.get_rank() > 0:
            return
        if self.evaluator is not None and self.evaluator.state.best_metric_epoch == -1:
            logger.warning("no validation ran, so no best model was saved: the last weights stay in %s", self.path.name)
            return
        self.path.unlink(missing_ok=True)


class BestModel:
    """Save a network's plain state dict whenever the evaluator's key metric is its best so far.

    Attach it to the evaluator, after its metrics. Of several ranks, rank 0 writes.

    Args:
        path: the checkpoint, replaced whole.
        network: what to save.
    """

    def __init__(self, path: str | Path, network: nn.Module) -> None:
        self.path, self.network = Path(path), network

    def attach(self, engine: Engine) -> None:
        engine.add_event_handler(Events.EPOCH_COMPLETED, self)

    def __call__(self, engine: Engine) -> None:
        if engine.state.best_metric_epoch != engine.state.epoch or idist.get_rank() > 0:
            return
        with atomic_path(self.path) as temporary:
            torch.save(self.network.state_dict(), temporary)
        state = engine.state
        logger.info("best %s so far, %.4f, saved as %s", state.key_metric_name, state.best_metric, self.path.name)


class MinutesLimit(TimeLimit):
    """Ignite's `TimeLimit` in minutes, attachable from a bundle's list of handlers.

    Args:
        minutes: after which training ends.
        validator: is run then, so that what was learned since the last validation may become the best model.
    """

    def __init__(self, minutes: float, validator: Engine) -> None:
        super().__init__(math.ceil(60 * minutes))
        self.validator = validator

    def attach(self, engine: Engine) -> None:
        engine.add_event_handler(Events.ITERATION_COMPLETED, self)
        engine.add_event_handler(Events.TERMINATE, lambda: self.validator.run(engine.state.epoch))


class LossProgress(ProgressBar):
    """Ignite's progress bar with the loss of the last batch; attachable from a bundle's list of handlers.

    Of several ranks, rank 0 shows it.
    """

    def attach(self, engine: Engine, *args: Any, **kwargs: Any) -> None:
        if idist.get_rank() == 0:
            super().attach(engine, *args, **{"output_transform": last_loss, **kwargs})


def last_loss(output: Any) -> dict[str, float]:
    """The loss in a trainer's output, which is a list of items with the same loss where it was decollated."""
    item = output[0] if isinstance(output, list) else output
    return {"loss": torch.as_tensor(item["loss"]).item()}


class MetricsTable:
    """One CSV row an epoch: its seconds, the trainer's metrics, and the evaluator's of the same epoch where it ran.

    Of a run that continues, rows of epochs that are run anew are replaced. Of several ranks, rank 0 writes.

    Args:
        path: the CSV file.
        evaluator: its metrics join the row; the validation must run before this handler.
        noise_ratio: anything with a float value that is worth a column: a number, or a `DualNoiseRatio`.
    """

    def __init__(self, path: str | Path, evaluator: Engine | None = None, noise_ratio: Any = None) -> None:
        self.path, self.evaluator, self.noise_ratio = Path(path), evaluator, noise_ratio
        self._timer = Timer()

    def attach(self, engine: Engine) -> None:
        engine.add_event_handler(Events.STARTED, lambda: self._timer.reset())
        engine.add_event_handler(Events.EPOCH_COMPLETED, self)

    def __call__(self, engine: Engine) -> None:
        if idist.get_rank() > 0:
            return
        row: dict[str, Any] = {"epoch": engine.state.epoch, "seconds": round(self._timer.value(), 2), **scalars(engine)}
        self._timer.reset()
        if self.evaluator is not None and self.evaluator.state.epoch == engine.state.epoch:
            row |= scalars(self.evaluator)
        if self.noise_ratio is not None:
            row["noise_ratio"] = float(self.noise_ratio)
        rows: list[dict[str, Any]] = []
        if self.path.is_file():
            with self.path.open(newline="") as file:
                rows = [old for old in csv.DictReader(file) if int(old["epoch"]) < engine.state.epoch]
        columns = list(dict.fromkeys(name for each in [*rows, row] for name in each))
        with atomic_path(self.path) as temporary, temporary.open("w", newline="") as file:
            writer = csv.DictWriter(file, columns)
            writer.writeheader()
            writer.writerows([*rows, row])


def scalars(engine: Engine) -> dict[str, float]:
    """The engine's metrics that are single numbers."""
    return {
        name: round(float(value), 6)
        for name, value in engine.state.metrics.items()
        if isinstance(value, int | float) or (isinstance(value, Tensor) and value.numel() == 1)
    }


class NoiseRatioUpdater:
    """After every batch, compare the utility with and without noise on it and move lambda.

    Costs one pass of the utility without gradients a batch. Several ranks compare their batches together, so that
    lambda stays the same on all of them.

    Args:
        unoise: the network in training.
        noise_ratio: the loss's `DualNoiseRatio`; a plain number is left alone.
        every: update at every so many batches.
    """

    def __init__(self, unoise: UNoise, noise_ratio: DualNoiseRatio | float, every: int = 1) -> None:
        self.unoise, self.noise_ratio, self.every = unoise, noise_ratio, every

    def attach(self, engine: Engine) -> None:
        if isinstance(self.noise_ratio, DualNoiseRatio):
            engine.add_event_handler(Events.ITERATION_COMPLETED(every=self.every), self)

    def __call__(self, engine: Engine) -> None:
        if not isinstance(self.noise_ratio, DualNoiseRatio):
            return
        image, label = engine.state.output["image"], engine.state.output["label"]
        noised_logits = engine.state.output["pred"][0].detach()
        with torch.no_grad():
            clean_logits = engine.inferer(image, self.unoise.segmenter.utility)
        score = foreground_dice if self.noise_ratio.of == "dice" else utility_loss
        self.noise_ratio.update(noised=_mean(score(noised_logits, label)), clean=_mean(score(clean_logits, label)))


def _mean(scores: Tensor) -> float:
    """Of all ranks' scores, where they are not NaN."""
    return float(evenly_divisible_all_gather(scores.reshape(-1)).nanmean())


def parallelise(trainer: SupervisedTrainer) -> None:
    """Let a trainer's network learn from the batches of all ranks at once.

    Gradients are averaged over the ranks (`DistributedDataParallel`), so that all keep the same weights, which are rank
    0's from the start. With a loss that is a mean over items, each step is that of one process with the global batch.
    ``trainer.network`` is wrapped; the networks inside, which checkpoints and validation hold, stay as they are.

    Batch norm in training mode takes its statistics over the global batch where the network lies on a GPU
    (`SyncBatchNorm`). That layer has no CPU version: there each rank normalises its own part, and the running
    statistics, which differ then, are averaged at the end of each epoch, before the validation.

    Args:
        trainer: its network lies on this rank's device, and some of its parameters need gradients.

    Raises:
        RuntimeError: when there is no process group.
    """
    if not dist.is_initialized():
        raise RuntimeError("data-parallel training needs a process group, got none; start it with torchrun")
    if next(trainer.network.parameters()).device.type == "cuda":
        trainer.network = nn.SyncBatchNorm.convert_sync_batchnorm(trainer.network)
    trainer.network = DistributedDataParallel(trainer.network)
    # By default rank 0's statistics replace the others' at every step, and what those saw is lost. The argument of this
    # name is deprecated from torch 2.13 on, and what takes its place is new there; the attribute is in all versions.
    trainer.network.broadcast_buffers = False

    def ends_epoch(engine: Engine, iteration: int) -> bool:
        return iteration % int(engine.state.epoch_length or 1) == 0

    # Before everything that listens to the end of the epoch.
    @trainer.on(Events.ITERATION_COMPLETED(event_filter=ends_epoch))
    def average() -> None:
        average_running_statistics(trainer.network)


def average_running_statistics(network: nn.Module) -> None:
    """The mean over the ranks, for the layers in training mode; a frozen network's stay what they are, to the bit."""
    for module in network.modules():
        for name in ("running_mean", "running_var"):
            buffer = getattr(module, name, None)
            if module.training and buffer is not None:
                dist.all_reduce(buffer)
                buffer /= dist.get_world_size()


QUOTED_SHARES = (0.1, 0.2, 0.3, 0.5)
SMALL_SHARES = (0.01, 0.02, 0.05)
"""Quoted only where they were measured: structures as small as vessels need them."""


class VisibilityReport:
    """Write the visibility curves of an evaluation, and pictures of single volumes: an ignite handler.

    ``<curve>.csv`` with one row a level, ``visibility.png`` with all curves (Koker et al., "U-Noise", 2021, Fig. 3a),
    ``evaluation.json`` with the numbers to quote, and for the first volumes ``<case>_deciles.png`` and
    ``<case>_thresholds.png`` (Fig. 3b).

    Args:
        output_dir: folder for all of these.
        curves: names of the engine's metrics that are a `VisibilityCurve`.
        class_names: of the task, background first; they name the columns.
        pictures: how many volumes get pictures.
        mip: show maximum intensity projections in place of the most important slice, which hardly shows vessels.
        picture_shares: shares of the voxels that the deciles' picture shows; small structures need small ones.

    Raises:
        ValueError: when ``pictures`` is below 0, or a share is not above 0 and at most 1.
    """

    def __init__(
        self,
        output_dir: str | Path,
        curves: Sequence[str],
        class_names: Sequence[str],
        pictures: int = 2,
        mip: bool = False,
        picture_shares: Sequence[float] = DECILES,
    ) -> None:
        if pictures < 0:
            raise ValueError(f"pictures must be at least 0, got {pictures}")
        for share in picture_shares:
            check_fraction("picture_shares", share)
        self.output_dir, self.curves, self.class_names = Path(output_dir), tuple(curves), tuple(class_names)
        self.pictures, self.mip, self.picture_shares = pictures, mip, tuple(picture_shares)
        self._drawn = 0

    def attach(self, engine: Engine) -> None:
        engine.add_event_handler(Events.STARTED, self.start)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self.draw)
        engine.add_event_handler(Events.COMPLETED, self.write)

    def start(self, engine: Engine) -> None:
        """Begin anew with the pictures."""
        self._drawn = 0

    def draw(self, engine: Engine) -> None:
        """Draw the volumes of a batch, as long as there are pictures to make."""
        output, left = engine.state.output, self.pictures - self._drawn
        if left == 0:
            return
        images, maps = decollate_batch(output["image"]), decollate_batch(output["pred"][:, -1:])
        for image, importance in list(zip(images, maps, strict=True))[:left]:
            self._drawn += 1
            case = image.meta.get("case") or case_name(image.meta["filename_or_obj"])
            grey, spacing_mm = to_canonical(*to_numpy(image[:1]))
            values, _ = to_canonical(*to_numpy(importance))
            rgb = decile_pictures(grey, values, spacing_mm, shares=self.picture_shares, mip=self.mip)
            save_png(rgb, self.output_dir / f"{case}_deciles.png")
            rgb = decile_pictures(grey, values, spacing_mm, thresholds=PAPER_THRESHOLDS, mip=self.mip)
            save_png(rgb, self.output_dir / f"{case}_thresholds.png")

    def write(self, engine: Engine) -> None:
        """Write the tables, the plot and the numbers to quote."""
        curves = {name: engine.state.metrics[name] for name in self.curves}
        for name, curve in curves.items():
            write_curve(curve, self.class_names[1:], self.output_dir / f"{name}.csv")
        # Where no label has any foreground there is no Dice to draw.
        drawn = {name: curve for name, curve in curves.items() if bool(curve.mean_score.isfinite().all())}
        if drawn:
            points = {name: (curve.share.numpy(), curve.mean_score.numpy()) for name, curve in drawn.items()}
            full = next((curve.at(1.0) for curve in drawn.values() if shows_all(curve)), None)
            save_png(plot_visibility(points, reference=full), self.output_dir / "visibility.png")
        summary = {name: quoted(curve, self.class_names[1:]) for name, curve in curves.items()}
        with atomic_path(self.output_dir / "evaluation.json") as temporary:
            temporary.write_text(json.dumps(summary, indent=1) + "\n", encoding="utf-8")
        for name, values in summary.items():
            logger.info("%s: %s", name, ", ".join(f"{key} {value}" for key, value in values.items()))


def quoted(curve: VisibilityCurve, classes: Sequence[str]) -> dict[str, float | None]:
    """The numbers to quote of a curve: Dice at fixed shares, the area, each class's Dice with all visible."""
    small = [share for share in SMALL_SHARES if np.isclose(curve.share, share, rtol=0.02).any()]
    values = {f"dice_at_{share:.0%}": curve.at(share) for share in (*small, *QUOTED_SHARES)}
    values["area"] = curve.area
    if shows_all(curve):
        last = curve.score[curve.share.argmax()]
        values |= {f"dice_all_visible_{name}": float(last[column]) for column, name in enumerate(classes)}
    # JSON has no NaN, which is the Dice of a class that no volume has.
    return {key: round(value, 4) if math.isfinite(value) else None for key, value in values.items()}


def shows_all(curve: VisibilityCurve) -> bool:
    """Whether the curve was measured with every voxel visible."""
    return float(curve.share.max()) == 1.0


def write_curve(curve: VisibilityCurve, classes: Sequence[str], path: Path) -> None:
    """One row a level: level, share visible, mean Dice, Dice of every class."""
    columns = ["level", "share_visible", "dice_mean", *(f"dice_{name}" for name in classes)]
    rows = torch.column_stack([curve.level, curve.share, curve.mean_score, curve.score])
    with atomic_path(path) as temporary:
        np.savetxt(temporary, rows.numpy(), "%.6f", ",", header=",".join(columns), comments="")
