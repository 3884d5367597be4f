"""The shape of a Megrez-3B-Omni model as plain data: what the components need, nothing about files.

The keys of the checkpoint's own JSON files are read in `checkpoint/config_files.py`, the only place that
knows them. Sizes in comments are those of the official 4.0 B parameter checkpoint.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class LanguageConfig:
    """A Llama-type decoder: pre-RMSNorm, rotate-half RoPE, grouped-query attention, SwiGLU, no biases."""

    hidden_size: int  # 2560
    intermediate_size: int  # 7168
    num_layers: int  # 32
    num_heads: int  # 40
    num_kv_heads: int  # 10
    head_dim: int  # 64
    vocab_size: int  # 122880
    rms_norm_eps: float  # 1e-5
    rope_theta: float  # 5e6
    max_position_embeddings: int  # 4096
    tie_word_embeddings: bool  # False


@dataclass(frozen=True, kw_only=True)
class VisionConfig:
    """A SigLIP vision transformer that takes slices of any size."""

    hidden_size: int  # 1152
    intermediate_size: int  # 4304
    num_layers: int  # 27 (26 of them run when the checkpoint drops the last)
    num_heads: int  # 16
    patch_size: int  # 14 pixels
    num_positions_per_side: int  # 70: the learned position table is 70 x 70
    layer_norm_eps: float  # 1e-6

    @property
    def patch_dim(self) -> int:
        """Values of one flattened RGB patch (588)."""
        return 3 * self.patch_size * self.patch_size


@dataclass(frozen=True, kw_only=True)
class ResamplerConfig:
    """Cross-attention from a fixed set of learned queries to the patches of one slice."""

    num_queries: int  # 64
    hidden_size: int  # 2560, that of the language model
    vision_size: int  # 1152
    num_heads: int  # 20 heads of 128
    layer_norm_eps: float  # 1e-6

    @property
    def head_dim(self) -> int:
        """Channels of one attention head (128)."""
        return self.hidden_size // self.num_heads


@dataclass(frozen=True, kw_only=True)
class AudioConfig:
    """A Whisper-type encoder with average pooling by two and a projection to the language model."""

    num_mels: int  # 128
    max_frames: int  # 1500 encoder frames = 30 s
    hidden_size: int  # 1280
    num_heads: int  # 20
    num_layers: int  # 32
    output_size: int  # 2560
    layer_norm_eps: float  # 1e-5


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """All components of one model."""

    language: LanguageConfig
    vision: VisionConfig
    resampler: ResamplerConfig
    audio: AudioConfig
