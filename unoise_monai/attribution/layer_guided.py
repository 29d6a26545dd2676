"""Guided backpropagation to the layers of a network, and from them."""

from __future__ import annotations

from functools import partial
from typing import Any

import captum.attr
import torch
from torch import Tensor, nn

from unoise_monai.attribution.base import Score, signed
from unoise_monai.attribution.guided import GuidedBackprop, check_clipping, clipping
from unoise_monai.attribution.layerwise import LayerAttributor
from unoise_monai.attribution.windows import WindowScore, over_windows
from unoise_monai.inference.volume import VolumeNetwork
from unoise_monai.types import Image


class LayerGuidedBackprop(LayerAttributor):
    """Where a layer's features speak for the target: guided backpropagation, stopped at the layer.

    Chatterjee et al., "Interpretability techniques for deep learning based segmentation models", ISMRM 2021, Fig. 5,
    loop guided backpropagation (Springenberg et al., 2014) through the layers. This is its gradient with respect to the
    layer's features, by default the sum of magnitudes over channels; `LayerGuidedActivation` is the other way to read
    them. One pass forward and back.

    Args:
        network: see `Attributor`.
        layer: its name (`find_layers`) or path.
        substitute: see `GuidedBackprop`.
        **options: see `Attributor`.

    Raises:
        ValueError: in the call, when the network has no such layer, or as for `GuidedBackprop`.
    """

    name = "layer_guided_backprop"

    def __init__(self, network: nn.Module, layer: str = "bottleneck", substitute: bool = False, **options: Any) -> None:
        super().__init__(network, layer, **options)
        self.substitute = substitute

    def check(self, image: Image, volume: VolumeNetwork) -> dict[str, Any]:
        return super().check(image, volume) | check_clipping(volume, image, self.name, self.substitute)

    def on_layer(self, image: Image, score: Score, layer: nn.Module) -> Tensor:
        (values,) = over_windows(partial(self._gradient, layer), score, image)
        return values

    def _gradient(self, layer: nn.Module, score: WindowScore, window: Image) -> tuple[Tensor, ...]:
        gradient = captum.attr.LayerGradientXActivation(score, layer, multiply_by_inputs=False)
        with clipping(score.volume.network, self.substitute, GuidedBackprop.clipped):
            return (signed(gradient.attribute(window).float(), self.sign),)


class LayerGuidedActivation(LayerGuidedBackprop):
    """Which voxels drive a layer: guided backpropagation from the magnitude of its features to the image.

    The "layer activation with guided backpropagation" of the library that Chatterjee et al. 2021 build on (Ozbulak,
    "PyTorch CNN visualizations", 2019), of all channels at once. The map has the image's resolution at every layer, and
    does not depend on the target. One pass forward and back.
    """

    name = "layer_guided_activation"

    def place(self, values: Tensor, image: Image, score: Score) -> Tensor:
        # What the padding's voxels get belongs to the voxels that they repeat.
        padded, values = score.volume.pad(image), values.to(image.device)
        return values if padded is image else torch.autograd.grad(padded, image, values)[0]

    def _gradient(self, layer: nn.Module, score: WindowScore, window: Image) -> tuple[Tensor, ...]:
        features: list[Tensor] = []
        with clipping(score.volume.network, self.substitute, GuidedBackprop.clipped):
            handle = layer.register_forward_hook(lambda module, inputs, output: features.append(output))
            try:
                score(window)
            finally:
                handle.remove()
            return torch.autograd.grad(features[0].abs().sum(), window)
