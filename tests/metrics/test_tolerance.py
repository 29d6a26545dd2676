"""Mean tolerance against a loop over voxels."""

import math

import pytest
import torch
from ignite.engine import Engine
from ignite.exceptions import NotComputableError
from monai.data import MetaTensor
from torch import Tensor

from unoise_monai.metrics import MeanTolerance


def batches() -> list[tuple[Tensor, Tensor]]:
    """Of different sizes, so that a mean of means would differ."""
    generator = torch.Generator().manual_seed(0)
    shapes = [(2, 1, 3, 4), (1, 1, 5, 5)]
    return [(torch.rand(s, generator=generator), torch.randint(0, 3, s, generator=generator)) for s in shapes]


def naive(region: str) -> float:
    wanted = {"all": lambda c: True, "foreground": lambda c: c > 0, "background": lambda c: c == 0}[region]
    values = [
        value
        for tolerance, label in batches()
        for value, index in zip(tolerance.flatten().tolist(), label.flatten().tolist(), strict=True)
        if wanted(index)
    ]
    return sum(values) / len(values)


@pytest.mark.parametrize("region", ["all", "foreground", "background"])
@pytest.mark.parametrize("wrap", [lambda x: x, MetaTensor, lambda x: x.float().requires_grad_()])
def test_equals_the_loop_over_two_updates(region: str, wrap: type) -> None:
    metric = MeanTolerance(region)
    for tolerance, label in batches():
        metric.update((wrap(tolerance), wrap(label)))
    assert metric.compute() == pytest.approx(naive(region))
    # The sums hold no graph of the network's pass.
    assert not any(isinstance(kept, Tensor) and kept.requires_grad for kept in vars(metric).values())
    metric.reset()
    metric.update((torch.full((1, 1, 2, 2), 0.25), torch.tensor([[[[0, 1], [2, 0]]]])))
    assert metric.compute() == pytest.approx(0.25)


def test_attached_to_an_engine() -> None:
    metric = MeanTolerance("foreground", output_transform=lambda out: (out["pred"], out["label"]))
    engine = Engine(lambda _, batch: {"pred": batch[0], "label": batch[1]})
    metric.attach(engine, "tolerance")
    engine.run(batches())
    assert engine.state.metrics["tolerance"] == pytest.approx(naive("foreground"))


def test_refuses_to_compute_on_nothing() -> None:
    metric = MeanTolerance("foreground")
    with pytest.raises(NotComputableError, match="at least one volume, got none"):
        metric.compute()


def test_an_empty_region_is_nan_and_no_reason_to_stop() -> None:
    metric = MeanTolerance("foreground")
    metric.update((torch.ones(1, 1, 2, 2), torch.zeros(1, 1, 2, 2)))
    assert math.isnan(metric.compute())
    metric.update((torch.full((1, 1, 2, 2), 0.25), torch.ones(1, 1, 2, 2)))
    assert metric.compute() == 0.25


def test_refuses_an_unknown_region() -> None:
    with pytest.raises(ValueError, match="region must be one of 'all', 'foreground', 'background', got 'edge'"):
        MeanTolerance("edge")
