from __future__ import annotations

import itertools

import pytest

from tianquan.backends.native import NativeOps
from tianquan.backends.reference import ReferenceOps
from tianquan.errors import BackendError
from tianquan.kernels.library import ISAS, Isa


def supported_isas() -> list[Isa]:
    """Return the instruction sets this machine can test."""
    found: list[Isa] = []
    for isa in ISAS:
        try:
            NativeOps(1, isa)
        except BackendError:
            continue
        found.append(isa)
    return found


@pytest.fixture(
    scope="session",
    params=[*itertools.product(supported_isas(), (1, 2)), *((isa, n) for isa in supported_isas()[:1] for n in (3, 4))],
    ids=lambda p: f"{p[0]}-{p[1]}",
)
def native(request: pytest.FixtureRequest) -> NativeOps:
    """Every instruction set with one and two threads, the best one also with three and four."""
    isa, threads = request.param
    return NativeOps(threads, isa)


@pytest.fixture(scope="session")
def reference() -> ReferenceOps:
    return ReferenceOps()
