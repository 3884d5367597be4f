"""Connecting to a Ray cluster, and how much of it a worker takes."""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import ray

from tianquan.errors import ParameterError, TianquanError

LOCAL = "local"


@contextmanager
def connected(address: str) -> Iterator[None]:
    """Be connected to a cluster, or to one of this machine's own made for the block.

    Args:
        address: as `host:port`, `auto` for the cluster this machine belongs to, or `local`.

    Raises:
        TianquanError: nothing answers there.
    """
    options: dict[str, Any] = {"logging_level": logging.ERROR, "log_to_driver": True}
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # keeps a warning about GPUs off stderr
    try:
        if address == LOCAL:
            ray.init(address=LOCAL, include_dashboard=False, **options)
        else:
            ray.init(address=address, **options)
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise TianquanError(
            f"{address}: no Ray cluster can be reached there; give host:port, auto, or local for one made here"
        ) from error
    try:
        yield
    finally:
        ray.shutdown()


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
            "give fewer --workers or --threads"
        )
    return Share(num_workers=workers, num_threads=threads)
