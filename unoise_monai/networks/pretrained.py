"""Starts a noise model from a segmentation network of the same shape."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

logger = logging.getLogger(__name__)


def copy_matching_layers(
    source: Mapping[str, Tensor], target: nn.Module, heads: Sequence[str] = ("head", "side_heads")
) -> list[str]:
    """Copy every layer of a segmentation-trained network that fits into ``target``, and say which were copied.

    All layers must fit but the heads, whose channels differ: a segmentation net has one a class, a noise model one
    (Koker et al. 2021, section 4.4). A head that fits is not copied either, for it answers another question.

    Args:
        source: the state dict of the segmentation-trained network.
        target: the noise model; changed in place, and not at all when this raises.
        heads: prefixes of the last layers' names; `UNetMSS` has side heads.

    Returns:
        The names of the copied parameters and buffers.

    Raises:
        ValueError: when a layer other than a head is missing, extra or of another shape.
    """
    own = target.state_dict()
    prefixes = tuple(f"{head}." for head in heads)
    body = [name for name in own if not name.startswith(prefixes)]
    misfits = [f"{name} is missing" for name in body if name not in source]
    misfits += [
        f"{name} is {tuple(source[name].shape)}, not {tuple(own[name].shape)}"
        for name in body
        if name in source and source[name].shape != own[name].shape
    ]
    misfits += [f"{name} is extra" for name in source if name not in own and not name.startswith(prefixes)]
    if misfits:
        shown = "; ".join(misfits[:3]) + (f"; and {len(misfits) - 3} more" if len(misfits) > 3 else "")
        raise ValueError(f"the pretrained network must have the noise model's shape but for its head: {shown}")
    with torch.no_grad():
        target.load_state_dict({**own, **{name: source[name] for name in body}})
    logger.info("copied %d of %d tensors from the pretrained network: %s", len(body), len(own), ", ".join(body))
    return body
