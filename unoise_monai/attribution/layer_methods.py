"""Gradient methods at a layer instead of the image."""

from __future__ import annotations

from abc import abstractmethod
from functools import partial
from typing import Any, ClassVar

import captum.attr
import torch
from torch import Tensor, nn

from unoise_monai.attribution.base import Baseline, Score, baseline, check_baseline, signed
from unoise_monai.attribution.deeplift import DeepLift, rescaling
from unoise_monai.attribution.gradient import RULES, note_convergence
from unoise_monai.attribution.guided import GuidedBackprop, check_clipping, clipping
from unoise_monai.attribution.layers import LayerAttributor, WindowScore, over_windows
from unoise_monai.checks import check_choice
from unoise_monai.inference.tiling import VolumeNetwork
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


class LayerContribution(LayerAttributor):
    """What a layer's features contribute to the target's difference between a baseline and the image.

    With ``sign="signed"``, the sum over the layer's grid of the padded volume is ``notes["score_difference"]`` up to
    ``notes["convergence_delta"]``; up-sampling keeps a contribution's height, not the sum. Over windows, the target
    must be linear in the logits.

    Args:
        network: see `Attributor`.
        layer: its name (`find_layers`) or path.
        baseline: see `baseline`; an image of your own gives other settings.
        seed: of a noise baseline.
        **options: see `Attributor`.

    Raises:
        ValueError: when ``baseline`` is none; in the call, when the network has no such layer, an image as baseline
            does not expand to the volume, or the volume goes in windows and the target is not linear.
    """

    copies: ClassVar[int] = 1
    """Copies of a window that a pass takes, at least."""

    def __init__(
        self,
        network: nn.Module,
        layer: str = "bottleneck",
        baseline: Baseline = "zero",
        seed: int | None = 0,
        **options: Any,
    ) -> None:
        super().__init__(network, layer, **options)
        check_baseline(baseline)
        self.baseline, self.seed = baseline, seed

    def on_layer(self, image: Image, score: Score, layer: nn.Module) -> Tensor:
        start = baseline(image, self.baseline, seed=self.seed)
        measure = partial(self._parts, layer)
        values, total = over_windows(measure, score, image, (start,), self.copies, linear=True)
        with torch.no_grad():
            self.converge(score, layer, image.detach(), start, total.cpu())
        return values

    def _parts(self, layer: nn.Module, score: WindowScore, window: Image, start: Image) -> tuple[Tensor, Tensor]:
        values = self.captum(score, layer, window, start).float()
        # Summed over channels window by window, as a fine layer of a volume is larger than the volume.
        return signed(values, self.sign), signed(values, "signed")

    @abstractmethod
    def captum(self, score: WindowScore, layer: nn.Module, window: Image, start: Image) -> Tensor:
        """Captum's contributions, ``(1, C', *grid)``."""

    def converge(self, score: Score, layer: nn.Module, image: Image, start: Image, total: Tensor) -> None:
        """Note how far the sum, in main memory, is from the difference of the scores that it shall explain."""
        note_convergence(score, total, total.sum() - (score(image) - score(start)).cpu())


class LayerPath(LayerContribution):
    """A `LayerContribution` that Captum sums up in steps.

    Args:
        network: see `LayerContribution`.
        layer: see `LayerContribution`.
        steps: of the integral.
        rule: how it is summed, by default the first of ``rules``.
        **options: see `LayerContribution`.

    Raises:
        ValueError: when ``steps`` is below 2 or ``rule`` unknown; else see `LayerContribution`.
    """

    method: ClassVar[Any]
    """Captum's class."""
    rules: ClassVar[tuple[str, ...]] = RULES

    def __init__(
        self, network: nn.Module, layer: str = "bottleneck", steps: int = 50, rule: str | None = None, **options: Any
    ) -> None:
        super().__init__(network, layer, **options)
        if steps < 2:
            raise ValueError(f"steps must be at least 2, got {steps}")
        self.steps, self.rule = steps, self.rules[0] if rule is None else rule
        check_choice("rule", self.rule, self.rules)

    def captum(self, score: WindowScore, layer: nn.Module, window: Image, start: Image) -> Tensor:
        options = {"n_steps": self.steps, "method": self.rule, "internal_batch_size": score.copies}
        return self.method(score, layer).attribute(window, start, **options)


class LayerConductance(LayerPath):
    """How much of the target's difference flows through each place of a layer, while the image fades in.

    Dhamdhere, Sundararajan, Yan, "How important is a neuron?", 2018. Costs up to twice ``steps`` passes forward
    and back, and two forward. The delta is small where all goes through the layer, as through a U-Net's first and last;
    of others it is what goes past them, by skip connections.
    """

    name = "layer_conductance"
    copies = 2
    method = captum.attr.LayerConductance
    # The differences between a rule's points are the integral: of Captum's, this one's points reach both ends.
    rules = ("riemann_trapezoid",)


class LayerIntegratedGradients(LayerPath):
    """Each feature's share of the target's difference when the layer alone fades in, with the image's own skips.

    Sundararajan, Taly, Yan, "Axiomatic attribution for deep networks", 2017, from the layer's features of the baseline
    to those of the image. Costs ``steps`` passes forward and back, and five forward. The difference that it explains
    is that between the image's score and the score with the layer's features replaced by the baseline's.
    """

    name = "layer_integrated_gradients"
    method = captum.attr.LayerIntegratedGradients

    def converge(self, score: Score, layer: nn.Module, image: Image, start: Image, total: Tensor) -> None:
        after = score(image)
        # In main memory, as a fine layer of a volume is larger than the volume.
        kept: list[Tensor] = []
        handle = layer.register_forward_hook(lambda module, inputs, output: kept.append(output.cpu()))
        try:
            score(start)
        finally:
            handle.remove()
        # Volumes of one size go through in the same tiles.
        features = iter(kept)
        handle = layer.register_forward_hook(lambda module, inputs, output: next(features).to(output.device))
        try:
            before = score(image)
        finally:
            handle.remove()
        note_convergence(score, total, total.sum() - (after - before).cpu())


class InternalInfluence(LayerPath):
    """The mean gradient with respect to each feature, while the image fades in: what the target depends on.

    Leino et al., "Influence-directed explanations for deep convolutional networks", 2018. Costs ``steps`` passes
    forward and back. A mean of gradients explains no difference, and no convergence is noted.
    """

    name = "internal_influence"
    method = captum.attr.InternalInfluence

    def converge(self, score: Score, layer: nn.Module, image: Image, start: Image, total: Tensor) -> None:
        """Nothing to note."""


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
