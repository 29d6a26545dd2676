"""Guided backpropagation to the layers of a network, and from them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import captum.attr
import torch
from torch import Tensor, nn

from unoise_monai.attribution.backward_rules import backward_rule
from unoise_monai.attribution.base import Score, signed
from unoise_monai.attribution.guided import GuidedBackprop
from unoise_monai.attribution.layerwise import LayerAttributor
from unoise_monai.attribution.rectifiers import RECTIFIERS, check_rectified
from unoise_monai.attribution.windows import WindowScore, over_windows
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

    def on_layer(self, image: Image, score: Score, layer: nn.Module) -> Tensor:
        self.check(image, score)
        (values,) = over_windows(partial(self._gradient, layer), score, image)
        return values

    def check(self, image: Image, score: Score) -> None:
        substituted = check_rectified(score.volume, image, self.name, self.substitute)
        if substituted:
            score.notes["substituted"] = substituted

    @contextmanager
    def clipping(self, network: nn.Module) -> Iterator[None]:
        kinds = RECTIFIERS if self.substitute else (nn.ReLU,)
        modules = [module for module in network.modules() if isinstance(module, kinds)]
        with backward_rule(modules, lambda inputs, output: GuidedBackprop.clipped):
            yield

    def _gradient(self, layer: nn.Module, score: WindowScore, window: Image) -> tuple[Tensor, ...]:
        gradient = captum.attr.LayerGradientXActivation(score, layer, multiply_by_inputs=False)
        with self.clipping(score.volume.network):
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
        with self.clipping(score.volume.network):
            handle = layer.register_forward_hook(lambda module, inputs, output: features.append(output))
            try:
                score(window)
            finally:
                handle.remove()
            return torch.autograd.grad(features[0].abs().sum(), window)
