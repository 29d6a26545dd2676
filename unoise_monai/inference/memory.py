"""How much memory a forward pass takes, measured on a small block, and how much there is."""

from __future__ import annotations

import weakref
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

WORKSPACE = 1.5


@dataclass(frozen=True)
class PassCost:
    bytes_per_voxel: float
    fixed_bytes: int
    out_channels: int

class _LiveBytes(TorchDispatchMode):
    def __init__(self, ignored) -> None:
        super().__init__()
        self.live = self.peak = 0
        self._ignored = ignored
        self._seen = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        output = func(*args, **(kwargs or {}))
        for tensor in torch.utils._pytree.tree_leaves(output):
            if isinstance(tensor, Tensor) and tensor.shape not in self._ignored:
                self._track(tensor.untyped_storage())
        return output

    def _track(self, storage):
        key = storage._cdata
        if key in self._seen: return
        self._seen.add(key)
        self.live += storage.nbytes()
        self.peak = max(self.peak, self.live)
        weakref.finalize(storage, self._free, key, storage.nbytes())
    def _free(self, key, n):
        self._seen.discard(key)
        self.live -= n
