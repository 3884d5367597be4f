"""From a folder or a hub id to a model that answers: precision, backend, memory, and adapters."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import get_args

from tianquan.backends import Backend, make_ops
from tianquan.backends.kv_cache import KVFormat
from tianquan.checkpoint import Checkpoint, find_folder, open_checkpoint
from tianquan.checkpoint.adapter import Adapter
from tianquan.checkpoint.shared_weights import AdaptedWeights, SharedWeights
from tianquan.checkpoint.tensor_list import needed_weights
from tianquan.checkpoint.weight_reader import OnProgress
from tianquan.engine.interface import EngineOptions
from tianquan.engine.memory import DEFAULT_KV_BYTES, kv_bytes_within
from tianquan.engine_driver import StepThread
from tianquan.errors import ParameterError
from tianquan.llm import LLM
from tianquan.models.omni_model import OmniModel
from tianquan.quantization.recipes import Recipe

logger = logging.getLogger(__name__)

_MIB = 2**20


def load(
    model: str | Path,
    *,
    precision: str | None = None,
    backend: Backend = "native",
    device: str = "cpu",
    threads: int | None = None,
    revision: str | None = None,
    on_progress: OnProgress | None = None,
    engine: EngineOptions | None = None,
    max_memory: int | None = None,
    kv_format: KVFormat | None = None,
    adapter: str | Path | None = None,
    adapters: Mapping[str, str | Path] | None = None,
) -> LLM:
    """Load a model.

    Args:
        model: a folder of the official layout, or a hub id (`owner/name`, `owner/name@revision`).
        precision: what to keep the weights in: float32, bfloat16, float16, int8, int4 or a recipe's name;
            as stored for a low-bit folder, else int4 by default.
        backend: native (C++ kernels), reference (numpy) or torch (PyTorch, if it is installed).
        device: cpu; with backend torch also cuda or cuda:N.
        threads: threads of the native backend; None = one per core.
        revision: branch, tag or commit of a hub repository.
        on_progress: called with (weight name, bytes read) for each weight.
        engine: memory and limits of the engine. With `adapters` the bytes are of all engines together, in equal
            shares; the limits are each one's.
        max_memory: bytes that weights, keys and values, features and work may take together; decides how much of
            the past is kept where `engine` does not.
        kv_format: what the native backend keeps keys and values in; the recipe's by default.
        adapter: folder of a LoRA adapter in peft's format, kept beside the weights as it was trained.
        adapters: by name, folders of adapters to load beside the model: `llm.adapted[name]` is the model with one.
            Each takes the memory of its factors, and has an engine of its own.

    Raises:
        CheckpointError, ParameterError, BackendError: nothing is loaded then.
    """
    if adapter is not None and adapters:
        raise ParameterError("adapter is of the model itself, adapters are of others beside it; give one of the two")
    checkpoint = open_checkpoint(find_folder(model, revision))
    recipe = checkpoint.recipe(precision)
    if kv_format is not None and (backend != "native" or kv_format not in get_args(KVFormat)):
        raise ParameterError(
            f"kv_format {kv_format!r} on backend {backend!r}: expected one of {', '.join(get_args(KVFormat))}, "
            "on the native backend"
        )
    its_own = None if adapter is None else Adapter.open(Path(adapter), checkpoint.config)
    opened = {name: Adapter.open(Path(folder), checkpoint.config) for name, folder in (adapters or {}).items()}
    _require_native(backend, max_memory)
    adapter_bytes = sum(one.nbytes for one in (its_own, *opened.values()) if one is not None)
    engine = _within(max_memory, engine or EngineOptions(), checkpoint, recipe, adapter_bytes, 1 + len(opened))
    ops = make_ops(backend, device, threads, kv_format or recipe.kv_format)
    _warn_of_storage_formats(recipe)
    weights = checkpoint.weights(recipe, ops, on_progress)
    if not opened:
        adapted = weights if its_own is None else AdaptedWeights(weights, its_own, ops)
        return LLM(checkpoint, OmniModel(checkpoint.config, adapted, ops), recipe, engine, has_adapter=bool(its_own))
    shared, thread = SharedWeights(weights, ops), StepThread()
    llm = LLM(checkpoint, OmniModel(checkpoint.config, shared, ops), recipe, engine, thread)
    for name, one in opened.items():
        model_of_it = OmniModel(checkpoint.config, AdaptedWeights(shared, one, ops), ops)
        llm.adapted[name] = LLM(checkpoint, model_of_it, recipe, engine, thread, has_adapter=True)
        logger.info(
            "adapter %s: %.1f MiB of weights of its own, and up to %.0f MiB of keys and values",
            name,
            one.nbytes / _MIB,
            llm.adapted[name].statistics().kv_cache_bytes / _MIB,
        )
    return llm


def _require_native(backend: Backend, max_memory: int | None) -> None:
    if max_memory is not None and backend != "native":
        raise ParameterError(f"max_memory is kept by the native backend only, not by {backend}; leave it out")


def _within(
    max_memory: int | None,
    options: EngineOptions,
    checkpoint: Checkpoint,
    recipe: Recipe,
    adapter_bytes: int,
    num_engines: int,
) -> EngineOptions:
    """Return the options of each engine, that keep to a bound on the whole memory; every engine has an equal share."""
    kv_bytes = options.kv_cache_bytes
    if max_memory is not None:
        weight_bytes = adapter_bytes + sum(weight.nbytes(recipe) for weight in needed_weights(checkpoint.config))
        rest = kv_bytes_within(max_memory, weight_bytes, options.encoder_cache_bytes)
        if kv_bytes is None:
            kv_bytes = min(rest, num_engines * DEFAULT_KV_BYTES)
        elif kv_bytes > rest:
            raise ParameterError(f"kv_cache_bytes is {kv_bytes}, max_memory leaves {rest}; ask for less")
    return replace(
        options,
        kv_cache_bytes=None if kv_bytes is None else kv_bytes // num_engines,
        encoder_cache_bytes=options.encoder_cache_bytes // num_engines,
    )


@cache
def _warn_of_storage_formats(recipe: Recipe) -> None:
    if recipe.name in ("bfloat16", "float16"):
        logger.info("%s weights are kept as they are and computed with in float32 on this device", recipe.name)
