"""A user's trained network and what belongs to it: how an image is read, how it runs, what its classes are called."""

import importlib
import json
import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import torch
import yaml
from monai.bundle import ConfigParser
from monai.inferers import Inferer
from monai.transforms import (
    Activationsd,
    Compose,
    EnsureChannelFirstd,
    EnsureTyped,
    Invertd,
    LoadImaged,
    NormalizeIntensityd,
    Orientationd,
    ResampleToMatchd,
    SaveImaged,
    ScaleIntensityRanged,
    ScaleIntensityRangePercentilesd,
    Spacingd,
    Transform,
)
from torch import nn

from unoise_monai.bundle import CONFIGS, METADATA
from unoise_monai.checks import check_choice
from unoise_monai.data.reading import CaseCompose, LoadCased
from unoise_monai.inference.explain import SplitExplanationd, postprocessing
from unoise_monai.inference.tiling import TiledInferer

PROGRAMS = (".ts", ".pt2")
"""Networks that bring their own code: TorchScript, and what `torch.export` saves."""


class Model:
    """What belongs to a trained network, from files in one folder; a kind of model is one class.

    Args:
        folder: with all that defines it, weights apart.
    """

    needs: ClassVar[tuple[str, ...]] = ()
    """Files and folders that define it, of which those that are there are copied."""
    class_names: tuple[str, ...] = ()
    """Of the segmentation, background first; empty where they are unknown."""
    channels: int = 1
    """Of the image."""
    regions: bool = False
    """Whether the output's channels are regions that may overlap."""
    region_labels: tuple[int, ...] | None = None
    """The classes that they are painted with, see `ClassLogits`."""
    patch_size: tuple[int, ...] | None = None
    """Voxels that the network was trained on, where that is known."""

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)

    def network(self) -> nn.Module:
        """The network, without its weights.

        Raises:
            ValueError: when nothing here defines one.
        """
        raise ValueError(f"{self.folder.name} must define a network, got none: name a file or a factory as MODEL")

    def weights(self) -> Path:
        """The checkpoint that comes with it.

        Raises:
            FileNotFoundError: when none does.
        """
        raise FileNotFoundError(f"weights of {self.folder.name} must be named, --weights FILE")

    def steps(self) -> list[Transform]:
        """The transforms of ``image`` after it is read, invertible, to the network's input."""
        raise NotImplementedError

    def preprocessing(self, with_label: bool = False) -> CaseCompose:
        """From a case's files to the network's input; the label is brought to the image's grid by their affines."""
        first = LoadCased(["image", *(["label"] if with_label else [])], len(self.class_names), channels=self.channels)
        steps: list[Transform] = [first, *self.steps(), EnsureTyped("image", dtype=torch.float32)]
        if with_label:
            steps += [ResampleToMatchd("label", "image", mode="nearest", padding_mode="zeros"), EnsureTyped("label")]
        return CaseCompose(steps)

    def inferer(self, memory_gb: float | None = None, precision: str = "auto") -> Inferer:
        """How the network runs over a volume."""
        return TiledInferer(memory_gb, precision, roi_size=self.patch_size or 96)

    def postprocessing(self, preprocess: Compose) -> Callable[[Mapping[Any, Any]], Any]:
        """From logits and importance to ``seg`` and ``importance`` on the grid of the file."""
        return postprocessing(preprocess)

    def copy(self, target: Path) -> None:
        """Copy all that defines it to another folder.

        Raises:
            FileExistsError: when that is there.
        """
        target.mkdir(parents=True)
        for name in self.needs:
            source = self.folder / name
            if source.is_dir():
                shutil.copytree(source, target / name, ignore=shutil.ignore_patterns("__pycache__"))
            elif source.is_file():
                (target / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(source, target / name)


class BundleModel(Model):
    """The network of a MONAI bundle, with the ids of its inference configuration as they are.

    What reads the image is replaced: `LoadCased` refuses what a network must not see. Of the postprocessing, what works
    on ``pred`` makes the segmentation; what writes files does not run.

    Args:
        folder: the bundle's.

    Raises:
        ValueError: when it has no inference configuration, or lacks one of its ids.
    """

    needs = ("configs", "scripts", "LICENSE")

    def __init__(self, folder: str | Path) -> None:
        super().__init__(folder)
        files = [self.folder / name for name in CONFIGS if (self.folder / name).is_file()]
        if not files:
            raise ValueError(f"{self.folder.name} must hold {CONFIGS[0]} or .json, got neither")
        self.file = files[0]
        metadata = self.folder / METADATA
        self.metadata = json.loads(metadata.read_text(encoding="utf-8")) if metadata.is_file() else {}
        formats = self.metadata.get("network_data_format", {})
        inputs, outputs = formats.get("inputs", {}).get("image", {}), formats.get("outputs", {}).get("pred", {})
        self.channels = int(inputs.get("num_channels", 1))
        names = outputs.get("channel_def") or {}
        self.regions = any(any(step.sigmoid) for step in self._after if isinstance(step, Activationsd))
        named = tuple(str(names[key]) for key in sorted(names, key=int) if str(names[key]) != "importance")
        # Regions, and the one logit of a foreground, come without a channel of the background.
        self.class_names = ("background", *named) if self.regions or len(named) == 1 else named
        roi = getattr(self._parsed("inferer"), "roi_size", None)
        self.patch_size = tuple(roi) if isinstance(roi, Sequence) else None

    @cached_property
    def _parser(self) -> ConfigParser:
        # Scripts are imported by their bundle's own name for them, which another bundle has, too.
        for name in [name for name in sys.modules if name.split(".")[0] == "scripts"]:
            del sys.modules[name]
        sys.path.insert(0, str(self.folder.resolve()))
        try:
            parser = ConfigParser(ConfigParser.load_config_file(self.file))
            parser.update({"bundle_root": str(self.folder.resolve()), "device": torch.device("cpu")})
            parser.parse()
            for name in ("network_def", "preprocessing", "inferer"):
                parser.get_parsed_content(name)
            return parser
        # A configuration runs code, which raises what it likes.
        except Exception as error:
            raise ValueError(f"{self.file} must define network_def, preprocessing and inferer: {error}") from error
        finally:
            sys.path.remove(str(self.folder.resolve()))

    def _parsed(self, name: str) -> Any:
        return self._parser.get_parsed_content(name)

    @property
    def _after(self) -> tuple[Transform, ...]:
        """The steps of the postprocessing that change ``pred``."""
        chain = self._parsed("postprocessing") if "postprocessing" in self._parser else Compose([])
        steps = getattr(chain, "transforms", (chain,))
        return tuple(s for s in steps if "pred" in getattr(s, "keys", ()) and not isinstance(s, (Invertd, SaveImaged)))

    def network(self) -> nn.Module:
        return self._parsed("network_def")

    def weights(self) -> Path:
        places = [self.folder / "models" / name for name in ("model.pt", "model.ts", "model.safetensors")]
        found = [place for place in places if place.is_file()]
        if not found:
            raise FileNotFoundError(f"{self.folder.name} must hold models/model.pt or .ts, got neither; name --weights")
        return found[0]

    def steps(self) -> list[Transform]:
        first, *steps = self._parsed("preprocessing").transforms
        if not isinstance(first, (LoadImaged, LoadCased)):
            raise ValueError(f"preprocessing of {self.folder.name} must begin with LoadImaged, got {first}")
        # `LoadCased` has put the channels first.
        return [step for step in steps if not isinstance(step, EnsureChannelFirstd)]

    def inferer(self, memory_gb: float | None = None, precision: str = "auto") -> Inferer:
        return self._parsed("inferer")

    def postprocessing(self, preprocess: Compose) -> Callable[[Mapping[Any, Any]], Any]:
        own = list(self._after)
        # Regions have become exclusive classes.
        if self.regions or not own:
            return postprocessing(preprocess)
        invert = Invertd("pred", preprocess, orig_keys="image", nearest_interp=False, to_tensor=True)
        return Compose(
            [EnsureTyped("pred", device=torch.device("cpu")), invert, SplitExplanationd("pred", Compose(own))]
        )


@dataclass(frozen=True)
class Description:
    """How a network wants its images, for one that comes as a file or as code; ten lines of YAML.

    Args:
        labels: names of the classes, background first; of regions, all but the background as they are painted.
        spacing_mm: voxel size, ``(x, y, z)`` in mm; None for that of the file.
        orientation: of the axes, such as RAS; None for that of the file.
        intensities: ``z-score``, ``z-score of the foreground``, None for those of the file, or a mapping with
            ``window`` (two intensities) or ``percentiles`` (two numbers of 0 to 100), and ``to``, what these become.
        clip: whether intensities beyond the window or the percentiles become its ends.
        channels: of the image.
        outputs: ``softmax`` for classes, ``sigmoid`` for a region a channel.
        patch_size: voxels that it was trained on.
        network: arguments of the factory.

    Raises:
        ValueError: when a value is not one of these.
    """

    labels: Sequence[str]
    spacing_mm: Sequence[float] | None = None
    orientation: str | None = "RAS"
    intensities: str | Mapping[str, Sequence[float]] | None = "z-score"
    clip: bool = True
    channels: int = 1
    outputs: str = "softmax"
    patch_size: Sequence[int] | None = None
    network: Mapping[str, Any] | None = None

    def __post_init__(self) -> None:
        if len(self.labels) < 2:
            raise ValueError(f"labels must name the background and at least one class, got {self.labels}")
        check_choice("outputs", self.outputs, ("softmax", "sigmoid"))
        if isinstance(self.intensities, str):
            check_choice("intensities", self.intensities, ("z-score", "z-score of the foreground"))
        elif self.intensities is not None and (
            set(self.intensities) not in ({"window", "to"}, {"percentiles", "to"})
            or any(len(pair) != 2 or not pair[0] < pair[1] for pair in self.intensities.values())
        ):
            rule = "window or percentiles, and to, each of two rising numbers"
            raise ValueError(f"intensities must name {rule}, got {dict(self.intensities)}")

    def steps(self) -> list[Transform]:
        """The transforms of ``image``, after it is read."""
        steps: list[Transform] = (
            [] if self.orientation is None else [Orientationd("image", axcodes=self.orientation, labels=None)]
        )
        if self.spacing_mm is not None:
            steps.append(Spacingd("image", pixdim=self.spacing_mm, mode="bilinear"))
        if isinstance(self.intensities, str):
            nonzero = self.intensities != "z-score"
            steps.append(NormalizeIntensityd("image", nonzero=nonzero, channel_wise=True))
        elif self.intensities is not None:
            low, high = self.intensities.get("window", self.intensities.get("percentiles", (0, 0)))
            bottom, top = self.intensities["to"]
            scale = ScaleIntensityRanged if "window" in self.intensities else ScaleIntensityRangePercentilesd
            more = {} if "window" in self.intensities else {"channel_wise": True}
            steps.append(scale("image", low, high, bottom, top, clip=self.clip, **more))
        return steps


class DescribedModel(Model):
    """A network whose images a `Description` describes, in ``like.yaml``.

    Raises:
        FileNotFoundError: when there is no such file.
        ValueError: when it does not hold a `Description`.
    """

    needs = ("like.yaml",)

    def __init__(self, folder: str | Path, file: str = "like.yaml") -> None:
        super().__init__(folder)
        self.file = self.folder / file
        values = yaml.safe_load(self.file.read_text(encoding="utf-8"))
        try:
            self.described = Description(**values)
        except TypeError as error:
            raise ValueError(f"{file} must describe a network, see `Description`: {error}") from error
        self.class_names, self.channels = tuple(self.described.labels), self.described.channels
        self.regions = self.described.outputs == "sigmoid"
        self.patch_size = None if self.described.patch_size is None else tuple(self.described.patch_size)

    def steps(self) -> list[Transform]:
        return self.described.steps()

    def copy(self, target: Path) -> None:
        target.mkdir(parents=True)
        shutil.copy(self.file, target / "like.yaml")


class Program(nn.Module):
    """A network that brings its own code: TorchScript (``.ts``) or what `torch.export` saved (``.pt2``).

    Raises:
        ValueError: when the file holds neither.
    """

    def __init__(self, path: str | Path) -> None:
        super().__init__()
        try:
            if Path(path).suffix == ".pt2":
                self.program: Any = torch.export.load(path).module()
            else:
                self.program = torch.jit.load(str(path), map_location="cpu")
        # Either format's reader raises what it likes.
        except Exception as error:
            raise ValueError(f"{path} must hold TorchScript or an exported program: {error}") from error

    def train(self, mode: bool = True) -> "Program":
        """The mode stays that in which it was saved: an exported program has no other."""
        self.training = mode
        return self

    def forward(self, x: torch.Tensor) -> Any:
        return self.program(x)


def factory(name: str) -> Callable[..., nn.Module]:
    """The function or class ``package.module:name`` that makes a network.

    Raises:
        ValueError: when there is none.
    """
    module, _, attribute = name.partition(":")
    try:
        made: Callable[..., nn.Module] = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"MODEL must be package.module:factory, got {name!r}: {error}") from error
    return made
