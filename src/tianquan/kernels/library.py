"""Loads the kernel library and calls it: numpy arrays in, numpy arrays out.

This module checks what C cannot (types, strides, sizes) and knows nothing about models. The arguments of the
structs are explained in `csrc/kernels.h`.

Legend: T rows, O out channels, I in channels, H heads, K kv heads, D head dim.
"""

from __future__ import annotations

import ctypes
import math
import os
import weakref
from collections.abc import Mapping, Sequence
from ctypes import byref, c_char_p, c_double, c_float, c_int32, c_int64, c_uint64, c_void_p
from functools import cache
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt

import tianquan.kernels
from tianquan.errors import BackendError
from tianquan.kernels import structs
from tianquan.kernels.processors import available_processors
from tianquan.kernels.structs import pointer

Isa = Literal["avx512_vnni", "avx2", "scalar"]
ISAS: tuple[Isa, ...] = get_args(Isa)  # the fastest first

_LIBRARY_NAME = "_kernels.so"
_ABI_VERSION = 3
_REINSTALL = "with a C++17 compiler at hand run, in its source folder: pip install --force-reinstall --no-deps ."

_NO_MEMORY, _NO_THREADS = 1, 2

Float32 = npt.NDArray[np.float32]


class _STATUS(c_int32):
    """What most functions return: whether they could do it."""


_P, _I32, _I64 = c_void_p, c_int32, c_int64
_SIGNATURES: Mapping[str, tuple[Any, tuple[Any, ...]]] = {
    "tq_abi_version": (c_int32, ()),
    "tq_struct_sizes": (None, (_P,)),
    "tq_open": (_STATUS, (c_char_p, _I32, _P)),
    "tq_close": (None, (_P,)),
    "tq_matmul": (_STATUS, (_P, _P, _P, _I64, _P, _I64, _I64)),
    "tq_embedding": (_STATUS, (_P, _P, _P, _I64, _P)),
    "tq_rms_norm": (_STATUS, (_P, _P, _I64, _P, c_float, _P, _I64, _I64)),
    "tq_layer_norm": (_STATUS, (_P, _P, _I64, _P, _P, c_float, _P, _I64, _I64)),
    "tq_rope": (_STATUS, (_P, _P, _I64, _P, _P, _P, _I64, _I64, _I64, _I64)),
    "tq_swiglu": (_STATUS, (_P, _P, _I64, _P, _I64, _P, _I64, _I64)),
    "tq_attention": (_STATUS, (_P, _P)),
    "tq_cached_attention": (_STATUS, (_P, _P)),
    "tq_decode": (_STATUS, (_P, _P)),
    "tq_quantize": (_STATUS, (_P, _P)),
    "tq_fma_gflop_s": (_STATUS, (_P, _P)),
    "tq_read_gb_s": (_STATUS, (_P, _P, c_uint64, _P)),
}


def library_path() -> Path:
    """Return where the compiled library lies: beside this module, or where an editable install put it.

    Raises:
        BackendError: it was not built.
    """
    for folder in tianquan.kernels.__path__:
        path = Path(folder) / _LIBRARY_NAME
        if path.is_file():
            return path
    raise BackendError(f"the native kernels ({_LIBRARY_NAME}) were not built; {_REINSTALL}")


def _check(status: Any, function: Any, _: Any) -> None:
    """Raise what a status says; the numbers are those of `csrc/api.cpp`."""
    if status.value == _NO_MEMORY:
        raise MemoryError(f"{function.__name__}: too little memory for its working space")
    if status.value == _NO_THREADS:
        raise BackendError("the system lets this process make no more threads; ask for fewer (--threads)")


@cache
def _load() -> ctypes.CDLL:
    path = library_path()
    try:
        library = ctypes.CDLL(str(path))
        for name, (result, arguments) in _SIGNATURES.items():
            function = getattr(library, name)
            function.restype, function.argtypes = result, arguments
            if result is _STATUS:
                function.errcheck = _check
    except (OSError, AttributeError) as error:
        raise BackendError(f"cannot load the native kernels {path} ({error}); {_REINSTALL}") from None
    if library.tq_abi_version() != _ABI_VERSION or _struct_sizes(library) != list(map(ctypes.sizeof, structs.STRUCTS)):
        raise BackendError(f"the native kernels {path} belong to another version of tianquan; {_REINSTALL}")
    return library


def _struct_sizes(library: ctypes.CDLL) -> list[int]:
    sizes = (c_int64 * len(structs.STRUCTS))()
    library.tq_struct_sizes(sizes)
    return list(sizes)


def default_isa() -> Isa | None:
    """Return the instruction set forced by TIANQUAN_ISA (for tests), or None for the best there is.

    Raises:
        BackendError: the variable names none that exists.
    """
    forced = os.environ.get("TIANQUAN_ISA")
    if not forced:
        return None
    for isa in ISAS:
        if isa == forced:
            return isa
    raise BackendError(f"TIANQUAN_ISA is {forced!r}, expected one of {', '.join(ISAS)}")


def row_stride(x: npt.NDArray[Any]) -> int:
    """Return the elements from row to row of an array whose rows are dense; checks type and layout."""
    assert x.dtype == np.float32, x.dtype
    if x.size == 0:  # numpy gives it no strides
        return math.prod(x.shape[1:])
    row_shape = x.shape[1:]
    expected = x.itemsize
    for size, stride in zip(reversed(row_shape), reversed(x.strides[1:]), strict=True):
        assert size == 1 or stride == expected, f"rows must be dense, got shape {x.shape} strides {x.strides}"
        expected *= size
    if len(x) <= 1:
        return expected // x.itemsize
    assert x.strides[0] % x.itemsize == 0, x.strides
    return x.strides[0] // x.itemsize


class KernelLibrary:
    """The kernels of one instruction set with their own pool of threads."""

    def __init__(self, threads: int | None = None, isa: Isa | None = None) -> None:
        """Open the library.

        Args:
            threads: size of the pool, the calling thread included; None for every processor there is for this process.
            isa: instruction set; None for the one forced by TIANQUAN_ISA, else the best this machine has.

        Raises:
            BackendError: the library is missing, or the machine lacks the instruction set.
        """
        self._library = _load()
        self.threads = available_processors() if threads is None else threads
        if not 1 <= self.threads <= 1024:
            raise BackendError(f"got {self.threads} threads, expected 1 to 1024")
        wanted = isa or default_isa()
        for candidate in (wanted,) if wanted else ISAS:
            handle = c_void_p()
            self._library.tq_open(candidate.encode(), self.threads, byref(handle))
            if handle:
                self.isa: Isa = candidate
                break
        else:
            raise BackendError(f"this machine or build has no {wanted} kernels; choose another TIANQUAN_ISA")
        self._handle = handle
        # Not at exit: another thread may be in a kernel then, and the system takes everything back.
        weakref.finalize(self, self._library.tq_close, self._handle).atexit = False

    def matmul(
        self,
        x: Float32,
        matrices: ctypes.Array[structs.Matrix],
        outputs: Sequence[Float32],
        activation: str | None = None,
        residual: Float32 | None = None,
        stride: int | None = None,
    ) -> None:
        """Write activation(x @ w.T + bias) + residual of each matrix into its output (T, O).

        Args:
            x: (T, I) rows; only the first row is looked at when `stride` is given.
            matrices: up to MAX_GROUP weights.
            outputs: one array per matrix; all have the same T.
            activation: a name of ACTIVATION_CODES.
            residual: (T, O), added to a single output.
            stride: elements from row to row where rows overlap, as the windows of a convolution do.
        """
        rows = len(outputs[0])
        if rows == 0:
            return
        items = (structs.Output * len(outputs))()
        for item, output in zip(items, outputs, strict=True):
            item.data, item.stride = pointer(output), row_stride(output)
            item.activation = structs.ACTIVATION_CODES[activation]
            if residual is not None:
                assert residual.shape == output.shape, (residual.shape, output.shape)
                item.residual, item.residual_stride = pointer(residual), row_stride(residual)
        x_stride = row_stride(x) if stride is None else stride
        self._library.tq_matmul(self._handle, matrices, items, len(outputs), pointer(x), x_stride, rows)

    def embedding(self, table: structs.Matrix, rows: npt.NDArray[np.int64], out: Float32) -> None:
        """Write rows of a table (R, C) into out (T, C)."""
        self._library.tq_embedding(self._handle, byref(table), pointer(rows), len(rows), pointer(out))

    def rms_norm(self, x: Float32, weight: Float32, eps: float) -> Float32:
        """Return the root-mean-square norm of the rows of x (T, C)."""
        out = np.empty(x.shape, np.float32)
        self._library.tq_rms_norm(self._handle, pointer(x), row_stride(x), pointer(weight), eps, pointer(out), *x.shape)
        return out

    def layer_norm(self, x: Float32, weight: Float32, bias: Float32, eps: float) -> Float32:
        """Return the layer norm of the rows of x (T, C)."""
        out = np.empty(x.shape, np.float32)
        self._library.tq_layer_norm(
            self._handle, pointer(x), row_stride(x), pointer(weight), pointer(bias), eps, pointer(out), *x.shape
        )
        return out

    def rope(self, x: Float32, positions: npt.NDArray[np.int32], inverse_frequencies: Float32) -> Float32:
        """Return x (T, H, D) rotated by positions (T,)."""
        out = np.empty(x.shape, np.float32)
        self._library.tq_rope(
            self._handle,
            pointer(x),
            row_stride(x),
            pointer(positions),
            pointer(inverse_frequencies),
            pointer(out),
            x.shape[1] * x.shape[2],
            *x.shape,
        )
        return out

    def swiglu(self, gate: Float32, up: Float32) -> Float32:
        """Return silu(gate) * up, both (T, I)."""
        out = np.empty(gate.shape, np.float32)
        self._library.tq_swiglu(
            self._handle, pointer(gate), row_stride(gate), pointer(up), row_stride(up), pointer(out), *gate.shape
        )
        return out

    def attention(self, arguments: structs.AttentionArguments) -> None:
        """Attend within packed segments."""
        self._library.tq_attention(self._handle, byref(arguments))

    def cached_attention(self, arguments: structs.CachedAttentionArguments) -> None:
        """Append to the cache of a layer and attend over it."""
        self._library.tq_cached_attention(self._handle, byref(arguments))

    def decode(self, arguments: structs.DecoderArguments) -> None:
        """Run one decode step of the language model."""
        self._library.tq_decode(self._handle, byref(arguments))

    def quantize(self, arguments: structs.QuantizeArguments) -> None:
        """Search scales and write codes for one weight."""
        self._library.tq_quantize(self._handle, byref(arguments))

    def measure_fma_gflop_s(self) -> float:
        """Return the float32 multiply-add peak of the pool in GFLOP/s; takes a fraction of a second."""
        result = c_double()
        self._library.tq_fma_gflop_s(self._handle, byref(result))
        return result.value

    def measure_read_gb_s(self, data: npt.NDArray[np.uint8]) -> float:
        """Return the read bandwidth of the pool in GB/s over `data`, the best of three passes.

        Args:
            data: bytes that were written to, many times as many as the caches hold.
        """
        result = c_double()
        self._library.tq_read_gb_s(self._handle, pointer(data), data.nbytes, byref(result))
        return result.value
