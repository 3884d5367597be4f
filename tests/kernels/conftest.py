from __future__ import annotations

import itertools

import pytest

from tianquan.backends.native import NativeOps
from tianquan.backends.reference import ReferenceOps
from tianquan.errors import BackendError
from tianquan.kernels.library import ISAS, Isa, library_path


@pytest.fixture(
    scope="session",
    params=[*itertools.product(ISAS, (1, 2)), ("avx2", 3), ("avx2", 4)],
    ids=lambda p: f"{p[0]}-{p[1]}",
)
def native(request: pytest.FixtureRequest) -> NativeOps:
    """Every instruction set with one and two threads, one of them also with three and four."""
    isa: Isa
    isa, threads = request.param
    library_path()  # a library that was not built is no reason to skip
    try:
        return NativeOps(threads, isa)
    except BackendError as error:
        if isa == "scalar":
            raise
        pytest.skip(str(error))


@pytest.fixture(scope="session")
def reference() -> ReferenceOps:
    return ReferenceOps()
