"""Gradients: saliency, input x gradient, and integrals along a path.

For methods that explain a difference, ``notes["score_difference"]`` is that between the scores of the image and of the
baseline, and ``notes["convergence_delta"]`` how far a map with ``sign="signed"`` misses it in its sum.
"""

import logging
from abc import abstractmethod
from collections import Counter
from collections.abc import Sequence
from typing import Any, ClassVar

import captum.attr
import torch
from torch import Tensor, nn

from unoise_monai.attribution import base
from unoise_monai.attribution.base import Attributor, Baseline, Score, register
from unoise_monai.checks import check_choice
from unoise_monai.types import Image

logger = logging.getLogger(__name__)

FAR_OFF = 0.1
"""The share of the difference of scores that a map's sum may miss without a warning in the log."""


class GradientAttributor(Attributor):
    """An attribution from gradients of the image, of several images at once where they fit."""

    copies_each: ClassVar[int] = 1
    """Copies of the volume that a pass takes for each image, at the least."""

    def attribute(self, image: Image, score: Score) -> Tensor:
        values = super().attribute(image, score)
        delta, difference = score.notes.get("convergence_delta", 0.0), score.notes.get("score_difference", 0.0)
        if abs(delta) > FAR_OFF * abs(difference):
            logger.warning("%s: the map sums to %.3g more than the %.3g to explain", self.name, delta, difference)
        return values

    @abstractmethod
    def maps(self, images: Image, score: Score) -> Tensor:
        """The map of each image, with its sign, ``(n, C, *spatial)`` to the same; the images require gradients.

        The score's copy ``i`` is one of image ``i % n``, so that each image may have a target of its own.
        """


@register
class Saliency(GradientAttributor):
    """The gradient of the target with respect to each voxel.

    Simonyan, Vedaldi, Zisserman, "Deep inside convolutional networks", 2013. One pass forward and back. Shows what a
    small change of the voxel would do, and nothing where the network is saturated.
    """

    name = "saliency"

    def maps(self, images: Image, score: Score) -> Tensor:
        return captum.attr.Saliency(score).attribute(images, abs=False)


@register
class InputXGradient(GradientAttributor):
    """Each voxel times its gradient: for a linear network, its contribution against an image of zeros.

    Shrikumar et al., "Not just a black box", 2016. One pass forward and back. A voxel of intensity 0 gets 0.
    """

    name = "input_x_gradient"
    contributes = True

    def maps(self, images: Image, score: Score) -> Tensor:
        return captum.attr.InputXGradient(score).attribute(images)


def note_convergence(score: Score, values: Tensor, delta: Tensor) -> None:
    """Note ``convergence_delta`` and ``score_difference``, the means over n images.

    The maps ``values`` are ``(n, C, *spatial)``; ``delta``, each map's sum less the difference of scores, is ``(n,)``.
    """
    delta = delta.detach()
    score.notes["convergence_delta"] = float(delta.mean())
    score.notes["score_difference"] = float((values.detach().flatten(1).sum(dim=1) - delta).mean())


RULES = ("gausslegendre", "riemann_left", "riemann_middle", "riemann_right")


@register
class IntegratedGradients(GradientAttributor):
    """Each voxel's share of the difference between the scores of the image and of a baseline.

    Sundararajan, Taly, Yan, "Axiomatic attribution for deep networks", 2017. Costs ``steps`` passes forward and back,
    and two forward. More steps make the delta smaller. ``rule`` says how they are summed; Captum's
    ``"riemann_trapezoid"`` is left out, as its weights sum to ``1 - 1 / steps``. A voxel that equals the baseline
    gets 0. A ValueError where ``steps`` is below 2, ``rule`` unknown or ``baseline`` none.
    """

    name = "integrated_gradients"
    contributes = True

    def __init__(
        self,
        network: nn.Module,
        steps: int = 50,
        rule: str = "gausslegendre",
        baseline: Baseline = "zero",
        seed: int | None = 0,
        **options: Any,
    ) -> None:
        super().__init__(network, **options)
        base.check_at_least("steps", steps, 2)
        check_choice("rule", rule, RULES)
        base.check_baseline(baseline)
        self.steps, self.rule, self.baseline, self.seed = steps, rule, baseline, seed

    def maps(self, images: Image, score: Score) -> Tensor:
        values, delta = captum.attr.IntegratedGradients(score).attribute(
            images,
            baselines=base.baseline(images, self.baseline, seed=self.seed),
            n_steps=self.steps,
            method=self.rule,
            # Captum counts the images of all steps, and wants room for one step of each.
            internal_batch_size=max(score.copies, len(images)),
            return_convergence_delta=True,
        )
        note_convergence(score, values, delta)
        return values.detach()


@register
class GradientShap(GradientAttributor):
    """Each voxel's share of the difference between the scores of the image and of baselines, in the mean over them.

    Lundberg, Lee, "A unified approach to interpreting model predictions", 2017; Erion et al., "Improving performance of
    deep learning models with axiomatic attribution priors and expected gradients", 2021. Each of the ``samples`` is a
    gradient at a random place between a random baseline and the image, a pass forward and back; each baseline and the
    image cost one forward. The delta falls with the root of the samples. Shapley values only where voxels act
    independently.

    The ``baselines``, see `baseline`, or a stack of images ``(b, C, *spatial)``, are equally likely. ``sigma`` is that
    of noise on the image, in units of normalised intensity; 0 for expected gradients. A ValueError where ``samples`` is
    below 1, ``baselines`` holds none, or ``sigma`` is negative or not finite.
    """

    name = "gradient_shap"
    contributes = True

    def __init__(
        self,
        network: nn.Module,
        samples: int = 50,
        baselines: Sequence[Baseline] | Tensor = ("zero", "blur", "noise"),
        sigma: float = 0.0,
        seed: int | None = 0,
        **options: Any,
    ) -> None:
        super().__init__(network, **options)
        base.check_noise(samples, sigma)
        self.samples, self.sigma, self.seed = samples, sigma, seed
        self.baselines = base.check_baselines(baselines)

    def maps(self, images: Image, score: Score) -> Tensor:
        plain = images.detach()
        starts = base.baselines(plain, self.baselines, self.seed)
        gradient = captum.attr.Saliency(score)
        at_once = max(1, score.copies // len(plain))
        total = torch.zeros_like(plain)
        # Captum's own draws from NumPy's global state, and takes all samples at once.
        with base.seeded(self.seed, plain.device):
            chosen = torch.randint(len(starts), (self.samples,)).tolist()
            places = torch.rand(self.samples).tolist()
            for first in range(0, self.samples, at_once):
                draws = range(first, min(first + at_once, self.samples))
                noise = torch.stack([self.sigma * torch.randn_like(plain[:1]) for _ in draws])
                start = torch.stack([starts[chosen[draw]] for draw in draws])
                step = plain + noise - start
                place = plain.new_tensor([places[draw] for draw in draws]).view(-1, *[1] * plain.ndim)
                points = (start + place * step).flatten(0, 1).requires_grad_()
                total += (step * gradient.attribute(points, abs=False).view_as(step)).sum(dim=0)
        values = total / self.samples
        with torch.no_grad():
            counts = Counter(chosen)
            before = sum(count * score(starts[at]) for at, count in counts.items()) / self.samples
            note_convergence(score, values, values.flatten(1).sum(dim=1) - (score(plain) - before))
        return values
