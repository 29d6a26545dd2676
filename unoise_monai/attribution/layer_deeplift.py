"""DeepLIFT of a layer: its features' shares of the difference between the image and a baseline."""

from __future__ import annotations

from typing import Any

import captum.attr
from torch import Tensor, nn

from unoise_monai.attribution.baselines import Baseline
from unoise_monai.attribution.deeplift import DeepLift, rescaling
from unoise_monai.attribution.layer_paths import LayerContribution
from unoise_monai.attribution.windows import WindowScore
from unoise_monai.inference.volume import VolumeNetwork
from unoise_monai.types import Image


class LayerDeepLift(LayerContribution):
    """Each feature's share of the target's difference between the image and a baseline, in one pass.

    Shrikumar, Greenside, Kundaje, "Learning important features through propagating activation differences", 2017, the
    rescale rule. One pass forward and back over the image with the baseline, and two forward. The delta is rounding
    where all goes through the layer, and the network is one that `DeepLift` is exact for; else it is what goes past the
    layer, by skip connections.

    Args:
        network: see `LayerContribution`.
        layer: see `LayerContribution`.
        baseline: see `LayerContribution`.
        substitute: see `DeepLift`.
        **options: see `LayerContribution`.

    Raises:
        ValueError: see `LayerContribution` and `DeepLift`.
    """

    name = "layer_deep_lift"
    copies = 2

    def __init__(
        self,
        network: nn.Module,
        layer: str = "bottleneck",
        baseline: Baseline = "zero",
        substitute: bool = False,
        **options: Any,
    ) -> None:
        super().__init__(network, layer, baseline, **options)
        self.deep_lift = DeepLift(network, substitute=substitute)

    def check(self, image: Image, volume: VolumeNetwork) -> dict[str, Any]:
        return super().check(image, volume) | self.deep_lift.check(image, volume)

    def captum(self, score: WindowScore, layer: nn.Module, window: Image, start: Image) -> Tensor:
        with rescaling(score.volume.network, self.deep_lift.substitute):
            return captum.attr.LayerDeepLift(score, layer).attribute(window, start)
