"""Whole volumes through a network, exactly, in tiles where memory asks for them."""

import itertools
import logging
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple, TypeAlias

import torch
from monai.data import MetaTensor
from monai.inferers import Inferer, SlidingWindowInferer
from monai.utils import ensure_tuple_rep
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import tqdm

from unoise_monai.checks import check_choice
from unoise_monai.inference.memory import (
    PRECISIONS,
    PassCost,
    autocast,
    default_budget,
    differentiable,
    fitting_tile,
    is_out_of_memory,
    measure_pass,
    resolve_precision,
    to_fast_layout,
    to_float32,
    without_tf32,
)
from unoise_monai.types import Image, Logits

logger = logging.getLogger(__name__)

_WHOLE_TILE_LAYERS = ("GroupNorm", "LayerNorm", "RMSNorm", "Attention", "SABlock", "Transformer", "Adaptive")
PROBE_SIDE = 16
STRIDE_HINT = (
    "If it needs sides of a multiple of some number, say so by network.stride = 16, or by "
    "unoise_monai.networks.ClassLogits(network, stride=16); unoise_monai.networks.outputs.find_stride finds it"
)
OUTPUT_HINT = "unoise_monai.networks.ClassLogits(network, pick=...) takes one of several, by its index or key"


class TilingRule(NamedTuple):
    """How a network is tiled, and why; ``stride`` and ``halo`` in voxels, None where the network has none."""

    exact: bool
    stride: int | None
    halo: int | None
    reason: str


def tiling_rule(network: object) -> TilingRule:
    """Tiles are exact where the network has a ``stride`` and a ``halo`` and no layer of it sees the whole tile.

    Such layers are norms that compute the statistics of what they see, attention, adaptive pooling, circular padding,
    and upsampling with aligned corners.
    """
    if isinstance(network, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
        network = network.module
    stride, halo = _whole_number(network, "stride", 1), _whole_number(network, "halo", 0)
    if not isinstance(network, nn.Module) or stride is None or halo is None:
        reason = f"blended: {type(network).__name__} does not tell its stride and halo as whole numbers"
        return TilingRule(False, stride, halo, reason)
    for path, module in network.named_modules():
        # A scripted module keeps its class's name under `original_name`.
        name = getattr(module, "original_name", type(module).__name__)
        if _sees_whole_tile(name, module):
            return TilingRule(False, stride, halo, f"blended: {name} at '{path}' sees the whole tile")
    return TilingRule(True, stride, halo, f"exact: stride {stride}, halo {halo}, and no layer sees further")


Slices: TypeAlias = tuple[Any, ...]
Tiles: TypeAlias = list[tuple[Slices, Slices, Slices]]


def tiles_of(
    size: Sequence[int], tile: Sequence[int], stride: int, halo: int
) -> Iterator[tuple[Slices, Slices, Slices]]:
    """The tiles of a volume (the overlap-tile strategy, Ronneberger et al. 2015, Fig. 2).

    Yields a window, the core of it whose values are right, and that core's place in the window. The cores cover the
    volume once. A window's faces lie on the volume's border, or ``halo`` voxels of context away from its core.
    """
    margin = -(-halo // stride) * stride
    sides = [_side_tiles(side, extent, margin) for side, extent in zip(size, tile, strict=True)]
    for parts in itertools.product(*sides):
        yield (
            tuple(slice(start, start + extent) for (start, _, _), extent in zip(parts, tile, strict=True)),
            tuple(slice(first, last) for _, first, last in parts),
            tuple(slice(first - start, last - start) for start, first, last in parts),
        )


class VolumeNetwork(nn.Module):
    """A segmentation network over volumes of any size, differentiable, within a bound of memory.

    Where the network has a ``stride``, the volume is padded at the end of each side to a multiple of it, repeating its
    last voxels, and the output cut back. Where a pass does not fit ``memory_gb``, it goes through in the fewest tiles
    that do, with their true context (`tiling_rule`): the logits are computed without a graph, and each tile's graph is
    made again on the way back. Logits and the image's gradients equal those of one pass to rounding. A network without
    a stride goes through in one pass, whatever it takes; where ``memory_gb`` is given, a warning is logged.

    Args:
        network: a network from images to logits, on its device.
        memory_gb: what a pass may take, in 1e9 bytes; None for 80% of the free CUDA memory or half the free RAM.
        precision: ``"auto"``, ``"fp32"``, ``"bf16"`` or ``"fp16"``, see `resolve_precision`; with gradients, what would
            be fp16 is fp32, see `differentiable`. For exact fp32 on CUDA, go back within `without_tf32`.
        clips: whether a rule clips gradients within the network, as guided backpropagation does: such gradients don't
            add up over tiles, so every voxel's is computed in a window with all that it reaches.

    Shape:
        ``(B, C, *spatial)`` to float32 ``(B, K, *spatial)``.

    Raises:
        ValueError: when ``memory_gb`` is not above 0 or ``precision`` unknown; in the call, when the network has no
            ``stride`` and fails, when its output is not one tensor on the input's grid, and when that has no gradient
            and the image asks for one.
        MemoryError: in the call, when tiles are needed and the network cannot be tiled exactly, or the smallest exceeds
            the memory.
    """

    def __init__(
        self, network: nn.Module, memory_gb: float | None = None, precision: str = "fp32", clips: bool = False
    ) -> None:
        super().__init__()
        _check_options(memory_gb, precision)
        self.network, self.memory_gb, self.precision, self.clips = network, memory_gb, precision, clips
        self.progress = False
        """Show a bar over the tiles."""
        self.args: tuple[Any, ...] = ()
        self.kwargs: dict[str, Any] = {}
        """What the network takes beside the image."""
        self._warned = False
        self.stride = tiling_rule(network).stride or 1
        """The grid, in voxels, that volumes are padded to."""

    def forward(self, image: Image) -> Logits:
        padded = self.pad(image)
        tiles = self.tiles(padded)
        logits = self.predict(padded) if tiles is None else _InTiles.apply(padded, self, tiles)
        for axis, side in enumerate(image.shape[2:]):
            logits = logits.narrow(axis + 2, 0, side)
        return logits

    @property
    def rule(self) -> TilingRule:
        """How the network is tiled in the mode that it is in: norms in training mode see the whole tile."""
        return tiling_rule(self.network)

    @property
    def bounded(self) -> bool:
        """Whether passes keep to ``memory_gb``: not where it is given and the network does not tell its stride."""
        return self.memory_gb is None or self.rule.stride is not None

    def predict(self, window: Image) -> Logits:
        """One pass over a window whose sides are multiples of the stride; float32 out."""
        with autocast(window.device, self._precision(window.device)) as dtype:
            try:
                output = self.network(to_fast_layout(window, dtype), *self.args, **self.kwargs)
            except (RuntimeError, ValueError) as error:
                if self.rule.stride is not None or is_out_of_memory(error):
                    raise
                rule = f"network must take an image {tuple(window.shape)}, or tell its stride"
                raise ValueError(f"{rule}, got: {error}. {STRIDE_HINT}") from error
        if not isinstance(output, Tensor) or output.shape[2:] != window.shape[2:]:
            got = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
            hint = STRIDE_HINT if isinstance(output, Tensor) else OUTPUT_HINT
            rule = f"network must give one tensor on its input's grid {tuple(window.shape)}"
            raise ValueError(f"{rule}, got {got}. {hint}")
        if window.requires_grad and torch.is_grad_enabled() and not output.requires_grad:
            raise ValueError(
                "network must give logits with a gradient, got an output without: it must not detach them, take their "
                "argmax or threshold them. Methods that hide voxels, such as occlusion, need no gradient"
            )
        return output.float()

    def pad(self, image: Image) -> Image:
        """The volume on the network's grid, its last voxels repeated."""
        ends = [-side % self.stride for side in image.shape[2:]]
        return F.pad(image, [n for end in reversed(ends) for n in (0, end)], "replicate") if any(ends) else image

    def copies(self, image: Image, gradient: bool = True) -> int:
        """How many copies of one volume a pass may take: one on a CPU that is given no bound, where more are slower.

        Measures passes over such an image, forward and (``gradient``) back, before a method sets its hooks.
        """
        if self.rule.stride is None:
            return 1
        for enabled in (False, True) if gradient else (False,):
            with torch.set_grad_enabled(enabled):
                need = self._cost(image).bytes_per_voxel * self.pad(image[:1])[0, 0].numel()
        if self.memory_gb is None and image.device.type == "cpu":
            return 1
        return max(1, int(self._budget(image.device) // need))

    def tiles(self, padded: Image) -> Tiles | None:
        """The tiles of a padded volume (see `tiles_of`), None where one pass fits."""
        rule = self.rule
        stride, halo = rule.stride, rule.halo
        if stride is None:
            if not self.bounded and not self._warned:
                self._warned = True
                logger.warning(
                    "memory_gb=%s is not kept: %s does not tell its stride as a number, so it takes volumes whole",
                    self.memory_gb,
                    type(self.network).__name__,
                )
            return None
        cost, budget = self._cost(padded), self._budget(padded.device)
        need = cost.fixed_bytes + cost.bytes_per_voxel * len(padded) * padded[0, 0].numel()
        if need <= budget:
            return None
        if not rule.exact or halo is None:
            raise MemoryError(
                f"memory_gb must be at least {need / 1e9:.3f} for an image {tuple(padded.shape)}, got "
                f"{budget / 1e9:.3f}: the network cannot be tiled exactly ({rule.reason})"
            )
        # Back from a voxel, outputs are a halo away, and what they see is another halo away.
        context = 2 * -(-halo // stride) * stride if self.clips else halo
        tile = fitting_tile(cost, padded.shape, stride, context, budget)
        return list(tiles_of(padded.shape[2:], tile, stride, context))

    def _cost(self, image: Image) -> PassCost:
        # Two voxels a side at the coarsest level, which instance norms ask for.
        side = self.stride * max(2, -(-PROBE_SIDE // self.stride))
        block = (1, image.shape[1], *[side] * (image.ndim - 2))
        dtype = resolve_precision(image.device, self._precision(image.device))
        return measure_pass(self.network, self.predict, block, image.device, dtype, gradient=torch.is_grad_enabled())

    def _precision(self, device: torch.device) -> str:
        return differentiable(device, self.precision) if torch.is_grad_enabled() else self.precision

    def _budget(self, device: torch.device) -> float:
        return default_budget(device) if self.memory_gb is None else self.memory_gb * 1e9


class _InTiles(torch.autograd.Function):
    """Logits tile by tile without a graph; on the way back each tile's graph is made again."""

    @staticmethod
    def forward(ctx: Any, image: Tensor, volume: VolumeNetwork, tiles: Tiles) -> Tensor:
        ctx.save_for_backward(image)
        ctx.volume, ctx.tiles = volume, tiles
        output = image.new_empty(0)
        for window, core, inner in tqdm(tiles, disable=not volume.progress):
            # A method's hooks ask for tensors with gradients also on the way forward.
            with torch.set_grad_enabled(ctx.needs_input_grad[0]):
                part = image[(..., *window)].detach().requires_grad_(ctx.needs_input_grad[0])
                part = volume.predict(part).detach()
            if not output.numel():
                output = part.new_empty((*part.shape[:2], *image.shape[2:]))
            output[(..., *core)] = part[(..., *inner)]
        return output

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        (image,), (gradient,) = ctx.saved_tensors, gradients
        total = torch.zeros_like(image)
        for window, core, inner in ctx.tiles:
            upstream = gradient[(..., *window)]
            if not ctx.volume.clips:
                # Gradients of outputs add up, so each output counts in one tile.
                upstream = torch.zeros_like(upstream)
                upstream[(..., *inner)] = gradient[(..., *core)]
            with torch.enable_grad(), without_tf32():
                part = image[(..., *window)].detach().requires_grad_()
                (back,) = torch.autograd.grad(ctx.volume.predict(part), part, upstream)
            if ctx.volume.clips:
                total[(..., *core)] = back[(..., *inner)]
            else:
                total[(..., *window)] += back
        return total, None, None


class TiledInferer(Inferer):
    """Runs a network on whole volumes, in as few passes as the memory allows: MONAI's interface to `VolumeNetwork`.

    Where `tiling_rule` says exact, `VolumeNetwork` runs the network; otherwise MONAI's `SlidingWindowInferer` blends
    windows with Gaussian weights. The rule is logged once, at level INFO. Gradients for the image flow where the caller
    enables them; tiles give none for the weights, which `AutocastInferer` trains.

    Args:
        memory_gb: as in `VolumeNetwork`, for an exact pass.
        precision: as in `VolumeNetwork`.
        roi_size: window for blending, in voxels; where the network tells its stride, cut to the volume and rounded up.
        overlap: share of a window that the next one covers again, for blending.
        sw_batch_size: windows a pass, for blending.
        progress: show a bar.

    Shape:
        ``(B, C, *spatial)`` to float32 ``(B, K, *spatial)``, 2D and 3D; a MetaTensor keeps its affine and metadata.

    Raises:
        ValueError: when ``memory_gb`` is not above 0, ``precision`` is unknown, ``overlap`` is not in [0, 1) or
            ``sw_batch_size`` is below 1; in the call, when the network's output is not one tensor on the input's grid.
        MemoryError: in the call, when the smallest tile exceeds the memory; it names the ``memory_gb`` that would do.
    """

    def __init__(
        self,
        memory_gb: float | None = None,
        precision: str = "auto",
        roi_size: Sequence[int] | int = 96,
        overlap: float = 0.5,
        sw_batch_size: int = 1,
        progress: bool = False,
    ) -> None:
        super().__init__()
        _check_options(memory_gb, precision)
        if not 0 <= overlap < 1:
            raise ValueError(f"overlap must be at least 0 and below 1, got {overlap}")
        if sw_batch_size < 1:
            raise ValueError(f"sw_batch_size must be at least 1, got {sw_batch_size}")
        self.memory_gb, self.precision, self.progress = memory_gb, precision, progress
        self.roi_size, self.overlap, self.sw_batch_size = roi_size, overlap, sw_batch_size
        self._logged: set[TilingRule] = set()

    def __call__(self, inputs: Tensor, network: Any, *args: Any, **kwargs: Any) -> Any:
        rule = tiling_rule(network)
        if rule not in self._logged:
            self._logged.add(rule)
            logger.info("%s: %s", type(network).__name__, rule.reason)
        image = (inputs.as_tensor() if isinstance(inputs, MetaTensor) else inputs).float()
        volume = VolumeNetwork(network, self.memory_gb, self.precision)
        volume.progress, volume.args, volume.kwargs = self.progress, args, kwargs
        return to_float32(volume(image) if rule.exact else self._blended(image, volume, rule.stride), inputs)

    def _blended(self, image: Tensor, volume: VolumeNetwork, stride: int | None) -> Any:
        size = image.shape[2:]
        roi: tuple[int, ...] = ensure_tuple_rep(self.roi_size, len(size))
        if stride is not None:
            cut = [min(side, length) if side > 0 else length for side, length in zip(roi, size, strict=True)]
            roi = tuple(-(-side // stride) * stride for side in cut)
        inferer = SlidingWindowInferer(
            roi, self.sw_batch_size, self.overlap, "gaussian", padding_mode="replicate", progress=self.progress
        )
        # The sliding window multiplies in place what the network gives.
        return inferer(image, lambda window: volume.predict(window).clone())


def _check_options(memory_gb: float | None, precision: str) -> None:
    check_choice("precision", precision, PRECISIONS)
    if memory_gb is not None and not memory_gb > 0:
        raise ValueError(f"memory_gb must be above 0, got {memory_gb}")


def _whole_number(network: object, name: str, least: int) -> int | None:
    value = getattr(network, name, None)
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= least else None


def _sees_whole_tile(name: str, module: nn.Module) -> bool:
    if "BatchNorm" in name or "InstanceNorm" in name:
        return module.training or getattr(module, "running_mean", None) is None
    return (
        any(part in name for part in _WHOLE_TILE_LAYERS)
        or getattr(module, "padding_mode", None) == "circular"
        or bool(getattr(module, "align_corners", False))
    )


def _side_tiles(side: int, extent: int, margin: int) -> list[tuple[int, int, int]]:
    tiles = []
    last = 0
    while last < side:
        first = last
        start = min(max(first - margin, 0), side - extent)
        last = side if start + extent == side else start + extent - margin
        tiles.append((start, first, last))
    return tiles
