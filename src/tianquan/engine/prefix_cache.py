"""The blocks of the KV cache: which are free, which hold a known beginning of a prompt, and who uses them.

Known beginnings form a tree. A node is one block; the path from a root to it spells the tokens whose keys and
values it holds. A root stands for everything else the values depend on: the adapter, and the salt that keeps
tenants apart. A token is compared as its *unit*: its id, or, where a medium's feature stands, the digest of
that medium and the place in it. Two pictures have the same placeholder ids and different units.

    root(adapter, salt) -> [32 units] -> [32 units] -> [7 units]      the last block of a path may be partly full

A sequence holds a reference to each node of its path. Nodes without references stay until their block is
needed; then the least recently used leaf goes first. Nothing here touches keys or values, or needs numpy.
Source: PagedAttention (Kwon et al. 2023) for blocks, RadixAttention (Zheng et al. 2024) for the tree.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import count, islice

from tianquan.request import Prompt

Unit = int | tuple[bytes, int, int]  # a token id, or (medium's digest, part of the medium, row of the part)
Namespace = tuple[str | None, str]  # adapter and salt

_MAX_COMPARED = 32  # children looked at for a partial match: bounded work for a node with thousands of children


def prompt_units(prompt: Prompt) -> list[Unit]:
    """Return what each token of a prompt depends on beside the tokens before it."""
    units: list[Unit] = prompt.token_ids.tolist()
    slices = [(image.digest, n) for image in prompt.images for n in range(len(image.slices))]
    clips = [(audio.digest, 0) for audio in prompt.audios]
    for span in prompt.spans:
        digest, part = (slices if span.kind == "image" else clips)[span.index]
        units[span.start : span.start + span.length] = [(digest, part, row) for row in range(span.length)]
    return units


class Node:
    """One cached block and the units its tokens have."""

    __slots__ = ("block", "children", "is_cached", "last_used", "namespace", "num_references", "parent", "units")

    def __init__(self, parent: Node | None, units: tuple[Unit, ...], block: int) -> None:
        self.parent = parent
        self.units = units
        self.block = block
        self.children: dict[Unit, dict[tuple[Unit, ...], Node]] = {}  # by first unit, then by all
        self.num_references = 0
        self.last_used = 0
        self.is_cached = True
        self.namespace: Namespace | None = None  # of a root


@dataclass
class PrefixStatistics:
    """Counted since the start, in tokens of prompts."""

    queries: int = 0
    hits: int = 0
    evicted_blocks: int = 0


class PrefixCache:
    """All blocks of one KV cache. Each is free, private to one sequence, or a node of the tree.

    Args:
        num_blocks: blocks of the cache.
        block_size: tokens of a block.
    """

    def __init__(self, num_blocks: int, block_size: int) -> None:
        self.num_blocks = num_blocks
        self.block_size = block_size
        self.statistics = PrefixStatistics()
        self._free = list(range(num_blocks - 1, -1, -1))  # low numbers first: untouched memory stays untouched
        self._roots: dict[Namespace, Node] = {}
        self._leaves: list[tuple[int, int, Node]] = []  # heap by last use; stale entries are skipped
        self._pushes = count()
        self._num_unused = 0  # nodes without references
        self._clock = 0

    @property
    def num_available(self) -> int:
        """Blocks that can be had now: free ones, and cached ones nobody uses."""
        return len(self._free) + self._num_unused

    @property
    def num_cached(self) -> int:
        """Cached blocks nobody uses at the moment."""
        return self._num_unused

    # Blocks -----------------------------------------------------------------------------------------------
    def allocate(self) -> int | None:
        """Return a block for one sequence, forgetting the least recently used one if need be; None when out."""
        if not self._free and not self._evict():
            return None
        return self._free.pop()

    def free(self, block: int) -> None:
        """Take back a private block."""
        self._free.append(block)

    def _evict(self) -> bool:
        while self._leaves:
            last_used, _, node = heapq.heappop(self._leaves)
            if self._is_evictable(node) and node.last_used == last_used:
                self._forget(node)
                self.statistics.evicted_blocks += 1
                return True
        assert self._num_unused == 0, "an unused node has an unused leaf below it"
        return False

    def _forget(self, node: Node) -> None:
        parent = node.parent
        assert parent is not None
        siblings = parent.children[node.units[0]]
        del siblings[node.units]
        if not siblings:
            del parent.children[node.units[0]]
        node.is_cached = False
        self._num_unused -= 1
        self._free.append(node.block)
        if self._is_evictable(parent):
            self._push_leaf(parent)
        elif parent.namespace is not None and not parent.children:
            self._roots.pop(parent.namespace, None)  # thousands of salts leave nothing behind

    @staticmethod
    def _is_evictable(node: Node) -> bool:
        return node.is_cached and node.parent is not None and node.num_references == 0 and not node.children

    def _push_leaf(self, node: Node) -> None:
        if len(self._leaves) > 4 * self.num_blocks:  # mostly stale entries of nodes used again and again
            self._leaves = [e for e in self._leaves if self._is_evictable(e[2]) and e[2].last_used == e[0]]
            heapq.heapify(self._leaves)
        heapq.heappush(self._leaves, (node.last_used, next(self._pushes), node))

    # Paths ------------------------------------------------------------------------------------------------
    def root(self, namespace: Namespace) -> Node:
        """Return where the paths of an adapter and a salt begin."""
        root = self._roots.get(namespace)
        if root is None:  # registered with its first child
            root = Node(None, (), -1)
            root.namespace = namespace
        return root

    def find(self, parent: Node, units: tuple[Unit, ...]) -> Node | None:
        """Return the child that holds exactly these units (a whole block)."""
        return parent.children.get(units[0], {}).get(units)

    def find_partial(self, parent: Node, units: Sequence[Unit]) -> tuple[Node, int] | None:
        """Return the child that shares the longest beginning with `units`, and how many units that is."""
        siblings = parent.children.get(units[0], {})
        best: tuple[Node, int] | None = None
        for node in islice(reversed(siblings.values()), _MAX_COMPARED):
            length = _common_length(node.units, units)
            if best is None or length > best[1]:
                best = node, length
        return best

    def acquire(self, node: Node) -> None:
        """Hold a node: it stays until released as often."""
        if node.num_references == 0:
            self._num_unused -= 1
        node.num_references += 1

    def release(self, path: Sequence[Node]) -> None:
        """Let go of the nodes of a path, from the root downwards."""
        self._clock += 1
        for node in reversed(path):
            node.num_references -= 1
            assert node.num_references >= 0
            if node.num_references == 0:
                self._num_unused += 1
                node.last_used = self._clock
                if not node.children:
                    self._push_leaf(node)

    def commit(self, parent: Node, units: tuple[Unit, ...], block: int) -> Node:
        """Make a private full block a node below `parent`, and hold it.

        When another sequence has computed the same meanwhile, the block is freed and the other's node returned.
        """
        node = self.find(parent, units)
        if node is None:
            node = self._insert(parent, units, block)
        else:
            self.free(block)
        self.acquire(node)
        return node

    def keep_partial(self, parent: Node, units: tuple[Unit, ...], block: int) -> None:
        """Make the last, partly full block of an ended sequence a node nobody holds, unless all of it is known."""
        known = self.find_partial(parent, units)
        # The search for a longer one is bounded. The same one must be found: two nodes of equal units share a place.
        if (known is not None and known[1] == len(units)) or self.find(parent, units) is not None:
            self.free(block)
            return
        self._clock += 1
        node = self._insert(parent, units, block)
        node.last_used = self._clock
        self._push_leaf(node)

    def _insert(self, parent: Node, units: tuple[Unit, ...], block: int) -> Node:
        known = self.find_partial(parent, units)
        if known is not None and known[1] == len(known[0].units) and self._is_evictable(known[0]):
            self._forget(known[0])  # all it holds, the new node holds too
        if parent.namespace is not None:
            self._roots[parent.namespace] = parent
        node = Node(parent, units, block)
        parent.children.setdefault(units[0], {})[units] = node
        self._num_unused += 1
        return node


def _common_length(a: Sequence[Unit], b: Sequence[Unit]) -> int:
    return next((n for n, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
