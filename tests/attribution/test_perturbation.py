"""What holds for every method that hides parts of the image: limits, seeds, copies, tiles, and nothing changed."""

import logging
import re
import time
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from small import unet
from torch import Tensor, nn

from unoise_monai.attribution import base
from unoise_monai.attribution.base import Baseline, Score, baseline
from unoise_monai.attribution.features import FeatureAblation, KernelShap, Lime
from unoise_monai.attribution.perturbation import RISE, Occlusion, PerturbationAttributor
from unoise_monai.attribution.targets import Region, foreground_sum, unperturbed_dice

CHEAP: dict[type[PerturbationAttributor], dict[str, Any]] = {
    Occlusion: {"window": 6, "stride": 3},
    FeatureAblation: {"size": 5},
    RISE: {"masks": 9, "cells": 3},
    Lime: {"size": 5, "samples": 30},
    KernelShap: {"size": 5, "samples": 30},
}
METHODS = pytest.mark.parametrize("method", CHEAP)


def image_of(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(1))


def target_of(image: Tensor, label: int = 1) -> Region:
    """A class's logit over some of the voxels."""
    generator = torch.Generator().manual_seed(2)
    return Region(torch.rand(image[:, :1].shape, generator=generator) > 0.7, label, mean=False)


class Constant(nn.Module):
    """A network whose pass takes a while."""

    def forward(self, image: Tensor) -> Tensor:
        time.sleep(0.01)
        return image


class Counting(PerturbationAttributor):
    """Marks which copies it came to."""

    name = "counting"

    def perturb(self, image: Tensor, hidden: Tensor, score: Score) -> Tensor:
        seen = torch.zeros(image[:, :1].numel())
        for batch in self.batches(seen.numel(), score):
            score(image)
            seen[batch.start : batch.stop] += 1
        return seen.reshape(image[:, :1].shape)


@METHODS
def test_a_target_needs_no_gradient_and_the_network_makes_no_graph(method: type[PerturbationAttributor]) -> None:
    network, image = unet(2), image_of(1, 1, 24, 20)
    graphs = []
    network.register_forward_hook(lambda *arguments: graphs.append(arguments[2].requires_grad))
    with torch.no_grad():
        target = unperturbed_dice(network.eval()(image), int(network(image).argmax(dim=1).mode().values.mode().values))
    values = method(network, **CHEAP[method])(image, target)
    assert not any(graphs)
    assert bool(values.isfinite().all())
    assert len(network._forward_hooks) == 1


@METHODS
def test_at_the_time_limit_the_map_so_far(method: type[PerturbationAttributor], caplog: Any) -> None:
    options = {**CHEAP[method], **({"masks": 10**6} if method is RISE else {})}
    with caplog.at_level(logging.WARNING):
        result = method(Constant(), time_limit_s=0.05, **options)(
            image_of(1, 1, 40, 40), lambda logits: logits.flatten(1).sum(dim=1)
        )
    notes = result.meta["attribution"][0]
    assert 1 <= notes["evaluated"] < notes["planned"]
    assert notes["stopped_after_s"] >= 0.05
    assert re.search(rf"{method.name}: stopped after .* with {notes['evaluated']} of {notes['planned']}", caplog.text)
    assert bool(result.isfinite().all())
    assert bool((result != 0).any())


@pytest.mark.parametrize(
    ("fitting", "limit", "expected"),
    [(100, 10.0, [1, 9]), (4, 10.0, [1, 4, 4, 1]), (100, 0.5, [1]), (100, 2.5, [1, 1, 1]), (100, None, [30])],
)
def test_no_more_copies_at_once_than_the_time_allows(
    fitting: int, limit: float | None, expected: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a clock that goes on by a second a copy."""
    clock = SimpleNamespace(seconds=0.0, monotonic=lambda: clock.seconds)
    monkeypatch.setattr(base, "time", clock)
    score: Any = SimpleNamespace(copies=fitting, notes={})
    sizes = []
    for batch in Counting(nn.Identity(), time_limit_s=limit).batches(30, score):
        assert batch.start == sum(sizes)
        sizes.append(len(batch))
        clock.seconds += len(batch)
    assert sizes == expected
    assert score.notes["evaluated"] == sum(expected)
    assert ("stopped_after_s" in score.notes) == (limit is not None)


def test_progress_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    image, target = image_of(1, 1, 4, 4), foreground_sum(torch.ones(1, 1, 4, 4))
    Counting(nn.Identity())(image, target)
    assert capsys.readouterr().err == ""
    Counting(nn.Identity(), progress=True)(image, target)
    assert "counting: 100%" in capsys.readouterr().err


@pytest.mark.parametrize("kind", ["zero", "mean", "blur", "noise", -1.5, torch.tensor([1.0, 2]).reshape(1, 2, 1, 1)])
def test_hidden_is_the_baseline_of_the_item(kind: Baseline) -> None:
    class Showing(PerturbationAttributor):
        name = "showing"

        def perturb(self, image: Tensor, hidden: Tensor, score: Score) -> Tensor:
            assert not image.requires_grad
            return hidden

    image = image_of(2, 2, 12, 10)
    maps = Showing(nn.Identity(), baseline=kind, seed=5)(image, target_of(image, 0))
    expected = torch.cat([baseline(item[None], kind, seed=5) for item in image])
    torch.testing.assert_close(maps.as_tensor(), expected.sum(dim=1, keepdim=True))
