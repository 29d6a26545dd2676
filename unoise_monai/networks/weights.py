"""Loads weights from checkpoints: tensors only, on any device."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

logger = logging.getLogger(__name__)


def load_state(path: str | Path) -> dict[str, Tensor]:
    """A checkpoint's state dict, on the CPU; code in a checkpoint is never run (``weights_only=True``).

    Raises:
        FileNotFoundError: when there is no such file.
        ValueError: when the file holds something other than a state dict.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"weights must be a checkpoint file, got {path}, which does not exist")
    state = torch.load(path, map_location="cpu", weights_only=True)
    if not (isinstance(state, dict) and all(isinstance(name, str) for name in state)):
        raise ValueError(f"{path} must hold a state dict, names to tensors, got {type(state).__name__}")
    return state


def load_utility(utility: nn.Module, paths: str | Path | Sequence[str | Path], train_command: str = "") -> nn.Module:
    """Load a utility network from the first of these checkpoints that is there.

    Args:
        utility: the network; its weights are replaced.
        paths: checkpoints of the utility alone, or of a whole `ExplainedSegmenter`, whose utility is then taken.
        train_command: what to run where there is none; the error quotes it.

    Returns:
        ``utility``.

    Raises:
        FileNotFoundError: when none of the checkpoints is there.
        ValueError: when the weights do not fit the network.
    """
    paths = [paths] if isinstance(paths, str | Path) else list(paths)
    found = next((path for path in paths if Path(path).is_file()), None)
    if found is None:
        hint = f"; train them with:\n  {train_command}" if train_command else ""
        raise FileNotFoundError(f"no utility weights at {' or '.join(map(str, paths))}{hint}")
    state = load_state(found)
    prefix = "utility."
    if any(name.startswith(prefix) for name in state):
        state = {name[len(prefix) :]: value for name, value in state.items() if name.startswith(prefix)}
    try:
        utility.load_state_dict(state)
    except RuntimeError as error:
        raise ValueError(f"the weights in {found} must fit the utility network: {error}") from error
    logger.info("utility weights from %s", Path(found).name)
    return utility
