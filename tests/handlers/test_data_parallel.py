"""Two ranks learn what one process learns from both their batches, and write once."""

import contextlib
import copy
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import ignite.distributed as idist
import pytest
import torch
from ignite.engine import Engine, Events
from monai.data import DataLoader, Dataset, DistributedSampler
from monai.engines import SupervisedTrainer
from monai.handlers import LrScheduleHandler
from monai.inferers import SimpleInferer
from ranks import on_ranks
from torch import Tensor, nn

from unoise_monai.handlers.training import (
    BestModel,
    LossProgress,
    MetricsTable,
    NoiseRatioUpdater,
    RunCheckpoint,
    parallelise,
)
from unoise_monai.losses import DualNoiseRatio, UNoiseLoss
from unoise_monai.networks import UNet
from unoise_monai.unoise import ExplainedSegmenter, UNoise

RANKS, BATCH, EPOCHS = 2, 2, 3
# float32 sums in another order.
CLOSE = {"rtol": 1e-5, "atol": 1e-6}


class SteadyNoise(UNoise):
    """Noise that is a function of the image: the same whichever process draws it."""

    def noised(self, x: Tensor, tolerance: Tensor) -> Tensor:
        return x + (self.sigma_min + tolerance * (self.sigma_max - self.sigma_min)) * torch.sin(50 * x)


class Thresholds(nn.Module):
    """Three classes by intensity, and the faint voice of a network with batch norm."""

    def __init__(self) -> None:
        super().__init__()
        self.network = UNet(2, 1, 3, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([0 * x, 6 * x, 12 * x - 6], dim=1) + 0.1 * self.network(x)


def new_network(norm: bool) -> SteadyNoise:
    torch.manual_seed(0)
    plain = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 1, 3, padding=1))
    return SteadyNoise(ExplainedSegmenter(Thresholds(), UNet(2, 1, 1, 2, 1) if norm else plain), 0.0, 3.0)


def items(count: int = 8) -> list[dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(count, 1, 8, 8, generator=generator)
    return [{"image": image, "label": (image > 0).long() + (image > 1).long()} for image in images]


def new_trainer(
    network: nn.Module, handlers: list[Any], replicas: int, rank: int, batch: int, last: Path | None = None
) -> SupervisedTrainer:
    """Of a run that keeps its state in ``last``."""
    # Without moments: they make much of the noise in gradients that are 0, such as those of biases before a norm.
    optimizer = torch.optim.SGD([weight for weight in network.parameters() if weight.requires_grad], lr=0.1)
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.9)
    if last is not None:
        objects = {"network": network.segmenter, "optimizer": optimizer, "lr_scheduler": schedule}
        handlers = [*handlers, RunCheckpoint(last, objects)]
    dataset = Dataset(items())
    sampler = DistributedSampler(dataset, num_replicas=replicas, rank=rank, shuffle=True, seed=0)
    return SupervisedTrainer(
        device=torch.device("cpu"),
        max_epochs=EPOCHS,
        train_data_loader=DataLoader(dataset, batch_size=batch, sampler=sampler),
        network=network,
        optimizer=optimizer,
        loss_function=UNoiseLoss(0.1),
        train_handlers=[LrScheduleHandler(schedule, False), *handlers],
        decollate=False,
    )


def train_on_ranks(norm: bool, folder: Path, breaks_after: int = 0) -> dict[str, Tensor]:
    """The state after all epochs, or after those before a break; the files that a run writes go into ``folder``."""
    network = new_network(norm)
    if idist.get_rank() > 0:
        # Other weights: the ranks start from rank 0's.
        nn.init.ones_(next(network.segmenter.noise_model.parameters()))
    table, progress = MetricsTable(folder / "metrics.csv"), LossProgress(desc="ranks")
    trainer = new_trainer(network, [table, progress], RANKS, idist.get_rank(), BATCH, folder / "last.pt")
    parallelise(trainer)
    if breaks_after:

        @trainer.on(Events.EPOCH_COMPLETED(once=breaks_after))
        def fail() -> None:
            raise InterruptedError

    with contextlib.suppress(InterruptedError):
        trainer.run()
    idist.barrier()
    return network.segmenter.state_dict()


def survival(of: str, batch: list[dict[str, Tensor]], highest: dict[int, int]) -> float:
    """After one update on a batch, some of whose items lack the classes above their highest."""
    network, ratio = new_network(norm=True).eval(), DualNoiseRatio(of=of)
    engine = Engine(lambda engine, batch: None)
    engine.inferer = SimpleInferer()  # type: ignore[attr-defined]
    image, label = (torch.stack([item[key] for item in batch]) for key in ("image", "label"))
    for item, most in highest.items():
        label[item].clamp_(max=most)
    with torch.no_grad():
        engine.state.output = {"image": image, "label": label, "pred": network(image)}
    NoiseRatioUpdater(network, ratio)(engine)
    return float(ratio.survival)


def survival_on_ranks(of: str) -> float:
    """On this rank's half of four items."""
    rank = idist.get_rank()
    return survival(of, items(4)[rank :: idist.get_world_size()], {0: 1 - rank})


def resume_from_own_folder(folder: Path) -> str:
    """What a rank says whose machine has no checkpoint, or alone has one."""
    network = nn.Conv2d(1, 1, 1)
    path = folder / f"machine_{idist.get_rank()}" / "last.pt"
    if idist.get_rank() == 0:
        path.parent.mkdir()
        state = {"objects": {"network": network.state_dict()}, "epoch": 3, "iteration": 9, "max_epochs": EPOCHS}
        torch.save(state, path)
    engine = new_trainer(network, [], 1, 0, 1)
    try:
        RunCheckpoint(path, {"network": network}).resume(engine)
    except ValueError as error:
        return str(error)
    return ""


def best_model(folder: Path) -> list[str]:
    network, path = nn.Conv2d(1, 1, 1), folder / f"best_{idist.get_rank()}.pt"
    state = SimpleNamespace(best_metric_epoch=1, epoch=1, key_metric_name="score", best_metric=0.5)
    BestModel(path, network)(SimpleNamespace(state=state))  # type: ignore[arg-type]
    idist.barrier()
    return sorted(file.name for file in folder.glob("best_*.pt"))


def job(folder: Path) -> dict[str, Any]:
    torch.set_num_threads(1)
    return {
        "plain": train_on_ranks(False, folder),
        "norm": train_on_ranks(True, folder),
        "broken": train_on_ranks(True, folder, breaks_after=2),
        "left": (folder / "last.pt").exists(),
        "continued": train_on_ranks(True, folder),
        "dice": survival_on_ranks("dice"),
        "loss": survival_on_ranks("loss"),
        "resumed": resume_from_own_folder(folder),
        "best": best_model(folder),
    }


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("ranks")


@pytest.fixture(scope="module")
def ranks(folder: Path) -> list[dict[str, Any]]:
    return on_ranks(job, folder, RANKS)


@pytest.mark.parametrize("kind", ["plain", "norm"])
def test_all_ranks_end_with_the_same_state(ranks: list[dict[str, Any]], kind: str) -> None:
    for name, value in ranks[0][kind].items():
        assert not name.startswith("module.")
        torch.testing.assert_close(ranks[1][kind][name], value, rtol=0, atol=0)


def test_without_batch_norm_equals_one_process_with_the_global_batch(ranks: list[dict[str, Any]]) -> None:
    network = new_network(norm=False)
    before = copy.deepcopy(network.segmenter.state_dict())
    new_trainer(network, [], 1, 0, RANKS * BATCH).run()
    for name, value in network.segmenter.state_dict().items():
        torch.testing.assert_close(ranks[0]["plain"][name], value, **CLOSE)
    weight = "noise_model.0.weight"
    assert (ranks[0]["plain"][weight] - before[weight]).abs().max() > 0.01


def by_hand() -> dict[str, Tensor]:
    """Each half batch through a copy of its own, gradients averaged, statistics averaged at the end of each epoch."""
    network = new_network(norm=True).train()
    copies = [copy.deepcopy(network) for _ in range(RANKS)]
    loss, data = UNoiseLoss(0.1), items()
    trained = dict(network.segmenter.noise_model.named_parameters())
    for epoch in range(1, EPOCHS + 1):
        sampler = DistributedSampler(Dataset(data), num_replicas=1, rank=0, shuffle=True, seed=0)
        sampler.set_epoch(epoch)
        order = list(sampler)
        for start in range(0, len(order), RANKS * BATCH):
            gradients = []
            for rank, replica in enumerate(copies):
                half = [data[index] for index in order[start : start + RANKS * BATCH][rank::RANKS]]
                image, label = (torch.stack([item[key] for item in half]) for key in ("image", "label"))
                replica.zero_grad()
                loss(replica(image), label).backward()
                gradients.append({name: p.grad for name, p in replica.segmenter.noise_model.named_parameters()})
            with torch.no_grad():
                for name, parameter in trained.items():
                    parameter -= 0.1 * 0.9 ** (epoch - 1) * (gradients[0][name] + gradients[1][name]) / RANKS
                    for replica in copies:
                        replica.segmenter.noise_model.get_parameter(name).copy_(parameter)
        states = [replica.segmenter.noise_model.state_dict() for replica in copies]
        for name in states[0]:
            if "running" in name:
                mean = (states[0][name] + states[1][name]) / RANKS
                for state in states:
                    state[name].copy_(mean)
    return copies[0].segmenter.state_dict()


def test_with_batch_norm_equals_one_process_that_normalises_each_half(ranks: list[dict[str, Any]]) -> None:
    expected = by_hand()
    for name, value in expected.items():
        torch.testing.assert_close(ranks[0]["norm"][name], value, **CLOSE)
    one = new_network(norm=True)
    new_trainer(one, [], 1, 0, RANKS * BATCH).run()
    # Which is not one process that normalises the whole batch.
    name = next(name for name in expected if name.startswith("noise_model") and name.endswith("running_var"))
    assert (one.segmenter.state_dict()[name] - expected[name]).abs().max() > 1e-4


def test_frozen_utility_stays_to_the_bit(ranks: list[dict[str, Any]]) -> None:
    before = new_network(norm=True).segmenter.utility.state_dict()
    for name, value in before.items():
        torch.testing.assert_close(ranks[0]["norm"][f"utility.{name}"], value, rtol=0, atol=0)


def test_a_run_that_broke_off_goes_on_as_if_it_had_not(ranks: list[dict[str, Any]]) -> None:
    for rank in ranks:
        assert rank["left"] is True
        assert any(not torch.equal(value, rank["norm"][name]) for name, value in rank["broken"].items())
        for name, value in rank["continued"].items():
            torch.testing.assert_close(value, rank["norm"][name], rtol=0, atol=0)


@pytest.mark.parametrize("of", ["dice", "loss"])
def test_noise_ratio_is_that_of_the_whole_batch(ranks: list[dict[str, Any]], of: str) -> None:
    batch = items(4)
    expected = survival(of, [batch[index] for index in (0, 2, 1, 3)], {0: 1, 2: 0})
    assert ranks[0][of] == ranks[1][of] == pytest.approx(expected, rel=1e-6)
    assert 0 < expected < 1


def test_rank_0_alone_writes(ranks: list[dict[str, Any]], folder: Path) -> None:
    lines = (folder / "metrics.csv").read_text(encoding="utf-8").splitlines()
    assert [line.split(",")[0] for line in lines] == ["epoch", "1", "2", "3"]
    assert [rank["best"] for rank in ranks] == [["best_0.pt"]] * RANKS
    # The run is done.
    assert not (folder / "last.pt").exists()


def test_a_checkpoint_that_one_machine_lacks_is_refused(ranks: list[dict[str, Any]]) -> None:
    for rank in ranks:
        assert rank["resumed"].startswith("all ranks must continue after the same epoch, got [3, 0]; ")
        assert rank["resumed"].endswith(" must be a folder that all machines share")


def test_batch_norm_over_all_gpus_keeps_the_names_the_weights_and_the_validation() -> None:
    """What `parallelise` makes of a network on a GPU, as far as a CPU can tell."""
    network = new_network(norm=True)
    weights, names, image = list(network.parameters()), list(network.state_dict()), items(1)[0]["image"][None]
    expected = network.segmenter.eval()(image)
    converted = nn.SyncBatchNorm.convert_sync_batchnorm(network)
    assert converted is network
    assert all(one is other for one, other in zip(network.parameters(), weights, strict=True))
    assert list(network.state_dict()) == names
    assert any(isinstance(module, nn.SyncBatchNorm) for module in network.modules())
    assert torch.equal(network.segmenter(image), expected)


def test_one_process_is_refused() -> None:
    with pytest.raises(RuntimeError, match="needs a process group, got none; start it with torchrun"):
        parallelise(new_trainer(new_network(norm=False), [], 1, 0, 2))
