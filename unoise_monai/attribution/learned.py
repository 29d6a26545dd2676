"""A trained noise model beside the other attributions."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from unoise_monai.attribution.base import Attributor, Score
from unoise_monai.types import Image
from unoise_monai.unoise import ExplainedSegmenter


class Learned(Attributor):
    """The importance that a noise model has learned: ``1 - sigmoid(noise_model(x))``, in [0, 1].

    Koker et al., "U-Noise: Learnable noise masks for interpretable image segmentation", 2021, section 3. Costs one pass
    forward of the noise model, none of the segmentation network. It explains the whole segmentation: the target is
    ignored.

    Args:
        network: the segmentation network that the noise model was trained against; it is not run.
        noise_model: ``(B, C, *spatial)`` to tolerance logits ``(B, 1, *spatial)``. It is the attributor's ``network``:
            what the map depends on, and what a randomisation of weights has to make random.
        **options: see `Attributor`.

    Raises:
        ValueError: in the call, when the noise model does not give one channel.
    """

    name = "unoise"
    differentiates = False
    default_sign = "positive"

    def __init__(self, network: nn.Module, noise_model: nn.Module, **options: Any) -> None:
        super().__init__(noise_model, **options)
        self.utility = network

    @classmethod
    def of(cls, segmenter: ExplainedSegmenter, **options: Any) -> Learned:
        """The attributor of a segmenter's own noise model."""
        return cls(segmenter.utility, segmenter.noise_model, **options)

    def attribute(self, image: Image, score: Score) -> Tensor:
        with torch.no_grad():
            tolerance = score.volume(image)
        if tolerance.shape[1] != 1:
            raise ValueError(f"noise_model must give one channel, got {tolerance.shape[1]}")
        return torch.sigmoid(-tolerance)
