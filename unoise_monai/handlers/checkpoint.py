"""A training run that survives being killed, and keeps its best model."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ignite.distributed as idist
import torch
from ignite.engine import Engine, Events
from torch import nn

from unoise_monai.atomic import atomic_path

logger = logging.getLogger(__name__)


class RunCheckpoint:
    """Save the state of a run after every epoch, continue from it when started again, remove it when the run is done.

    MONAI's `CheckpointSaver` writes in place and forgets the best score when it starts again, so a kill at the wrong
    moment costs the run, or a worse model replaces the best. Here files appear whole or not at all. Attach it after the
    validation, whose best metric belongs to the epoch. Of several ranks all continue from it, and rank 0 writes.

    Args:
        path: the run's checkpoint; it exists while the run is unfinished.
        objects: what to save, by name: networks, optimizer, loss, schedule; anything with a ``state_dict``.
        evaluator: its best metric is kept across a restart.

    Raises:
        ValueError: on start, when the checkpoint lacks one of the objects, or is of a run of another length, whose
            learning rate follows another schedule.
        ValueError: on start, when the ranks would continue after different epochs.
    """

    def __init__(self, path: str | Path, objects: Mapping[str, Any], evaluator: Engine | None = None) -> None:
        self.path = Path(path)
        self.objects = dict(objects)
        self.evaluator = evaluator

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
        engine.state.epoch = state["epoch"]
        engine.state.iteration = state["iteration"]
        if self.evaluator is not None and state["best_metric"] is not None:
            self.evaluator.state.best_metric = state["best_metric"]
            self.evaluator.state.best_metric_epoch = state["best_metric_epoch"]
        logger.info("continued from %s after epoch %d", self.path.name, engine.state.epoch)

    def save(self, engine: Engine) -> None:
        if idist.get_rank() > 0:
            return
        best = self.evaluator.state if self.evaluator is not None else None
        state = {
            "objects": {name: source.state_dict() for name, source in self.objects.items()},
            "epoch": engine.state.epoch,
            "iteration": engine.state.iteration,
            "max_epochs": engine.state.max_epochs,
            "best_metric": float(best.best_metric) if best is not None else None,
            "best_metric_epoch": best.best_metric_epoch if best is not None else None,
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
        self.path = Path(path)
        self.network = network

    def attach(self, engine: Engine) -> None:
        engine.add_event_handler(Events.EPOCH_COMPLETED, self)

    def __call__(self, engine: Engine) -> None:
        if engine.state.best_metric_epoch != engine.state.epoch or idist.get_rank() > 0:
            return
        with atomic_path(self.path) as temporary:
            torch.save(self.network.state_dict(), temporary)
        logger.info(
            "best %s so far, %.4f, saved as %s", engine.state.key_metric_name, engine.state.best_metric, self.path.name
        )
