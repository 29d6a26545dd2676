"""What a person and a program see of a training run: a bar, and a table with one row an epoch."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

from ignite.engine import Engine, Events
from ignite.handlers import ProgressBar


class LossProgress(ProgressBar):
    """Ignite's progress bar with the loss of the last batch; attachable from a bundle's list of handlers."""

    def attach(self, engine: Engine, *args: Any, **kwargs: Any) -> None:
        kwargs.setdefault("output_transform", lambda output: {"loss": float(output["loss"])})
        super().attach(engine, *args, **kwargs)


class MetricsTable:
    """One CSV row an epoch: the trainer's metrics, and the evaluator's of the same epoch where it ran.

    Started again after a kill, the table goes on: rows of epochs that are run anew are replaced.

    Args:
        path: the CSV file.
        evaluator: its metrics join the row; the validation must run before this handler.
        noise_ratio: anything with a float value that is worth a column: a number, or a `DualNoiseRatio`.
    """

    def __init__(self, path: str | Path, evaluator: Engine | None = None, noise_ratio: Any = None) -> None:
        self.path = Path(path)
        self.evaluator = evaluator
        self.noise_ratio = noise_ratio

    def attach(self, engine: Engine) -> None:
        engine.add_event_handler(Events.EPOCH_COMPLETED, self)

    def __call__(self, engine: Engine) -> None:
        row: dict[str, Any] = {"epoch": engine.state.epoch, **scalars(engine)}
        if self.evaluator is not None and self.evaluator.state.epoch == engine.state.epoch:
            row |= scalars(self.evaluator)
        if self.noise_ratio is not None:
            row["noise_ratio"] = float(self.noise_ratio)
        rows = [old for old in self._rows() if int(old["epoch"]) < engine.state.epoch]
        columns = list(dict.fromkeys(name for each in [*rows, row] for name in each))
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("w", newline="") as file:
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
