"""Other rules for the way back: guided backpropagation and deconvolution at rectifiers, DeepLIFT from a baseline."""

import warnings
from abc import abstractmethod
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import captum.attr
import torch
from monai.networks.blocks import activation
from torch import Tensor, nn

from unoise_monai.attribution import base
from unoise_monai.attribution.base import Baseline, Call, Score, register
from unoise_monai.attribution.gradient import GradientAttributor, note_convergence
from unoise_monai.inference.tiling import Slices, VolumeNetwork
from unoise_monai.networks.weights import attributing
from unoise_monai.types import Image

Rule: TypeAlias = Callable[[Tensor, Tensor], Callable[[Tensor, Tensor], Tensor]]
"""From what went into a module and came out of it, to a function from the gradient with respect to its input and the
one with respect to its output, to what goes back in place of the former."""


@contextmanager
def own_inputs(modules: list[nn.Module], dtype: torch.dtype | None = None) -> Iterator[None]:
    """Give each call of the modules a copy of its input, as ``dtype`` where it is given.

    Captum hooks the input itself, which after a skip connection is another layer's input, too.
    """

    def copy_input(module: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        return (inputs[0].to(dtype or inputs[0].dtype, copy=True), *inputs[1:])

    with ExitStack() as stack:
        for module in modules:
            stack.enter_context(module.register_forward_pre_hook(copy_input))
        yield


@contextmanager
def own_output(layer: nn.Module) -> Iterator[None]:
    """Give what follows a layer a copy of its output, whatever hooks it gets: networks may add to it in place."""

    def stay_last(module: nn.Module, inputs: tuple[Any, ...]) -> None:
        # Captum's hooks, which come later, replace the output by tensors that must not be written to.
        module._forward_hooks[handle.id] = module._forward_hooks.pop(handle.id)

    handle = layer.register_forward_hook(lambda module, inputs, output: output.clone())
    with handle, layer.register_forward_pre_hook(stay_last):
        yield


@contextmanager
def backward_rule(modules: list[nn.Module], rule: Rule) -> Iterator[None]:
    """Send a rule's values back through the modules; the pass forward is unchanged.

    For any module of one input and one output that is not in place, however often it is called; Captum's rules are for
    ReLU modules alone.
    """

    def follow(call: Call) -> None:
        if call.output.requires_grad:
            backward = rule(call.inputs[0].detach(), call.output.detach())
            upstream: list[Tensor] = []
            call.output.register_hook(upstream.append)
            # Under autocast a module may give another number format than it got.
            call.inputs[0].register_hook(lambda gradient: backward(gradient, upstream.pop()).to(gradient.dtype))

    with own_inputs(modules), base.watching({str(at): module for at, module in enumerate(modules)}, follow):
        yield


RECTIFIERS: tuple[type[nn.Module], ...] = (
    *(nn.ReLU, nn.LeakyReLU, nn.PReLU, nn.RReLU, nn.ELU, nn.CELU, nn.SELU, nn.GELU, nn.SiLU, nn.Mish, nn.Softplus),
    *(nn.Hardswish, nn.Hardtanh, nn.Threshold, activation.Swish, activation.MemoryEfficientSwish, activation.Mish),
)
"""Activation modules that let the positive pass, more or less, and hold back the negative; ReLU6 is a Hardtanh."""

_POOLS = (nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d)
_RECTIFYING = (
    *("relu", "leaky_relu", "prelu", "rrelu", "elu", "celu", "gelu", "silu", "mish", "softplus", "hardswish"),
    *("hardtanh", "threshold", "clamp", "maximum", "fmax"),
)
_POOLING = ("max_pool", "adaptive_max_pool")
_GATES = ("sigmoid", "tanh", "softmax")


def is_relu(module: nn.Module) -> bool:
    return isinstance(module, nn.ReLU)


@dataclass(frozen=True)
class Activations:
    """What acts between the layers of a network in one pass."""

    modules: dict[str, nn.Module]
    """The rectifying modules that the pass called, by path."""
    functional: dict[str, int]
    """Rectifying operations without a module of `RECTIFIERS`, such as ``F.relu``, and how often."""
    pooling: dict[str, int]
    """Maximum pooling without a module of its own, likewise."""
    reused: tuple[str, ...]
    """Paths of activation and pooling modules that the pass called more than once."""
    gates: dict[str, int] = field(default_factory=dict)
    """Sigmoids, hyperbolic tangents and softmaxes without a module of their own, likewise."""
    pools: dict[str, nn.Module] = field(default_factory=dict)
    """The maximum pooling modules that the pass called, by path."""

    def check(self, method: str, substitute: bool, known: Callable[[nn.Module], bool] = is_relu) -> dict[str, Any]:
        """Refuse a network whose activations a method's rule, made for ``known`` modules, does not reach.

        Returns the note ``substituted``: how many modules of which other kind get the rule all the same, if any. A
        ValueError where a rectifying operation has no module, or an unknown one and ``substitute`` is False.
        """
        if self.functional:
            calls = ", ".join(f"{operation} x {count}" for operation, count in sorted(self.functional.items()))
            raise ValueError(f"network must call its activations as modules for {method}, got functional {calls}")
        others = {path: type(module).__name__ for path, module in self.modules.items() if not known(module)}
        counts = dict(Counter(others.values()))
        if others and not substitute:
            kinds = ", ".join(f"{kind} x {count}" for kind, count in counts.items())
            raise ValueError(
                f"network must have the activations that {method} has a rule for, got {kinds}, the first at "
                f"'{next(iter(others))}': the rule would pass them by; substitute=True applies it to them too"
            )
        return {"substituted": counts} if counts else {}


def activations(volume: VolumeNetwork, image: Image) -> Activations:
    """The activations of a network, from its modules and the graph of a pass over the image, or a block of it.

    A block will do where the network has a ``stride``. Gates such as sigmoids rectify nothing, nor do ``torch.where``
    and ``x * sigmoid(x)``. ``torch.maximum`` does: its second argument may be 0 or a share of the first. A ValueError
    where the network is scripted, so that its modules cannot be hooked.
    """
    modules = dict(volume.network.named_modules())
    if any(isinstance(module, torch.jit.ScriptModule) for module in modules.values()):
        raise ValueError(
            "network must be a plain module for its activations to be found, got a scripted one: load its weights "
            "into its class, or take a method that needs none, such as saliency, integrated_gradients or occlusion"
        )
    kinds: tuple[type[nn.Module], ...] = (*RECTIFIERS, nn.Sigmoid, nn.Tanh, nn.Softmax, *_POOLS)
    watched = {path: module for path, module in modules.items() if isinstance(module, kinds)}
    calls: Counter[str] = Counter()
    made: set[Any] = set()

    def remember(call: Call) -> None:
        calls[call.path] += 1
        output = call.output[0] if isinstance(call.output, tuple) else call.output
        # Some are written with functions of their own, such as a sigmoid.
        made.update(_nodes(output.grad_fn, call.inputs[0].grad_fn))

    block = volume.pad(image[:1].detach())
    if volume.rule.stride is not None:
        within: Slices = (slice(base.probe_side(volume)),) * (image.ndim - 2)
        block = block[(..., *within)]
    with attributing(volume.network), base.watching(watched, remember):
        logits = volume.predict(block.clone().requires_grad_())
    found = Counter(_operation(node) for node in _nodes(logits.grad_fn) if node not in made)

    acting, pools = (
        {path: module for path, module in watched.items() if calls[path] and isinstance(module, kinds)}
        for kinds in (RECTIFIERS, _POOLS)
    )
    functional, pooling, gates = (
        {operation: count for operation, count in found.items() if operation in names}
        for names in (_RECTIFYING, _POOLING, _GATES)
    )
    reused = tuple(path for path in watched if calls[path] > 1)
    return Activations(acting, functional, pooling, reused, gates, pools)


def _nodes(last: Any, before: Any = None) -> Iterator[Any]:
    """The nodes of an autograd graph from its last on, each once, without ``before`` and what only that leads to."""
    seen, waiting = {last, before}, [last]
    while waiting:
        node = waiting.pop()
        if node is not None:
            yield node
            new = {source for source, _ in node.next_functions} - seen
            seen |= new
            waiting += new


def _operation(node: Any) -> str:
    """The rectifying, gating or pooling operation that a node is, or ""; a clamp is one where it cuts at 0."""
    for operation in (*_RECTIFYING, *_POOLING, *_GATES):
        if node.name().lower().startswith(operation.replace("_", "")):
            least = getattr(node, "_saved_min", None)
            cuts = operation != "clamp" or (least is not None and bool(torch.as_tensor(least == 0).any()))
            return operation if cuts else ""
    return ""


class ClippedGradient(GradientAttributor):
    """A gradient with a rule of its own at the ReLUs. One pass forward and back.

    With ``substitute``, the rule also applies to activation modules for which it was not made, such as PReLU;
    ``notes["substituted"]`` counts them. In the call, a ValueError where the network has functional activations, or
    without ``substitute`` other modules.
    """

    clips = True

    def __init__(self, network: nn.Module, substitute: bool = False, **options: Any) -> None:
        super().__init__(network, **options)
        self.substitute = substitute

    @staticmethod
    @abstractmethod
    def clipped(gradient: Tensor, upstream: Tensor) -> Tensor:
        """What goes back from a ReLU, from its gradient and what came to it from above."""

    def check(self, image: Image, volume: VolumeNetwork) -> dict[str, Any]:
        return activations(volume, image).check(self.name, self.substitute)

    def maps(self, images: Image, score: Score) -> Tensor:
        with clipping(score.volume.network, self.substitute, self.clipped):
            return captum.attr.Saliency(score).attribute(images, abs=False)


@contextmanager
def clipping(network: nn.Module, substitute: bool, clipped: Callable[[Tensor, Tensor], Tensor]) -> Iterator[None]:
    """Send what ``clipped`` gives back from each ReLU, or with ``substitute`` from each rectifier."""
    kinds = RECTIFIERS if substitute else (nn.ReLU,)
    modules = [module for module in network.modules() if isinstance(module, kinds)]
    with backward_rule(modules, lambda inputs, output: clipped):
        yield


@register
class GuidedBackprop(ClippedGradient):
    """The gradient without what turns negative on its way back: only what speaks for the target, ReLU by ReLU.

    Springenberg et al., "Striving for simplicity: the all convolutional net", 2014. Sharp, but partly recovers the
    image whatever the target (Nie et al., 2018). For a target that sums voxels, it is not the sum of the voxels' maps,
    see `VoxelwiseMean`.
    """

    name = "guided_backprop"

    @staticmethod
    def clipped(gradient: Tensor, upstream: Tensor) -> Tensor:
        return gradient.clamp_min(0)


@register
class Deconvolution(ClippedGradient):
    """What comes from above, without its negative part, in place of the gradient of each ReLU.

    Zeiler, Fergus, "Visualizing and understanding convolutional networks", 2014. It ignores which ReLUs the image
    opened, so the image matters at the pooling alone.
    """

    name = "deconvolution"

    @staticmethod
    def clipped(gradient: Tensor, upstream: Tensor) -> Tensor:
        return upstream.clamp_min(0)


RESCALED: tuple[type[nn.Module], ...] = (
    *(nn.ReLU, nn.ELU, nn.LeakyReLU, nn.Softplus, nn.Sigmoid, nn.Tanh, nn.Softmax, *_POOLS),
)
"""The modules that Captum has rules for. For a subclass it takes the gradient."""


@register
class DeepLift(GradientAttributor):
    """Each voxel's share of the difference between the scores of the image and of a baseline, in one pass.

    Shrikumar, Greenside, Kundaje, "Learning important features through propagating activation differences", 2017, the
    rescale rule. One pass forward and back over the image with the baseline, and two forward. The delta is rounding
    where a network is made of convolutions, batch norm, activations and maximum pooling, and large with instance or
    group norm, attention, or whatever else multiplies things that depend on the image.

    With ``substitute``, the rule also applies to activation modules that Captum has none for, such as PReLU;
    ``notes["substituted"]`` counts them.

    Raises:
        ValueError: when ``baseline`` is none; in the call, when the network has activations without a rule and
            ``substitute`` is False, functional activations, gates or maximum pooling, pooling windows that overlap
            (Captum keeps one window's share of a voxel), or an activation or pooling module that is called more than
            once (Captum keeps the last call).
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
        self.baselines = base.check_baselines((baseline,))
        self.substitute, self.seed = substitute, seed

    def check(self, image: Image, volume: VolumeNetwork) -> dict[str, Any]:
        found = activations(volume, image)
        notes = found.check(self.name, self.substitute, _is_rescaled)
        functional = found.pooling | found.gates
        if functional:
            calls = ", ".join(f"{operation} x {count}" for operation, count in functional.items())
            raise ValueError(f"network must call its pooling and gates as modules for {self.name}, got {calls}")
        for path, module in found.pools.items():
            if _overlaps(module):
                raise ValueError(
                    f"network must have maximum pooling with windows no larger than their stride for {self.name}, got "
                    f"{module} at '{path}'"
                )
        if found.reused:
            raise ValueError(
                f"network must call each activation and pooling module once for {self.name}, got "
                f"{len(found.reused)} that it calls more often, the first at '{found.reused[0]}'"
            )
        return notes

    def maps(self, images: Image, score: Score) -> Tensor:
        plain = images.detach()
        starts = base.baselines(plain, self.baselines, self.seed)
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
    baseline; all else is as there. ``baselines`` may be a stack of images ``(b, C, *spatial)``; a ValueError where
    there is none.
    """

    name = "deep_lift_shap"

    def __init__(
        self, network: nn.Module, baselines: Sequence[Baseline] | Tensor = ("zero", "blur", "noise"), **options: Any
    ) -> None:
        super().__init__(network, **options)
        self.baselines = base.check_baselines(baselines)


def rescale(inputs: Tensor, output: Tensor, eps: float = 1e-10) -> Any:
    """The rescale rule, a `Rule`, of a batch whose second half is the baseline: the slope in place of the gradient.

    ``eps`` is Captum's: below it a difference counts as none, and the gradient stays.
    """
    step, change = (torch.cat([torch.sub(*halves.chunk(2))] * 2) for halves in (inputs, output))
    slope = change / step
    return lambda gradient, upstream: torch.where(step.abs() < eps, gradient, upstream * slope)


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
