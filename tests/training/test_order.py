from __future__ import annotations

from collections import Counter

import pytest

from tianquan.training.order import RecordOrder


@pytest.mark.parametrize(("count", "size"), [(1, 1), (1, 4), (7, 3), (100, 8), (500, 4)])
def test_every_record_once_an_epoch(count, size):
    order = RecordOrder([10 + n % 7 for n in range(count)], size, seed=1)
    for epoch in range(3):
        batches = [order.micro_batch(epoch * order.batches_per_epoch + b) for b in range(order.batches_per_epoch)]
        assert Counter(n for batch in batches for n in batch) == dict.fromkeys(range(count), 1)
        assert sorted(map(len, batches))[1:] == [size] * (len(batches) - 1)  # one has what is left


def test_the_order_is_the_seeds():
    lengths = list(range(64))
    first, again, other = (RecordOrder(lengths, 4, seed) for seed in (1, 1, 2))
    batches = range(32)
    assert [first.micro_batch(b) for b in batches] == [again.micro_batch(b) for b in batches]
    assert [first.micro_batch(b) for b in batches] != [other.micro_batch(b) for b in batches]
    assert first.micro_batch(0) != first.micro_batch(16)  # another epoch, another order


def test_like_lengths_are_together():
    lengths = [1, 1000] * 64
    order = RecordOrder(lengths, 4, seed=0)
    mixed = sum(len({lengths[n] for n in order.micro_batch(b)}) > 1 for b in range(order.batches_per_epoch))
    assert mixed <= 1
