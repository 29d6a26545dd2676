"""Methods that are made of many maps of another one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, TypeAlias

from torch import Tensor, nn

from unoise_monai.attribution.base import Attributor, CheckedAttributor, Score
from unoise_monai.attribution.deeplift import DeepLift, DeepLiftShap
from unoise_monai.attribution.gradient import GradientAttributor, InputXGradient, Saliency
from unoise_monai.attribution.guided import Deconvolution, GuidedBackprop
from unoise_monai.attribution.path import GradientShap, IntegratedGradients
from unoise_monai.attribution.targets import Target
from unoise_monai.checks import check_choice
from unoise_monai.types import Image

Method: TypeAlias = str | type[Attributor] | Attributor
"""A method: its name, its class, or one that was made over the same network."""

GRADIENT_METHODS: Mapping[str, type[Attributor]] = {
    method.name: method
    for method in (
        Saliency,
        InputXGradient,
        GuidedBackprop,
        Deconvolution,
        IntegratedGradients,
        GradientShap,
        DeepLift,
        DeepLiftShap,
    )
}


class ComposedAttributor(Attributor):
    """The mean, or the like, of maps of a gradient method.

    Args:
        network: see `Attributor`.
        method: see `Method`.
        method_options: of the method, where it is not made yet, such as ``{"substitute": True}``.
        **options: see `Attributor`; by default those of the method.

    Raises:
        ValueError: when ``method`` is unknown, no gradient method or made over another network, or
            ``method_options`` come with one that is made.
    """

    methods: ClassVar[Mapping[str, type[Attributor]]] = GRADIENT_METHODS
    """The methods that it can be made of."""

    def __init__(
        self, network: nn.Module, method: Method, method_options: Mapping[str, Any] | None = None, **options: Any
    ) -> None:
        if isinstance(method, CheckedAttributor) and self._takes(type(method)):
            if method.network is not network:
                raise ValueError(f"method must be made over the network itself, got {method.name} over another")
            if method_options:
                raise ValueError(f"method_options must be None where method is made, got {dict(method_options)}")
            self.inner: CheckedAttributor = method
        else:
            # A CAM takes its sign on the layer's own grid, before anything else can.
            inner_options: dict[str, Any] = {"sign": options.get("sign"), **(method_options or {})}
            self.inner = self._class_of(method)(network, **inner_options)
        volume = self.inner.volume
        like_inner = {"memory_gb": volume.memory_gb, "precision": volume.precision}
        if options.get("sign") is None:
            options["sign"] = self.inner.sign
        super().__init__(network, **(like_inner | options))
        self.volume.clips = self.inner.clips
        self.contributes = self.inner.contributes

    def at_once(self, score: Score) -> int:
        """How many images the method takes in a pass; one of those that keep a layer's features."""
        return max(1, score.copies // self.inner.copies_each) if isinstance(self.inner, GradientAttributor) else 1

    def check(self, image: Image, score: Score) -> None:
        """Refuse a network that the method refuses; else note what it says of it, for all its maps."""
        score.notes |= self.inner.check(image, score.volume)

    def maps(self, images: Image, score: Score, target: Target, sums: dict[str, float]) -> Tensor:
        """The method's signed maps of n images; what it notes of them is added to ``sums``, n times."""
        part = Score(score.volume, target, score.copies)
        part.notes |= {key: value for key, value in score.notes.items() if not isinstance(value, (int, float))}
        maps = self.inner.maps(images.requires_grad_(), part).detach()
        for key, value in part.notes.items():
            if isinstance(value, (int, float)):
                sums[key] = sums.get(key, 0.0) + len(images) * value
            else:
                score.notes[key] = value
        return maps

    def _class_of(self, method: Method) -> type[CheckedAttributor]:
        if isinstance(method, str):
            check_choice("method", method, tuple(self.methods))
            method = self.methods[method]
        if not (isinstance(method, type) and issubclass(method, CheckedAttributor) and self._takes(method)):
            raise ValueError(f"method must be {', '.join(self.methods)}, by its name or class, got {method!r}")
        return method

    def _takes(self, method: type) -> bool:
        """Whether a class is a gradient method, one's own among them, or another that it can be made of."""
        return issubclass(method, (GradientAttributor, *self.methods.values()))
