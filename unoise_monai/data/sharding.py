"""Which cases a rank of a distributed run takes."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TypeVar

import ignite.distributed as idist

T = TypeVar("T")


def rank_share(items: Sequence[T], rank: int, world_size: int) -> list[T]:
    """The items that one rank evaluates, so that a mean over all ranks is the mean over all items.

    The ranks take successive parts, which differ in length by 1 at most and together hold each item once: gathered in
    the order of the ranks, results stand as one process would have them. With fewer items than ranks, every item is
    taken by equally many ranks (all of them, where the numbers have no common divisor), so that no rank is idle, which
    would leave the others waiting, and no item weighs more than another.

    Args:
        items: of the whole run; the same on every rank.
        rank: of this process.
        world_size: how many processes there are.

    Raises:
        ValueError: when ``rank`` is not at least 0 and below ``world_size``.
    """
    if not 0 <= rank < world_size:
        raise ValueError(f"rank must be at least 0 and below world_size, got {rank} and {world_size}")
    items = list(items)
    if len(items) < world_size:
        items *= world_size // math.gcd(len(items), world_size)
    count = len(items)
    return items[rank * count // world_size : (rank + 1) * count // world_size]


def rank_0_first(make: Callable[[], T]) -> T:
    """What ``make`` gives, called on rank 0 first, then on the others, which find the files that it wrote.

    Where there is one process only, it is called.
    """
    with idist.one_rank_first():
        return make()
