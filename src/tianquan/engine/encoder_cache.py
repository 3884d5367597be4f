"""Features of pictures and sound, kept by what they were computed from, within a bound of bytes.

A key is the adapter, the salt and the digest of the prepared input: the pixels of the slices, or the mel
frames. That covers every preprocessing setting, and what clips of one call change in each other (the frame
after a shorter clip's last is part of its mel). One slice of a picture is one entry, so that pictures can be
encoded a slice at a time beside other work.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import Literal

from tianquan.backends.ops import Array
from tianquan.engine.prefix_cache import Namespace

EncoderKey = tuple[Namespace, Literal["image", "audio"], bytes, int]  # ..., digest, slice


@dataclass
class EncoderStatistics:
    """Counted since the start; a slice and a clip are one each."""

    queries: int = 0
    hits: int = 0


class EncoderCache:
    """Least recently used first out.

    Args:
        max_bytes: most bytes of features kept; 0 keeps none.
    """

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self.num_bytes = 0
        self.statistics = EncoderStatistics()
        self._entries: OrderedDict[EncoderKey, Array] = OrderedDict()

    def find(self, key: EncoderKey) -> Array | None:
        """Return the features (rows, C) of a key, or None."""
        self.statistics.queries += 1
        features = self._entries.get(key)
        if features is not None:
            self.statistics.hits += 1
            self._entries.move_to_end(key)
        return features

    def add(self, key: EncoderKey, features: Array) -> None:
        """Keep features; what was used longest ago goes. Features larger than the whole bound are not kept."""
        size = int(features.nbytes)
        if size > self.max_bytes:
            return
        if key in self._entries:
            self.num_bytes -= int(self._entries.pop(key).nbytes)
        self._entries[key] = features
        self.num_bytes += size
        while self.num_bytes > self.max_bytes:
            self.num_bytes -= int(self._entries.popitem(last=False)[1].nbytes)
