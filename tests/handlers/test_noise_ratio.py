"""Lambda moves in a run of MONAI's own trainer; a plain number is left alone."""

import math

import pytest
import torch
from ignite.engine import Engine, Events
from monai.engines import SupervisedTrainer
from torch import Tensor, nn

from unoise_monai.handlers import NoiseRatioUpdater
from unoise_monai.losses import DualNoiseRatio, UNoiseLoss
from unoise_monai.networks import UNet
from unoise_monai.unoise import ExplainedSegmenter, UNoise


class Bright(nn.Module):
    """Segments the voxels above 0; counts its calls."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return torch.cat([-4 * x, 4 * x], dim=1)


def data() -> list[dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(0)
    images = [torch.rand(2, 1, 8, 8, generator=generator) * 2 - 1 for _ in range(4)]
    return [{"image": image, "label": (image > 0).long()} for image in images]


def trainer(noise_ratio: DualNoiseRatio | float, sigma_max: float, every: int = 1) -> tuple[SupervisedTrainer, UNoise]:
    torch.manual_seed(0)
    unoise = UNoise(ExplainedSegmenter(Bright(), UNet(2, 1, 1, 1, 1)), 0.0, sigma_max)
    engine = SupervisedTrainer(
        device=torch.device("cpu"),
        max_epochs=1,
        train_data_loader=data(),
        network=unoise,
        optimizer=torch.optim.Adam(unoise.segmenter.noise_model.parameters(), 1e-3),
        loss_function=UNoiseLoss(noise_ratio),
        train_handlers=[NoiseRatioUpdater(unoise, noise_ratio, every)],
        decollate=False,
    )
    return engine, unoise


@pytest.mark.parametrize("of", ["dice", "loss"])
@pytest.mark.parametrize(
    ("sigma_max", "every", "steps"),
    [(1e-4, 1, 4), (50.0, 1, -4), (1e-4, 2, 2)],
    ids=["faint", "strong", "every second"],
)
def test_run_moves_lambda(of: str, sigma_max: float, every: int, steps: int) -> None:
    ratio = DualNoiseRatio(keep=0.9, of=of, start=0.01, rate=0.1)
    engine, unoise = trainer(ratio, sigma_max, every)
    engine.run()
    # Steps of the whole rate, in four batches: all survives faint noise, and next to nothing strong noise.
    assert math.log(float(ratio) / 0.01) == pytest.approx(0.1 * steps, rel=0.02)
    assert unoise.segmenter.utility.calls == 4 + abs(steps)


def test_scores_are_of_the_same_batch_with_and_without_noise(monkeypatch: pytest.MonkeyPatch) -> None:
    ratio, scores = DualNoiseRatio(), []
    monkeypatch.setattr(ratio, "update", lambda noised, clean: scores.append((noised, clean)))
    engine, _ = trainer(ratio, sigma_max=3.0)
    seen = []

    @engine.on(Events.ITERATION_COMPLETED)
    def keep() -> None:
        predicted, truth = engine.state.output["pred"][0].argmax(dim=1) == 1, engine.state.output["label"][:, 0] == 1
        both, sizes = (predicted & truth).sum((1, 2)), predicted.sum((1, 2)) + truth.sum((1, 2))
        seen.append(float((2 * both / sizes).mean()))

    engine.run()
    assert [noised for noised, _ in scores] == pytest.approx(seen)
    # The utility segments the clean image without an error.
    assert [clean for _, clean in scores] == [1.0] * 4
    assert max(seen) < 1


@pytest.mark.parametrize("noise_ratio", [0.01, DualNoiseRatio()], ids=["number", "dual"])
def test_number_attaches_nothing(noise_ratio: float | DualNoiseRatio) -> None:
    engine, unoise = trainer(noise_ratio, 1e-4)
    updater, fresh = NoiseRatioUpdater(unoise, noise_ratio), Engine(lambda engine, batch: None)
    updater.attach(fresh)
    assert fresh.has_event_handler(updater) is isinstance(noise_ratio, DualNoiseRatio)
    engine.run()
    assert unoise.segmenter.utility.calls == (8 if isinstance(noise_ratio, DualNoiseRatio) else 4)
