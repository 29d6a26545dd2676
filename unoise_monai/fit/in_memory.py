"""A noise model for a network in memory, from batches of tensors: 2-D or 3-D, of any channels; nothing is written."""

import copy
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from itertools import chain, islice, repeat
from typing import Any

import torch
from monai.utils import set_determinism
from torch import Tensor, nn
from torch.nn import functional as F

from unoise_monai.checks import check_choice
from unoise_monai.fit.checking import CHECKED, Tell, UnfitModel, check_network, measure_noise, time_step
from unoise_monai.fit.loading import TrainedModel
from unoise_monai.fit.models import Model
from unoise_monai.inference.memory import AutocastInferer
from unoise_monai.losses.noise import UNoiseLoss, VisibleShare, VisibleShareLoss
from unoise_monai.networks.outputs import ClassLogits
from unoise_monai.networks.unet import UNet
from unoise_monai.networks.weights import evaluating, segmentation
from unoise_monai.types import Image, LabelMap
from unoise_monai.unoise import ExplainedSegmenter, UNoise

Batch = Mapping[str, Any]
"""``image`` ``(B, C, *spatial)`` and ``label``, class indices ``(B, 1, *spatial)``, which may be missing."""
SPARE = 0.8
"""The share of the minutes that the planned steps take; what varies has the rest."""
FEWEST_STEPS = 10
"""Which a one-cycle schedule needs to rise and fall."""


class AnySize(nn.Module):
    """A network for images of any size: sides are padded to multiples of its stride, and its output is cut back.

    Args:
        network: gives one tensor on its input's grid.

    Shape:
        ``(B, C, *spatial)`` to ``(B, K, *spatial)``; the last voxels are repeated at the end of each side.
    """

    def __init__(self, network: ClassLogits | UNet) -> None:
        super().__init__()
        self.network, self.stride, self.halo = network, network.stride or 1, network.halo

    def forward(self, x: Image) -> Tensor:
        ends = [n for side in reversed(x.shape[2:]) for n in (0, -side % self.stride)]
        logits: Tensor = self.network(F.pad(x, ends, "replicate") if any(ends) else x)
        for axis, side in enumerate(x.shape[2:], 2):
            logits = logits.narrow(axis, 0, side)
        return logits


def fit_network(
    network: nn.Module | TrainedModel,
    batches: Iterable[Batch],
    minutes: float = 10.0,
    objective: str = "visible",
    sigma_max: float | None = None,
    hidden_value: float | None = None,
    learning_rate: float = 3e-3,
    device: str | torch.device | None = None,
    tell: Tell = print,
) -> ExplainedSegmenter:
    """Train a noise model for a copy of a network; the network itself comes back untouched.

    Args:
        network: any segmentation network, or a model that was loaded; what its output is is found out, see
            `check_network`. One with logits of regions has to be a `ClassLogits`, or come with its model.
        batches: a DataLoader, or a list. Without labels the network's own segmentation is the target.
        minutes: that training takes, after the checks.
        objective: ``"visible"`` or ``"noise"``, see `VisibleShare` and `UNoise`.
        sigma_max: standard deviation of the noise, in the images' units; by default as `measure_noise` finds it.
        hidden_value: what hidden voxels become, in the same units; by default the mean of the first batches.
        learning_rate: the highest of the one-cycle schedule.
        device: where it runs, and stays; a GPU where there is one by default.
        tell: takes the lines that say what was found.

    Raises:
        UnfitModel: see `check_network`; or when the network segments nothing of what is labelled in the first batches.
        ValueError: when an argument is out of its range, ``batches`` is empty or can be gone through only once, or the
            images are not 2-D or 3-D.
    """
    check_choice("objective", objective, ("visible", "noise"))
    if not minutes > 0:
        raise ValueError(f"minutes must be above 0, got {minutes}")
    if isinstance(batches, Iterator):
        raise ValueError(f"batches must be a DataLoader or a list, for many epochs, got {type(batches).__name__}")
    set_determinism(seed=0)
    device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    start = time.perf_counter()
    first = list(islice(batches, CHECKED))
    if not first:
        raise ValueError("batches must hold at least one, got none")
    seconds_a_batch = (time.perf_counter() - start) / len(first)
    image = _tensor(first[0]["image"], device)
    if image.ndim not in (4, 5):
        raise ValueError(f"images must be (B, C, *spatial), 2-D or 3-D, got {tuple(image.shape)}")
    name = type(network).__name__
    found = network if isinstance(network, TrainedModel) else TrainedModel(name, Model("."), network, None)
    found = replace(found, network=copy.deepcopy(found.network).to(device))
    utility = AnySize(check_network(found, image[:1], tell))
    noise_model = AnySize(UNet(image.ndim - 2, image.shape[1], 1, depth=3, channel_factor=4)).to(device)
    segmenter = ExplainedSegmenter(utility, noise_model)
    pairs = [_pair(batch, utility, device) for batch in first]
    if sigma_max is None:
        sigma_max = _noise(utility, pairs)
    if hidden_value is None:
        hidden_value = float(torch.cat([image.flatten() for image, _ in pairs]).mean())
    seconds = seconds_a_batch + time_step(utility, noise_model, pairs[0], sigma_max, 1)
    steps = max(FEWEST_STEPS, int(60 * minutes * SPARE / seconds))
    tell(f"training: noise of {sigma_max:.3g}, hidden voxels {hidden_value:.3g}; {steps} steps of {seconds:.2g} s")
    wrapped: nn.Module = UNoise(segmenter, 0.0, sigma_max)
    loss_function: nn.Module = UNoiseLoss(0.01)
    if objective == "visible":
        wrapped, loss_function = VisibleShare(segmenter, hidden_value, sigma_max), VisibleShareLoss()
    run, optimizer = AutocastInferer(), torch.optim.Adam(noise_model.parameters(), learning_rate)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, learning_rate, total_steps=steps, pct_start=0.2)
    wrapped.train()
    end = time.perf_counter() + 60 * minutes
    for batch in islice(chain.from_iterable(repeat(batches)), steps):
        if time.perf_counter() > end:
            tell("training: the minutes are over before the last step")
            break
        image, label = _pair(batch, utility, device)
        optimizer.zero_grad(set_to_none=True)
        loss_function(run(image, wrapped), label).backward()
        optimizer.step()
        schedule.step()
    segmenter.zero_grad(set_to_none=True)
    return segmenter.eval()


def _tensor(values: Any, device: torch.device) -> Tensor:
    return torch.as_tensor(values).as_subclass(Tensor).to(device).float()


def _pair(batch: Batch, utility: nn.Module, device: torch.device) -> tuple[Image, LabelMap]:
    """A batch's images and its classes, by people or by the network."""
    image = _tensor(batch["image"], device)
    if batch.get("label") is not None:
        return image, _tensor(batch["label"], device).round().long()
    with evaluating(utility):
        return image, segmentation(utility(image))


def _noise(utility: nn.Module, pairs: list[tuple[Image, LabelMap]]) -> float:
    """The noise at which Dice falls to half, on the batches with something in them."""
    pairs = [(image, label) for image, label in pairs if label.any()]
    with evaluating(utility):
        logits = [utility(image) for image, _ in pairs]
    if not any(bool((segmentation(each)[label > 0] > 0).any()) for each, (_, label) in zip(logits, pairs, strict=True)):
        raise UnfitModel("network must segment something of what is labelled in the first batches, got nothing")
    return measure_noise(utility, pairs, max(2, logits[0].shape[1]))
