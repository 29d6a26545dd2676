"""What a network's output means, and the mode that a network is in while it is asked."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from unoise_monai.types import LabelMap, Logits


def segmentation(logits: Logits) -> LabelMap:
    """Class indices from logits: the threshold 0 of one channel, the largest of more.

    Shape:
        ``(B, K, *spatial)`` to ``(B, 1, *spatial)``.
    """
    return (logits > 0).long() if logits.shape[1] == 1 else logits.argmax(dim=1, keepdim=True)


def probabilities(logits: Logits) -> Tensor:
    """Sigmoid of one channel, softmax over more, ``(B, K, *spatial)``, float32."""
    return torch.sigmoid(logits.float()) if logits.shape[1] == 1 else torch.softmax(logits.float(), dim=1)


_HOOKS = ("_forward_pre_hooks", "_forward_hooks", "_backward_pre_hooks", "_backward_hooks")


@contextmanager
def evaluating(network: nn.Module) -> Iterator[None]:
    """Evaluation mode without gradients; every submodule comes back in the mode that it had."""
    modes = [(module, module.training) for module in network.modules()]
    network.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module, mode in modes:
            module.training = mode


@contextmanager
def attributing(network: nn.Module) -> Iterator[None]:
    """Evaluation mode, gradients for the input alone, nothing in place; everything comes back as it was.

    Gradients work also where the caller is in inference mode, for tensors that are made or copied within the block.
    Hooks on the result of an activation need it to be a tensor of its own, so activations don't write in place. Hooks
    that the block leaves behind are removed, also when it fails.
    """
    modules = list(network.modules())
    parameters = [(parameter, parameter.requires_grad) for parameter in network.parameters()]
    in_place = [module for module in modules if getattr(module, "inplace", False) is True]
    hooks = [(getattr(module, name), dict(getattr(module, name))) for module in modules for name in _HOOKS]
    with torch.inference_mode(False), evaluating(network):
        try:
            for parameter, _ in parameters:
                parameter.requires_grad_(False)
            for module in in_place:
                module.inplace = False  # type: ignore[assignment]
            with torch.enable_grad():
                yield
        finally:
            for current, before in hooks:
                for key in current.keys() - before.keys():
                    del current[key]
            for parameter, needed in parameters:
                parameter.requires_grad_(needed)
            for module in in_place:
                module.inplace = True  # type: ignore[assignment]
