"""Backends: implementations of the operations in `ops.py`. Each is imported only when asked for."""

from __future__ import annotations

from typing import Literal, get_args

from tianquan.backends.kv_cache import KVFormat
from tianquan.backends.ops import Ops
from tianquan.errors import BackendError, ParameterError

Backend = Literal["native", "reference", "torch"]
BACKENDS: tuple[Backend, ...] = get_args(Backend)


def make_ops(backend: Backend, device: str = "cpu", threads: int | None = None, kv_format: KVFormat = "float32") -> Ops:
    """Return the operations of a backend.

    Args:
        backend: `native` (C++ kernels, the default on a CPU), `reference` (numpy, the definition) or `torch`.
        device: where it computes: `cpu`, for the torch backend also `cuda`.
        threads: threads of the native backend; None = one per core this process may use.
        kv_format: what the native backend keeps keys and values in; the reference keeps float32.

    Raises:
        ParameterError: unknown backend or device, or a thread count below 1.
        BackendError: the backend cannot run here.
    """
    if backend == "torch":
        try:
            from tianquan.backends.torch import TorchOps
        except ImportError as error:
            raise BackendError("the torch backend needs PyTorch, which is not installed: pip install torch") from error
        return TorchOps(device)
    if device != "cpu":
        raise ParameterError(f"device {device!r} is not supported by backend {backend!r}; expected 'cpu'")
    if threads is not None and (isinstance(threads, bool) or not isinstance(threads, int) or threads < 1):
        raise ParameterError(f"threads must be a whole number, at least 1, got {threads!r}")
    if backend == "native":
        from tianquan.backends.native import NativeOps

        return NativeOps(threads, kv_format=kv_format)
    if backend == "reference":
        from tianquan.backends.reference import ReferenceOps

        return ReferenceOps()
    raise ParameterError(f"unknown backend {backend!r}; expected one of {', '.join(BACKENDS)}")
