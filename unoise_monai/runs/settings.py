"""Settings that the files of a run depend on, kept with them, so that one output never mixes two of them."""

import hashlib
import inspect
import json
import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from types import MappingProxyType, UnionType
from typing import Any, Union, get_args, get_origin

import torch
import yaml
from torch import nn

from unoise_monai.atomic import atomic_path
from unoise_monai.attribution.base import METHODS, make_attributor
from unoise_monai.bundle import Bundle
from unoise_monai.checks import check_choice
from unoise_monai.inference.memory import resolve_precision
from unoise_monai.metrics.scores import MapScorer
from unoise_monai.runs.records import claiming


def find_device(name: str = "auto") -> torch.device:
    """``auto`` is a GPU where there is one, else the CPU; a `ValueError` where there is no such device."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        device = torch.device("meta")
    if device.type not in ("cpu", "cuda"):
        raise ValueError(f"device must be auto, cpu, cuda or cuda:N, got {name!r}")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ValueError(f"device must be there, got {name!r} on a machine with {torch.cuda.device_count()} GPUs")
    return device


PACKAGES = ("unoise-monai", "monai", "torch", "numpy", "nibabel", "SimpleITK", "captum")


def about(command: str, device: torch.device | None) -> dict[str, Any]:
    """What ``run.json`` says besides the settings; without a device, workers have their own."""
    name = platform.machine() if device is None or device.type != "cuda" else torch.cuda.get_device_name(device)
    return {
        "command": command,
        "device": "that of each worker, see cohort.csv" if device is None else f"{device.type} ({name})",
        "python": platform.python_version(),
        "versions": {package: version(package) for package in PACKAGES},
    }


def software() -> str:
    """The versions that a case's files depend on."""
    # Without the local part: builds for other machines are the same software.
    return ", ".join(f"{package} {version(package).split('+')[0]}" for package in PACKAGES[:3])


RUN_FILE = "run.json"
CEILING = "label_distance"
"""Not a method: voxels ranked by their distance to the label, which a network without need of context would follow."""


class OtherSettings(ValueError):
    """The output was made with other settings than those asked for."""


@dataclass(frozen=True)
class Settings:
    """All that a case's files depend on, apart from the case, the machine and the methods of a `Comparison`.

    They are the bundle's name and version, the SHA-256 of its weights' file and of its configuration with the
    metadata, the versions of what makes the files, the number format of the network's passes, values of the
    configuration's ids that differ from its files, and whether cases have hashes for names.
    """

    bundle: str
    bundle_version: str
    weights_sha256: str
    config_sha256: str
    software: str
    number_format: str = "auto"
    changes: Mapping[str, Any] = field(default_factory=dict)
    anonymised: bool = False

    @property
    def values(self) -> dict[str, Any]:
        """Each by its name, as JSON gives them back, for ``run.json``."""
        return dict(json.loads(json.dumps(asdict(self), default=repr)))

    @property
    def digest(self) -> str:
        """Differs where anything differs."""
        return hashlib.sha256(json.dumps(self.values, sort_keys=True).encode()).hexdigest()


def settings_of(
    bundle: Bundle, changes: Mapping[str, Any] = MappingProxyType({}), anonymised: bool = False, remote: bool = False
) -> Settings:
    """The settings of a run with a bundle that was loaded with ``changes``, of which ``memory_gb`` changes no result.

    Workers that are ``remote`` choose a device, and with it a number format, of their own.
    """
    device = next(bundle.explainer.network.parameters()).device
    precision = getattr(bundle.explainer.inferer, "precision", "fp32")
    return Settings(
        bundle=bundle.name,
        bundle_version=bundle.version,
        weights_sha256=bundle.weights_sha256,
        config_sha256=bundle.config_sha256,
        software=software(),
        number_format="auto" if remote else str(resolve_precision(device, precision)),
        changes={name: value for name, value in changes.items() if name != "memory_gb"},
        anonymised=anonymised,
    )


@dataclass(frozen=True)
class Comparison:
    """Methods whose maps are made beside the noise model's, and what is measured of each; none by default.

    Args:
        methods: names of attribution methods, or ``"label_distance"``, the ceiling.
        options: of single methods, by name.
        scorer: what is measured; None for maps alone.
        robust_cases: on how many cases, the first of a run, sensitivity and randomisation are measured, which take many
            maps each.
        robust_passes: methods whose map takes more passes, forward and back together, are left out of them; the first
            of these cases decides, so that a method has all of them or none.
        truth_dir: folder with ``<case>.nii.gz``, what every voxel of a phantom is (`Truth`).

    Raises:
        ValueError: when a method is unknown, or is not one that explains all that is segmented.
        ValueError: when a method has no such option, or refuses its value.
    """

    methods: Sequence[str] = ()
    options: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    scorer: MapScorer | None = None
    robust_cases: int = 3
    robust_passes: float = 150.0
    truth_dir: str | Path | None = None

    def __post_init__(self) -> None:
        known = tuple(name for name, method in METHODS.items() if "region" not in method.needs)
        for method in self.methods:
            check_choice("method", method, known if self.scorer is None else (*known, CEILING))
        for method, options in self.options.items():
            check_options(method, options)
        object.__setattr__(self, "methods", tuple(dict.fromkeys(self.methods)))

    def is_robust(self, number: int) -> bool:
        """Whether what takes many maps is measured of the case of this number."""
        return self.scorer is not None and number < self.robust_cases

    def digests(self, robust: bool) -> dict[str, str]:
        """Of each method, a digest that differs where anything differs that its results on a case depend on."""
        shared = [repr(self.scorer), robust, self.robust_passes if robust else None, self.truth_dir is not None]
        texts = {name: json.dumps([self.options.get(name, {}), *shared], default=repr) for name in self.methods}
        return {name: hashlib.sha256(text.encode()).hexdigest() for name, text in texts.items()}


def parse_methods(text: str) -> tuple[tuple[str, ...], dict[str, dict[str, Any]]]:
    """Names of methods and their options from ``NAME:option=value:option=value,NAME``, values as YAML reads them.

    Raises:
        ValueError: when a method is named twice, or is unknown and has options.
        ValueError: when an option is unknown, comes twice, has no value or one that is no YAML.
    """
    chosen: dict[str, dict[str, Any]] = {}
    for part in filter(None, _split(text, ",")):
        name, *pairs = _split(part, ":")
        if chosen.get(name) or (name in chosen and pairs):
            raise ValueError(f"methods must name one with options once, got {name!r} twice")
        options = chosen.setdefault(name, {})
        if pairs:
            check_choice("method", name, tuple(METHODS))
        for pair in pairs:
            option, _, value = pair.partition("=")
            check_choice(f"option of {name}", option, tuple(options_of(name)))
            if not value:
                raise ValueError(f"option {option} of {name} must have a value, {option}=VALUE, got none")
            if option in options:
                raise ValueError(f"option {option} of {name} must be given once, got it twice")
            try:
                options[option] = yaml.safe_load(value)
            except yaml.YAMLError as error:
                raise ValueError(f"option {option} of {name} must be YAML, got {value!r}") from error
    # The order in which options are given changes no map, so it must change no digest.
    return tuple(chosen), {name: dict(sorted(options.items())) for name, options in chosen.items() if options}


def _split(text: str, mark: str) -> list[str]:
    """The parts of a text between marks that are outside brackets."""
    parts, depth = [""], 0
    for letter in text:
        depth += (letter in "[{") - (letter in "]}")
        if letter == mark and depth == 0:
            parts.append("")
        else:
            parts[-1] += letter
    return parts


def options_of(method: str) -> dict[str, inspect.Parameter]:
    """A method's options, its own first; without what a run gives it."""
    found: dict[str, inspect.Parameter] = {}
    for kind in METHODS[method].__mro__:
        if "__init__" in vars(kind):
            parameters = inspect.signature(vars(kind)["__init__"]).parameters
            found |= {name: each for name, each in parameters.items() if name not in found}
            if not any(each.kind is each.VAR_KEYWORD for each in parameters.values()):
                break
    given = ("self", "network", "noise_model")
    variable = (inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL)
    return {name: each for name, each in found.items() if name not in given and each.kind not in variable}


def takes(option: inspect.Parameter, *kinds: type) -> bool:
    """Whether the annotation of an option allows one of some types; whole numbers are numbers."""
    union = get_origin(option.annotation) in (Union, UnionType)
    allowed = [get_origin(each) or each for each in (get_args(option.annotation) if union else (option.annotation,))]
    if option.annotation is option.empty or not all(isinstance(each, type) for each in allowed):
        return True
    if float in allowed:
        allowed.append(int)
    # A bool is no number and a text no list, whatever Python says.
    return any(kind in allowed if kind in (bool, str) else issubclass(kind, tuple(allowed)) for kind in kinds)


def check_options(method: str, options: Mapping[str, Any]) -> None:
    """Refuse, before there is a network, options that a method would refuse.

    Raises:
        ValueError: when the method is unknown, has no such option, or refuses its value.
    """
    check_choice("method", method, tuple(METHODS))
    known = options_of(method)
    for name, value in options.items():
        check_choice(f"option of {method}", name, tuple(known))
        if not takes(known[name], type(value)):
            kind = getattr(known[name].annotation, "__name__", known[name].annotation)
            raise ValueError(f"{name} of {method} must be {kind}, got {value!r}")
    needed = {"noise_model": nn.Identity()} if "noise_model" in METHODS[method].needs else {}
    try:
        make_attributor(method, nn.Identity(), **needed, **options)
    except (TypeError, ValueError) as error:
        raise ValueError(f"options of {method} must be such as it takes, got {dict(options)}: {error}") from error


def claim_output(output: Path, settings: Settings, about: dict[str, Any], overwrite: bool = False) -> None:
    """Write ``run.json`` into a new output; check that an old one was made with the same settings.

    Args:
        about: what else ``run.json`` says, such as versions, command and device.
        overwrite: take the output over although its settings differ; cases made with them are done again.

    Raises:
        OtherSettings: when they differ; it names what and both values.
    """
    path = output / RUN_FILE
    now = settings.values
    with claiming(output):
        before = read_run(output).get("settings", {}) if path.is_file() else None
        differing = [] if before is None else _differing(before, now)
        if differing and not overwrite:
            differences = "; ".join(f"{name} was {old!r}, now {new!r}" for name, old, new in differing)
            raise OtherSettings(
                f"{output} holds results of other settings: {differences}. Choose another output, or --overwrite "
                "(without --part)"
            )
        if differing or before is None:
            with atomic_path(path) as temporary:
                temporary.write_text(json.dumps({**about, "settings": now}, indent=1) + "\n", encoding="utf-8")


def _differing(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[tuple[str, Any, Any]]:
    """Names and both values of what differs between two settings; each change of the configuration by itself."""
    names = [name for name in now if name != "changes" and before.get(name) != now[name]]
    found = [(name, before.get(name), now[name]) for name in names]
    old, new = before.get("changes") or {}, now["changes"]
    configured = "as the bundle has it"
    changed = [name for name in {**old, **new} if old.get(name, configured) != new.get(name, configured)]
    return found + [(name, old.get(name, configured), new.get(name, configured)) for name in changed]


def read_run(output: Path) -> dict[str, Any]:
    """What ``run.json`` of an output says; `OtherSettings` where it is not JSON."""
    try:
        return dict(json.loads((output / RUN_FILE).read_text(encoding="utf-8")))
    except ValueError as error:
        raise OtherSettings(f"{output / RUN_FILE} must be JSON as a run writes it: {error}") from error
