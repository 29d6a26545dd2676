"""What every attribution method shares: its entry in METHODS, one call shape, batches, signs, baselines, hooks."""

import logging
import math
import re
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from difflib import get_close_matches
from functools import partial
from types import MappingProxyType
from typing import Any, ClassVar, NamedTuple, TypeAlias, TypeVar

import torch
from monai.data import MetaTensor
from monai.networks.layers import GaussianFilter
from torch import Tensor, nn
from tqdm import tqdm

from unoise_monai.attribution.targets import Target, check_items, of_item
from unoise_monai.checks import check_choice, check_finite
from unoise_monai.inference.memory import without_tf32
from unoise_monai.inference.tiling import PROBE_SIDE, VolumeNetwork
from unoise_monai.networks.weights import attributing
from unoise_monai.types import Image, VoxelMap

logger = logging.getLogger(__name__)

BASELINES = ("zero", "mean", "minimum", "blur", "noise")

Baseline: TypeAlias = str | float | Tensor
"""One of `BASELINES`, a number, or an image that expands to ``(1, C, *spatial)``."""


def baseline(image: Image, kind: Baseline, sigma: float = 5.0, seed: int | None = 0) -> Image:
    """An image that shows nothing, of the shape of ``image``, ``(B, C, *spatial)``, in normalised intensities.

    - ``"zero"``: 0, the mean of images that are normalised to zero mean.
    - ``"mean"``, ``"minimum"``: of each item's and channel's own intensities. The minimum is air in CT and MR.
    - ``"blur"``: the Gaussian mean around each voxel, of the voxels inside the volume; coarse structure stays.
    - ``"noise"``: Gaussian, of each item's and channel's own mean and standard deviation.
    - a number, or an image of your own.

    ``sigma`` is that of the blur, in voxels; ``seed`` that of the noise, which is the same for all items and on all
    devices; None draws from the global random state. A ValueError where ``kind`` is unknown, not finite or does not
    expand to the image, or ``sigma`` is no finite number above 0.
    """
    check_baseline(kind)
    if not 0 < sigma < math.inf:
        raise ValueError(f"sigma must be a finite number above 0, got {sigma}")
    image = image.detach().as_subclass(Tensor)
    axes = tuple(range(2, image.ndim))
    if isinstance(kind, Tensor):
        try:
            return kind.detach().as_subclass(Tensor).to(image).expand_as(image).clone()
        except RuntimeError as error:
            shape, got = tuple(image.shape), tuple(kind.shape)
            raise ValueError(f"baseline must expand to the image {shape}, got {got}") from error
    if not isinstance(kind, str):
        return torch.full_like(image, kind)
    if kind in ("mean", "minimum"):
        constant = image.mean(axes, keepdim=True) if kind == "mean" else image.amin(axes, keepdim=True)
        return constant.expand_as(image).clone()
    if kind == "blur":
        # MONAI's filter alone would mix in the zeros outside the volume.
        gauss = GaussianFilter(len(axes), sigma).to(image.device)
        return (gauss(image) / gauss(torch.ones_like(image[:1, :1]))).detach()
    if kind == "noise":
        generator = None if seed is None else torch.Generator().manual_seed(seed)
        noise = torch.randn(image.shape[1:], generator=generator).to(image)
        return image.mean(axes, keepdim=True) + image.std(axes, keepdim=True, correction=0) * noise
    return torch.zeros_like(image)


def baselines(image: Image, kinds: Sequence[Baseline], seed: int | None = 0) -> list[Image]:
    """Several of them, each ``"noise"`` with a seed of its own."""
    return [baseline(image, kind, seed=None if seed is None else seed + at) for at, kind in enumerate(kinds)]


def check_baseline(kind: Baseline, name: str = "baseline") -> None:
    """Refuse what is neither one of `BASELINES` nor of finite values, with a ValueError."""
    if isinstance(kind, str):
        check_choice(name, kind, BASELINES)
    else:
        check_finite(torch.as_tensor(kind), name)


def check_baselines(kinds: Sequence[Baseline] | Tensor) -> tuple[Baseline, ...]:
    """The baselines of a distribution; a ValueError where there is none, or one is no baseline."""
    if isinstance(kinds, str) or not len(kinds):
        raise ValueError(f"baselines must be one or more of {', '.join(map(repr, BASELINES))}, got {kinds!r}")
    # A stack of images is (b, C, *spatial).
    images = kinds.unsqueeze(1) if isinstance(kinds, Tensor) else kinds
    for kind in images:
        check_baseline(kind)
    return tuple(images)


def check_at_least(name: str, value: float, least: int) -> None:
    """Refuse a number below ``least``, with a ValueError."""
    if not value >= least:
        raise ValueError(f"{name} must be at least {least}, got {value}")


def check_noise(samples: int, sigma: float) -> None:
    """Refuse less than one sample, and a sigma that is negative or not finite, with a ValueError."""
    check_at_least("samples", samples, 1)
    if not 0 <= sigma < math.inf:
        raise ValueError(f"sigma must be a finite number of at least 0, got {sigma}")


def check_time_limit(time_limit_s: float | None) -> None:
    """Refuse a limit that is not above 0, with a ValueError."""
    if time_limit_s is not None and not time_limit_s > 0:
        raise ValueError(f"time_limit_s must be above 0, got {time_limit_s}")


SIGNS = ("signed", "absolute", "positive")
NEEDS = ("layer", "noise_model", "region")
"""What a method may need: an option ``layer`` or ``noise_model``, or a target that is a `Region`."""


class Score(nn.Module):
    """A target as a function of images: what attribution methods differentiate, perturb and hook.

    From perturbed copies ``(n, C, *spatial)`` of one volume to ``(n,)``, at most ``copies`` at once; ``windows`` says
    that they are of one window on the network's grid, which goes through in one pass. A target that does not give one
    scalar an item is refused with a ValueError in the call.
    """

    def __init__(self, volume: VolumeNetwork, target: Target, copies: int = 1, windows: bool = False) -> None:
        super().__init__()
        self.volume, self.target, self.copies, self.windows = volume, target, copies, windows
        self.notes: dict[str, Any] = {}
        """What a method notes about its map, such as a convergence delta, for the map's metadata."""
        self.place: MetaTensor | None = None
        """The image as it came, for its geometry; None for a tensor without."""

    def forward(self, images: Image) -> Tensor:
        scores = self.target(self.volume.predict(images) if self.windows else self.volume(images))
        if scores.shape != images.shape[:1]:
            raise ValueError(f"target must give one scalar an item, ({len(images)},), got {tuple(scores.shape)}")
        if images.requires_grad and torch.is_grad_enabled() and not scores.requires_grad:
            raise ValueError(f"target must have a gradient for this method, got {self.target}, which has none")
        return scores


class Attributor(ABC):
    """A method that maps how much each voxel of an image contributes to a target of a segmentation.

    The network and the image come back untouched. The network runs in evaluation mode; where a volume does not fit
    ``memory_gb``, in tiles (`VolumeNetwork`). Every method takes the arguments below. Options of several methods are
    the ``baseline`` that they compare with or hide voxels by (see `baseline`), the ``seed`` of what is drawn (None
    draws from the global random state), ``progress``, which shows a bar, and ``time_limit_s``, seconds an item, after
    which the best map so far comes back (see `batches`). Methods document what they add.

    Args:
        network: a segmentation network, ``(B, C, *spatial)`` to logits ``(B, K, *spatial)``, on the image's device.
        sign: ``"signed"`` keeps the method's values, ``"absolute"`` their magnitude, ``"positive"`` what speaks for the
            target; taken of each channel, which are then summed. None for the method's own default.
        memory_gb: what a pass may take, in 1e9 bytes, which also sets how many copies of a volume go at once;
            None for 80% of the free CUDA memory or half the free RAM.
        precision: ``"fp32"``, or ``"auto"``, ``"bf16"``, ``"fp16"``, which are faster, see `resolve_precision`; passes
            with gradients are in fp32 where that would be fp16.

    Shape:
        called with an image ``(B, C, *spatial)`` and a target, to a `MetaTensor` ``(B, 1, *spatial)``, float32, with
        the image's geometry. Its ``meta["attribution"]`` holds a dictionary for each item: the method's name, its sign
        and its notes; ``"memory_gb": "not kept"`` for a network without a ``stride``.

    Raises:
        ValueError: when an option is out of range; in the call, when the image holds NaN or infinite voxels, the target
            is of another number of items or does not give one scalar an item, or an image as baseline does not expand
            to the volume.
    """

    name: ClassVar[str]
    """By which `register` makes the class known."""
    needs: ClassVar[tuple[str, ...]] = ()
    """Some of `NEEDS`."""
    control: ClassVar[bool] = False
    """Whether the map asks no network and is what methods have to beat."""
    default_sign: ClassVar[str] = "absolute"
    clips: ClassVar[bool] = False
    """Whether the method clips gradients within the network, see `VolumeNetwork`."""
    differentiates: ClassVar[bool] = True
    """Whether the method asks for gradients of the network; if not, more copies of a volume fit the memory."""
    contributes: bool = False
    """Whether values are contributions against a baseline, rather than changes of the score per intensity."""

    def __init__(
        self, network: nn.Module, sign: str | None = None, memory_gb: float | None = None, precision: str = "fp32"
    ) -> None:
        self.sign = self.default_sign if sign is None else sign
        check_choice("sign", self.sign, SIGNS)
        self.network = network
        self.volume = VolumeNetwork(network, memory_gb, precision, self.clips)

    def __call__(self, image: Image, target: Target) -> MetaTensor:
        plain = image.as_subclass(Tensor).detach().float()
        check_finite(plain, "image")
        check_items(target, len(plain))
        maps, notes = [], []
        for index, item in enumerate(plain.split(1)):
            with attributing(self.network), without_tf32():
                item = item.clone().requires_grad_()
                score = self.score(item, of_item(target, index))
                score.place = image if isinstance(image, MetaTensor) else None
                values = self.attribute(item, score)
            maps.append(signed(values.detach().float(), self.sign))
            notes.append({"method": self.name, "sign": self.sign, **score.notes})
        result = MetaTensor(torch.cat(maps))
        if isinstance(image, MetaTensor):
            result.copy_meta_from(image)
        result.meta["attribution"] = notes
        return result

    def score(self, image: Image, target: Target) -> Score:
        """What the method explains of one item. Measures what a pass takes, which hooks would change."""
        score = Score(self.volume, target, self.volume.copies(image, self.differentiates))
        if not self.volume.bounded:
            score.notes["memory_gb"] = "not kept"
        return score

    def attribute(self, image: Image, score: Score) -> Tensor:
        """The map of one item, checked."""
        score.notes |= self.check(image, score.volume)
        return self.maps(image, score)

    def check(self, image: Image, volume: VolumeNetwork) -> dict[str, Any]:
        """Refuse with a ValueError a network of which the map would be wrong; else give the notes of every map of it.

        Methods that are made of many maps (`SmoothGrad`, `VoxelwiseMean`) check once, and call ``maps`` often.
        """
        return {}

    @abstractmethod
    def maps(self, images: Image, score: Score) -> Tensor:
        """The map of one item, ``(1, C, *spatial)`` to the same or ``(1, 1, *spatial)``, with its sign.

        The images require gradients (`attributing`). Notes about the map go into ``score.notes``. Gradient methods get
        several images at once.
        """


def signed(values: Tensor, sign: str) -> VoxelMap:
    """The sum over channels, ``(B, 1, *spatial)``, of the values, their magnitude or their positive part."""
    parts = {"signed": values, "absolute": values.abs(), "positive": values.clamp_min(0)}
    return parts[sign].sum(dim=1, keepdim=True)


@contextmanager
def seeded(seed: int | None, device: torch.device) -> Iterator[None]:
    """Draw from a seed within the block and leave the global random state as it was; None draws from that state."""
    if seed is None:
        yield
        return
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield


def batches(
    planned: int, at_once: int, name: str, notes: dict[str, Any], progress: bool = False, limit_s: float | None = None
) -> Iterator[range]:
    """Go through ``planned`` copies in ranges of at most ``at_once``, which fit the memory.

    With a limit, the first copy goes through alone and in any case, the others as many at once as should end in time,
    and none is begun after it. ``notes`` gets ``planned`` and ``evaluated``, and where the limit ended it
    ``stopped_after_s``, with a warning. The bar, shown with ``progress``, and the warning give the method's name.
    """
    start, done = time.monotonic(), 0
    with tqdm(total=planned, desc=name, disable=not progress) as bar:
        while done < planned:
            count, seconds = at_once, time.monotonic() - start
            if limit_s is not None:
                if done and seconds >= limit_s:
                    notes["stopped_after_s"] = seconds
                    logger.warning("%s: stopped after %.1f s with %d of %d copies", name, seconds, done, planned)
                    break
                # A batch that fills the memory may take many times the limit.
                count = min(count, max(1, int((limit_s - seconds) * done / max(seconds, 1e-6))))
            batch = range(done, min(done + count, planned))
            yield batch
            done = batch.stop
            bar.update(len(batch))
    notes |= {"planned": planned, "evaluated": done}


def probe_side(volume: VolumeNetwork) -> int:
    """The side of a block that shows a network's layers: two voxels on its coarsest grid, for instance norm."""
    return volume.stride * max(2, -(-PROBE_SIDE // volume.stride))


class Call(NamedTuple):
    """One call of a module."""

    path: str
    module: nn.Module
    inputs: tuple[Any, ...]
    options: dict[str, Any]
    output: Any


@contextmanager
def watching(
    modules: Mapping[str, nn.Module],
    leave: Callable[[Call], object],
    enter: Callable[[str, nn.Module], object] = lambda path, module: None,
) -> Iterator[None]:
    """Watch each call of some modules, by path, within the block; the hooks are gone after it, also when it fails.

    What ``leave``, called when a call ends, returns takes the place of the output, if it is not None. ``enter`` is
    called when a call begins.
    """

    def left(path: str, module: nn.Module, inputs: tuple[Any, ...], options: dict[str, Any], output: Any) -> object:
        return leave(Call(path, module, inputs, options, output))

    def entered(path: str, module: nn.Module, inputs: tuple[Any, ...]) -> None:
        enter(path, module)

    with ExitStack() as stack:
        for path, module in modules.items():
            stack.enter_context(module.register_forward_pre_hook(partial(entered, path)))
            stack.enter_context(module.register_forward_hook(partial(left, path), with_kwargs=True))
        yield


def outputs_of(layer: nn.Module, run: Callable[[], Tensor]) -> tuple[list[Tensor], Tensor]:
    """What a layer gives in each of its calls while something runs, and what that gives."""
    calls: list[Call] = []
    with watching({"": layer}, calls.append):
        result = run()
    return [call.output for call in calls], result


Method = TypeVar("Method", bound=type[Attributor])

_CLASSES: dict[str, type[Attributor]] = {}
METHODS: Mapping[str, type[Attributor]] = MappingProxyType(_CLASSES)
"""The registered classes by ``name``, to read only."""


def register(method: Method) -> Method:
    """Make a method known by its class's ``name``; a decorator.

    A ValueError where the class has no name of its own in lower-case words with underscores, another class has the
    name, or one of its ``needs`` is not one of `NEEDS`.
    """
    name = str(vars(method).get("name", ""))
    if not re.fullmatch(r"[a-z][a-z0-9]*(_[a-z0-9]+)*", name):
        raise ValueError(f"name of {method.__name__} must be lower-case words with underscores, got {name!r}")
    known = _CLASSES.get(name, method)
    # A module that is imported again defines its class again.
    if (known.__module__, known.__qualname__) != (method.__module__, method.__qualname__):
        raise ValueError(f"name of {method.__name__} must be unused, got {name!r}, which {known.__module__} has")
    for need in method.needs:
        check_choice(f"needs of {method.__name__}", need, NEEDS)
    _CLASSES[name] = method
    return method


def method_names() -> tuple[str, ...]:
    """The names that `make_attributor` takes."""
    return tuple(METHODS)


def make_attributor(name: str, network: nn.Module, **options: Any) -> Attributor:
    """The method of that name over a segmentation network, ``(B, C, *spatial)`` to logits ``(B, K, *spatial)``.

    A method that ``needs`` a ``noise_model`` must be given it. A ValueError where there is no such method or it refuses
    an option, a TypeError where it has no such option.
    """
    if name not in METHODS:
        close = get_close_matches(str(name).lower(), METHODS)
        hint = f" (close: {', '.join(map(repr, close))})" if close else ""
        raise ValueError(f"method must be one of {', '.join(map(repr, METHODS))}, got {name!r}{hint}")
    return METHODS[name](network, **options)
