"""Whether a bundle's folder is what MONAI's model zoo asks for."""

import json
import logging
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

import torch
from monai.bundle import ConfigParser, ConfigWorkflow, verify_metadata, verify_net_in_out

from unoise_monai.bundle import METADATA, check_trust
from unoise_monai.networks.weights import SAFETENSORS, put_weights, read_checkpoint, unwrapped
from unoise_monai.phantoms.cohort import write_phantom_cohort
from unoise_monai.report.doctor import Diagnosis, Finding, in_one_line

CONFIGS = {"inference": "infer", "train": "train"}
"""The configurations that can be tried, the first one that is there, and their kinds of workflow."""
SUFFIXES = (".yaml", ".yml", ".json")
FILES = (METADATA.as_posix(), "LICENSE", "docs/README.md", "docs/data_license.txt")
WEIGHTS = tuple(f"models/model{suffix}" for suffix in (".pt", SAFETENSORS, ".ts"))
SIDES = {"n": 2, "p": 5, "any": 64}
"""What stands for ``n``, ``p`` and ``*`` where the metadata give the sides of a volume, in voxels."""


def verify(bundle: Path, trusted: bool = False, schema: Path | None = None) -> Diagnosis:
    """Look at a bundle's files, and try its network and its workflow on the CPU; a finding a check.

    Phantoms stand for the data, and a temporary folder for the output. Without metadata or a configuration, nothing is
    tried.

    Args:
        bundle: its folder.
        trusted: run the configuration wherever it comes from, see `check_trust`.
        schema: a copy of the JSON schema that the metadata name; it is not downloaded.

    Raises:
        UntrustedBundle: when the bundle comes from elsewhere and is neither on the trust list nor ``trusted``.
        FileNotFoundError: when there is no such folder, or no such file as ``schema``.
    """
    for path in (bundle, schema):
        if path is not None and not path.exists():
            raise FileNotFoundError(f"bundles verify must be given what is there, got {path}")
    folder = bundle.resolve()
    config, files = _config(folder), _files(folder)
    if config is None or not (folder / METADATA).is_file():
        return Diagnosis((files,))
    if not trusted:
        check_trust(folder)
    with _running(folder):
        findings = [
            files,
            _tried("metadata", lambda: _metadata(folder, schema)),
            _tried("weights", lambda: _weights(folder, config)),
            _tried("forward pass", lambda: _forward(folder, config)),
            _tried("workflow", lambda: _workflow(folder, config)),
        ]
    return Diagnosis(tuple(findings))


def _config(folder: Path) -> Path | None:
    paths = (folder / "configs" / f"{name}{suffix}" for name in CONFIGS for suffix in SUFFIXES)
    return next((path for path in paths if path.is_file()), None)


def _files(folder: Path) -> Finding:
    missing = [name for name in FILES if not (folder / name).is_file()]
    if _config(folder) is None:
        missing.append("configs/inference.yaml or train.yaml (or .json)")
    if not any((folder / name).is_file() for name in WEIGHTS):
        missing.append(" or ".join(WEIGHTS))
    return Finding("verify", "files", f"missing {', '.join(missing)}" if missing else "all there", not missing)


def _tried(name: str, check: Callable[[], str]) -> Finding:
    try:
        return Finding("verify", name, check())
    # A configuration runs code, which raises what it likes.
    except Exception as error:
        texts, cause = [in_one_line(error)], error.__cause__
        while isinstance(cause, Exception):
            texts[1:], cause = [in_one_line(cause)], cause.__cause__
        return Finding("verify", name, ": ".join(texts), False)


@contextmanager
def _running(folder: Path) -> Iterator[None]:
    """Lets a configuration import its bundle's ``scripts``, and keeps the log off, whose warnings become findings."""
    # Another bundle has scripts by the same name.
    for name in [name for name in sys.modules if name.split(".")[0] == "scripts"]:
        del sys.modules[name]
    sys.path.insert(0, str(folder))
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)
        sys.path.remove(str(folder))


def _metadata(folder: Path, schema: Path | None) -> str:
    """Whether the metadata follow their schema, or at least name it."""
    file = folder / METADATA
    metadata = json.loads(file.read_text(encoding="utf-8"))
    if not isinstance(metadata, dict) or "schema" not in metadata:
        raise ValueError(f"{METADATA.as_posix()} must name its schema, got none")
    if schema is None:
        return "not compared with their schema; name a copy of it with --schema"
    if find_spec("jsonschema") is None:
        raise ValueError("jsonschema must be installed, got none: pip install 'unoise-monai[verify]'")
    verify_metadata(meta_file=str(file), filepath=str(schema))
    return f"follow {schema.name}"


def _weights(folder: Path, config: Path) -> str:
    """Whether ``network_def`` can be built, and the weights are its own."""
    parser = ConfigParser(ConfigParser.load_config_file(config))
    parser.update({"bundle_root": str(folder), "device": torch.device("cpu")})
    network = parser.get_parsed_content("network_def")
    file = next((folder / name for name in WEIGHTS if (folder / name).is_file()), None)
    if file is None:
        raise FileNotFoundError(f"weights must be at one of {', '.join(WEIGHTS)}, got none")
    if file.suffix == ".ts":
        torch.jit.load(file, map_location="cpu")
        return f"{file.name} loads"
    state, _ = unwrapped(read_checkpoint(file), network)
    put_weights(network, state, file, "network_def")
    return f"{file.name} fits {type(network).__name__}"


def _forward(folder: Path, config: Path) -> str:
    """Whether the network gives the channels that the metadata define, of the input that they define."""
    files = {"meta_file": str(folder / METADATA), "config_file": str(config)}
    verify_net_in_out("network_def", **files, device="cpu", **SIDES, bundle_root=str(folder))
    return "the channels and the type that the metadata say"


def _workflow(folder: Path, config: Path) -> str:
    """Whether MONAI finds what a workflow of this kind must define."""
    kind = CONFIGS[config.stem]
    with tempfile.TemporaryDirectory() as temporary:
        data = write_phantom_cohort(
            Path(temporary) / "data", count=4, test_count=1, size=(24, 20, 16), spacing_mm=(6, 6, 6), progress=False
        )
        changes = {"dataset_dir": str(data), "output_dir": f"{temporary}/out", "device": torch.device("cpu")}
        known = ConfigParser.load_config_file(config)
        flow = ConfigWorkflow(
            config_file=str(config),
            meta_file=str(folder / METADATA),
            logging_file=False,
            workflow_type=kind,
            **{"bundle_root": str(folder), **{key: value for key, value in changes.items() if key in known}},
        )
        flow.initialize()
        if missing := flow.check_properties():
            raise ValueError(
                f"{config.name} must define MONAI's properties of {kind}, got none or other ids: {', '.join(missing)}"
            )
    return f"{config.name} has all properties that MONAI asks of {kind}"
