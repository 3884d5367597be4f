from __future__ import annotations

import os
import threading
import time
from typing import Any, cast

import numpy as np
import pytest

import tianquan.kernels
from tianquan.backends.native import NativeOps
from tianquan.errors import BackendError
from tianquan.kernels import library
from tianquan.quantization.format import INT4_G32
from tianquan.quantization.quantizers import quantize


def normal(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).standard_normal(shape, dtype=np.float32)


def test_a_missing_library_is_one_clear_sentence(monkeypatch: pytest.MonkeyPatch, tmp_path: object) -> None:
    monkeypatch.setattr(tianquan.kernels, "__path__", [str(tmp_path)])
    with pytest.raises(BackendError, match=r"were not built; reinstall with a C\+\+17 compiler"):
        library.library_path()


@pytest.mark.parametrize("threads", [0, -1, 5000])
def test_a_wrong_number_of_threads_is_refused(threads: int) -> None:
    with pytest.raises(BackendError, match="expected 1 to 1024"):
        NativeOps(threads)


def test_the_forced_instruction_set(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setenv("TIANQUAN_ISA", "scalar")
    assert NativeOps(1).isa == "scalar"
    assert "many times slower" in caplog.text
    monkeypatch.setenv("TIANQUAN_ISA", "mmx")
    with pytest.raises(BackendError, match="TIANQUAN_ISA is 'mmx', expected one of"):
        NativeOps(1)


def test_a_wrong_kv_format_is_refused() -> None:
    with pytest.raises(BackendError, match="kv_format"):
        NativeOps(1, kv_format=cast(Any, "int3"))


def test_calls_from_several_threads_wait_for_each_other() -> None:
    ops = NativeOps(2)
    linear = ops.make_linear(quantize(normal(64, 96), INT4_G32), None)
    x = normal(33, 96)
    expected = ops.linear(x, linear)
    wrong: list[int] = []

    def run(number: int) -> None:
        for _ in range(50):
            if not np.array_equal(ops.linear(x, linear), expected):
                wrong.append(number)

    threads = [threading.Thread(target=run, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # fork with threads is what is tested
def test_a_forked_child_has_its_own_pool() -> None:
    ops = NativeOps(2)
    linear = ops.make_linear(quantize(normal(64, 96), INT4_G32), None)
    x = normal(33, 96)
    expected = ops.linear(x, linear)
    child = os.fork()
    if child == 0:
        os._exit(0 if np.array_equal(ops.linear(x, linear), expected) else 1)
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        pid, status = os.waitpid(child, os.WNOHANG)
        if pid:
            assert os.waitstatus_to_exitcode(status) == 0
            break
        time.sleep(0.01)
    else:
        os.kill(child, 9)
        pytest.fail("the child hangs")
    assert np.array_equal(ops.linear(x, linear), expected)


def test_an_idle_pool_uses_no_processor_time() -> None:
    ops = NativeOps(4)
    ops.rms_norm(normal(100, 64), normal(64), 1e-5)
    time.sleep(0.05)  # the workers' spin is 0.2 ms
    start = time.process_time()
    time.sleep(0.2)
    assert time.process_time() - start < 0.1


def test_ceilings_are_positive() -> None:
    kernels = NativeOps(1, "scalar").library
    assert kernels.measure_read_gb_s(np.ones(2**20, np.uint8)) > 0
    assert kernels.measure_fma_gflop_s() > 0
