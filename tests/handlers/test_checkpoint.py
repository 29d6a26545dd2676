"""A run that was killed goes on where it was, ends as if nothing had happened, and keeps its best model."""

import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from ignite.engine import Events
from ignite.metrics import Average
from monai.data import DataLoader, Dataset
from monai.engines import SupervisedEvaluator, SupervisedTrainer
from monai.handlers import LrScheduleHandler, ValidationHandler
from torch import nn

from unoise_monai.handlers.training import BestModel, RunCheckpoint

BATCHES = 3
EPOCHS = 5
SCORES = (0.3, 0.8, 0.5, 0.6, 0.7)


class Run(NamedTuple):
    trainer: SupervisedTrainer
    evaluator: SupervisedEvaluator
    network: nn.Module
    optimizer: torch.optim.Optimizer
    epochs: list[int]
    """The epochs that this object ran, in order."""

    @property
    def steps(self) -> int:
        """Optimizer steps, those before a restart included."""
        return int(self.optimizer.state[self.network[0].weight]["step"])


def new_run(folder: Path, scores: Sequence[float] = SCORES, interval: int = 1) -> Run:
    """All objects of a tiny run, built anew as a new process would; the validation's scores are as given."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv3d(1, 1, 3, padding=1), nn.BatchNorm3d(1))
    optimizer = torch.optim.Adam(network.parameters(), lr=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=0.1, total_steps=EPOCHS * BATCHES)
    images = torch.rand(BATCHES, 1, 4, 4, 4, generator=torch.Generator().manual_seed(1))
    loader = DataLoader(Dataset([{"image": image, "label": image**2} for image in images]), batch_size=1)
    evaluator = SupervisedEvaluator(
        device=torch.device("cpu"),
        val_data_loader=loader,
        network=network,
        key_val_metric={"score": Average(output_transform=lambda _: scores[evaluator.state.epoch - 1])},
        val_handlers=[BestModel(folder / "best.pt", network)],
        decollate=False,
    )
    objects = {"network": network, "optimizer": optimizer, "lr_scheduler": schedule}
    trainer = SupervisedTrainer(
        device=torch.device("cpu"),
        max_epochs=EPOCHS,
        train_data_loader=loader,
        network=network,
        optimizer=optimizer,
        loss_function=nn.MSELoss(),
        train_handlers=[
            LrScheduleHandler(schedule, print_lr=False, epoch_level=False),
            ValidationHandler(interval=interval, validator=evaluator),
            RunCheckpoint(folder / "last.pt", objects, evaluator),
        ],
        decollate=False,
    )
    epochs: list[int] = []
    trainer.add_event_handler(Events.EPOCH_STARTED, lambda engine: epochs.append(engine.state.epoch))
    return Run(trainer, evaluator, network, optimizer, epochs)


def stop_in(run: Run, epoch: int, batch: int, kill: bool = False) -> Run:
    """Make the run die in the middle of an epoch."""

    @run.trainer.on(Events.ITERATION_COMPLETED(once=(epoch - 1) * BATCHES + batch))
    def die() -> None:
        if kill:
            os.kill(os.getpid(), signal.SIGKILL)
        raise KeyboardInterrupt

    return run


def broken(run: Run, epoch: int, batch: int) -> None:
    with pytest.raises(KeyboardInterrupt):
        stop_in(run, epoch, batch).trainer.run()


def finished(*arguments: Any, **options: Any) -> Run:
    run = new_run(*arguments, **options)
    run.trainer.run()
    return run


def weights(run: Run) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in run.network.state_dict().items()}


def read(path: Path) -> dict:
    return torch.load(path, weights_only=True)


def assert_equals_unbroken_run(run: Run, folder: Path) -> None:
    unbroken = finished(folder / "unbroken")
    assert unbroken.steps == EPOCHS * BATCHES
    assert run.steps == EPOCHS * BATCHES
    assert run.trainer.state.epoch == EPOCHS
    assert run.trainer.state.iteration == EPOCHS * BATCHES
    assert run.optimizer.param_groups[0]["lr"] == unbroken.optimizer.param_groups[0]["lr"]
    torch.testing.assert_close(weights(run), weights(unbroken), rtol=0, atol=0)
    torch.testing.assert_close(read(folder / "best.pt"), read(folder / "unbroken" / "best.pt"), rtol=0, atol=0)
    assert not (folder / "last.pt").exists(), "the checkpoint goes when the run is done"


@pytest.mark.parametrize("epoch", [1, 2, 4, 5])
def test_a_broken_run_ends_as_an_unbroken_one(tmp_path: Path, epoch: int) -> None:
    broken(new_run(tmp_path), epoch, batch=2)
    again = finished(tmp_path)
    assert again.epochs == list(range(epoch, EPOCHS + 1))
    assert_equals_unbroken_run(again, tmp_path)


def test_a_run_may_break_again_and_again(tmp_path: Path) -> None:
    for epoch in (2, 3, 3, 5):
        broken(new_run(tmp_path), epoch, batch=1)
    again = finished(tmp_path)
    assert again.epochs == [5]
    assert_equals_unbroken_run(again, tmp_path)


def test_a_killed_process_is_continued(tmp_path: Path) -> None:
    killed = subprocess.run([sys.executable, __file__, str(tmp_path)], check=False, timeout=120)
    assert killed.returncode == -signal.SIGKILL
    assert sorted(path.name for path in tmp_path.iterdir()) == ["best.pt", "last.pt"]
    assert read(tmp_path / "last.pt")["epoch"] == 2
    again = finished(tmp_path)
    assert again.epochs == [3, 4, 5]
    assert_equals_unbroken_run(again, tmp_path)


def test_a_worse_model_does_not_replace_the_best(tmp_path: Path) -> None:
    first = new_run(tmp_path)
    snapshots = {}
    first.trainer.add_event_handler(
        Events.EPOCH_COMPLETED, lambda engine: snapshots.setdefault(engine.state.epoch, weights(first))
    )
    broken(first, 3, batch=1)
    torch.testing.assert_close(read(tmp_path / "best.pt"), snapshots[2], rtol=0, atol=0)
    again = finished(tmp_path)
    torch.testing.assert_close(read(tmp_path / "best.pt"), snapshots[2], rtol=0, atol=0)
    assert again.evaluator.state.best_metric == pytest.approx(0.8)
    assert again.evaluator.state.best_metric_epoch == 2


def test_a_better_model_replaces_the_best(tmp_path: Path) -> None:
    scores = (0.3, 0.8, 0.5, 0.9, 0.7)
    broken(new_run(tmp_path, scores), 3, batch=1)
    before = read(tmp_path / "best.pt")
    again = finished(tmp_path, scores)
    assert again.evaluator.state.best_metric_epoch == 4
    assert not torch.equal(read(tmp_path / "best.pt")["0.weight"], before["0.weight"])


def test_killed_before_the_first_validation(tmp_path: Path) -> None:
    """A best score of nothing must not count as one, even where every real score is negative."""
    scores = (0.0, 0.0, -5.0, 0.0, 0.0)
    broken(new_run(tmp_path, scores, interval=3), 3, batch=1)
    assert not (tmp_path / "best.pt").exists()
    again = finished(tmp_path, scores, interval=3)
    assert again.evaluator.state.best_metric == -5
    assert (tmp_path / "best.pt").is_file()


def test_killed_after_the_last_epoch(tmp_path: Path) -> None:
    first = new_run(tmp_path)
    first.trainer.remove_event_handler(first.trainer._event_handlers[Events.COMPLETED][-1][0], Events.COMPLETED)
    first.trainer.run()
    assert read(tmp_path / "last.pt")["epoch"] == EPOCHS
    again = finished(tmp_path)
    assert again.epochs == []
    torch.testing.assert_close(weights(again), weights(first), rtol=0, atol=0)
    assert not (tmp_path / "last.pt").exists()


def test_a_completed_run_starts_from_scratch(tmp_path: Path) -> None:
    first = finished(tmp_path)
    everything = list(range(1, EPOCHS + 1))
    assert first.epochs == everything
    again = finished(tmp_path)
    assert again.epochs == everything
    assert_equals_unbroken_run(again, tmp_path)


def test_a_checkpoint_of_other_objects_is_refused(tmp_path: Path) -> None:
    broken(new_run(tmp_path), 2, batch=1)
    other = new_run(tmp_path / "other")
    before = weights(other)
    checkpoint = RunCheckpoint(tmp_path / "last.pt", {"network": other.network, "loss": nn.Identity()})
    with pytest.raises(ValueError, match=r"last.pt must hold every object of the run, got none for \['loss'\]"):
        checkpoint.resume(other.trainer)
    torch.testing.assert_close(weights(other), before, rtol=0, atol=0)


def test_an_evaluator_may_come_later(tmp_path: Path) -> None:
    run = new_run(tmp_path / "run")
    RunCheckpoint(tmp_path / "last.pt", {"network": run.network}).save(run.trainer)
    RunCheckpoint(tmp_path / "last.pt", {"network": run.network}, run.evaluator).resume(run.trainer)
    run.evaluator.run(1)
    assert run.evaluator.state.best_metric == pytest.approx(0.3)


def test_a_run_of_another_length_is_refused(tmp_path: Path) -> None:
    broken(new_run(tmp_path), 3, batch=1)
    longer = new_run(tmp_path)
    longer.trainer.state.max_epochs = EPOCHS + 3
    before = weights(longer)
    with pytest.raises(ValueError, match=f"must have {EPOCHS} epochs, got {EPOCHS + 3}"):
        longer.trainer.run()
    torch.testing.assert_close(weights(longer), before, rtol=0, atol=0)
    assert (tmp_path / "last.pt").is_file()


def test_without_a_validation_the_last_weights_stay(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    run = finished(tmp_path, interval=EPOCHS + 1)
    assert not (tmp_path / "best.pt").exists()
    torch.testing.assert_close(read(tmp_path / "last.pt")["objects"]["network"], weights(run), rtol=0, atol=0)
    assert "no validation ran" in caplog.text


if __name__ == "__main__":
    stop_in(new_run(Path(sys.argv[1])), epoch=3, batch=2, kill=True).trainer.run()
