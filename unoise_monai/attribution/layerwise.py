"""Attributions to a layer of the network, as maps of the image; and the same of every layer, from first to last."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from functools import partial
from typing import Any

import captum.attr
import torch
from monai.data import MetaTensor
from torch import Tensor, nn
from torch.nn import functional as F

from unoise_monai.attribution.backward_rules import own_output
from unoise_monai.attribution.base import Attributor, CheckedAttributor, Score, signed
from unoise_monai.attribution.layers import find_layers, layer_named
from unoise_monai.attribution.targets import Target
from unoise_monai.attribution.windows import WindowScore, over_windows
from unoise_monai.inference.volume import Slices, VolumeNetwork
from unoise_monai.types import Image, VoxelMap


class LayerAttributor(CheckedAttributor):
    """An attribution to the outputs of one layer, up-sampled to the image.

    The sign is taken on the layer's own grid. Values are interpolated linearly from there to the image padded to the
    network's grid, each at the centre of the voxels that it stands for, and the padding is cut off. Where a volume does
    not fit ``memory_gb``, the layer's grid is put together from windows (`over_windows`).

    Args:
        network: see `Attributor`.
        layer: its name (`find_layers`), such as ``"bottleneck"`` or ``"decoder.0"``, or the path of a module.
        **options: see `Attributor`.

    Raises:
        ValueError: in the call, when the network has no such layer.
    """

    clips = True

    def __init__(self, network: nn.Module, layer: str = "bottleneck", **options: Any) -> None:
        super().__init__(network, **options)
        self.layer = layer

    def check(self, image: Image, volume: VolumeNetwork) -> dict[str, Any]:
        """Finds the layer."""
        return {"layer": layer_named(volume, self.layer, image).path}

    def maps(self, images: Image, score: Score) -> Tensor:
        layer = score.volume.network.get_submodule(score.notes["layer"])
        with own_output(layer):
            return self.place(self.on_layer(images, score, layer), images, score)

    @abstractmethod
    def on_layer(self, image: Image, score: Score, layer: nn.Module) -> Tensor:
        """The attribution on the layer's grid over the padded volume, ``(1, C', *grid)``, with its sign."""

    def place(self, values: Tensor, image: Image, score: Score) -> Tensor:
        """The attribution on the image's grid, ``(1, 1, *spatial)``."""
        return on_image(signed(values.detach(), self.sign), score.volume.pad(image).shape[2:], image)


class LayerActivation(LayerAttributor):
    """How strongly a layer responds: the mean magnitude of its features. What it responds to, whatever the target.

    Two passes forward at most. It says where the features are large, not whether the segmentation uses them.
    """

    name = "layer_activation"

    def on_layer(self, image: Image, score: Score, layer: nn.Module) -> Tensor:
        (features,) = over_windows(partial(activation, layer), score, image)
        return features / features.shape[1]


def activation(layer: nn.Module, score: WindowScore, window: Image) -> tuple[Tensor]:
    """A layer's features of a window, ``(1, C', *grid)``, by Captum."""
    return (captum.attr.LayerActivation(score, layer).attribute(window),)


def on_image(values: Tensor, padded: torch.Size, image: Image) -> Tensor:
    """Values of a layer, ``(1, C', *grid)`` over the padded volume, on the image's grid, linearly interpolated."""
    mode = "bilinear" if image.ndim == 4 else "trilinear"
    finer = F.interpolate(values.to(image.device), size=padded, mode=mode, align_corners=False)
    within: Slices = tuple(slice(side) for side in image.shape[2:])
    return finer[(..., *within)]


def every_layer(
    method: Callable[..., Attributor], network: nn.Module, image: Image, target: Target, **options: Any
) -> dict[str, VoxelMap]:
    """The maps of all layers that `find_layers` finds, by name, from the first to the last: for `layer_grid`.

    Args:
        method: a class that takes a ``layer``, such as `LayerGuidedBackprop` or `GradCAM`.
        network: see `Attributor`.
        image: ``(B, C, *spatial)``.
        target: see `Attributor`.
        **options: of ``method``, but for ``layer``.

    Returns:
        Each map is ``(B, 1, *spatial)`` of the image, with its geometry.
    """
    plain = image.as_tensor() if isinstance(image, MetaTensor) else image
    layers = find_layers(network, plain)
    return {name: method(network, layer=layer.path, **options)(image, target) for name, layer in layers.items()}
