"""All attribution methods by name."""

from __future__ import annotations

from collections.abc import Mapping
from difflib import get_close_matches
from types import MappingProxyType
from typing import Any

from torch import nn

from unoise_monai.attribution.base import Attributor
from unoise_monai.attribution.cam import GradCAM, GradCAMPlusPlus, GuidedGradCAM, HiResCAM, LayerCAM, LayerGradCAM
from unoise_monai.attribution.composed import GRADIENT_METHODS, SmoothGrad, SmoothGradSquared, VarGrad, VoxelwiseMean
from unoise_monai.attribution.features import FeatureAblation, KernelShap, Lime
from unoise_monai.attribution.iterative import IterativeROI
from unoise_monai.attribution.layer_methods import (
    InternalInfluence,
    LayerConductance,
    LayerDeepLift,
    LayerGuidedActivation,
    LayerGuidedBackprop,
    LayerIntegratedGradients,
)
from unoise_monai.attribution.layers import LayerActivation
from unoise_monai.attribution.learned import EdgeMagnitude, Intensity, Learned, Random
from unoise_monai.attribution.perturbation import RISE, Occlusion

_CLASSES: tuple[type[Attributor], ...] = (
    # Gradients of the image.
    *GRADIENT_METHODS.values(),
    # Many maps of a gradient method.
    SmoothGrad,
    SmoothGradSquared,
    VarGrad,
    VoxelwiseMean,
    # One layer's features.
    GradCAM,
    GradCAMPlusPlus,
    HiResCAM,
    LayerCAM,
    GuidedGradCAM,
    LayerActivation,
    LayerConductance,
    InternalInfluence,
    LayerGradCAM,
    LayerDeepLift,
    LayerIntegratedGradients,
    LayerGuidedBackprop,
    LayerGuidedActivation,
    # Parts of the image hidden.
    Occlusion,
    FeatureAblation,
    RISE,
    Lime,
    KernelShap,
    IterativeROI,
    # A noise model.
    Learned,
    # What all of them have to beat.
    Random,
    Intensity,
    EdgeMagnitude,
)

METHODS: Mapping[str, type[Attributor]] = MappingProxyType({method.name: method for method in _CLASSES})
"""The classes, by ``name``."""


def method_names() -> tuple[str, ...]:
    """The names that `make_attributor` takes, of one kind beside each other."""
    return tuple(METHODS)


def make_attributor(name: str, network: nn.Module, **options: Any) -> Attributor:
    """The method of that name over a network.

    Args:
        name: one of `method_names`.
        network: a segmentation network, ``(B, C, *spatial)`` to logits ``(B, K, *spatial)``.
        **options: of the method's class; ``unoise`` needs its ``noise_model``.

    Raises:
        ValueError: when there is no such method, or it refuses an option.
        TypeError: when the method has no such option.
    """
    if name not in METHODS:
        close = get_close_matches(str(name).lower(), METHODS)
        hint = f" (close: {', '.join(map(repr, close))})" if close else ""
        raise ValueError(f"method must be one of {', '.join(map(repr, METHODS))}, got {name!r}{hint}")
    return METHODS[name](network, **options)
