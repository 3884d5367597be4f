"""The decoder: a Llama-type language model over packed sequences and a paged KV cache.

Legend: T new tokens of all sequences of a call, C channels, H heads, K kv heads, D head dim, B sequences.

    h = h + output(attention(rope(q), rope(k), v)),   q, k, v = projections of rms_norm(h)
    h = h + down(silu(gate) * up),                    gate, up = projections of rms_norm(h)
    logits = head(rms_norm(h))

Prefill (many tokens), chunked prefill and decode (one token) are the same call; where the backend has a
fused decode step, a call with one new token per sequence takes it.
Source: Touvron et al. 2023 (Llama 2); grouped-query attention, rotate-half RoPE (Su et al. 2021).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import numpy as np
import numpy.typing as npt

from tianquan.backends.kv_cache import KV_BLOCK_SIZE, KVCache, SequenceBatch
from tianquan.backends.ops import Array, DecoderLayer, DecoderShape, Offsets, Ops
from tianquan.config import LanguageConfig
from tianquan.models.weights import WeightSource

Attend = Callable[[int, Array, Array, Array], Array]  # (layer, q (T, H, D), k, v (T, K, D)) -> (T, H, D)


class LanguageModel:
    """Embeddings in, logits out."""

    def __init__(self, config: LanguageConfig, weights: WeightSource, ops: Ops) -> None:
        self.config = config
        self._ops = ops
        size = config.hidden_size
        self._embedding = weights.embedding("language_model.embedding", config.vocab_size, size)
        self._layers = [self._load_layer(n, weights) for n in range(config.num_layers)]
        self._final_norm = weights.parameter("language_model.final_norm", (size,))
        head = "embedding" if config.tie_word_embeddings else "head"
        self._head = weights.linear(f"language_model.{head}", size, config.vocab_size)
        self._fused_decoder = ops.make_fused_decoder(
            self._layers,
            self._final_norm,
            self._head,
            DecoderShape(
                num_heads=config.num_heads,
                num_kv_heads=config.num_kv_heads,
                head_dim=config.head_dim,
                rms_norm_eps=config.rms_norm_eps,
                rope_theta=config.rope_theta,
            ),
        )

    def _load_layer(self, n: int, weights: WeightSource) -> DecoderLayer:
        config, name = self.config, f"language_model.layers.{n}"
        size, heads_size = config.hidden_size, config.num_heads * config.head_dim
        kv_size = config.num_kv_heads * config.head_dim
        return DecoderLayer(
            attention_norm=weights.parameter(f"{name}.attention_norm", (size,)),
            query_key_value=weights.linear_group(
                [f"{name}.attention.{part}" for part in ("query", "key", "value")],
                size,
                [heads_size, kv_size, kv_size],
                [False] * 3,
            ),
            attention_output=weights.linear(f"{name}.attention.output", heads_size, size),
            mlp_norm=weights.parameter(f"{name}.mlp_norm", (size,)),
            gate_up=weights.linear_group(
                [f"{name}.mlp.gate", f"{name}.mlp.up"], size, [config.intermediate_size] * 2, [False] * 2
            ),
            down=weights.linear(f"{name}.mlp.down", config.intermediate_size, size),
        )

    def make_kv_cache(self, num_tokens: int) -> KVCache:
        """Return an empty cache with blocks for at least `num_tokens` tokens."""
        config = self.config
        num_blocks = -(-num_tokens // KV_BLOCK_SIZE)
        return self._ops.make_kv_cache(
            config.num_layers, num_blocks, config.num_kv_heads, KV_BLOCK_SIZE, config.head_dim
        )

    def embed(self, token_ids: np.ndarray[tuple[int], np.dtype[np.int32]]) -> Array:
        """Return the embeddings (T, C) of token_ids (T,)."""
        return self._ops.embedding(token_ids, self._embedding)

    def forward(
        self, hidden: Array, cache: KVCache, batch: SequenceBatch, rows: Literal["last", "all"] = "last"
    ) -> Array:
        """Run new tokens through the model and append them to the cache.

        Args:
            hidden: (T, C) embeddings of the new tokens, the sequences one after the other.
            cache: where past keys and values are and the new ones go.
            batch: which rows belong to which sequence.
            rows: logits of the last new token of each sequence, or of all new tokens.

        Returns:
            Logits (B, vocab) or (T, vocab).
        """
        if self._fused_decoder is not None and batch.is_decode:
            return self._fused_decoder(hidden, cache, batch)
        hidden = self._run_layers(
            hidden, batch.positions(), lambda n, q, k, v: self._ops.cached_attention(q, k, v, cache, n, batch)
        )
        return self._logits(hidden[batch.query_offsets[1:] - 1] if rows == "last" else hidden)

    def forward_whole(self, hidden: Array, offsets: Offsets, rows: npt.NDArray[np.int64]) -> Array:
        """Run whole sequences without a cache, as training does.

        Args:
            hidden: (T, C) embeddings, the sequences one after the other.
            offsets: (B + 1,) where each sequence begins, and the end.
            rows: of which tokens logits are wanted, indices into T.

        Returns:
            Logits (len(rows), vocab).
        """
        positions = np.concatenate([np.arange(length, dtype=np.int32) for length in np.diff(offsets)])
        hidden = self._run_layers(
            hidden, positions, lambda _, q, k, v: self._ops.attention(q, k, v, offsets, offsets, causal=True)
        )
        return self._logits(hidden[rows])

    def _run_layers(self, hidden: Array, positions: npt.NDArray[np.int32], attend: Attend) -> Array:
        for n in range(len(self._layers)):
            hidden = self._ops.apply_layer(self._run_layer, hidden, n, positions, attend)
        return hidden

    def _run_layer(self, hidden: Array, n: int, positions: npt.NDArray[np.int32], attend: Attend) -> Array:
        ops, config, layer = self._ops, self.config, self._layers[n]
        x = ops.rms_norm(hidden, layer.attention_norm, config.rms_norm_eps)
        q, k, v = (
            part.reshape(len(positions), -1, config.head_dim) for part in ops.linear_group(x, layer.query_key_value)
        )  # (T, H, D), (T, K, D), (T, K, D)
        q = ops.rope(q, positions, config.rope_theta)
        k = ops.rope(k, positions, config.rope_theta)
        x = attend(n, q, k, v).reshape(len(positions), config.num_heads * config.head_dim)
        hidden = ops.linear(x, layer.attention_output, residual=hidden)
        x = ops.rms_norm(hidden, layer.mlp_norm, config.rms_norm_eps)
        x = ops.swiglu(*ops.linear_group(x, layer.gate_up))
        return ops.linear(x, layer.down, residual=hidden)

    def _logits(self, hidden: Array) -> Array:
        return self._ops.linear(self._ops.rms_norm(hidden, self._final_norm, self.config.rms_norm_eps), self._head)
