"""DeepLIFT: contributions from the differences of activations between the image and a baseline."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import captum.attr
import torch
from torch import Tensor, nn

from unoise_monai.attribution.base import Baseline, Score, baselines, check_baselines
from unoise_monai.attribution.gradient import GradientAttributor, note_convergence
from unoise_monai.attribution.guided import RECTIFIERS, activations, backward_rule, own_inputs
from unoise_monai.attribution.registry import register
from unoise_monai.inference.tiling import VolumeNetwork
from unoise_monai.types import Image

RESCALED: tuple[type[nn.Module], ...] = (
    *(nn.ReLU, nn.ELU, nn.LeakyReLU, nn.Softplus, nn.Sigmoid, nn.Tanh, nn.Softmax),
    *(nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d),
)
"""The modules that Captum has rules for. For a subclass it takes the gradient."""


@register
class DeepLift(GradientAttributor):
    """Each voxel's share of the difference between the scores of the image and of a baseline, in one pass.

    Shrikumar, Greenside, Kundaje, "Learning important features through propagating activation differences", 2017, the
    rescale rule. One pass forward and back over the image with the baseline, and two forward. The delta is rounding
    where a network is made of convolutions, batch norm, activations and maximum pooling, and large with instance or
    group norm, attention, or whatever else multiplies things that depend on the image.

    Args:
        substitute: apply the rescale rule also to activation modules that Captum has none for, such as PReLU;
            ``notes["substituted"]`` counts them. Else such networks are refused.

    Raises:
        ValueError: when ``baseline`` is none; in the call, when the network has activations without a rule and
            ``substitute`` is False, functional activations, gates or maximum pooling, pooling windows that overlap,
            where Captum keeps one window's share of a voxel, or an activation or pooling module that is called more
            than once, of which Captum keeps the last call.
    """

    name = "deep_lift"
    contributes = True
    copies_each = 2

    def __init__(
        self,
        network: nn.Module,
        baseline: Baseline = "zero",
        substitute: bool = False,
        seed: int | None = 0,
        **options: Any,
    ) -> None:
        super().__init__(network, **options)
        self.baselines = check_baselines((baseline,))
        self.substitute, self.seed = substitute, seed

    def check(self, image: Image, volume: VolumeNetwork) -> dict[str, Any]:
        found = activations(volume, image)
        notes = found.check(self.name, self.substitute, _is_rescaled)
        functional = found.pooling | found.gates
        if functional:
            calls = ", ".join(f"{operation} x {count}" for operation, count in functional.items())
            raise ValueError(f"network must call its pooling and gates as modules for {self.name}, got {calls}")
        overlapping = [f"{module} at '{path}'" for path, module in found.pools.items() if _overlaps(module)]
        if overlapping:
            raise ValueError(
                f"network must have maximum pooling with windows no larger than their stride for {self.name}, got "
                f"{overlapping[0]}"
            )
        if found.reused:
            raise ValueError(
                f"network must call each activation and pooling module once for {self.name}, got "
                f"{len(found.reused)} that it calls more often, the first at '{found.reused[0]}'"
            )
        return notes

    def maps(self, images: Image, score: Score) -> Tensor:
        plain = images.detach()
        starts = baselines(plain, self.baselines, self.seed)
        at_once = max(1, score.copies // (self.copies_each * len(plain)))
        method = captum.attr.DeepLift(score)
        total, deltas = torch.zeros_like(plain), []
        with rescaling(score.volume.network, self.substitute):
            for first in range(0, len(starts), at_once):
                start = torch.cat(starts[first : first + at_once])
                copies = plain.repeat(len(start) // len(plain), *[1] * (plain.ndim - 1)).requires_grad_()
                values, delta = method.attribute(copies, start, return_convergence_delta=True)
                total += values.detach().unflatten(0, (-1, len(plain))).sum(dim=0)
                deltas.append(delta)
        values = total / len(starts)
        note_convergence(score, values, torch.cat(deltas).view(-1, len(plain)).mean(dim=0))
        return values


@register
class DeepLiftShap(DeepLift):
    """The mean of DeepLIFT over several baselines: closer to Shapley values than one baseline's.

    Lundberg, Lee, "A unified approach to interpreting model predictions", 2017. Costs what `DeepLift` costs, for each
    baseline; all else is as there.

    Args:
        baselines: see `baseline`; or a stack of images ``(b, C, *spatial)``.

    Raises:
        ValueError: when ``baselines`` holds none or something else; in the call, see `DeepLift`.
    """

    name = "deep_lift_shap"

    def __init__(
        self,
        network: nn.Module,
        baselines: Sequence[Baseline] | Tensor = ("zero", "blur", "noise"),
        **options: Any,
    ) -> None:
        super().__init__(network, **options)
        self.baselines = check_baselines(baselines)


def rescale(inputs: Tensor, output: Tensor, eps: float = 1e-10) -> Any:
    """The rescale rule, a `Rule`, of a batch whose second half is the baseline: the slope in place of the gradient.

    ``eps`` is Captum's: below it a difference counts as none, and the gradient stays.
    """
    step = _difference(inputs)
    slope = _difference(output) / step
    return lambda gradient, upstream: torch.where(step.abs() < eps, gradient, upstream * slope)


def _difference(halves: Tensor) -> Tensor:
    image, start = halves.chunk(2)
    return torch.cat([image - start] * 2)


def _is_rescaled(module: nn.Module) -> bool:
    return type(module) in RESCALED


def _overlaps(pool: nn.Module) -> bool:
    """Whether a voxel may lie in two windows of a pooling module."""
    values = (getattr(pool, name) for name in ("kernel_size", "stride", "dilation"))
    # One number an axis, or one for all.
    along = (value if isinstance(value, tuple) else (value,) * 3 for value in values)
    return any(gap * (side - 1) + 1 > step for side, step, gap in zip(*along, strict=False))


@contextmanager
def rescaling(network: nn.Module, substitute: bool) -> Iterator[None]:
    """Ready for Captum's DeepLIFT, with the rescale rule also at other rectifiers where they are substituted."""
    modules = list(network.modules())
    known = [module for module in modules if _is_rescaled(module)]
    others = [module for module in modules if substitute and isinstance(module, RECTIFIERS) and module not in known]
    try:
        # In float32: autocast on the CPU pools in it, and Captum's rule needs one number format.
        with own_inputs(known, torch.float32), backward_rule(others, rescale), warnings.catch_warnings():
            # Captum warns that it sets hooks, which it removes.
            warnings.filterwarnings("ignore", message="Setting forward, backward hooks")
            yield
    finally:
        # Captum leaves tensors on modules that the target does not reach, and on all after a failure.
        for module in known:
            for name in ("input", "output"):
                vars(module).pop(name, None)
