"""Connecting to a Ray cluster, and how much of it a worker takes."""

from __future__ import annotations

import logging
import math
import os
import signal
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import ray

from tianquan.checkpoint import find_folder, open_checkpoint
from tianquan.checkpoint.adapter import Adapter
from tianquan.errors import ParameterError, TianquanError
from tianquan.processing.labels import printable
from tianquan.serving.config import ServeConfig

LOCAL = "local"
_PROBE_SECONDS = 5.0


@contextmanager
def connected(address: str) -> Iterator[None]:
    """Be connected to a cluster, or to one of this machine's own made for the block. For the main thread only.

    Args:
        address: as `host:port`, `auto` for the cluster this machine belongs to, or `local`.

    Raises:
        TianquanError: nothing answers there.
    """
    is_answered = _probe(address)
    options: dict[str, Any] = {"logging_level": logging.ERROR, "log_to_driver": True}
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # keeps a warning about GPUs off stderr
    try:
        if address == LOCAL:
            ray.init(address=LOCAL, include_dashboard=False, **options)
        else:
            ray.init(address=address, **options)
    except Exception as error:  # of a machine too slow for its time limits Ray tells with a bare one
        if is_answered:
            raise TianquanError(
                f"{printable(address)}: answers, but Ray cannot join a cluster there; it needs the cluster's own "
                "version of Ray, and RAY_AUTH_MODE=token in the environment where the cluster asks for a token"
            ) from error
        if address != LOCAL:
            raise _unreachable(address) from error
        raise TianquanError(f"Ray does not start here: {printable(str(error).strip(), 200)}") from error
    for number, handler in before.items():
        signal.signal(number, handler)  # Ray has put its own in place of them
    try:
        yield
    finally:
        ray.shutdown()


def _probe(address: str) -> bool:
    """Connect and hang up: Ray itself tries an address where nobody listens for many minutes.

    Returns:
        Whether somebody listens there; False for what is no address.

    Raises:
        TianquanError: nobody does.
    """
    host, separator, port = address.removeprefix("ray://").rpartition(":")
    if not separator:
        return False
    try:
        socket.create_connection((host, int(port)), _PROBE_SECONDS).close()
    except (OSError, ValueError, OverflowError) as error:
        raise _unreachable(address) from error
    return True


def _unreachable(address: str) -> TianquanError:
    return TianquanError(
        f"{printable(address)}: no Ray cluster can be reached there; give host:port, auto, or local for one made here"
    )


@dataclass(frozen=True, kw_only=True)
class Share:
    """What workers take of a cluster.

    num_workers: processes, each with a model of its own.
    num_threads: of each.
    """

    num_workers: int
    num_threads: int


def plan_share(num_workers: int | None, num_threads: int | None) -> Share:
    """Return how many workers of how many threads there will be: one worker a machine that uses all of it, by default.

    Raises:
        ParameterError: the cluster is too small for them.
    """
    cores = sorted((int(node["Resources"].get("CPU", 0)) for node in ray.nodes() if node["Alive"]), reverse=True)
    cores = [count for count in cores if count > 0]
    if not cores:
        raise ParameterError("the Ray cluster has no CPUs; start its nodes with --num-cpus")
    workers = num_workers or len(cores)
    threads = num_threads or max(1, cores[-1] // math.ceil(workers / len(cores)))
    room = sum(count // threads for count in cores)
    if room < workers:
        raise ParameterError(
            f"{workers} workers of {threads} threads do not fit: the cluster's {sum(cores)} CPUs have room for {room}; "
            "give fewer --workers (of batch), --replicas (of serve) or --threads"
        )
    return Share(num_workers=workers, num_threads=threads)


def with_whole_paths(config: ServeConfig) -> ServeConfig:
    """Return a configuration for workers, which have another working folder. What the model is called stays."""
    model = str(Path(config.model).resolve()) if Path(config.model).is_dir() else config.model
    root = None if config.media_root is None else config.media_root.resolve()
    adapters = tuple(f"{name}={folder.resolve()}" for name, folder in config.adapters.items())
    return replace(config, model=model, served_model_name=config.model_name, media_root=root, adapter=adapters)


def check_model(config: ServeConfig) -> None:
    """Open the model here, without its weights, and its adapters: what is wrong is told at once, not by every worker.

    Raises:
        CheckpointError, ParameterError: see `tianquan.load`.
    """
    checkpoint = open_checkpoint(find_folder(config.model, config.revision))
    checkpoint.recipe(config.precision)
    for folder in config.adapters.values():
        Adapter.open(folder, checkpoint.config)
