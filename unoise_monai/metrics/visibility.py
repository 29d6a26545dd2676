"""What stays of a segmentation when only the most important voxels are visible."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from ignite.exceptions import NotComputableError
from ignite.metrics import Metric
from ignite.metrics.metric import reinit__is_reduced
from monai.inferers import Inferer, SimpleInferer
from monai.utils import evenly_divisible_all_gather
from scipy.ndimage import binary_dilation, distance_transform_edt
from torch import Tensor, nn

from unoise_monai.attribution.base import baseline
from unoise_monai.checks import check_choice, check_finite
from unoise_monai.metrics.overlap import MEASURES, check_grid, check_measures, check_positive, check_spacing
from unoise_monai.networks.weights import evaluating
from unoise_monai.types import Image, LabelMap, Logits, VoxelMap

SHARES = (0.0, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)


class VisibilityCurve(NamedTuple):
    """Dice, or another measure, against the visible share, averaged over volumes."""

    level: Tensor
    """Shares, or thresholds of the tolerance, ``(N,)``."""
    share: Tensor
    """Share of the voxels that stayed visible, mean over volumes, ``(N,)``."""
    score: Tensor
    """Mean over volumes, one column a foreground class, ``(N, classes)``."""

    @property
    def mean_score(self) -> Tensor:
        """Mean over the classes, ``(N,)``."""
        return self.score.nanmean(dim=1)

    def at(self, share: float) -> float:
        """Mean score at a visible share, linear between the points measured."""
        order = self.share.argsort()
        return float(np.interp(share, self.share[order].numpy(), self.mean_score[order].numpy()))

    @property
    def area(self) -> float:
        """Area under mean score against share, trapezoids over the range measured, divided by its width."""
        order = self.share.argsort()
        x, y = self.share[order], self.mean_score[order]
        width = float(x[-1] - x[0])
        return float(torch.trapezoid(y, x)) / width if width > 0 else float(y.mean())


class VisibilityScores(NamedTuple):
    """Every measure of every volume at every level, as in `VisibilityCurve`."""

    level: Tensor
    """``(N,)``."""
    share: Tensor
    """``(B, N)``."""
    score: dict[str, Tensor]
    """By measure, ``(B, N, classes)``."""

    def curve(self, measure: str) -> VisibilityCurve:
        """The mean over the volumes; NaN are left out."""
        return VisibilityCurve(self.level, self.share.mean(dim=0), self.score[measure].nanmean(dim=0))


ORDERS = ("quantile", "threshold")
MODES = ("insertion", "deletion")


def importance_order(importance: VoxelMap) -> VoxelMap:
    """Rank of every voxel within its volume, 0 the most important, ``(B, 1, *spatial)``."""
    flat = importance.flatten(1)
    order = flat.argsort(dim=1, descending=True, stable=True)
    ranks = torch.empty_like(order)
    ranks.scatter_(1, order, torch.arange(flat.shape[1], device=flat.device).expand_as(order))
    return ranks.view_as(importance)


def top_share(order: VoxelMap, share: float) -> VoxelMap:
    """Which voxels are among the top share of their volume, by the ranks of `importance_order`; bool."""
    return order < round(share * order[0].numel())


def visible_voxels(
    importance: VoxelMap, order: str = "quantile", mode: str = "insertion"
) -> Callable[[float], VoxelMap]:
    """Which voxels stay visible, as a function of the level; bool, ``(B, 1, *spatial)``.

    Args:
        importance: ``(B, 1, *spatial)``.
        order: ``"quantile"``, the level is a share of the voxels, or ``"threshold"``, it is one of the tolerance:
            the top voxels are those with ``1 - importance <= level``.
        mode: the top voxels stay visible (``"insertion"``) or are hidden (``"deletion"``).

    Raises:
        ValueError: when ``order`` or ``mode`` is unknown.
    """
    check_choice("order", order, ORDERS)
    check_choice("mode", mode, MODES)
    ranks = importance_order(importance) if order == "quantile" else None

    def visible(level: float) -> VoxelMap:
        top = importance >= 1 - level if ranks is None else top_share(ranks, level)
        return top if mode == "insertion" else ~top

    return visible


def distance_map(label: LabelMap, spacing_mm: Sequence[float]) -> VoxelMap:
    """A map that knows the answer, minus the distance to the foreground: the ceiling of a scoreboard.

    Outside, minus the distance in mm to the nearest foreground voxel; inside, the distance to the nearest one that
    touches the background, so that the middle of a structure comes first. A map that shows the context that the network
    needs may exceed this ceiling.

    Args:
        label: class indices, ``(B, 1, *spatial)``; the foreground is what is above 0.
        spacing_mm: voxel sizes, one an axis.

    Returns:
        ``(B, 1, *spatial)`` float32, on the label's device; 0 everywhere where an item is all foreground or has none.

    Raises:
        ValueError: when ``spacing_mm`` is not one finite number above 0 an axis.
    """
    check_spacing(spacing_mm, label.ndim - 2)
    foreground = (label.as_subclass(Tensor) > 0)[:, 0].cpu().numpy()
    depths = np.zeros(foreground.shape, np.float32)
    for depth, mask in zip(depths, foreground, strict=True):
        if mask.any() and not mask.all():
            rim = mask & binary_dilation(~mask, np.ones((3,) * mask.ndim, bool))
            inside, outside = (distance_transform_edt(~seeds, list(spacing_mm)) for seeds in (rim, mask))
            depth[:] = np.where(mask, inside, -outside)
    return torch.from_numpy(depths)[:, None].to(label.device)


OPERATORS = ("zero", "mean", "minimum", "value", "noise", "blur")
_NEEDS = {"noise": "sigma", "blur": "sigma", "value": "value"}


@dataclass(frozen=True)
class Hiding:
    """Hides voxels of an image; hashable, so that results can be kept by it.

    - ``"zero"``: 0 of normalised intensity. Koker et al., "U-Noise", 2021, section 4.3.
    - ``"mean"``, ``"minimum"``: each item's and channel's own mean or lowest intensity.
    - ``"value"``: a constant, such as the -1 of tasks whose background is -1.
    - ``"noise"``: ``x + sigma * eps``, eps ~ N(0, 1), as U-Noise noises (Eq. 1); the voxel's own value shines through.
    - ``"blur"``: the Gaussian mean around the voxel, of the voxels inside the volume; coarse structure stays.

    All but the noise are the images that attribution methods take as their `baseline`. One volume of noise is drawn
    from the seed for all items: every share, every map and every size of the batch meets the same.

    Args:
        operator: one of these.
        sigma: of the noise, in units of normalised intensity; of the blur, in voxels.
        value: in units of normalised intensity.
        seed: of the noise.

    Raises:
        ValueError: when ``operator`` is unknown, what it needs is missing or not finite (``sigma``: not above 0), or it
            is given what it has no use for.
    """

    operator: str = "zero"
    sigma: float | None = None
    value: float | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        check_choice("operator", self.operator, OPERATORS)
        for name, given in (("sigma", self.sigma), ("value", self.value)):
            needed = _NEEDS.get(self.operator) == name
            if needed != (given is not None):
                rule = "given" if needed else "left out"
                raise ValueError(f"{name} must be {rule} for operator {self.operator!r}, got {given}")
        if self.sigma is not None:
            check_positive("sigma", self.sigma)
        if self.value is not None and not math.isfinite(self.value):
            raise ValueError(f"value must be a finite number, got {self.value}")

    def __call__(self, image: Image, visible: VoxelMap) -> Image:
        """The image with its other voxels hidden, in every channel.

        Shape:
            ``image`` ``(B, C, *spatial)`` and ``visible``, bool, ``(B, 1, *spatial)``, to ``(B, C, *spatial)``.
        """
        image = image.as_subclass(Tensor)
        return torch.where(visible.as_subclass(Tensor), image, self.fill(image))

    def fill(self, image: Image) -> Image:
        """What every voxel of the image would become, ``(B, C, *spatial)``."""
        image = image.as_subclass(Tensor)
        if self.operator == "noise":
            # Drawn on the CPU: the same noise on every device.
            eps = torch.randn(image.shape[1:], generator=torch.Generator().manual_seed(self.seed))
            return image + (self.sigma or 0) * eps.to(image)
        if self.value is not None:
            return baseline(image, self.value)
        return baseline(image, self.operator, sigma=self.sigma or 1.0)


ZERO = Hiding("zero")


class VisibilityScorer:
    """Scores any number of maps of one image, hidden voxels the same in all; all measures come from one pass a level.

    The passes with nothing and with everything visible are the same for every map and both modes, and run once.

    Args:
        predict: images ``(n, C, *spatial)`` to logits ``(n, K, *spatial)``. A network runs in evaluation mode and comes
            back in the mode that it had; any other callable sees to that itself.
        image: ``(B, C, *spatial)``.
        label: class indices, ``(B, 1, *spatial)``.
        hiding: what hidden voxels become.
        measures: names of `MEASURES`.
        spacing_mm: voxel sizes, one an axis, for the measures that need them.
        batch: how many levels go through ``predict`` at once, each with all items of the image.

    Raises:
        ValueError: when ``batch`` is below 1, the image holds NaN or infinite voxels, the label is not one channel on
            the image's grid, or the measures or ``spacing_mm`` are refused by `check_measures`.
    """

    def __init__(
        self,
        predict: nn.Module | Callable[[Image], Logits],
        image: Image,
        label: LabelMap,
        hiding: Hiding = ZERO,
        measures: Sequence[str] = ("dice",),
        spacing_mm: Sequence[float] | None = None,
        batch: int = 1,
    ) -> None:
        check_measures(measures, spacing_mm, image.ndim - 2)
        check_batch(batch)
        check_finite(image, "image")
        check_grid("label", label, image)
        self.predict, self.measures, self.spacing_mm, self.batch = predict, tuple(measures), spacing_mm, batch
        self.image = image.detach().as_subclass(Tensor)
        self.label = label.detach().as_subclass(Tensor)
        self._fill = hiding.fill(self.image)
        self._ends: dict[bool | None, dict[str, Tensor]] = {}

    def __call__(
        self, importance: VoxelMap, levels: Sequence[float] = SHARES, mode: str = "insertion", order: str = "quantile"
    ) -> VisibilityScores:
        """The measures of what is segmented at every level; ``mode`` and ``order`` are those of `visible_voxels`.

        Args:
            importance: ``(B, 1, *spatial)``; in [0, 1] where ``order`` is ``"threshold"``.
            levels: shares, or thresholds of the tolerance, in [0, 1].

        Raises:
            ValueError: when the importance holds NaN or infinite voxels, or is not one channel on the image's grid.
            ValueError: when a level lies outside [0, 1] or there is none, or ``mode`` or ``order`` is unknown.
        """
        check_levels(levels)
        check_grid("importance", importance, self.image)
        check_finite(importance, "importance")
        importance = importance.detach().as_subclass(Tensor).to(self.image.device)
        visible = visible_voxels(importance, order, mode)
        shares = [visible(level).flatten(1).sum(dim=1).double() / importance[0].numel() for level in levels]
        ends = [_end(share) for share in shares]
        scores = {index: self._ends[end] for index, end in enumerate(ends) if end in self._ends}
        todo = [index for index in range(len(levels)) if index not in scores]
        for start in range(0, len(todo), self.batch):
            part = todo[start : start + self.batch]
            scores |= dict(zip(part, self._scored([visible(levels[index]) for index in part]), strict=True))
        self._ends |= {end: scores[index] for index, end in enumerate(ends) if end is not None}
        rows = [scores[index] for index in range(len(levels))]
        score = {name: torch.stack([row[name] for row in rows], dim=1) for name in self.measures}
        return VisibilityScores(torch.tensor(levels, dtype=torch.float64), torch.stack(shares, dim=1).cpu(), score)

    def _scored(self, visible: Sequence[VoxelMap]) -> list[dict[str, Tensor]]:
        """The measures of each of several sets of visible voxels, ``(B, classes)``, from one pass."""
        images = torch.cat([torch.where(each, self.image, self._fill) for each in visible])
        with evaluating(self.predict) if isinstance(self.predict, nn.Module) else torch.no_grad():
            logits = self.predict(images).as_subclass(Tensor)
        label = self.label.to(logits.device)
        return [
            {name: MEASURES[name](part, label, self.spacing_mm).double().cpu() for name in self.measures}
            for part in logits.split(len(self.image))
        ]


def check_levels(levels: Sequence[float]) -> None:
    """Refuse levels outside [0, 1], and none at all, with a ValueError."""
    if not levels or not all(0 <= level <= 1 for level in levels):
        raise ValueError(f"levels must be numbers in [0, 1], at least one, got {tuple(levels)}")


def check_batch(batch: int) -> None:
    """Refuse a number of levels a pass that is below 1, with a ValueError."""
    if batch < 1:
        raise ValueError(f"batch must be at least 1, got {batch}")


def _end(share: Tensor) -> bool | None:
    """Whether all voxels of all items are visible, or none is; None in between."""
    return True if bool((share == 1).all()) else False if bool((share == 0).all()) else None


class VisibleDice(Metric):
    """Hide all but the most important voxels, segment what is left, and measure Dice against the label.

    Koker et al., "U-Noise", 2021, section 4.3 and Fig. 3a: voxels are hidden by one threshold of the tolerance for all
    volumes (``order="threshold"``: visible where ``B <= level``), or, so that maps of any scale compare, by rank within
    each volume (``order="quantile"``: the top share of the importance, exact to the voxel; ties go in the order of the
    voxels). With ``mode="deletion"`` the most important ones are hidden in place of the others, to see how soon the
    segmentation breaks down. `VisibilityScorer` does the same for many maps of one image. The mean is over the volumes
    of all ranks; each must have seen at least one.

    Args:
        network: the utility network; it runs in evaluation mode and comes back in the mode that it had.
        levels: shares to leave visible (in deletion, to hide), or thresholds of the tolerance, in [0, 1].
        order: ``"quantile"`` or ``"threshold"``.
        value: what ``compute`` returns: ``"curve"`` (a `VisibilityCurve`), ``"area"`` under it, or a share, for the
            mean Dice there. It is the share that is visible, in deletion too.
        inferer: how the network is run; the plain call by default.
        output_transform: from the engine's output to ``(image, importance, label)``, as `VisibilityScorer` has them.
        device: where the results are kept.
        hiding: what hidden voxels become; zero by default.
        measure: a name of `MEASURES`.
        mode: ``"insertion"`` or ``"deletion"``.
        spacing_mm: voxel sizes of all volumes, one an axis, for ``measure="surface_distance"``.
        batch: how many levels a pass takes, each with all items of the batch.

    Raises:
        ValueError: when ``order``, ``value``, ``measure`` or ``mode`` is unknown, a level or ``value`` lies outside
            [0, 1], ``batch`` is below 1, or the measure needs ``spacing_mm`` and it is None; in ``update``, as
            `VisibilityScorer`.
        NotComputableError: on ``compute`` before any volume was seen.
    """

    def __init__(
        self,
        network: nn.Module,
        levels: Sequence[float] = SHARES,
        order: str = "quantile",
        value: str | float = "curve",
        inferer: Inferer | None = None,
        output_transform: Callable = lambda x: x,
        device: str | torch.device = "cpu",
        hiding: Hiding = ZERO,
        measure: str = "dice",
        mode: str = "insertion",
        spacing_mm: Sequence[float] | None = None,
        batch: int = 1,
    ) -> None:
        check_choice("order", order, ORDERS)
        check_choice("mode", mode, MODES)
        if isinstance(value, str):
            check_choice("value", value, ("curve", "area"))
        elif not 0 <= value <= 1:
            raise ValueError(f"value must be 'curve', 'area' or a share in [0, 1], got {value}")
        check_levels(levels)
        check_measures((measure,), spacing_mm)
        check_batch(batch)
        self.network, self.order, self.value, self.mode = network, order, value, mode
        self.levels = tuple(float(level) for level in levels)
        self.inferer = SimpleInferer() if inferer is None else inferer
        self.hiding, self.measure, self.spacing_mm, self.batch = hiding, measure, spacing_mm, batch
        super().__init__(output_transform=output_transform, device=device)

    @reinit__is_reduced
    def reset(self) -> None:
        self._shares: list[Tensor] = []
        self._scores: list[Tensor] = []

    @reinit__is_reduced
    def update(self, output: tuple[Image, VoxelMap, LabelMap]) -> None:
        image, importance, label = output
        options = (self.hiding, (self.measure,), self.spacing_mm, self.batch)
        scorer = VisibilityScorer(lambda images: self.inferer(images, self.network), image, label, *options)
        with evaluating(self.network):
            result = scorer(importance, self.levels, mode=self.mode, order=self.order)
        self._shares += result.share.to(self._device).unbind()
        self._scores += result.score[self.measure].to(self._device).unbind()

    def compute(self) -> Any:
        if not self._scores:
            raise NotComputableError("VisibleDice needs at least one volume, got none")
        level = torch.tensor(self.levels, dtype=torch.float64)
        # One row a volume, of all ranks, in their order.
        shares, scores = (evenly_divisible_all_gather(torch.stack(each)).cpu() for each in (self._shares, self._scores))
        curve = VisibilityScores(level, shares, {self.measure: scores}).curve(self.measure)
        if self.value == "curve":
            return curve
        return curve.area if self.value == "area" else curve.at(float(self.value))
