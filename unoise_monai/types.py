"""Names for the tensors that pass between the modules.

B is the batch, C the channels, ``*spatial`` is ``(X, Y, Z)`` in the order nibabel loads them (``(X, Y)`` in 2D).
"""

from typing import TypeAlias

from torch import Tensor

Image: TypeAlias = Tensor
"""Normalised intensities, ``(B, C, *spatial)``."""

Logits: TypeAlias = Tensor
"""Segmentation logits, ``(B, K, *spatial)``: K classes with softmax, or one channel with a sigmoid."""

LabelMap: TypeAlias = Tensor
"""Class indices, ``(B, 1, *spatial)``."""

VoxelMap: TypeAlias = Tensor
"""One value a voxel, ``(B, 1, *spatial)``, of the image's own spatial size."""
