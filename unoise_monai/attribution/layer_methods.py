"""Methods at a layer: class activation maps, guided backpropagation, and what a layer's features contribute.

Class activation maps weigh a layer's features by what they do for the target. For a sum of logits over voxels, such as
`class_sum`, `voxel` or any `Region`, they are Seg-Grad-CAM: Vinogradova, Dibrov, Myers, "Towards interpretable semantic
segmentation via gradient-weighted class activation mapping", 2020. A layer's grid is coarse: the map of the bottleneck
of a depth-4 U-Net has one value for 8 voxels along each axis, and what lies between is interpolated.

Contributions are a layer's shares of the target's difference between a baseline and the image. With ``sign="signed"``,
their sum over the layer's grid of the padded volume is ``notes["score_difference"]`` up to
``notes["convergence_delta"]``; up-sampling keeps a contribution's height, not the sum. The delta is small where
everything passes the layer, as in a U-Net's first and last; elsewhere it is what goes past it, by skip connections.
Over windows, the target must be linear in the logits.
"""

from abc import abstractmethod
from functools import partial
from typing import Any, ClassVar

import captum.attr
import torch
from torch import Tensor, nn

from unoise_monai.attribution import base
from unoise_monai.attribution.backpropagation import DeepLift, GuidedBackprop, activations, clipping, rescaling
from unoise_monai.attribution.base import Attributor, Baseline, Score, register
from unoise_monai.attribution.gradient import RULES, note_convergence
from unoise_monai.attribution.layers import LayerAttributor, over_windows
from unoise_monai.checks import check_choice
from unoise_monai.inference.tiling import VolumeNetwork
from unoise_monai.types import Image


class CAM(LayerAttributor):
    """A weighted sum of a layer's features. One pass forward and back, and over windows one more forward.

    The default sign, ``"positive"``, is the papers' ReLU, on the layer's grid. Koker et al. 2021, Fig. 2, take the
    bottleneck.
    """

    default_sign = "positive"

    def on_layer(self, image: Image, score: Score, layer: nn.Module) -> Tensor:
        features, gradients = over_windows(partial(_features_and_gradients, layer), score, image)
        return self.weigh(features, gradients).sum(dim=1, keepdim=True)

    @abstractmethod
    def weigh(self, features: Tensor, gradients: Tensor) -> Tensor:
        """The weighted features, from features and the target's gradients, all ``(1, C', *grid)``."""


@register
class GradCAM(CAM):
    """Each feature times its mean gradient: coarse areas whose features speak for the target.

    Selvaraju et al., "Grad-CAM: Visual explanations from deep networks via gradient-based localization", 2017, Eq. 1
    and 2. The weights are means over the layer's whole grid, so a feature that speaks for one small structure shows
    wherever it is active.
    """

    name = "grad_cam"

    def weigh(self, features: Tensor, gradients: Tensor) -> Tensor:
        return features * gradients.mean(dim=tuple(range(2, gradients.ndim)), keepdim=True)


@register
class LayerGradCAM(CAM):
    """Grad-CAM with both signs, for comparing the layers of a network: without the ReLU of Eq. 2."""

    name = "layer_grad_cam"
    default_sign = "signed"
    weigh = GradCAM.weigh


@register
class GradCAMPlusPlus(CAM):
    """Grad-CAM with weights for each voxel of the layer, so that small structures count like large ones.

    Chattopadhay et al., "Grad-CAM++: Generalized gradient-based visual explanations for deep convolutional networks",
    2018, with its exponential of the score, whose higher derivatives are powers of the gradient. The weights depend
    on the target's scale: the mean over a region and the sum give different maps. In the call, a ValueError where a
    feature is negative, as those after a ReLU never are: the weights have a pole where the sum of negative features
    cancels the rest.
    """

    name = "grad_cam_plus_plus"

    def weigh(self, features: Tensor, gradients: Tensor) -> Tensor:
        if bool((features < 0).any()):
            raise ValueError(
                f"layer must give features of at least 0, such as those after a ReLU, for {self.name}, got "
                f"{float(features.min()):.3g}"
            )
        axes = tuple(range(2, features.ndim))
        # g^2 / (2 g^2 + sum(A) g^3), with g^2 cancelled; where g is 0, the ReLU of g is, too.
        alpha = 1 / (2 + features.sum(axes, keepdim=True) * gradients)
        return features * (alpha * gradients.clamp_min(0)).sum(axes, keepdim=True)


@register
class HiResCAM(CAM):
    """Each feature times its own gradient: of the last features before a linear head, what each added to the target.

    Draelos, Carin, "Use HiResCAM instead of Grad-CAM for faithful explanations of convolutional neural networks", 2020.
    Nothing is averaged, so what a feature does elsewhere does not count.
    """

    name = "hires_cam"

    def weigh(self, features: Tensor, gradients: Tensor) -> Tensor:
        return features * gradients


@register
class LayerCAM(CAM):
    """Each feature times its own gradient, where that is positive: sharp also in fine layers.

    Jiang et al., "LayerCAM: Exploring hierarchical class activation maps for localization", 2021.
    """

    name = "layer_cam"

    def weigh(self, features: Tensor, gradients: Tensor) -> Tensor:
        return features * gradients.clamp_min(0)


@register
class GuidedGradCAM(Attributor):
    """Guided backpropagation where Grad-CAM is positive: fine detail within the coarse areas.

    Selvaraju et al., "Grad-CAM", 2017, Sec. 3.2: the product of both, with Grad-CAM's ReLU and up-sampled. Two passes
    forward and back. ``substitute`` and what is refused are as for `GuidedBackprop`, and it, too, partly recovers the
    image.
    """

    name = "guided_grad_cam"
    needs = ("layer",)
    clips = True

    def __init__(self, network: nn.Module, layer: str = "bottleneck", substitute: bool = False, **options: Any) -> None:
        super().__init__(network, **options)
        self.cam = GradCAM(network, layer)
        self.guided = GuidedBackprop(network, substitute)

    def check(self, image: Image, volume: VolumeNetwork) -> dict[str, Any]:
        return self.guided.check(image, volume) | self.cam.check(image, volume)

    def maps(self, images: Image, score: Score) -> Tensor:
        return self.guided.maps(images, score) * self.cam.maps(images, score)


@register
class LayerGuidedBackprop(LayerAttributor):
    """Where a layer's features speak for the target: guided backpropagation, stopped at the layer.

    Chatterjee et al., "Interpretability techniques for deep learning based segmentation models", ISMRM 2021, Fig. 5,
    loop guided backpropagation (Springenberg et al., 2014) through the layers. This is its gradient with respect to the
    layer's features; `LayerGuidedActivation` is the other way to read them. One pass forward and back. ``substitute``
    and what is refused are as for `GuidedBackprop`.
    """

    name = "layer_guided_backprop"

    def __init__(self, network: nn.Module, layer: str = "bottleneck", substitute: bool = False, **options: Any) -> None:
        super().__init__(network, layer, **options)
        self.substitute = substitute

    def check(self, image: Image, volume: VolumeNetwork) -> dict[str, Any]:
        return super().check(image, volume) | activations(volume, image).check(self.name, self.substitute)

    def on_layer(self, image: Image, score: Score, layer: nn.Module) -> Tensor:
        return over_windows(partial(self._gradient, layer), score, image)[0]

    def _gradient(self, layer: nn.Module, score: Score, window: Image) -> tuple[Tensor, ...]:
        gradient = captum.attr.LayerGradientXActivation(score, layer, multiply_by_inputs=False)
        with clipping(score.volume.network, self.substitute, GuidedBackprop.clipped):
            return (base.signed(gradient.attribute(window).float(), self.sign),)


@register
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

    def _gradient(self, layer: nn.Module, score: Score, window: Image) -> tuple[Tensor, ...]:
        with clipping(score.volume.network, self.substitute, GuidedBackprop.clipped):
            (features,), _ = base.outputs_of(layer, lambda: score(window))
            return torch.autograd.grad(features.abs().sum(), window)


class LayerPath(LayerAttributor):
    """Contributions that Captum sums up in ``steps`` from a baseline to the image, by default by the first rule.

    A ValueError where ``steps`` is below 2, ``rule`` unknown or ``baseline`` none; in the call, where the volume goes
    in windows and the target is not linear.
    """

    method: ClassVar[Any]
    """Captum's class."""
    rules: ClassVar[tuple[str, ...]] = RULES

    def __init__(
        self,
        network: nn.Module,
        layer: str = "bottleneck",
        steps: int = 50,
        rule: str | None = None,
        baseline: Baseline = "zero",
        seed: int | None = 0,
        **options: Any,
    ) -> None:
        super().__init__(network, layer, **options)
        base.check_at_least("steps", steps, 2)
        self.steps, self.rule = steps, self.rules[0] if rule is None else rule
        check_choice("rule", self.rule, self.rules)
        base.check_baseline(baseline)
        self.baseline, self.seed = baseline, seed

    def on_layer(self, image: Image, score: Score, layer: nn.Module) -> Tensor:
        def measure(score: Score, window: Image, start: Image) -> tuple[Tensor, Tensor]:
            options = {"n_steps": self.steps, "method": self.rule, "internal_batch_size": score.copies}
            return _both_signs(self.method(score, layer).attribute(window, start, **options), self.sign)

        start = base.baseline(image, self.baseline, seed=self.seed)
        values, total = over_windows(measure, score, image, (start,), self.copies, linear=True)
        with torch.no_grad():
            self.note(score, layer, image.detach(), start, total.cpu())
        return values

    def note(self, score: Score, layer: nn.Module, image: Image, start: Image, total: Tensor) -> None:
        """Note how far the sum, in main memory, is from the difference of the scores that it should explain."""
        _note_difference(score, total, score(image) - score(start))


@register
class LayerConductance(LayerPath):
    """How much of the target's difference flows through each place of a layer, while the image fades in.

    Dhamdhere, Sundararajan, Yan, "How important is a neuron?", 2018. Costs up to twice ``steps`` passes forward
    and back, and two forward.
    """

    name = "layer_conductance"
    copies = 2
    method = captum.attr.LayerConductance
    # The differences between a rule's points are the integral: of Captum's, this one's points reach both ends.
    rules = ("riemann_trapezoid",)


@register
class LayerIntegratedGradients(LayerPath):
    """Each feature's share of the target's difference when the layer alone fades in, with the image's own skips.

    Sundararajan, Taly, Yan, "Axiomatic attribution for deep networks", 2017, from the layer's features of the baseline
    to those of the image. Costs ``steps`` passes forward and back, and five forward. The difference that it explains
    is that between the image's score and the score with the layer's features replaced by the baseline's.
    """

    name = "layer_integrated_gradients"
    method = captum.attr.LayerIntegratedGradients

    def note(self, score: Score, layer: nn.Module, image: Image, start: Image, total: Tensor) -> None:
        after = score(image)
        # In main memory, as a fine layer of a volume is larger than the volume.
        kept: list[Tensor] = []
        with base.watching({"": layer}, lambda call: kept.append(call.output.cpu())):
            score(start)
        # The image goes through in the same tiles as the baseline.
        features = iter(kept)
        with base.watching({"": layer}, lambda call: next(features).to(call.output.device)):
            before = score(image)
        _note_difference(score, total, after - before)


@register
class InternalInfluence(LayerPath):
    """The mean gradient with respect to each feature, while the image fades in: what the target depends on.

    Leino et al., "Influence-directed explanations for deep convolutional networks", 2018. Costs ``steps`` passes
    forward and back. A mean of gradients explains no difference, and no convergence is noted.
    """

    name = "internal_influence"
    method = captum.attr.InternalInfluence

    def note(self, score: Score, layer: nn.Module, image: Image, start: Image, total: Tensor) -> None:
        pass


@register
class LayerDeepLift(LayerAttributor):
    """Each feature's share of the target's difference between the image and a baseline, in one pass.

    Shrikumar, Greenside, Kundaje, "Learning important features through propagating activation differences", 2017, the
    rescale rule. One pass forward and back over the image with the baseline, and two forward. The delta, options and
    what is refused are as for `DeepLift`.
    """

    name = "layer_deep_lift"
    copies = 2

    def __init__(
        self,
        network: nn.Module,
        layer: str = "bottleneck",
        baseline: Baseline = "zero",
        substitute: bool = False,
        seed: int | None = 0,
        **options: Any,
    ) -> None:
        super().__init__(network, layer, **options)
        self.deep_lift = DeepLift(network, baseline, substitute, seed)

    def check(self, image: Image, volume: VolumeNetwork) -> dict[str, Any]:
        return super().check(image, volume) | self.deep_lift.check(image, volume)

    def on_layer(self, image: Image, score: Score, layer: nn.Module) -> Tensor:
        def measure(score: Score, window: Image, start: Image) -> tuple[Tensor, Tensor]:
            with rescaling(score.volume.network, self.deep_lift.substitute):
                return _both_signs(captum.attr.LayerDeepLift(score, layer).attribute(window, start), self.sign)

        start = base.baseline(image, self.deep_lift.baselines[0], seed=self.deep_lift.seed)
        values, total = over_windows(measure, score, image, (start,), self.copies, linear=True)
        with torch.no_grad():
            _note_difference(score, total.cpu(), score(image.detach()) - score(start))
        return values


def _both_signs(values: Tensor, sign: str) -> tuple[Tensor, Tensor]:
    """One window's contributions with the sign that is asked for and with their own, summed over channels."""
    return base.signed(values.float(), sign), base.signed(values.float(), "signed")


def _note_difference(score: Score, total: Tensor, difference: Tensor) -> None:
    note_convergence(score, total, total.sum() - difference.cpu())


def _features_and_gradients(layer: nn.Module, score: Score, window: Image) -> tuple[Tensor, Tensor]:
    # Not Captum's, which gives one or the other, at a pass forward each.
    (features,), scores = base.outputs_of(layer, lambda: score(window))
    (gradients,) = torch.autograd.grad(scores.sum(), features)
    return features.detach(), gradients
