"""The table of a run has one row an epoch, however often the run was killed."""

import csv
import io
from pathlib import Path

import pytest
import torch
from ignite.engine import Engine, Events
from monai.engines import SupervisedTrainer
from torch import nn

from unoise_monai.handlers.training import LossProgress, MetricsTable, MinutesLimit, last_loss, scalars
from unoise_monai.losses import DualNoiseRatio


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def engine_with(**metrics: object) -> Engine:
    engine = Engine(lambda engine, batch: None)
    engine.state.metrics = metrics
    return engine


def train(path: Path, first: int, last: int, interval: int = 1, **arguments: object) -> None:
    """Run epochs ``first`` to ``last``, as a run that `RunCheckpoint` continued."""
    trainer, evaluator = Engine(lambda engine, batch: None), engine_with()

    @trainer.on(Events.STARTED)
    def resume() -> None:
        trainer.state.epoch = first - 1

    @trainer.on(Events.EPOCH_COMPLETED)
    def measure() -> None:
        trainer.state.metrics = {"train_dice": trainer.state.epoch / 10}
        if trainer.state.epoch % interval == 0:
            evaluator.state.epoch = trainer.state.epoch
            evaluator.state.metrics = {"val_dice": torch.tensor(trainer.state.epoch / 100)}

    MetricsTable(path, evaluator, **arguments).attach(trainer)
    trainer.run([0], max_epochs=last)


def test_one_row_an_epoch(tmp_path: Path) -> None:
    path = tmp_path / "runs" / "metrics.csv"
    train(path, 1, 4, interval=2)
    table = rows(path)
    assert [row["epoch"] for row in table] == ["1", "2", "3", "4"]
    assert [row["train_dice"] for row in table] == ["0.1", "0.2", "0.3", "0.4"]
    # Epochs without a validation stay empty, they do not repeat the last one.
    assert [row["val_dice"] for row in table] == ["", "0.02", "", "0.04"]
    assert all(float(row["seconds"]) >= 0 for row in table)
    assert [file.name for file in path.parent.iterdir()] == ["metrics.csv"]


def test_a_continued_run_goes_on_without_duplicates(tmp_path: Path) -> None:
    path = tmp_path / "metrics.csv"
    train(path, 1, 3)
    # Killed after epoch 3's row but before its checkpoint: epoch 3 runs anew.
    train(path, 3, 5, noise_ratio=0.01)
    table = rows(path)
    assert [row["epoch"] for row in table] == ["1", "2", "3", "4", "5"]
    assert [row["noise_ratio"] for row in table] == ["", "", "0.01", "0.01", "0.01"]
    assert [row["val_dice"] for row in table] == ["0.01", "0.02", "0.03", "0.04", "0.05"]
    # A new run begins a new table.
    train(path, 1, 2)
    assert [row["epoch"] for row in rows(path)] == ["1", "2"]


def test_the_noise_ratio_that_moves(tmp_path: Path) -> None:
    ratio = DualNoiseRatio(keep=0.5, start=1e-3, rate=0.1)
    trainer = Engine(lambda engine, batch: ratio.update(noised=1.0, clean=1.0))
    MetricsTable(tmp_path / "metrics.csv", noise_ratio=ratio).attach(trainer)
    trainer.run([0], max_epochs=3)
    values = [float(row["noise_ratio"]) for row in rows(tmp_path / "metrics.csv")]
    assert values[-1] == pytest.approx(float(ratio))
    assert values == sorted(values)
    assert values[0] > 1e-3


def test_only_single_numbers_are_metrics() -> None:
    engine = engine_with(
        dice=0.123456789, area=torch.tensor([[0.5]]), per_class=torch.zeros(2), curve=("a", "b"), count=3
    )
    assert scalars(engine) == {"dice": 0.123457, "area": 0.5, "count": 3.0}


@pytest.mark.parametrize("decollate", [False, True])
def test_the_bar_shows_the_loss(decollate: bool) -> None:
    network = nn.Conv3d(1, 1, 1)
    shown = io.StringIO()
    losses: list[float] = []
    trainer = SupervisedTrainer(
        device=torch.device("cpu"),
        max_epochs=1,
        train_data_loader=[{"image": torch.ones(2, 1, 2, 2, 2), "label": torch.zeros(2, 1, 2, 2, 2)}] * 2,
        network=network,
        optimizer=torch.optim.SGD(network.parameters(), lr=0.01),
        loss_function=nn.MSELoss(),
        train_handlers=[LossProgress(file=shown, desc="noise model", persist=True)],
        decollate=decollate,
    )
    trainer.on(Events.ITERATION_COMPLETED)(lambda engine: losses.append(last_loss(engine.state.output)["loss"]))
    trainer.run()
    assert len(losses) == 2
    assert losses[1] < losses[0]
    assert "noise model" in shown.getvalue()
    assert f"loss={losses[0]:.3g}"[:8] in shown.getvalue()


def test_a_training_whose_time_is_up_is_validated_once_more() -> None:
    validated: list[int] = []
    validator = Engine(lambda engine, batch: None)
    trainer = Engine(lambda engine, batch: batch)
    validator.run = lambda epoch: validated.append(epoch)  # type: ignore[assignment, method-assign]
    limit = MinutesLimit(1, validator)
    limit.attach(trainer)
    trainer.run([0, 1, 2], max_epochs=2)
    assert (trainer.state.iteration, validated) == (6, [])
    limit.limit_sec = 0
    trainer.run([0, 1, 2], max_epochs=5)
    assert (trainer.state.epoch, validated) == (3, [3])
