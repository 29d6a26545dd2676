"""Whether a map follows its network: infidelity, maximum sensitivity, and weights made random."""

import copy
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeAlias

import torch
from monai.data import MetaTensor
from torch import Tensor, nn

from unoise_monai.attribution.base import watching
from unoise_monai.attribution.targets import Target
from unoise_monai.checks import check_finite
from unoise_monai.metrics.overlap import check_grid, check_positive, rank_correlation, structural_similarity
from unoise_monai.networks.weights import evaluating
from unoise_monai.types import Image, VoxelMap


@dataclass(frozen=True)
class GaussianPerturbation:
    """Gaussian noise on every voxel, or in place of what a random box holds.

    Args:
        items: of the batch.
        sigma: in units of normalised intensity.
        generator: draws, whatever the device of the images.
        box: None, or the voxels a side of the box; cut to shorter sides of the volume.

    Shape:
        ``(items * copies, C, *spatial)``, the copies of an item in a row, to the perturbation ``I`` and ``images - I``,
        as Captum wants them.

    Raises:
        ValueError: when ``sigma`` is not above 0, or ``box`` below 1.
    """

    items: int
    sigma: float
    generator: torch.Generator
    box: int | None = None

    def __post_init__(self) -> None:
        check_positive("sigma", self.sigma)
        if self.box is not None and self.box < 1:
            raise ValueError(f"box must be at least 1, got {self.box}")

    def __call__(self, images: Image) -> tuple[Tensor, Image]:
        noise, inside = draw_copies(images, self.items, self.draw).unbind(1)
        perturbation = noise if self.box is None else torch.where(inside > 0, images - noise, 0.0)
        return perturbation, images - perturbation

    def draw(self, shape: torch.Size) -> Tensor:
        """Noise, and 1 where the box is, ``(2, C, *spatial)``."""
        device = self.generator.device
        noise = self.sigma * torch.randn(shape, generator=self.generator, device=device)
        inside = torch.zeros_like(noise)
        if self.box is not None:
            place = [slice(None)]
            for side in shape[1:]:
                length = min(self.box, side)
                first = int(torch.randint(side - length + 1, (), generator=self.generator, device=device))
                place.append(slice(first, first + length))
            inside[tuple(place)] = 1
        return torch.stack([noise, inside])


def draw_copies(images: Image, items: int, draw: Callable[[torch.Size], Tensor]) -> Tensor:
    """A draw for each copy of an item, the same for every item: one by one, so that no pass size changes them."""
    drawn = torch.stack([draw(images.shape[1:]) for _ in range(len(images) // items)]).to(images.device)
    return drawn.repeat(items, *[1] * (drawn.ndim - 1))


Score: TypeAlias = Callable[[Image], Tensor]


class InfidelityResult(NamedTuple):
    """Of one map, for each item."""

    value: Tensor
    """Mean squared difference between the score's change and what the map at its best scale predicts, ``(B,)``."""
    squared_change: Tensor
    """Mean squared change of the score, ``(B,)``: the value of a map that predicts nothing."""

    @property
    def unexplained(self) -> Tensor:
        """``value / squared_change``, ``(B,)`` in [0, 1]: 0 predicts every change, 1 none; NaN where none happened.

        A map that has nothing to do with the score is expected at ``1 - 1 / samples``, since its scale is fitted.
        """
        return self.value / self.squared_change


def infidelity(
    score: Score,
    image: Image,
    attribution: VoxelMap,
    sigma: float,
    samples: int = 50,
    *,
    generator: torch.Generator,
    box: int | None = None,
    copies: int = 1,
) -> InfidelityResult:
    """Infidelity of one map: ``E[(scale * I . map - (score(x) - score(x - I)))^2]``.

    Yeh et al., "On the (in)fidelity and sensitivity of explanations", 2019, Definition 2.1; Fazel et al.,
    "Interpretability of U-Net model in the segmentation of medical images", Eq. 3. The scale is the one that fits best,
    so maps of any unit compare. It may be negative: a map is not judged by its overall sign. A map of zeros predicts
    nothing: its ``unexplained`` is 1; a constant map predicts by the sum of ``I``.

    The perturbations go up and down. A map without signs, such as the absolute gradient, Grad-CAM or a learned
    importance, comes near 1, however right its places are, unless the score answers nearly everywhere in one direction.
    Contributions against a baseline have to be divided by the voxel's distance to it (`Attributor.contributes`). A
    small ``sigma`` favours gradients by construction; a large one leaves the range in which a map, whose prediction is
    linear in ``I``, could predict much.

    Args:
        score: from images ``(n, C, *spatial)`` to one number an item, ``(n,)``. Where it is not a module, its network
            has to be in evaluation mode.
        image: ``(B, C, *spatial)``.
        attribution: ``(B, 1, *spatial)``, in the sense of a gradient (change of the score per intensity). It counts for
            every channel of the image alike.
        sigma: of the Gaussian noise, in units of normalised intensity.
        samples: perturbations of an item, the same ones for each; with one clean pass, all that is run.
        generator: draws them, so one generator state means the same perturbations, whatever ``copies``.
        box: None adds noise to every voxel. A number sets a random box with that many voxels a side to noise, since
            what is drawn for each voxel alone averages out over a volume.
        copies: perturbed copies of an item in one pass. A score made for the items of a batch, such as a target with a
            region for each, serves with 1.

    Raises:
        ValueError: when ``sigma`` is not above 0, ``samples`` below 2 (the scale would fit any), ``box`` or ``copies``
            below 1, the map not one channel on the image's grid, or the score not one number an item; when image, map
            or score hold NaN or infinite values.
    """
    maps = {"map": attribution}
    return infidelities(score, image, maps, sigma, samples, generator=generator, box=box, copies=copies)["map"]


def infidelities(
    score: Score,
    image: Image,
    attributions: Mapping[str, VoxelMap],
    sigma: float,
    samples: int = 50,
    *,
    generator: torch.Generator,
    box: int | None = None,
    copies: int = 1,
) -> dict[str, InfidelityResult]:
    """`infidelity` of several maps of one image against the same perturbations, in the passes of one."""
    for name, value, least in (("samples", samples, 2), ("copies", copies, 1)):
        if value < least:
            raise ValueError(f"{name} must be at least {least}, got {value}")
    perturb = GaussianPerturbation(len(image), sigma, generator, box)
    maps = {name: checked_map(attribution, image) for name, attribution in attributions.items()}
    check_finite(image, "image")
    image = image.detach().as_subclass(Tensor)
    changes: list[Tensor] = []
    predictions: dict[str, list[Tensor]] = {name: [] for name in maps}
    with evaluating(score) if isinstance(score, nn.Module) else torch.no_grad():
        clean = _scores(score, image)[:, None]
        for first in range(0, samples, copies):
            count = min(copies, samples - first)
            perturbation, perturbed = perturb(image.repeat_interleave(count, dim=0))
            changes.append(clean - _scores(score, perturbed).view(-1, count))
            perturbation = perturbation.double().sum(dim=1, keepdim=True).unflatten(0, (len(image), count))
            for name, values in maps.items():
                predictions[name].append((perturbation * values[:, None]).flatten(2).sum(dim=2))
    change = torch.cat(changes, dim=1)
    squared_change = change.square().mean(dim=1)
    results = {}
    for name, parts in predictions.items():
        predicted = torch.cat(parts, dim=1)
        # By least squares; 0 of a map of zeros.
        scale = (predicted * change).sum(dim=1, keepdim=True) / predicted.square().sum(dim=1, keepdim=True)
        error = (scale.nan_to_num(0.0) * predicted - change).square().mean(dim=1)
        results[name] = InfidelityResult(error.minimum(squared_change), squared_change)
    return results


def _scores(score: Score, images: Image) -> Tensor:
    scores = score(images)
    if scores.shape != images.shape[:1]:
        raise ValueError(f"score must give one number an item, ({len(images)},), got {tuple(scores.shape)}")
    check_finite(scores, "score")
    return scores.detach().as_subclass(Tensor).double()


def checked_map(attribution: VoxelMap, image: Image, name: str = "attribution") -> VoxelMap:
    """A map as a plain float64 tensor; a ValueError when it is not finite or not one channel on the image's grid."""
    check_grid(name, attribution, image)
    check_finite(attribution, name)
    # Squares of small values, and differences of large ones, need the digits.
    return attribution.detach().as_subclass(Tensor).double()


def max_sensitivity(
    attributor: Callable[[Image, Target], VoxelMap],
    image: Image,
    target: Target,
    radius: float,
    samples: int = 10,
    *,
    generator: torch.Generator,
) -> Tensor:
    """The largest change of the map over random small changes of the image, relative to the map, ``(B,)``.

    Yeh et al., "On the (in)fidelity and sensitivity of explanations", 2019, Definition 3.1; Fazel et al.,
    "Interpretability of U-Net model in the segmentation of medical images", Eq. 4: ``max |map(y) - map(x)|`` over ``y``
    with ``|y - x| <= radius``, divided by ``|map(x)|``, so that maps of any unit compare. The norm of the maps is the
    Euclidean one, that of the images the maximum, whose ball the ``y`` are drawn from evenly: the maximum over samples
    is a lower bound of the one over the ball. 0 is a map that does not change; NaN is a map of zeros.

    The target stays that of the unperturbed image. A method that draws from the global random state adds its own noise
    to the score; give it a seed.

    Args:
        attributor: from an image and a target to a map; called ``samples + 1`` times, with the geometry of ``image``.
        image: ``(B, C, *spatial)``.
        target: what the map explains.
        radius: in units of normalised intensity.
        samples: perturbations, the same ones for each item.
        generator: draws them, so one generator state means the same perturbations for every method.

    Raises:
        ValueError: when ``radius`` is not above 0, ``samples`` below 1, or a map not one channel on the image's grid;
            when image or map hold NaN or infinite values.
    """
    check_positive("radius", radius)
    if samples < 1:
        raise ValueError(f"samples must be at least 1, got {samples}")
    check_finite(image, "image")
    plain = image.detach().as_subclass(Tensor)

    def explain(images: Image) -> VoxelMap:
        placed = MetaTensor(images).copy_meta_from(image) if isinstance(image, MetaTensor) else images
        with torch.enable_grad():
            return checked_map(attributor(placed, target), images, "the attributor's map")

    def noise(shape: torch.Size) -> Tensor:
        return radius * (2 * torch.rand(shape, generator=generator, device=generator.device) - 1)

    original = explain(plain)
    norm = original.flatten(1).norm(dim=1)
    largest = torch.zeros_like(norm)
    for _ in range(samples):
        change = explain(plain + draw_copies(plain, len(plain), noise)) - original
        largest = largest.maximum(change.flatten(1).norm(dim=1))
    return (largest / norm).masked_fill(norm == 0, torch.nan)


Layer: TypeAlias = list[tuple[str, nn.Module]]
"""Modules and their names: one with a weight of two or more axes, and the norms and activations that follow it."""


def weighted_layers(network: nn.Module, called: Mapping[str, None]) -> list[Layer]:
    """The layers of a network, the last first.

    Args:
        network: a network.
        called: names of its modules in the order of the pass. What has parameters and is not called itself, such as a
            projection within an attention, goes with the first layers.

    Raises:
        ValueError: when no module has parameters.
    """
    modules = dict(network.named_modules())
    names = [name for name in modules if name not in called] + [name for name in called if name in modules]
    layers: list[Layer] = []
    for name in names:
        module = modules[name]
        own = list(module.parameters(recurse=False))
        if own or (list(module.buffers(recurse=False)) and hasattr(module, "reset_parameters")):
            if not layers or any(parameter.ndim > 1 for parameter in own):
                layers.append([])
            layers[-1].append((name, module))
    if not layers:
        raise ValueError(f"network must have weights to randomise, got none in {type(network).__name__}")
    return layers[::-1]


@contextmanager
def order_of_calls(network: nn.Module) -> Iterator[dict[str, None]]:
    """The names of its modules, in the order in which they are first called within the block."""
    called: dict[str, None] = {}
    with watching(dict(network.named_modules()), lambda call: None, lambda name, _: called.setdefault(name)):
        yield called


@contextmanager
def kept_weights(network: nn.Module) -> Iterator[None]:
    """Weights and buffers come back exactly."""
    tensors = [*network.parameters(), *network.buffers()]
    saved = [tensor.detach().clone() for tensor in tensors]
    try:
        yield
    finally:
        with torch.no_grad():
            for tensor, values in zip(tensors, saved, strict=True):
                tensor.copy_(values)


def randomise(layer: Layer, seed: int) -> None:
    """New weights of a layer, in place, from its modules' own ``reset_parameters``.

    That of a batch norm gives the identity, running statistics included. Parameters of a module without one are drawn
    from a normal distribution of the same root mean square. All are drawn on the CPU, the same for any device.
    """
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        # ``torch.manual_seed`` would seed CUDA too, whose state is not restored here.
        torch.default_generator.manual_seed(seed)
        for _, module in layer:
            if hasattr(module, "reset_parameters"):
                fresh: Any = copy.deepcopy(module).cpu()
                fresh.reset_parameters()
                for tensor, value in zip(_own(module), _own(fresh), strict=True):
                    tensor.copy_(value)
            else:
                for parameter in module.parameters(recurse=False):
                    scale = parameter.square().mean().sqrt().cpu()
                    parameter.copy_(scale * torch.randn(parameter.shape))


def _own(module: nn.Module) -> list[Tensor]:
    """A module's own parameters and buffers, without those of its children."""
    return [*module.parameters(recurse=False), *module.buffers(recurse=False)]


class RandomisationResult(NamedTuple):
    """The map of a network that is random from its last layer down, compared with the map of the trained one."""

    layers: tuple[str, ...]
    """Down to which layer the network was random, one name a step, from the last layer to the first."""
    correlation: Tensor
    """Spearman's rank correlation of the maps' magnitudes, ``where`` they are compared, ``(steps, B)``."""
    ssim: Tensor
    """Structural similarity of the maps' magnitudes, each scaled to [0, 1], ``(steps, B)``."""
    unchanged: Tensor
    """Whether the correlation is above ``limit`` when all weights are random, ``(B,)``, bool."""


def randomisation(
    attributor: Callable[[Image, Target], VoxelMap],
    image: Image,
    target: Target,
    where: VoxelMap | None,
    *,
    seed: int,
    network: nn.Module | None = None,
    steps: int | None = None,
    limit: float = 0.5,
) -> RandomisationResult:
    """Compare a map with those of the same network, its weights made random layer by layer, from the last to the first.

    Adebayo et al., "Sanity checks for saliency maps", 2018, section 3.1, cascading randomisation. A map that stays as
    it was shows the image, not the network.

    Far from the target of a segmentation every network's gradient fades. Over the whole volume that alone can keep the
    correlation above 0.5, so it is taken ``where`` the target lies, such as in the segmented voxels. SSIM is of the
    whole volume, which its windows need.

    A layer is a convolution with the norms and activations that follow it in the pass (`weighted_layers`); its modules'
    own initialisation makes it random (`randomise`). A map without contrast counts as correlated by 0, two such by 1.

    Args:
        attributor: from an image and a target to a map.
        image: ``(B, C, *spatial)``.
        target: what the map explains, made from the logits of the trained network.
        where: the voxels whose ranks are compared, ``(B, 1, *spatial)``, bool; None for all.
        seed: of the random weights; those of a layer don't depend on ``steps`` or the device.
        network: whose weights are made random; the attributor's ``network`` by default.
        steps: how many maps to make, of about equally many layers each; None for one a layer.
        limit: of the rank correlation, above which a map is called unchanged.

    Raises:
        TypeError: when ``network`` is not given and the attributor has none.
        ValueError: when ``steps`` is below 1, ``where`` holds no voxel of an item, the network has no weights, or a map
            is not one channel on the image's grid or not finite.
    """
    if steps is not None and steps < 1:
        raise ValueError(f"steps must be at least 1, got {steps}")
    if where is not None:
        where = checked_map(where, image, "where").bool()
        if not bool(where.flatten(1).any(dim=1).all()):
            raise ValueError("where must hold at least one voxel of every item, got an item without")
    network = getattr(attributor, "network", None) if network is None else network
    if not isinstance(network, nn.Module):
        raise TypeError(f"network must be given where the attributor has none, got {type(network).__name__}")

    def explain() -> VoxelMap:
        return checked_map(attributor(image, target), image, "the attributor's map").abs()

    with order_of_calls(network) as called:
        original = explain()
    layers = weighted_layers(network, called)
    names, correlations, similarities = [], [], []
    with kept_weights(network):
        for step in torch.arange(len(layers)).tensor_split(min(steps or len(layers), len(layers))):
            for index in step.tolist():
                randomise(layers[index], seed + index)
            changed = explain()
            names.append(layers[step[-1]][0][0] or type(network).__name__)
            correlations.append(rank_correlation(original, changed, where))
            similarities.append(structural_similarity(original, changed))
    return RandomisationResult(
        tuple(names), torch.stack(correlations), torch.stack(similarities), correlations[-1] > limit
    )
