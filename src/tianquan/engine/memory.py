"""How much memory keys and values get: what was asked for, what a bound on the whole leaves, or a default."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable

from tianquan.backends.kv_cache import KV_BLOCK_SIZE, KVCache
from tianquan.engine.interface import EngineOptions
from tianquan.engine.parameter_checks import check_bytes
from tianquan.errors import ParameterError
from tianquan.models.omni_model import OmniModel

DEFAULT_KV_BYTES = 2**30  # address space: pages are touched as blocks are used, and low-numbered blocks are used first
_MIN_TOKENS = 256  # a picture's overview and slices, a question and a short answer
_WORKING_BYTES = 320 * 2**20  # interpreter, libraries, activations of a chunk of 512 tokens or of ten slices
_MIB = 2**20


def kv_bytes_within(max_memory: int, weight_bytes: int, encoder_cache_bytes: int) -> int:
    """Return the bytes left for keys and values when everything together may take `max_memory` bytes.

    Raises:
        ParameterError: it is no number of bytes, or nothing is left.
    """
    check_bytes("max_memory", max_memory)
    rest = max_memory - weight_bytes - encoder_cache_bytes - _WORKING_BYTES
    if rest <= 0:
        least = weight_bytes + encoder_cache_bytes + _WORKING_BYTES
        raise ParameterError(
            f"max_memory is {max_memory // _MIB} MiB; the weights take {weight_bytes // _MIB} MiB, features and work "
            f"{(least - weight_bytes) // _MIB} MiB; expected more than {least // _MIB} MiB, or a smaller precision"
        )
    return rest


def plan_blocks(model: OmniModel, options: EngineOptions) -> KVCache:
    """Return the empty KV cache of an engine.

    Raises:
        ParameterError: `kv_cache_bytes` is too small to be of use, or more than the machine has.
    """
    block_bytes = model.language_model.make_kv_cache(1).num_bytes
    window_blocks = -(-model.config.language.max_position_embeddings // KV_BLOCK_SIZE)
    most = window_blocks * options.limits.max_running  # more could never be used at once
    asked = options.kv_cache_bytes
    if asked is None:
        num_blocks = min(max(DEFAULT_KV_BYTES // block_bytes, window_blocks), most)
    else:
        num_blocks = asked // block_bytes
        least = min(window_blocks, _MIN_TOKENS // KV_BLOCK_SIZE)
        if num_blocks < least:
            raise ParameterError(
                f"keys and values have {asked} bytes (kv_cache_bytes), which hold {max(num_blocks, 0) * KV_BLOCK_SIZE} "
                f"tokens; expected at least {least * block_bytes}, for {least * KV_BLOCK_SIZE} tokens; raise it, or "
                "max_memory"
            )
        physical = _physical_bytes()
        if physical is not None and asked > physical:
            raise ParameterError(
                f"kv_cache_bytes is {asked // _MIB} MiB, this machine has {physical // _MIB} MiB; ask for less"
            )
    try:
        return model.language_model.make_kv_cache(num_blocks * KV_BLOCK_SIZE)
    except (MemoryError, ValueError) as error:
        raise ParameterError(
            f"{num_blocks * block_bytes // _MIB} MiB of keys and values cannot be had on this machine; ask for less"
        ) from error


def give_back_freed_memory() -> None:
    """Give the pages of freed arrays back to the system where the C library can (glibc; elsewhere nothing is done).

    The activations of many slices are freed, but their pages stay with the process: keys and values come on top.
    """
    if _TRIM is not None:
        _TRIM(0)


def _find_trim() -> Callable[[int], int] | None:
    try:
        trim: Callable[[int], int] = ctypes.CDLL(None).malloc_trim
    except (AttributeError, OSError, TypeError):
        return None
    return trim


_TRIM = _find_trim()


def _physical_bytes() -> int | None:
    """Return the machine's memory where the system tells it."""
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, OSError, ValueError):
        return None
