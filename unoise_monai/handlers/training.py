"""Handlers of a training: checkpoints, progress, the noise ratio, several ranks."""

from __future__ import annotations

import csv
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ignite.distributed as idist
import torch
import torch.distributed as dist
from ignite.engine import Engine, Events
from ignite.handlers import ProgressBar, Timer
from monai.engines import SupervisedTrainer
from monai.utils import evenly_divisible_all_gather
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from unoise_monai.atomic import atomic_path
from unoise_monai.losses.unoise import DualNoiseRatio, utility_loss
from unoise_monai.metrics.overlap import foreground_dice
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
