"""Weights from files, what fits of a pretrained network, and the mode that a network is in while it runs."""

import logging
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from monai.networks.utils import copy_model_state
from safetensors.torch import load_file
from torch import Tensor, nn

from unoise_monai.types import LabelMap, Logits

logger = logging.getLogger(__name__)

SAFETENSORS = ".safetensors"
SHOWN = 3
"""How many misfits of a kind an error names."""


def load_state(path: str | Path) -> dict[str, Tensor]:
    """A checkpoint's state dict, on the CPU.

    Args:
        path: see `read_checkpoint`.

    Raises:
        ValueError: when the file holds something other than a state dict. Otherwise as `read_checkpoint`.
    """
    state = read_checkpoint(path)
    for name, value in state.items():
        if not isinstance(value, Tensor):
            raise ValueError(f"{path} must hold a state dict, names to tensors, got {type(value).__name__} at '{name}'")
    return state


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """What a checkpoint holds, on the CPU; code in a checkpoint is never run (``weights_only=True``).

    Args:
        path: a ``.safetensors`` file, or one by ``torch.save``, whatever its suffix.

    Raises:
        FileNotFoundError: when there is no such file.
        OSError: when it may not be read.
        ValueError: when the file asks to run code, is damaged, or holds something other than values by name.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"weights must be a checkpoint file, got {path}, which does not exist")
    # Raises here where the file may not be read: within a reader, an OSError is a damaged file's, too.
    path.open("rb").close()
    try:
        packed = path.suffix.lower() == SAFETENSORS
        state = load_file(path) if packed else torch.load(path, map_location="cpu", weights_only=True)
    # What a damaged file raises is of every kind: pickle's, struct's, safetensors' own, a KeyError, an OSError.
    except Exception as error:
        raise ValueError(f"{path} must hold a state dict, tensors only: {_reason(error)}") from error
    if not (isinstance(state, dict) and all(isinstance(name, str) for name in state)):
        raise ValueError(f"{path} must hold a state dict, names to tensors, got {type(state).__name__}")
    return dict(state)


def load_weights(network: nn.Module, path: str | Path, name: str = "network") -> nn.Module:
    """Load a checkpoint of exactly this network.

    Args:
        network: its weights are replaced, on its device; none of them when this raises. It is returned.
        path: the checkpoint.
        name: what errors call the network.

    Raises:
        ValueError: when the weights do not fit; it names which. Otherwise as `load_state`.
    """
    put_weights(network, load_state(path), path, name)
    return network


def load_utility(utility: nn.Module, paths: str | Path | Sequence[str | Path], train_command: str = "") -> nn.Module:
    """Load a utility network from the first of these checkpoints that is there.

    Args:
        utility: its weights are replaced, as by `load_weights`. It is returned.
        paths: checkpoints of the utility alone, or of a whole `ExplainedSegmenter`, whose utility is then taken.
        train_command: what to run where there is none; the error quotes it.

    Raises:
        FileNotFoundError: when none of the checkpoints is there.
        ValueError: when the weights do not fit the network.
    """
    paths = [paths] if isinstance(paths, str | Path) else list(paths)
    found = next((path for path in paths if Path(path).is_file()), None)
    if found is None:
        hint = f"; train them with:\n  {train_command}" if train_command else ""
        raise FileNotFoundError(f"no utility weights at {' or '.join(map(str, paths))}{hint}")
    state, said = unwrapped(read_checkpoint(found), utility)
    put_weights(utility, state, found, "utility network")
    logger.info("utility weights from %s%s", Path(found).name, "".join(f", {each}" for each in said))
    return utility


def put_weights(network: nn.Module, state: Mapping[str, Tensor], source: str | Path, name: str) -> None:
    """Put weights into a network that has exactly these.

    Raises:
        ValueError: when they do not fit; it names which, and ``source`` and ``name``.
    """
    if misfits := _misfits(network.state_dict(), state):
        raise ValueError(f"the weights in {source} must fit the {name}, got {misfits}")
    network.load_state_dict(dict(state))


KEYS = ("state_dict", "model_state_dict", "network_weights", "model", "network", "net")
"""Under which trainers keep the weights in their checkpoints."""
PREFIXES = ("module.", "_orig_mod.", "model.", "net.", "network.", "utility.")
"""That wrappers put before the names of weights."""
DEEPEST = 3
"""How many wrappers there may be in each other."""


def unwrapped(checkpoint: Mapping[str, Any], network: nn.Module) -> tuple[dict[str, Tensor], list[str]]:
    """The weights in a trainer's checkpoint by the names that the network has for them, and what was unwrapped."""
    state, said = dict(checkpoint), []
    while key := next((key for key in KEYS if isinstance(state.get(key), Mapping)), None):
        state = dict(state[key])
        said.append(f"taken from '{key}'")
    own = network.state_dict().keys()
    # Of a wrapper in a wrapper, two prefixes have to go before any name fits.
    tries: list[tuple[tuple[str, ...], dict[str, Any]]] = [((), state)]
    for prefixes, inner in tries:
        if len(prefixes) < DEEPEST:
            tries += [((*prefixes, each), found) for each in PREFIXES if (found := _within(inner, each))]
    prefixes, inner = max(tries, key=lambda each: (len(each[1].keys() & own), -len(each[0])))
    said += [f"prefix '{each}' removed" for each in prefixes]
    if prefixes and len(inner) < len(state):
        said[-1] += f", {len(state) - len(inner)} others left out"
    return {name: value for name, value in inner.items() if isinstance(value, Tensor)}, said


def _within(state: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    return {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}


def _misfits(own: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> str:
    """How many weights of ``state`` do not fit a network's own, and the first of each kind; empty where all fit."""
    kinds = {
        "missing": [key for key in own if key not in state],
        "unexpected": [key for key in state if key not in own],
        "of another shape": [
            f"{key} {tuple(state[key].shape)} for {tuple(value.shape)}"
            for key, value in own.items()
            if key in state and state[key].shape != value.shape
        ],
    }
    return ", ".join(
        f"{len(found)} {kind} ({'; '.join(found[:SHOWN])}{'; ...' if len(found) > SHOWN else ''})"
        for kind, found in kinds.items()
        if found
    )


def _reason(error: Exception) -> str:
    """Why a checkpoint did not load, without PyTorch's advice to load it with its code running."""
    text = str(error)
    if called := re.search(r"GLOBAL (\S+)", text):
        return f"it asks to call {called[1]}, and code in a checkpoint is never run"
    for mark, kind in (("legacy .tar", "PyTorch's legacy .tar format"), ("TorchScript", "TorchScript")):
        if mark in text:
            return f"it is in {kind}, which can run code; save the network's state dict instead"
    if "weights_only" in text:
        return "it is a pickle of something else, or damaged; code in a checkpoint is never run"
    first = text.splitlines()[0] if text else "it ends too early"
    return f"it is truncated or damaged ({type(error).__name__}: {first})"


def copy_matching_layers(
    source: Mapping[str, Tensor], target: nn.Module, heads: Sequence[str] = ("head", "side_heads")
) -> list[str]:
    """Copy every layer of a segmentation-trained network but its heads into ``target``.

    A segmentation network's head has one channel a class, a noise model's one (Koker et al. 2021, section 4.4); a head
    that fits is not copied either, for it answers another question.

    Args:
        source: the state dict of the segmentation-trained network.
        target: the noise model; changed in place, and not at all when this raises.
        heads: prefixes of the last layers' names; `UNetMSS` has side heads.

    Returns:
        The names of the copied parameters and buffers.

    Raises:
        ValueError: when a layer other than a head is missing, extra or of another shape.
    """
    prefixes = tuple(f"{head}." for head in heads)
    own, body = (
        {name: value for name, value in state.items() if not name.startswith(prefixes)}
        for state in (target.state_dict(), source)
    )
    if misfits := _misfits(own, body):
        raise ValueError(f"the pretrained network must have the noise model's shape but for its head, got {misfits}")
    copied = list(own)
    copy_model_state(target, body)
    logger.info("copied %d tensors from the pretrained network, all but the head: %s", len(copied), ", ".join(copied))
    return copied


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
    # A frozen TorchScript network has one mode, and none to tell.
    modes = [(module, module.training) for module in network.modules() if hasattr(module, "training")]
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
    # Of TorchScript it is a constant; its activations have no hooks, either.
    plain = [module for module in modules if not isinstance(module, torch.jit.ScriptModule)]
    in_place = [module for module in plain if getattr(module, "inplace", False) is True]
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
