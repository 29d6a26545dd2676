"""Moves the noise ratio during training."""

from __future__ import annotations

import torch
from ignite.engine import Engine, Events
from monai.utils import evenly_divisible_all_gather
from torch import Tensor

from unoise_monai.losses import DualNoiseRatio
from unoise_monai.losses.unoise import utility_loss
from unoise_monai.metrics.dice import foreground_dice
from unoise_monai.unoise import UNoise


class NoiseRatioUpdater:
    """After every batch, compare the utility with and without noise on it and move lambda.

    Costs one pass of the utility without gradients a batch. Several ranks compare their batches together, so that
    lambda stays the same on all of them.

    Args:
        unoise: the network in training.
        noise_ratio: the loss's `DualNoiseRatio`; a plain number is left alone, so that a configuration can switch
            between both by one key.
        every: update at every so many batches.
    """

    def __init__(self, unoise: UNoise, noise_ratio: DualNoiseRatio | float, every: int = 1) -> None:
        self.unoise = unoise
        self.noise_ratio = noise_ratio
        self.every = every

    def attach(self, engine: Engine) -> None:
        if isinstance(self.noise_ratio, DualNoiseRatio):
            engine.add_event_handler(Events.ITERATION_COMPLETED(every=self.every), self)

    def __call__(self, engine: Engine) -> None:
        if not isinstance(self.noise_ratio, DualNoiseRatio):
            return
        image, label = engine.state.output["image"], engine.state.output["label"]
        noised_logits = engine.state.output["pred"][0].detach()
        with torch.no_grad():
            clean_logits = engine.inferer(image, self.unoise.segmenter.utility)
        score = foreground_dice if self.noise_ratio.of == "dice" else utility_loss
        self.noise_ratio.update(noised=_mean(score(noised_logits, label)), clean=_mean(score(clean_logits, label)))


def _mean(scores: Tensor) -> float:
    """Of all ranks' scores, where they are not NaN."""
    return float(evenly_divisible_all_gather(scores.reshape(-1)).nanmean())
