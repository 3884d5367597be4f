"""The operations of `ops.Ops` in PyTorch: CUDA inference, and autograd for training on any device.

Dense weights are `nn.Linear` and `nn.Embedding` modules, so that adapters can take their place: a handle holds a
module and is asked for it at each call. Low-bit weights stay packed and are expanded when they are used; gradients
flow through them to their input, not into them.

Legend as in `ops.py`: T rows, C channels, H heads, K kv heads, D head dim, B sequences; P panels, G groups.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from tianquan.backends.kv_cache import KVCache, SequenceBatch
from tianquan.backends.ops import (
    Activation,
    DecoderLayer,
    DecoderShape,
    FusedDecoder,
    Offsets,
    StoredWeight,
    Weight,
)
from tianquan.errors import BackendError
from tianquan.quantization.adapted import AdaptedTensor
from tianquan.quantization.dense import DenseTensor
from tianquan.quantization.format import INT4_BIAS, PANEL, QuantFormat, QuantizedTensor
from tianquan.quantization.quantizers import quantize

_MAX_PADDING = 0.2  # of a group of segments that attend in one call
_QUERY_ROWS = 256  # of one masked attention block: the mask is (256, S), never (S, S)
_ACTIVATIONS = {"gelu": "none", "gelu_tanh": "tanh"}


@dataclass(frozen=True)
class _RopeTable:
    positions: npt.NDArray[np.int32]  # (T,)
    half: int
    theta: float
    cos: Tensor  # (T, 1, half)
    sin: Tensor


@dataclass
class ModuleHandle:
    """The handle of one linear or embedding. Training may put another module in its place."""

    module: nn.Module


class LowBitWeight(nn.Module):
    """A packed low-bit matrix (out, in), frozen; see `quantization/format.py` for the bytes."""

    def __init__(self, weight: QuantizedTensor, bias: Tensor | None) -> None:
        super().__init__()
        self.format = weight.format
        self.out_features, self.in_features = weight.shape
        for name, array in weight.to_arrays().items():
            self.register_buffer(name, torch.from_numpy(np.array(array)))  # a copy: mapped files are read-only
        self.register_buffer("bias", bias)

    @property
    def num_values(self) -> int:
        """How many weights it stands for, with the bias."""
        bias = 0 if self.bias is None else self.bias.numel()
        return int(self.out_features * self.in_features + bias)

    @property
    def qweight(self) -> Tensor:
        """The packed codes, under the name by which adapters find the device of low-bit weights."""
        return self.codes

    def dequantize(self) -> Tensor:
        """Return the matrix (out, in) in float32."""
        num_panels = len(self.codes)
        if self.format.bits == 4:
            units = self.codes.view(num_panels, -1, PANEL, 4)
            codes = torch.cat([units & 15, units >> 4], dim=-1).to(torch.float32)  # (P, units, 8 out, 8 in)
            codes = codes - INT4_BIAS if self.format.symmetric else codes
        else:
            codes = self.codes.view(num_panels, -1, PANEL, 4).to(torch.float32)  # (P, units, 8 out, 4 in)
        codes = codes.transpose(1, 2).reshape(num_panels, PANEL, -1, self.format.group_size)  # (P, 8, G, group)
        if not self.format.symmetric:
            codes = codes - self.zero_points.to(torch.float32).transpose(1, 2)[..., None]
        values = codes * self.scales.to(torch.float32).transpose(1, 2)[..., None]
        return values.reshape(num_panels * PANEL, -1)[: self.out_features, : self.in_features]

    def forward(self, x: Tensor) -> Tensor:
        """Return x @ weight.T + bias."""
        return functional.linear(x, self.dequantize().to(x.dtype), self.bias)


class AdaptedLinear(nn.Module):
    """A linear with the frozen factors of an adapter beside it; see `quantization/adapted.py`."""

    def __init__(self, base: nn.Module, down: Tensor, up: Tensor) -> None:
        super().__init__()
        self.base = base
        self.register_buffer("down", down)  # (rank, in)
        self.register_buffer("up", up)  # (out, rank)

    def forward(self, x: Tensor) -> Tensor:
        """Return base(x) + (x @ down.T) @ up.T."""
        low = functional.linear(x, self.down.to(x.dtype))
        return self.base(x) + functional.linear(low, self.up.to(x.dtype))


class TorchOps:
    """The operations of `ops.Ops` in PyTorch.

    Args:
        device: `cpu`, `cuda` or `cuda:N`.
        recompute_layers: keep only the layers' inputs for gradients and compute the rest again (gradient
            checkpointing): less memory, about a third more time.

    Raises:
        BackendError: the device is not there.
    """

    name = "torch"

    def __init__(self, device: str = "cpu", recompute_layers: bool = False) -> None:
        self._recompute_layers = recompute_layers
        self._rope_table: _RopeTable | None = None
        try:
            self.device = torch.device(device)
            torch.empty(1, device=self.device)
        except (RuntimeError, AssertionError) as error:
            raise BackendError(f"torch cannot use device {device!r} here; expected cpu, or cuda with a GPU") from error

    @property
    def isa(self) -> str:
        """The device, as `info` shows it."""
        return torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else "torch cpu"

    def quantize(self, weight: npt.NDArray[np.float32], format: QuantFormat) -> QuantizedTensor:
        """See `Ops.quantize`."""
        return quantize(weight, format)

    # Handles -----------------------------------------------------------------------------------------
    def make_parameter(self, tensor: DenseTensor) -> Tensor:
        """See `Ops.make_parameter`. A leaf that training may let require gradients."""
        return self.array(tensor.to_float32())

    def make_linear(self, weight: Weight, bias: DenseTensor | None) -> ModuleHandle:
        """See `Ops.make_linear`."""
        if isinstance(weight, AdaptedTensor):
            base = self.make_linear(weight.base, bias).module
            return ModuleHandle(AdaptedLinear(base, self.array(weight.down), self.array(weight.up)))
        bias_values = None if bias is None else self.array(bias.to_float32())
        if isinstance(weight, QuantizedTensor):
            return ModuleHandle(LowBitWeight(weight, bias_values).to(self.device))
        out_features, in_features = weight.shape
        module = nn.Linear(in_features, out_features, bias=bias is not None, device="meta")
        module.weight = nn.Parameter(self.array(weight.to_float32()), requires_grad=False)
        if bias_values is not None:
            module.bias = nn.Parameter(bias_values, requires_grad=False)
        return ModuleHandle(module)

    def make_linear_group(
        self, weights: Sequence[Weight], biases: Sequence[DenseTensor | None]
    ) -> tuple[ModuleHandle, ...]:
        """See `Ops.make_linear_group`. The members stay apart, so that each can have an adapter."""
        return tuple(self.make_linear(w, b) for w, b in zip(weights, biases, strict=True))

    def make_embedding(self, weight: StoredWeight) -> ModuleHandle:
        """See `Ops.make_embedding`."""
        if isinstance(weight, QuantizedTensor):
            return ModuleHandle(LowBitWeight(weight, None).to(self.device))
        module = nn.Embedding(*weight.shape, device="meta")
        module.weight = nn.Parameter(self.array(weight.to_float32()), requires_grad=False)
        return ModuleHandle(module)

    def make_kv_cache(
        self, num_layers: int, num_blocks: int, num_kv_heads: int, block_size: int, head_dim: int
    ) -> KVCache:
        """See `Ops.make_kv_cache`."""
        shape = (num_layers, num_blocks, num_kv_heads, block_size, head_dim)
        return KVCache(torch.zeros(shape, device=self.device), torch.zeros(shape, device=self.device))

    def make_fused_decoder(
        self, layers: Sequence[DecoderLayer], final_norm: Tensor, head: ModuleHandle, shape: DecoderShape
    ) -> FusedDecoder | None:
        """See `Ops.make_fused_decoder`: decoding goes operation by operation."""
        return None

    def constant_weight(self, linear: ModuleHandle) -> Weight | None:
        """See `Ops.constant_weight`: a module may be trained, or another may take its place."""
        return None

    # Data in and out ----------------------------------------------------------------------------------
    def array(self, data: npt.NDArray[Any]) -> Tensor:
        """See `Ops.array`."""
        return torch.from_numpy(np.array(data, dtype=np.float32)).to(self.device)

    def to_numpy(self, x: Tensor) -> npt.NDArray[np.float32]:
        """See `Ops.to_numpy`."""
        return x.detach().to("cpu", torch.float32).numpy()

    def apply_layer(self, layer: Callable[..., Tensor], hidden: Tensor, *arguments: Any) -> Tensor:
        """See `Ops.apply_layer`."""
        if self._recompute_layers and torch.is_grad_enabled():
            return checkpoint(layer, hidden, *arguments, use_reentrant=False)
        return layer(hidden, *arguments)

    def concatenate(self, arrays: Sequence[Tensor]) -> Tensor:
        """See `Ops.concatenate`."""
        return torch.cat(list(arrays))

    # Operations ---------------------------------------------------------------------------------------
    def linear(
        self, x: Tensor, linear: ModuleHandle, activation: Activation | None = None, residual: Tensor | None = None
    ) -> Tensor:
        """See `Ops.linear`."""
        y = linear.module(x)
        if activation is not None:
            y = functional.gelu(y, approximate=_ACTIVATIONS[activation])
        return y if residual is None else y + residual

    def linear_group(self, x: Tensor, group: tuple[ModuleHandle, ...]) -> tuple[Tensor, ...]:
        """See `Ops.linear_group`."""
        return tuple(handle.module(x) for handle in group)

    def embedding(self, token_ids: npt.NDArray[np.integer[Any]], table: ModuleHandle) -> Tensor:
        """See `Ops.embedding`."""
        index = torch.as_tensor(token_ids, dtype=torch.long, device=self.device)
        if isinstance(table.module, LowBitWeight):
            return table.module.dequantize()[index]
        return table.module(index)

    def conv1d(
        self,
        x: Tensor,
        linear: ModuleHandle,
        kernel: int,
        stride: int,
        activation: Activation | None,
        offsets: Offsets,
    ) -> Tensor:
        """See `Ops.conv1d`."""
        around = np.arange(kernel) - (kernel - 1) // 2
        rows = []
        for start, stop in itertools.pairwise(offsets):
            frames = np.arange(start, stop, stride)[:, None] + around  # (F', kernel)
            rows.append(np.where((frames >= start) & (frames < stop), frames, len(x)))  # past the end: a row of zeros
        windows = functional.pad(x, (0, 0, 0, 1))[self._index(np.concatenate(rows))]  # (F', kernel, C)
        return self.linear(windows.flatten(1), linear, activation)

    def rms_norm(self, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        """See `Ops.rms_norm`."""
        return functional.rms_norm(x.float(), weight.shape, weight, eps)

    def layer_norm(self, x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
        """See `Ops.layer_norm`."""
        return functional.layer_norm(x.float(), weight.shape, weight, bias, eps)

    def rope(self, x: Tensor, positions: npt.NDArray[np.int32], theta: float) -> Tensor:
        """See `Ops.rope`."""
        half = x.shape[-1] // 2
        table = self._rope_table
        if table is None or table.positions is not positions or (table.half, table.theta) != (half, theta):
            exponents = np.arange(half, dtype=np.float32) / np.float32(half)
            angles = positions[:, None].astype(np.float32) * (1.0 / theta**exponents).astype(np.float32)
            cos, sin = (self.array(f(angles))[:, None, :] for f in (np.cos, np.sin))
            # Every layer asks for the same positions, twice: the last table is kept.
            self._rope_table = table = _RopeTable(positions, half, theta, cos, sin)
        cos, sin = table.cos.to(x.dtype), table.sin.to(x.dtype)
        low, high = x[..., :half], x[..., half:]
        return torch.cat([low * cos - high * sin, high * cos + low * sin], dim=-1)

    def swiglu(self, gate: Tensor, up: Tensor) -> Tensor:
        """See `Ops.swiglu`."""
        return functional.silu(gate) * up

    def attention(
        self, q: Tensor, k: Tensor, v: Tensor, query_offsets: Offsets, key_offsets: Offsets, causal: bool
    ) -> Tensor:
        """See `Ops.attention`."""
        num_queries, num_keys = np.diff(query_offsets), np.diff(key_offsets)
        if len(num_keys) == 1:
            return _attend(q, k, v, causal)
        parts, order = [], []
        for members in _similar_lengths(num_keys):
            queries, query_is_real = _padded_rows(query_offsets[members], num_queries[members])
            keys, key_is_real = _padded_rows(key_offsets[members], num_keys[members])
            # Causal rows never see the padding, which comes last.
            mask = None if causal or key_is_real.all() else self._index(key_is_real).bool()[:, None, None, :]
            rows, columns = self._index(queries), self._index(keys)
            attended = _attend_batch(_gather(q, rows), _gather(k, columns), _gather(v, columns), causal, mask)
            parts.append(_gather(attended.flatten(0, 1), self._index(np.flatnonzero(query_is_real))))
            order.append(queries[query_is_real])
        return _gather(torch.cat(parts), self._index(np.argsort(np.concatenate(order))))

    def _index(self, rows: npt.NDArray[Any]) -> Tensor:
        return torch.as_tensor(rows, dtype=torch.long, device=self.device)

    def cached_attention(
        self, q: Tensor, k: Tensor, v: Tensor, cache: KVCache, layer: int, batch: SequenceBatch
    ) -> Tensor:
        """See `Ops.cached_attention`."""
        size, parts = cache.block_size, []
        keys, values = cache.keys[layer], cache.values[layer]  # (N, K, S, D)
        for b, past in enumerate(batch.num_cached.tolist()):
            rows = slice(int(batch.query_offsets[b]), int(batch.query_offsets[b + 1]))
            total = past + rows.stop - rows.start
            positions = torch.arange(past, total, device=self.device)
            table = torch.as_tensor(batch.block_tables[b][: -(-total // size)], dtype=torch.long, device=self.device)
            blocks, slots = table[positions // size], positions % size
            keys[blocks, :, slots], values[blocks, :, slots] = k[rows].to(keys.dtype), v[rows].to(values.dtype)
            past_keys, past_values = (
                stored[table].transpose(1, 2).reshape(-1, *k.shape[1:])[:total] for stored in (keys, values)
            )  # (total, K, D)
            parts.append(_attend(q[rows], past_keys.to(q.dtype), past_values.to(q.dtype), causal=True))
        return torch.cat(parts)


def _gather(x: Tensor, rows: Tensor) -> Tensor:
    """Return x[rows] for rows of any shape; its gradient is several times cheaper than that of an index."""
    return x.index_select(0, rows.flatten()).unflatten(0, rows.shape)


def _similar_lengths(lengths: npt.NDArray[np.integer[Any]]) -> Iterator[npt.NDArray[np.int64]]:
    """Yield groups of segments, by number, whose padding to the longest costs a share of `_MAX_PADDING` at most."""
    order = np.argsort(lengths, kind="stable")
    start, total = 0, 0
    for stop, member in enumerate(order):
        if (stop + 1 - start) * lengths[member] > (1 + _MAX_PADDING) * (total + lengths[member]):
            yield order[start:stop]
            start, total = stop, 0
        total += lengths[member]
    yield order[start:]


def _padded_rows(
    starts: npt.NDArray[np.int32], lengths: npt.NDArray[np.integer[Any]]
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.bool_]]:
    """Return row numbers (B, longest) of segments, the last one repeated as padding, and which are real."""
    columns = np.arange(lengths.max())
    rows = starts[:, None] + np.minimum(columns, lengths[:, None] - 1)
    return rows.astype(np.int64), columns < lengths[:, None]


def _attend(q: Tensor, k: Tensor, v: Tensor, causal: bool) -> Tensor:
    """Softmax attention of one segment: q (T, H, D), k and v (S, K, D); result (T, H, D)."""
    return _attend_batch(q[None], k[None], v[None], causal)[0]


def _attend_batch(q: Tensor, k: Tensor, v: Tensor, causal: bool, mask: Tensor | None = None) -> Tensor:
    """Softmax attention of B segments: q (B, T, H, D), k and v (B, S, K, D), mask (B, 1, 1, S); result (B, T, H, D)."""
    _, num_rows, num_heads, _ = q.shape
    _, num_keys, num_kv_heads, _ = k.shape
    if num_heads != num_kv_heads:
        k, v = (x.repeat_interleave(num_heads // num_kv_heads, dim=2) for x in (k, v))
    query, key, value = (x.transpose(1, 2) for x in (q, k, v))  # (B, H, T, D), (B, H, S, D)
    if not causal or num_rows == 1:
        out = functional.scaled_dot_product_attention(query, key, value, attn_mask=mask)
    elif num_rows == num_keys:
        out = functional.scaled_dot_product_attention(query, key, value, is_causal=True)
    else:  # new rows at the end of a longer past: torch's is_causal would align them with its beginning
        columns = torch.arange(num_keys, device=q.device)
        parts = []
        for start in range(0, num_rows, _QUERY_ROWS):
            block = query[:, :, start : start + _QUERY_ROWS]
            last_key = torch.arange(start, start + block.shape[2], device=q.device) + (num_keys - num_rows)
            mask = columns <= last_key[:, None]
            parts.append(functional.scaled_dot_product_attention(block, key, value, attn_mask=mask))
        out = torch.cat(parts, dim=2)
    return out.transpose(1, 2)
