"""One copy of the network a process, each on its own part of the batch."""

from __future__ import annotations

import torch.distributed as dist
from ignite.engine import Engine, Events
from monai.engines import SupervisedTrainer
from torch import nn
from torch.nn.parallel import DistributedDataParallel

RUNNING_STATISTICS = ("running_mean", "running_var")


def parallelise(trainer: SupervisedTrainer) -> None:
    """Let a trainer's network learn from the batches of all ranks at once.

    Gradients are averaged over the ranks (`DistributedDataParallel`), so that all keep the same weights, which are rank
    0's from the start. With a loss that is a mean over items, each step is that of one process with the global batch.
    ``trainer.network`` is wrapped; the networks inside, which the checkpoints and the validation hold, stay plain, and
    no weight's name gets a ``module.``.

    Batch norm in training mode takes its statistics over the global batch where the network lies on a GPU
    (`SyncBatchNorm`). That layer has no CPU version: there each rank normalises its own part, and the running
    statistics, which differ then, are averaged at the end of each epoch, before the validation.

    Args:
        trainer: its network lies on this rank's device, and some of its parameters need gradients.

    Raises:
        RuntimeError: when there is no process group.
    """
    if not dist.is_initialized():
        raise RuntimeError("data-parallel training needs a process group, got none; start it with torchrun")
    if next(trainer.network.parameters()).device.type == "cuda":
        trainer.network = nn.SyncBatchNorm.convert_sync_batchnorm(trainer.network)
    trainer.network = DistributedDataParallel(trainer.network)
    # By default rank 0's statistics replace the others' at every step, and what those saw is lost. The argument of this
    # name is deprecated from torch 2.13 on, and what takes its place is new there; the attribute is in all versions.
    trainer.network.broadcast_buffers = False

    def average(engine: Engine) -> None:
        average_running_statistics(trainer.network)

    # Before everything that listens to the end of the epoch.
    trainer.add_event_handler(Events.ITERATION_COMPLETED(event_filter=_ends_epoch), average)


def average_running_statistics(network: nn.Module) -> None:
    """The mean over the ranks, for the layers in training mode; a frozen network's stay what they are, to the bit."""
    for module in network.modules():
        for name in RUNNING_STATISTICS:
            buffer = getattr(module, name, None)
            if module.training and buffer is not None:
                dist.all_reduce(buffer)
                buffer /= dist.get_world_size()


def _ends_epoch(engine: Engine, iteration: int) -> bool:
    return iteration % int(engine.state.epoch_length or 1) == 0
