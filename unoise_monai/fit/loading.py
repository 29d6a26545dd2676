"""Finds out what a user's model is, and loads it with its weights."""

import copy
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from unoise_monai.bundle import CONFIGS, check_trust, file_sha256, state_sha256
from unoise_monai.fit.models import PROGRAMS, BundleModel, DescribedModel, Model, Program, factory
from unoise_monai.fit.nnunet import DATASET, PLANS, NnUNetModel
from unoise_monai.networks.weights import put_weights, read_checkpoint, unwrapped

NUMPY = [
    getattr(np, "_core", np).multiarray.scalar,
    np.dtype,
    *(getattr(np.dtypes, name) for name in np.dtypes.__all__),
]
"""What NumPy's scalars in a checkpoint are made of: plain data, such as nnU-Net's learning curves."""


@dataclass
class TrainedModel:
    """A user's trained network, ready to be checked and explained."""

    name: str
    model: Model
    """What belongs to the network."""
    network: nn.Module
    """With its weights, in evaluation mode."""
    config: Any
    """The configuration of the network, as a bundle's ``inference.yaml`` names it."""
    program: Path | None = None
    """Its file, where it brings its own code."""
    notes: list[str] = field(default_factory=list)
    """What was found and unwrapped, a sentence each."""
    weights_sha256: str = ""


def load(
    source: str | Path,
    weights: str | Path | None = None,
    like: str | Path | None = None,
    fold: int | str = 0,
    trusted: bool = False,
) -> TrainedModel:
    """A user's trained network: what it is is found out.

    Args:
        source: the folder of a MONAI bundle, or of nnU-Net's results; a ``.ts`` or ``.pt2`` file; or
            ``package.module:factory``. The last two need ``like``.
        weights: a checkpoint; by default the one that comes with the model.
        like: a bundle whose images and labels are like the model's, or a `Description` in YAML.
        fold: of nnU-Net.
        trusted: run a bundle's configuration wherever it comes from, see `check_trust`.

    Raises:
        FileNotFoundError: when there is no such model, or no weights.
        UntrustedBundle: when a bundle, as model or ``like``, is not trusted.
        ValueError: when it is none of these, lacks what it needs, or the weights do not fit.
    """
    path = Path(source)
    if path.is_dir():
        if (path / PLANS).is_file() and (path / DATASET).is_file():
            return _nnunet(path, weights, fold)
        if any((path / config).is_file() for config in CONFIGS):
            _check(path, trusted)
            return _bundle(path, weights)
        got = f"{path}, a folder with neither {CONFIGS[0].as_posix()} (or .json) nor {PLANS} and {DATASET}"
        raise ValueError(f"MODEL must be a MONAI bundle or nnU-Net's results, got {got}")
    if like is None:
        raise ValueError(f"--like must name a bundle or a YAML that says how {source} wants its images, got none")
    model = _like(Path(like), trusted)
    if path.suffix in PROGRAMS:
        if not path.is_file():
            raise FileNotFoundError(f"MODEL must be there, got {path}, which is not")
        config: dict[str, Any] = {
            "_target_": "unoise_monai.fit.Program",
            "path": f"$@bundle_root + '/model/network{path.suffix}'",
        }
        found = TrainedModel(
            path.stem, model, Program(path), config, path, [f"network: {path.name}, with its own code"]
        )
        if weights is not None:
            raise ValueError(f"--weights must not be given for {path.name}, which holds its own, got {weights}")
        found.weights_sha256 = file_sha256(path)
        return found
    if ":" not in str(source):
        raise ValueError(
            f"MODEL must be a folder, a {' or '.join(PROGRAMS)} file or package.module:factory, got {source}"
        )
    arguments = dict(getattr(getattr(model, "described", None), "network", None) or {})
    network = factory(str(source))(**arguments)
    config = {"_target_": str(source).replace(":", "."), **arguments}
    found = TrainedModel(str(source).rpartition(":")[2], model, network, config, notes=[f"network: {source}"])
    if weights is None:
        raise FileNotFoundError(f"--weights must name the checkpoint of {source}, got none")
    return _with_weights(found, Path(weights))


def wrap(network: nn.Module, like: str | Path, example: Tensor | None = None, trusted: bool = False) -> TrainedModel:
    """A network that is in memory, with its weights.

    Args:
        network: any segmentation network.
        like: see `load`.
        example: an input ``(1, C, *spatial)`` to trace a network with that TorchScript cannot be made of otherwise.
        trusted: see `load`.

    Raises:
        ValueError: when no TorchScript can be made of it: what is written could not bring it back.
    """
    model = _like(Path(like), trusted)
    # The caller's stays as it is.
    network = copy.deepcopy(network).eval()
    try:
        program = torch.jit.script(network) if example is None else torch.jit.trace(network, example, strict=False)
    # Its compiler raises what it likes.
    except Exception as error:
        raise ValueError(f"network must become TorchScript, pass an example to trace it with: {error}") from error
    found = TrainedModel(type(network).__name__, model, network, None, weights_sha256=state_sha256(network))
    # As it is, for weights by the same names.
    found.config = {"_target_": "torch.jit.load", "f": "$@bundle_root + '/model/network.ts'", "map_location": "cpu"}
    found.notes = [f"network: {type(network).__name__}, from memory"]
    found.compiled = program  # type: ignore[attr-defined]
    return found


def _check(folder: Path, trusted: bool) -> None:
    if not trusted:
        check_trust(folder)


def _like(path: Path, trusted: bool) -> Model:
    if path.is_dir():
        _check(path, trusted)
        return BundleModel(path)
    if path.suffix in (".yaml", ".yml", ".json") and path.is_file():
        return DescribedModel(path.parent, path.name)
    raise ValueError(f"--like must be a bundle's folder or a YAML file, got {path}")


def _bundle(path: Path, weights: str | Path | None) -> TrainedModel:
    model = BundleModel(path)
    file = model.weights() if weights is None else Path(weights)
    if file.suffix == ".ts":
        config = {"_target_": "unoise_monai.fit.Program", "path": "$@bundle_root + '/model/network.ts'"}
        notes = [f"network: TorchScript of the bundle {path.resolve().name}, {file.name}"]
        return TrainedModel(path.resolve().name, model, Program(file), config, file, notes, file_sha256(file))
    found = TrainedModel(path.resolve().name, model, model.network(), "$@model.network()")
    found.notes = [f"network: {type(found.network).__name__} of the bundle {found.name}"]
    return _with_weights(found, file)


def _nnunet(path: Path, weights: str | Path | None, fold: int | str) -> TrainedModel:
    model = NnUNetModel(path, fold=fold)
    found = TrainedModel(path.resolve().parent.name, model, model.network(), "$@model.network()")
    found.notes = [f"network: {type(found.network).__name__} of nnU-Net's {model.configuration}, fold {fold}"]
    file = model.weights() if weights is None else Path(weights)
    with torch.serialization.safe_globals(NUMPY):
        axes = read_checkpoint(file).get("inference_allowed_mirroring_axes")
    model.mirrored_axes = tuple(axes or ())
    return _with_weights(found, file)


def _with_weights(found: TrainedModel, file: Path) -> TrainedModel:
    with torch.serialization.safe_globals(NUMPY):
        state, said = unwrapped(read_checkpoint(file), found.network)
    put_weights(found.network, state, file, found.name)
    found.network.eval()
    found.notes.append(f"weights: all {len(state)} of {file.name} fit{''.join(f', {each}' for each in said)}")
    found.weights_sha256 = file_sha256(file)
    return found


def copy_model(found: TrainedModel, folder: Path) -> None:
    """All that a bundle needs to build the network and its preprocessing again, in a new folder ``model``."""
    found.model.copy(folder)
    if found.program is not None:
        shutil.copy(found.program, folder / f"network{found.program.suffix}")
    elif (compiled := getattr(found, "compiled", None)) is not None:
        torch.jit.save(compiled, folder / "network.ts")
