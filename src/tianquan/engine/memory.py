"""How many blocks of keys and values there are: what was asked for, in whole blocks, or a default."""

from __future__ import annotations

from tianquan.backends.kv_cache import KV_BLOCK_SIZE, KVCache
from tianquan.engine.interface import EngineOptions
from tianquan.errors import ParameterError
from tianquan.models.omni_model import OmniModel

_DEFAULT_BYTES = 2**30  # address space: pages are touched as blocks are used, and low-numbered blocks are used first
_MIN_TOKENS = 256  # a picture's overview and slices, a question and a short answer


def plan_blocks(model: OmniModel, options: EngineOptions) -> KVCache:
    """Return the empty KV cache of an engine.

    Raises:
        ParameterError: `kv_cache_bytes` is too small to be of use, or more than the machine gives.
    """
    block_bytes = model.language_model.make_kv_cache(1).num_bytes
    window_blocks = -(-model.config.language.max_position_embeddings // KV_BLOCK_SIZE)
    asked = options.kv_cache_bytes
    if asked is None:
        most = window_blocks * options.limits.max_running
        num_blocks = min(max(_DEFAULT_BYTES // block_bytes, window_blocks), most)
    else:
        num_blocks = asked // block_bytes
        least = min(window_blocks, _MIN_TOKENS // KV_BLOCK_SIZE)
        if num_blocks < least:
            raise ParameterError(
                f"kv_cache_bytes is {asked}, which holds {max(num_blocks, 0) * KV_BLOCK_SIZE} tokens; "
                f"expected at least {least * block_bytes}, for {least * KV_BLOCK_SIZE} tokens"
            )
    try:
        return model.language_model.make_kv_cache(num_blocks * KV_BLOCK_SIZE)
    except (MemoryError, ValueError) as error:
        raise ParameterError(
            f"kv_cache_bytes is {num_blocks * block_bytes}, more than this machine has free; ask for less"
        ) from error
