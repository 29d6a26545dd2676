"""A bundle's networks and settings, loaded once, and which bundles may run."""

import copy
import hashlib
import io
import json
import os
import pickle
import re
import shlex
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
import yaml
from monai.bundle import ConfigParser
from monai.inferers import Inferer
from monai.transforms import Compose
from torch import nn

from unoise_monai.data.transforms import SegmentationTask
from unoise_monai.handlers.savers import Saver
from unoise_monai.inference.explain import Explainer, Explanation
from unoise_monai.networks.weights import SAFETENSORS, load_weights
from unoise_monai.unoise import ExplainedSegmenter

PACKAGE = Path(__file__).resolve().parent
SHIPPED = (PACKAGE if (PACKAGE / "bundles").is_dir() else PACKAGE.parent) / "bundles"
"""The bundles that come with the package: within it where it is installed, beside it in a source checkout."""
LIST = Path(".config", "unoise", "trusted_bundles")
"""The trust list, in the home folder."""
TRUST_LIST = "UNOISE_TRUSTED_BUNDLES"
"""The environment variable that names another trust list."""


class UntrustedBundle(ValueError):
    """A bundle from elsewhere, which nobody has said to trust; nothing of it has been read."""


def check_trust(bundle: str | os.PathLike[str]) -> None:
    """Refuse a bundle that does not come with the project and is not on the trust list.

    Its folder is judged by where it really lies, whatever it is called and however it is reached. A bundle is on the
    list where every file of its ``configs`` is, by its path and the SHA-256 of what it holds now. The list,
    ``~/.config/unoise/trusted_bundles`` or the file that $UNOISE_TRUSTED_BUNDLES names, has lines as ``sha256sum``
    writes them, and comments after ``#``. What the configs import is trusted with them.

    Raises:
        UntrustedBundle: when it is neither, or a folder within its ``configs`` is a link.
        ValueError: when a line of the trust list cannot be understood.
    """
    folder = Path(bundle).resolve()
    within = sorted((folder / "configs").rglob("*"))
    # The search does not follow them, but a config can name what lies behind.
    if linked := [path.relative_to(folder).as_posix() for path in within if path.is_symlink() and path.is_dir()]:
        raise UntrustedBundle(f"bundle {folder} must hold its configs itself, got a link to a folder: {linked[0]}")
    files = [path for path in within if path.is_file()]
    if files and _shipped(files):
        return
    listed = _listed()
    unlisted = [path for path in files if file_sha256(path) not in listed.get(path.resolve(), ())]
    if files and not unlisted:
        return
    changed = ", ".join(path.name for path in unlisted if path.resolve() in listed)
    raise UntrustedBundle(
        f"bundle {folder} must be trusted before it runs, for its configs can run any code as you"
        f"{f' (changed since it was listed: {changed})' if changed else ''}. Read them, then pass --trust-bundle, or "
        f"trust them as they are for good:\n  {listing(folder)}"
    )


def is_trusted(bundle: str | os.PathLike[str]) -> bool:
    """Whether `check_trust` lets a bundle run; raises its `ValueError` for a bad line of the list."""
    try:
        check_trust(bundle)
    except UntrustedBundle:
        return False
    return True


def trust(bundle: str | os.PathLike[str]) -> None:
    """List a bundle as it is now, for whoever has made it: `check_trust` lets it run.

    Raises:
        UntrustedBundle: when the list is not named and there is no home folder.
        OSError: when it cannot be written.
    """
    if is_trusted(bundle):
        return
    (path := trust_list()).parent.mkdir(parents=True, exist_ok=True)
    files = sorted(file for file in (Path(bundle).resolve() / "configs").rglob("*") if file.is_file())
    with path.open("a", encoding="utf-8") as file:
        file.writelines(f"{file_sha256(each)}  {each}\n" for each in files)


def trust_list() -> Path:
    """The file that lists the bundles to trust, if any; `UntrustedBundle` where none is named and there is no home."""
    if named := os.environ.get(TRUST_LIST):
        return Path(named)
    try:
        return Path.home() / LIST
    except RuntimeError as error:
        raise UntrustedBundle(f"the trust list must be named in ${TRUST_LIST}, got none and no home folder") from error


def listing(bundle: Path | None = None) -> str:
    """The command that lists a bundle's folder as it is; without one, BUNDLE stands for it, and no path is told."""
    if bundle is None:
        trusted = f'"${TRUST_LIST}"' if os.environ.get(TRUST_LIST) else f"~/{LIST}"
        configs, make = '"$(realpath BUNDLE)"/configs', f'mkdir -p "$(dirname {trusted})" && '
    else:
        path = trust_list()
        configs, trusted, folder = (shlex.quote(str(each)) for each in (bundle / "configs", path, path.parent))
        make = "" if path.parent.is_dir() else f"mkdir -p {folder} && "
    return f"{make}find -L {configs} -type f -exec sha256sum {{}} + >> {trusted}"


def fingerprint(paths: Iterable[Path]) -> dict[str, Any]:
    """Size in bytes and SHA-256 of the contents of files, one after the other: ``bytes`` and ``sha256``."""
    digest, size = hashlib.sha256(), 0
    for path in paths:
        with path.open("rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
                size += len(block)
    return {"bytes": size, "sha256": digest.hexdigest()}


def file_sha256(*paths: Path) -> str:
    """The SHA-256 of the contents of files, one after the other, in hexadecimal."""
    return str(fingerprint(paths)["sha256"])


def _shipped(files: list[Path]) -> bool:
    # Installed without its bundles, the package may stand beside somebody else's folder of that name.
    ours = SHIPPED.parent == PACKAGE or (SHIPPED.parent / "pyproject.toml").is_file()
    return ours and all(path.resolve().is_relative_to(SHIPPED.resolve()) for path in files)


def _listed() -> dict[Path, set[str]]:
    path = trust_list()
    listed: dict[Path, set[str]] = {}
    if not path.is_file():
        return listed
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        if not line.strip() or line.startswith("#"):
            continue
        entry = re.fullmatch(r"([0-9a-f]{64}) [ *](.+)", line)
        if entry is None or not Path(entry[2]).is_absolute():
            raise ValueError(f"{path}, line {number} must be a SHA-256 and an absolute path, got {line!r}")
        listed.setdefault(Path(entry[2]).resolve(), set()).add(entry[1])
    return listed


CONFIGS = (Path("configs", "inference.yaml"), Path("configs", "inference.json"))
METADATA = Path("configs", "metadata.json")
FOLDERS = "UNOISE_BUNDLES"
"""The environment variable that names folders of bundles, separated as in $PATH."""


@dataclass(frozen=True)
class Bundle:
    """What a bundle's configuration defines for a volume, ready to run, and what it was made from."""

    name: str
    """Of the bundle's folder."""
    version: str
    class_names: tuple[str, ...]
    """Of the segmentation, background first."""
    explainer: Explainer
    """The configuration's ``preprocessing``, ``network_def`` with its weights, ``inferer`` and ``postprocessing``."""
    savers: tuple[Saver, ...]
    """The configuration's ``savers``."""
    config: Mapping[str, Any] | None
    """The configuration as it was read, with the changes that were asked for: what another process builds it from.
    None of objects that were made elsewhere, which are then sent there themselves."""
    weights_sha256: str
    config_sha256: str
    """Of the configuration's and the metadata's files."""

    @property
    def task(self) -> SegmentationTask | None:
        """The configuration's ``task``, where it has one."""
        return self.parsed("task") if self.config and "task" in self.config else None

    def parsed(self, name: str) -> Any:
        """What an id of the configuration defines, built anew; a `ValueError` where there is none, or it fails."""
        try:
            return build(self.config or {}, name)
        # A configuration runs code, which raises what it likes.
        except Exception as error:
            raise ValueError(f"bundle {self.name}: {name} cannot be used: {_causes(error)}") from error

    def explain(self, image: str | Path) -> Explanation:
        """Explain the segmentation of one file, or of a folder with one DICOM series; see `Explainer`."""
        return self.explainer(image)


def shipped_bundles() -> list[Path]:
    """The bundles that come with the package."""
    return _bundles_in(SHIPPED)


def known_bundles() -> dict[str, Path]:
    """The bundles that go by their name: the shipped ones, then those in the folders that $UNOISE_BUNDLES names."""
    folders = [Path(folder) for folder in os.environ.get(FOLDERS, "").split(os.pathsep) if folder]
    found = [bundle for folder in folders for bundle in _bundles_in(folder)]
    # Of two of one name the first.
    return dict(sorted({bundle.name: bundle for bundle in reversed([*shipped_bundles(), *found])}.items()))


def find_bundle(name_or_path: str | os.PathLike[str]) -> Path:
    """The folder of a bundle, from its path or its name.

    Raises:
        ValueError: when it is neither a folder with ``configs/inference.yaml`` (or ``.json``) nor the name of a known
            bundle.
    """
    path, known = Path(name_or_path), known_bundles()
    if any((path / config).is_file() for config in CONFIGS):
        return path.resolve()
    if str(name_or_path) in known:
        return known[str(name_or_path)]
    got = f"{name_or_path}{', a folder without' if path.is_dir() else ''}"
    names = ", ".join(sorted(known)) or f"none is known; name their folders in ${FOLDERS}"
    raise ValueError(f"bundle must be a folder with {CONFIGS[0].as_posix()} or one of: {names}; got {got}")


def load_bundle(
    bundle: str | os.PathLike[str],
    device: torch.device | str | None = None,
    weights: str | os.PathLike[str] | None = None,
    trusted: bool = False,
    changes: Mapping[str, Any] = MappingProxyType({}),
    overlays: Sequence[str] = (),
) -> Bundle:
    """Load what a bundle's configuration defines for a volume, with its weights; nothing else of it runs.

    Args:
        bundle: its name or its folder, see `find_bundle`.
        device: of the networks; a GPU where there is one by default.
        weights: a checkpoint of the whole network; by default the one that the configuration names or, where there is
            none, that with the suffix ``.safetensors`` beside it.
        trusted: run the configuration wherever it comes from, see `check_trust`.
        changes: other values for ids of the configuration, such as ``{"quantity": "sigma"}``.
        overlays: names of further configurations, such as ``explain``, that are laid over it first.

    Raises:
        UntrustedBundle: when the bundle comes from elsewhere and is neither on the trust list nor ``trusted``.
        FileNotFoundError: when an overlay, the metadata or the weights are not there.
        ValueError: when there is no such bundle, its configuration or metadata cannot be understood or lack an id of
            ``changes``, its network is no `ExplainedSegmenter`, a saver no `Saver`, the weights are damaged or don't
            fit, or one of these files changes while it is loaded.
    """
    folder = find_bundle(bundle)
    config_file = _config_file(folder)
    more = [config_file.with_name(f"{name}{config_file.suffix}") for name in overlays]
    files = (config_file, *more, folder / METADATA)
    for file in files:
        if not file.is_file():
            raise FileNotFoundError(f"bundle {folder} must hold {file.relative_to(folder).as_posix()}, got none")
    if not trusted:
        check_trust(folder)
    config_sha256 = file_sha256(*files)
    metadata = _metadata(folder)
    if device is None:
        device = "cuda" if torch.cuda.is_available() else "cpu"
    start = f"bundle {folder.name}: {config_file.relative_to(folder).as_posix()}"
    try:
        parser = ConfigParser(ConfigParser.load_config_files([config_file, *more]))
        if unknown := [key for key in changes if key not in parser]:
            raise ValueError(f"it has no {', '.join(unknown)} to change")
        if missing := [key for key in ("network_def", *PIPELINE, "savers") if key not in parser]:
            raise ValueError(f"it has no {', '.join(missing)}; `unoise fit` makes a bundle of any network")
        parser.update({"bundle_root": str(folder), "device": torch.device(device), **changes})
        # Raw: what is parsed below holds objects.
        config = {**copy.deepcopy(parser.get()), "device": torch.device("cpu")}
        network, savers = parser.get_parsed_content("network_def"), parser.get_parsed_content("savers")
        chain, inferer, restore = (parser.get_parsed_content(f"{name}") for name in PIPELINE)
        class_names = tuple(parser.get_parsed_content("class_names")) if "class_names" in parser else None
        named = parser.get_parsed_content("weights") if "weights" in parser else folder / "models" / "model.pt"
    # A configuration runs code, which raises what it likes.
    except Exception as error:
        raise ValueError(f"{start} cannot be used: {_causes(error)}") from error
    for name, value, kind in (("network_def", network, ExplainedSegmenter), *(("savers", s, Saver) for s in savers)):
        if not isinstance(value, kind):
            hint = "; `unoise fit` makes a bundle of a network" if kind is ExplainedSegmenter else ""
            raise ValueError(
                f"bundle {folder.name}: {name} must be of class {kind.__name__}, got {type(value).__name__}{hint}"
            )
    weights_file = _weights_file(Path(named)) if weights is None else Path(weights)
    # Of one that is not there, `load_weights` says so.
    weights_sha256 = file_sha256(weights_file) if weights_file.is_file() else ""
    load_weights(network, weights_file, f"network of bundle {folder.name}")
    if (file_sha256(weights_file), file_sha256(*files)) != (weights_sha256, config_sha256):
        raise ValueError(f"bundle {folder.name} must not change while it is loaded, got other files after than before")
    return Bundle(
        name=folder.name,
        version=metadata["version"],
        class_names=class_names or _class_names(metadata, folder.name),
        explainer=Explainer(network.to(device).eval(), chain, inferer, restore),
        savers=tuple(savers),
        config=config,
        weights_sha256=weights_sha256,
        config_sha256=config_sha256,
    )


PIPELINE = ("preprocessing", "inferer", "postprocessing")


def assemble(
    folder: str | os.PathLike[str],
    network: ExplainedSegmenter,
    preprocessing: Compose,
    inferer: Inferer,
    postprocessing: Callable[[Mapping[Any, Any]], Any],
    savers: Sequence[Saver],
    class_names: Sequence[str],
) -> Bundle:
    """A bundle of the objects that its configuration has made, in a run of ``python -m monai.bundle`` of its own.

    The network has its weights and is on its device; the preprocessing is sent to processes that read cases;
    ``class_names`` are those of the segmentation, background first.

    Raises:
        ValueError: when the metadata cannot be understood, or one of the objects cannot be pickled.
    """
    root = Path(folder).resolve()
    # Wherever an output lies, its files are the same.
    written = [{**vars(saver), "output_dir": None, "class": type(saver)} for saver in savers]
    return Bundle(
        name=root.name,
        version=_metadata(root)["version"],
        class_names=tuple(class_names),
        explainer=Explainer(network.eval(), preprocessing, inferer, postprocessing),
        savers=tuple(savers),
        config=None,
        weights_sha256=state_sha256(network),
        config_sha256=_sha256_of_objects((preprocessing, inferer, postprocessing, written)),
    )


def state_sha256(network: nn.Module) -> str:
    """Digest of the names, types, shapes and values of all weights and buffers; the same on every device."""
    digest = hashlib.sha256()
    for name, value in network.state_dict().items():
        plain = value.detach().cpu().contiguous()
        digest.update(f"{name} {plain.dtype} {tuple(plain.shape)}\n".encode())
        # As bytes, for NumPy has no bfloat16.
        digest.update(plain.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def build(config: Mapping[str, Any], name: str) -> Any:
    """What an id of a configuration defines, built anew, as a process that reads cases needs it."""
    return ConfigParser(copy.deepcopy(dict(config))).get_parsed_content(name)


def run_configuration(folder: Path, names: Sequence[str], changes: Mapping[str, Any] = MappingProxyType({})) -> None:
    """Run a trusted bundle's configurations, laid over each other, as ``python -m monai.bundle run`` does.

    Raises:
        FileNotFoundError: when there is no such configuration.
    """
    files = [folder / "configs" / f"{name}{_config_file(folder).suffix}" for name in names]
    for file in files:
        if not file.is_file():
            raise FileNotFoundError(f"bundle {folder} must hold {file.relative_to(folder).as_posix()}, got none")
    parser = ConfigParser(ConfigParser.load_config_files(files))
    parser.update({"bundle_root": str(folder), **changes})
    for name in ("initialize", "run"):
        if name in parser:
            parser.get_parsed_content(name)


def copy_bundle(
    source: str | os.PathLike[str], target: str | os.PathLike[str], task: Mapping[str, Any] | None = None
) -> Path:
    """A new bundle with the configurations of another one, to train it on other data; its weights stay behind.

    Args:
        source: the other bundle's name or folder.
        target: the new bundle's folder.
        task: arguments of `SegmentationTask` for every configuration, and the channels that the metadata define;
            those of the source by default.

    Raises:
        FileExistsError: when ``target`` is there.
        ValueError: when there is no such bundle, or the task is none.
    """
    origin, folder = find_bundle(source), Path(target)
    if folder.exists():
        raise FileExistsError(f"bundle folder must be new, got {folder}, which is there")
    old = yaml.safe_load(_config_file(origin).read_text(encoding="utf-8"))
    names = {key: value for key, value in (task or old["task"]).items() if key != "_target_"}
    try:
        new = SegmentationTask(**names)
    except TypeError as error:
        raise ValueError(f"task must have the arguments of SegmentationTask: {error}") from error
    shutil.copytree(origin / "configs", folder / "configs")
    shutil.copy(origin / "LICENSE", folder)
    (folder / "models").mkdir()
    (folder / "docs").mkdir()
    readme = f"# {folder.name}\n\n{', '.join(new.class_names[1:])}: made from {origin.name}, to be trained.\n"
    (folder / "docs" / "README.md").write_text(readme, encoding="utf-8")
    (folder / "docs" / "data_license.txt").write_text("The licence of the data it is trained on.\n", encoding="utf-8")
    written = {"task": {"_target_": old["task"]["_target_"], **names}}
    block = yaml.safe_dump(written, sort_keys=False, default_flow_style=None)
    for path in (folder / "configs").glob("*.yaml"):
        text = re.sub(r"^task:\n(?:[ #].*\n)+", lambda _: block, path.read_text(encoding="utf-8"), flags=re.MULTILINE)
        path.write_text(text.replace(old["task"]["name"], new.name), encoding="utf-8")
    metadata = _metadata(folder)
    pred = metadata["network_data_format"]["outputs"]["pred"]
    logits = new.class_names if len(pred["channel_def"]) > 2 else new.class_names[1:]
    pred["channel_def"] = {str(index): name for index, name in enumerate((*logits, "importance"))}
    pred["num_channels"] = len(logits) + 1
    metadata |= {"version": "0.1.0", "changelog": {"0.1.0": f"made from {origin.name}"}, "name": folder.name}
    metadata |= {"eval_metrics": {}, "label_classes": ", ".join(f"{k} {name}" for k, name in enumerate(new.labels))}
    for key in ("task", "description", "data_source", "image_classes"):
        metadata[key] = f"to be written ({new.name})"
    text = json.dumps(metadata, indent=1, ensure_ascii=False)
    (folder / METADATA).write_text(text + "\n", encoding="utf-8")
    return folder


def _bundles_in(folder: Path) -> list[Path]:
    return sorted({path.parents[1].resolve() for name in CONFIGS for path in folder.glob(f"*/{name.as_posix()}")})


def _config_file(folder: Path) -> Path:
    return next((folder / name for name in CONFIGS if (folder / name).is_file()), folder / CONFIGS[0])


def _causes(error: BaseException) -> str:
    """What MONAI says of a component, and what that itself raised, in one line."""
    texts = [" ".join(str(error).split()).removesuffix("set '_mode_=debug' to enter the debugging mode.").strip()]
    while error.__cause__ is not None:
        error = error.__cause__
        texts[1:] = [str(error)]
    return ": ".join(texts)


class _StablePickler(pickle.Pickler):
    """Pickles equal objects alike in every process: it knows neither identities, nor the order of sets, nor draws."""

    def __init__(self, file: io.BytesIO) -> None:
        super().__init__(file)
        self.fast = True

    def persistent_id(self, value: Any) -> Any:
        if isinstance(value, (set, frozenset)):
            return sorted(value, key=repr)
        return "generator" if isinstance(value, np.random.RandomState) else None


def _sha256_of_objects(objects: Any) -> str:
    """A digest that is the same wherever the same objects are made; functions without a name cannot be pickled."""
    file = io.BytesIO()
    try:
        _StablePickler(file).dump(objects)
    # Objects pickle themselves, and raise what they like.
    except Exception as error:
        raise ValueError(f"the pipeline must be made of what other processes can be sent, got: {error}") from error
    return hashlib.sha256(file.getvalue()).hexdigest()


def _metadata(folder: Path) -> dict[str, Any]:
    try:
        metadata = json.loads((folder / METADATA).read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"bundle {folder.name}: {METADATA.as_posix()} must be JSON: {error}") from error
    version = metadata.get("version") if isinstance(metadata, dict) else None
    if not isinstance(version, str):
        raise ValueError(f"bundle {folder.name}: {METADATA.as_posix()} must hold the version as text, got {version!r}")
    return dict(metadata)


def _class_names(metadata: Mapping[str, Any], name: str) -> tuple[str, ...]:
    """From the channels of the network's output: the classes' logits, then the importance."""
    try:
        channels = metadata["network_data_format"]["outputs"]["pred"]["channel_def"]
        classes = [str(channels[str(index)]) for index in range(len(channels) - 1)]
    except (KeyError, TypeError) as error:
        raise ValueError(f"bundle {name}: {METADATA.as_posix()} must define the channels of pred, got none") from error
    # One logit is that of a foreground.
    return ("background", *classes) if len(classes) == 1 else tuple(classes)


def _weights_file(named: Path) -> Path:
    """The weights that a configuration names, or those beside them as safetensors."""
    other = named.with_suffix(SAFETENSORS)
    if not named.is_file() and not other.is_file():
        raise FileNotFoundError(f"weights must be at {named} or {other}, got none; train the bundle, or name them")
    return named if named.is_file() else other
