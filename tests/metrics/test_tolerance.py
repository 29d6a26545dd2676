"""Mean tolerance against a loop over voxels."""

import math

import pytest
import torch
from ignite.engine import Engine
from ignite.exceptions import NotComputableError
from monai.data import MetaTensor
from torch import Tensor

from unoise_monai.handlers.training import scalars
from unoise_monai.metrics import MeanTolerance


def batches() -> list[tuple[Tensor, Tensor]]:
    """Of different sizes, so that a mean of means would differ."""
    generator = torch.Generator().manual_seed(0)
    shapes = [(2, 1, 3, 4), (1, 1, 5, 5)]
    return [(torch.rand(s, generator=generator), torch.randint(0, 3, s, generator=generator)) for s in shapes]


def naive() -> list[float]:
    """Over all voxels, the foreground and the background."""
    means = []
    for wanted in (lambda index: True, lambda index: index > 0, lambda index: index == 0):
        values = [
            value
            for tolerance, label in batches()
            for value, index in zip(tolerance.flatten().tolist(), label.flatten().tolist(), strict=True)
            if wanted(index)
        ]
        means.append(sum(values) / len(values))
    return means


@pytest.mark.parametrize("wrap", [lambda x: x, MetaTensor, lambda x: x.float().requires_grad_()])
def test_equals_the_loop_over_two_updates(wrap: type) -> None:
    metric = MeanTolerance()
    for tolerance, label in batches():
        metric.update((wrap(tolerance), wrap(label)))
    assert metric.compute() == pytest.approx(naive())
    # The sums hold no graph of the network's pass.
    assert not any(isinstance(kept, Tensor) and kept.requires_grad for kept in vars(metric).values())
    metric.reset()
    metric.update((torch.full((1, 1, 2, 2), 0.25), torch.tensor([[[[0, 1], [2, 0]]]])))
    assert metric.compute() == pytest.approx([0.25] * 3)


def test_attached_to_an_engine_it_gives_three_scalars() -> None:
    metric = MeanTolerance(output_transform=lambda out: (out["pred"], out["label"]))
    engine = Engine(lambda _, batch: {"pred": batch[0], "label": batch[1]})
    metric.attach(engine, "val_tolerance")
    engine.run(batches())
    names = ("val_tolerance", "val_tolerance_foreground", "val_tolerance_background")
    assert engine.state.metrics == pytest.approx(dict(zip(names, naive(), strict=True)))
    # As columns of the table of metrics.
    assert tuple(scalars(engine)) == names


def test_refuses_to_compute_on_nothing() -> None:
    with pytest.raises(NotComputableError, match="at least one volume, got none"):
        MeanTolerance().compute()


def test_an_empty_region_is_nan_and_no_reason_to_stop() -> None:
    metric = MeanTolerance()
    metric.update((torch.ones(1, 1, 2, 2), torch.zeros(1, 1, 2, 2)))
    everywhere, foreground, background = metric.compute()
    assert (everywhere, background) == (1, 1)
    assert math.isnan(foreground)
    metric.update((torch.full((1, 1, 2, 2), 0.25), torch.ones(1, 1, 2, 2)))
    assert metric.compute() == (0.625, 0.25, 1)
