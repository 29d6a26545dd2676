"""What a person and a program see of a training run: a bar, and a table with one row an epoch."""

from __future__ import annotations

import csv
import time
from pathlib import Path
from typing import Any

import ignite.distributed as idist
import torch
from ignite.engine import Engine, Events
from ignite.handlers import ProgressBar

from unoise_monai.atomic import atomic_path


class LossProgress(ProgressBar):
    """Ignite's progress bar with the loss of the last batch; attachable from a bundle's list of handlers.

    Of several ranks, rank 0 shows it.
    """

    def attach(self, engine: Engine, *args: Any, **kwargs: Any) -> None:
        if idist.get_rank() > 0:
            return
        kwargs.setdefault("output_transform", last_loss)
        super().attach(engine, *args, **kwargs)


def last_loss(output: Any) -> dict[str, float]:
    """The loss in a trainer's output, which is a list of items with the same loss where it was decollated."""
    item = output[0] if isinstance(output, list) else output
    return {"loss": torch.as_tensor(item["loss"]).item()}


class MetricsTable:
    """One CSV row an epoch: its seconds, the trainer's metrics, and the evaluator's of the same epoch where it ran.

    Started again after a kill, the table goes on: rows of epochs that are run anew are replaced. Of several ranks, rank
    0 writes.

    Args:
        path: the CSV file.
        evaluator: its metrics join the row; the validation must run before this handler.
        noise_ratio: anything with a float value that is worth a column: a number, or a `DualNoiseRatio`.
    """

    def __init__(self, path: str | Path, evaluator: Engine | None = None, noise_ratio: Any = None) -> None:
        self.path = Path(path)
        self.evaluator = evaluator
        self.noise_ratio = noise_ratio
        self._time = time.perf_counter()

    def attach(self, engine: Engine) -> None:
        engine.add_event_handler(Events.STARTED, lambda: self._lap())
        engine.add_event_handler(Events.EPOCH_COMPLETED, self)

    def _lap(self) -> float:
        """Seconds since the last call."""
        now = time.perf_counter()
        last, self._time = self._time, now
        return round(now - last, 2)

    def __call__(self, engine: Engine) -> None:
        if idist.get_rank() > 0:
            return
        row: dict[str, Any] = {"epoch": engine.state.epoch, "seconds": self._lap(), **scalars(engine)}
        if self.evaluator is not None and self.evaluator.state.epoch == engine.state.epoch:
            row |= scalars(self.evaluator)
        if self.noise_ratio is not None:
            row["noise_ratio"] = float(self.noise_ratio)
        rows = [old for old in self._rows() if int(old["epoch"]) < engine.state.epoch]
        columns = list(dict.fromkeys(name for each in [*rows, row] for name in each))
        with atomic_path(self.path) as temporary, temporary.open("w", newline="") as file:
            writer = csv.DictWriter(file, columns)
            writer.writeheader()
            writer.writerows([*rows, row])

    def _rows(self) -> list[dict[str, Any]]:
        if not self.path.is_file():
            return []
        with self.path.open(newline="") as file:
            return list(csv.DictReader(file))


def scalars(engine: Engine) -> dict[str, float]:
    """The engine's metrics that are single numbers."""
    return {name: round(float(value), 6) for name, value in engine.state.metrics.items() if _is_scalar(value)}


def _is_scalar(value: Any) -> bool:
    return isinstance(value, int | float) or getattr(value, "numel", lambda: 0)() == 1
