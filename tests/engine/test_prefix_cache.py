"""The tree of known beginnings by itself: what is kept, what is dropped, that every block has one place."""

from __future__ import annotations

import random

from tianquan.engine.prefix_cache import _MAX_COMPARED, PrefixCache


def take_all(cache):
    """Allocate every block there is, forgetting what is cached."""
    blocks = []
    while (block := cache.allocate()) is not None:
        blocks.append(block)
    return blocks


def keep(cache, units):
    block = cache.allocate()
    assert block is not None
    cache.keep_partial(cache.root((None, "")), units, block)


def test_a_beginning_is_kept_once_however_many_begin_like_it():
    """All prompts of a chat template begin with the same token; the bounded search does not see the oldest of many."""
    num_kept = _MAX_COMPARED + 10
    cache = PrefixCache(2 * num_kept, 32)
    for number in range(num_kept):
        keep(cache, (7, number))
    assert cache.num_cached == num_kept
    keep(cache, (7, 0))
    assert cache.num_cached == num_kept
    assert sorted(take_all(cache)) == list(range(2 * num_kept))


def test_no_block_is_lost_or_doubled():
    """Random beginnings, whole blocks and partly full ones, of few tokens so that they meet again."""
    rng = random.Random(5)
    cache = PrefixCache(100, 4)
    for _ in range(3000):
        node, path = cache.root((None, "")), []
        for _ in range(rng.randint(0, 2)):
            units = tuple(rng.choices(range(3), k=4))
            known = cache.find(node, units)
            if known is None:
                block = cache.allocate()
                if block is None:
                    break
                node = cache.commit(node, units, block)
            else:
                cache.acquire(known)
                node = known
            path.append(node)
        block = cache.allocate()
        if block is not None:
            cache.keep_partial(node, (1, rng.randrange(60)), block)
        cache.release(path)
        assert cache.num_available == 100
    assert sorted(take_all(cache)) == list(range(100))
