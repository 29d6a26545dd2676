"""Attributions that hide parts of an image and look at the score: what their loops share.

Captum's loops take a fixed number of copies a pass, in order, to the end; here that number follows the memory, the
order spreads over the volume, and a time limit returns the map so far.
"""

from __future__ import annotations

import logging
import time
from abc import abstractmethod
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from unoise_monai.attribution.base import Attributor, Score, seeded
from unoise_monai.attribution.baselines import Baseline, baseline, check_baseline
from unoise_monai.types import Image

logger = logging.getLogger(__name__)


class PerturbationAttributor(Attributor):
    """An attribution from the scores of copies of the image of which parts are hidden: no pass back.

    Positive is what speaks for the target: hiding it lowers the score. The target needs no gradient, so that it may be
    a measure such as `HardDice`.

    Args:
        network: see `Attributor`.
        baseline: what hidden voxels become, see `baseline`; an image of your own gives other settings.
        seed: of what is drawn; None draws from the global random state.
        progress: show a bar of the perturbed copies.
        time_limit_s: seconds an item after which no further copy is begun. The map is then that of the copies so far,
            drawn in an order that spreads over the volume; ``notes`` hold ``stopped_after_s``, and a warning is logged.
            The first copy goes through alone, the others as many at once as should end in time.
        **options: see `Attributor`.

    ``notes`` of the map hold how many copies were ``planned`` and ``evaluated``.

    Raises:
        ValueError: when ``baseline`` is none or ``time_limit_s`` not above 0; in the call, when an image as baseline
            does not expand to the volume.
    """

    differentiates = False
    default_sign = "signed"

    def __init__(
        self,
        network: nn.Module,
        baseline: Baseline = "zero",
        seed: int | None = 0,
        progress: bool = False,
        time_limit_s: float | None = None,
        **options: Any,
    ) -> None:
        super().__init__(network, **options)
        check_baseline(baseline)
        if time_limit_s is not None and not time_limit_s > 0:
            raise ValueError(f"time_limit_s must be above 0, got {time_limit_s}")
        self.baseline, self.seed, self.progress, self.time_limit_s = baseline, seed, progress, time_limit_s

    def attribute(self, image: Image, score: Score) -> Tensor:
        with torch.no_grad(), seeded(self.seed, image.device):
            plain = image.detach()
            return self.perturb(plain, baseline(plain, self.baseline, seed=self.seed), score)

    @abstractmethod
    def perturb(self, image: Image, hidden: Image, score: Score) -> Tensor:
        """The map of one item, ``(1, 1, *spatial)``; ``hidden`` is what the image's voxels become, of its shape.

        Called without gradients, and with the random state seeded.
        """

    def batches(self, planned: int, score: Score) -> Iterator[range]:
        """The numbers of ``planned`` copies, as many at once as fit memory and time; the first in any case."""
        start, done = time.monotonic(), 0
        with tqdm(total=planned, desc=self.name, disable=not self.progress) as bar:
            while done < planned:
                count, seconds = score.copies, time.monotonic() - start
                if self.time_limit_s is not None:
                    if done and seconds >= self.time_limit_s:
                        score.notes["stopped_after_s"] = seconds
                        said = "%s: stopped after %.1f s with %d of %d copies"
                        logger.warning(said, self.name, seconds, done, planned)
                        break
                    # All that fit the memory may be all there are, and take many times the limit.
                    left = self.time_limit_s - seconds
                    count = min(count, max(1, int(left * done / max(seconds, 1e-6)))) if done else 1
                batch = range(done, min(done + count, planned))
                yield batch
                done = batch.stop
                bar.update(len(batch))
        score.notes |= {"planned": planned, "evaluated": done}
