"""A whole volume through the network: in one pass where memory allows, else in tiles that give the same values."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from monai.data import MetaTensor
from monai.inferers import Inferer, SlidingWindowInferer
from monai.utils import ensure_tuple_rep
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import tqdm

from unoise_monai.checks import check_choice
from unoise_monai.inference.memory import default_budget, fitting_tile, measure_pass
from unoise_monai.inference.precision import PRECISIONS, autocast, resolve_precision, to_fast_layout, to_float32

logger = logging.getLogger(__name__)

_WHOLE_TILE_LAYERS = ("GroupNorm", "LayerNorm", "RMSNorm", "Attention", "SABlock", "Transformer", "Adaptive")
PROBE_SIDE = 16


class TilingRule(NamedTuple):
    """How a network is tiled, and why. ``stride`` and ``halo`` are in voxels, None where it doesn't tell them."""

    exact: bool
    stride: int | None
    halo: int | None
    reason: str


def tiling_rule(network: object) -> TilingRule:
    """Tiles are exact where the network tells its ``stride`` and ``halo`` and no layer of it sees further.

    Layers that see the whole tile: instance and batch norm that compute the statistics of what they see, group and
    layer norm, attention, adaptive pooling, circular padding, and upsampling with aligned corners.
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


def tiles_of(
    size: Sequence[int], tile: Sequence[int], stride: int, halo: int
) -> Iterator[tuple[tuple[slice, ...], tuple[slice, ...], tuple[slice, ...]]]:
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


class TiledInferer(Inferer):
    """Runs a network on whole volumes, in as few passes as the memory allows.

    Where `tiling_rule` says exact, the volume is padded at the end of each side to a multiple of the stride, repeating
    its last voxels so that no edge appears, and goes through in one pass, or in the fewest tiles that fit: in fp32 both
    are equal to rounding. Otherwise MONAI's `SlidingWindowInferer` blends windows with Gaussian weights. The rule is
    logged once, at level INFO. Gradients flow where the caller enables them; ``memory_gb`` does not cover their graph.

    Args:
        memory_gb: what an exact pass may take, in 1e9 bytes; None for 80% of the free CUDA memory or half the free RAM.
        precision: ``"auto"``, ``"fp32"``, ``"bf16"`` or ``"fp16"``, see `resolve_precision`.
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
        check_choice("precision", precision, PRECISIONS)
        if memory_gb is not None and not memory_gb > 0:
            raise ValueError(f"memory_gb must be above 0, got {memory_gb}")
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

        def predict(window: Tensor) -> Tensor:
            with autocast(image.device, self.precision) as dtype:
                output = network(to_fast_layout(window, dtype), *args, **kwargs)
            if not isinstance(output, Tensor):
                raise ValueError(f"network must give one tensor (B, K, *spatial), got {type(output).__name__}")
            return output

        if rule.exact and rule.stride is not None and rule.halo is not None:
            output = self._exact(image, network, predict, rule.stride, rule.halo)
        else:
            output = self._blended(image, predict, rule.stride)
        return to_float32(output, inputs)

    def _exact(
        self, image: Tensor, network: nn.Module, predict: Callable[[Tensor], Tensor], stride: int, halo: int
    ) -> Tensor:
        batch, channels, *size = image.shape
        block = (1, channels, *[stride * -(-PROBE_SIDE // stride)] * len(size))
        cost = measure_pass(network, predict, block, image.device, resolve_precision(image.device, self.precision))
        ends = [-side % stride for side in size]
        padded = F.pad(image, [n for end in reversed(ends) for n in (0, end)], "replicate") if any(ends) else image
        grid = padded.shape[2:]
        budget = default_budget(image.device) if self.memory_gb is None else self.memory_gb * 1e9
        tile = fitting_tile(cost, padded.shape, stride, halo, budget)
        if tile == tuple(grid):
            output = predict(padded)
        else:
            output = image.new_empty((batch, cost.out_channels, *grid))
            tiles = list(tiles_of(grid, tile, stride, halo))
            for window, core, inner in tqdm(tiles, disable=not self.progress):
                output[(..., *core)] = predict(padded[(..., *window)])[(..., *inner)].float()
        for axis, side in enumerate(size):
            output = output.narrow(axis + 2, 0, side)
        return output

    def _blended(self, image: Tensor, predict: Callable[[Tensor], Tensor], stride: int | None) -> Any:
        size = image.shape[2:]
        roi: tuple[int, ...] = ensure_tuple_rep(self.roi_size, len(size))
        if stride is not None:
            cut = [min(side, length) if side > 0 else length for side, length in zip(roi, size, strict=True)]
            roi = tuple(-(-side // stride) * stride for side in cut)

        inferer = SlidingWindowInferer(
            roi, self.sw_batch_size, self.overlap, "gaussian", padding_mode="replicate", progress=self.progress
        )
        # The sliding window multiplies in place what the network gives.
        return inferer(image, lambda window: predict(window).to(torch.float32, copy=True))


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
