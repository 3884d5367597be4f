from __future__ import annotations

import itertools

import pytest

from instruction_sets import open_or_skip
from tianquan.backends.native import NativeOps
from tianquan.backends.reference import ReferenceOps
from tianquan.kernels.library import ISAS, Isa


@pytest.fixture(
    scope="session",
    params=[*itertools.product(ISAS, (1, 2)), ("avx2", 3), ("avx2", 4)],
    ids=lambda p: f"{p[0]}-{p[1]}",
)
def native(request: pytest.FixtureRequest) -> NativeOps:
    """Every instruction set with one and two threads, one of them also with three and four."""
    isa: Isa
    isa, threads = request.param
    return open_or_skip(isa, lambda: NativeOps(threads, isa))


@pytest.fixture(scope="session")
def reference() -> ReferenceOps:
    return ReferenceOps()
