"""Every item is taken, none weighs more than another, and no rank is idle."""

from collections import Counter

import pytest

from unoise_monai.data.datasets import rank_0_first, rank_share


@pytest.mark.parametrize("world_size", [1, 2, 3, 4, 6])
@pytest.mark.parametrize("count", [1, 2, 3, 4, 7, 12])
def test_every_item_weighs_alike(count: int, world_size: int) -> None:
    items = [f"case {number}" for number in range(count)]
    shares = [rank_share(items, rank, world_size) for rank in range(world_size)]
    taken = Counter(item for share in shares for item in share)
    assert set(taken) == set(items)
    assert len(set(taken.values())) == 1
    lengths = [len(share) for share in shares]
    assert min(lengths) >= 1
    assert max(lengths) - min(lengths) <= 1
    if count >= world_size:
        assert [item for share in shares for item in share] == items


def test_examples() -> None:
    assert [rank_share("abc", rank, 2) for rank in range(2)] == [["a"], ["b", "c"]]
    assert [rank_share("ab", rank, 4) for rank in range(4)] == [["a"], ["b"], ["a"], ["b"]]
    assert [rank_share("ab", rank, 3) for rank in range(3)] == [["a", "b"]] * 3
    assert [rank_share([], rank, 2) for rank in range(2)] == [[], []]


@pytest.mark.parametrize("rank", [-1, 2])
def test_refuses_a_rank_that_is_none(rank: int) -> None:
    with pytest.raises(ValueError, match=f"rank must be at least 0 and below world_size, got {rank} and 2"):
        rank_share("abc", rank, 2)


def test_one_process_calls_once() -> None:
    """Two ranks: `tests/bundles/test_multi_gpu.py`."""
    calls: list[int] = []
    assert rank_0_first(lambda: calls.append(1) or "made") == "made"
    assert calls == [1]
