from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from typing import Any, cast

import numpy as np
import pytest

import tianquan.kernels
from tianquan.backends.kv_cache import SequenceBatch
from tianquan.backends.native import NativeOps
from tianquan.backends.reference import ReferenceOps
from tianquan.errors import BackendError
from tianquan.kernels import library
from tianquan.kernels.processors import available_processors
from tianquan.quantization.dense import DenseTensor
from tianquan.quantization.format import INT4_G32
from tianquan.quantization.quantizers import quantize


def normal(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).standard_normal(shape, dtype=np.float32)


def test_a_missing_library_is_one_clear_sentence(monkeypatch: pytest.MonkeyPatch, tmp_path: object) -> None:
    monkeypatch.setattr(tianquan.kernels, "__path__", [str(tmp_path)])
    with pytest.raises(BackendError, match=r"were not built; with a C\+\+17 compiler at hand run"):
        library.library_path()


@pytest.mark.parametrize("threads", [0, -1, 5000])
def test_a_wrong_number_of_threads_is_refused(threads: int) -> None:
    with pytest.raises(BackendError, match="expected 1 to 1024"):
        NativeOps(threads)


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({"own": "0::/\n", "mount/cpu.max": "150000 100000\n"}, 2),
        ({"own": "0::/a/b\n", "mount/a/cpu.max": "100000 100000\n", "mount/a/b/cpu.max": "max 100000\n"}, 1),
        ({"own": "0::/../x\n", "mount/cpu.max": "20000 100000\n"}, 1),
        ({"own": "4:cpu,cpuacct:/c\n", "mount/cpu,cpuacct/c/cpu.cfs_quota_us": "50000\n",
          "mount/cpu,cpuacct/c/cpu.cfs_period_us": "100000\n"}, 1),
        ({"own": "4:cpu:/\n", "mount/cpu/cpu.cfs_quota_us": "-1\n", "mount/cpu/cpu.cfs_period_us": "100000\n"}, 8),
        ({"own": "0::/\n", "mount/cpu.max": "nonsense\n"}, 8),
        ({}, 8),
    ],
)  # fmt: skip
def test_a_containers_share_of_processors_bounds_the_threads(tmp_path, monkeypatch, files, expected) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    assert available_processors(tmp_path / "own", tmp_path / "mount") == expected


def test_a_process_that_ends_while_a_thread_computes_ends_well() -> None:
    code = (
        "import sys, threading, numpy as np\n"
        "from tianquan.backends.native import NativeOps\n"
        "ops, x = NativeOps(2), np.ones((64, 512), np.float32)\n"
        "def compute():\n"
        "    while True: ops.rms_norm(x, x[0].copy(), 1e-5)\n"
        "threading.Thread(target=compute, daemon=True).start()\n"
    )
    for _ in range(3):
        assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


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


def wrong_calls(ops: NativeOps) -> list[Callable[[], Any]]:
    """Calls whose arguments do not fit, with which C would read or write elsewhere."""
    q, k, whole = normal(4, 2, 16), normal(4, 2, 8), np.array([0, 4], np.int32)
    three = normal(4, 3, 8)
    linear = ops.make_linear(quantize(normal(20, 32), INT4_G32), None)
    cache = ops.make_kv_cache(1, 1, 2, 8, 8)
    batch = SequenceBatch(whole, np.zeros(1, np.int32), np.zeros((1, 1), np.int32))
    dense = DenseTensor(normal(7), "float32")
    return [
        lambda: ops.attention(q, k, k, whole, whole, False),
        lambda: ops.attention(three, k, k, whole, whole, False),
        lambda: ops.attention(k, k, k, np.array([0, 3], np.int32), whole, False),
        lambda: ops.cached_attention(q, k, k, cache, 0, batch),
        lambda: ops.cached_attention(three, k, k, cache, 0, batch),
        lambda: ops.make_linear(quantize(normal(20, 32), INT4_G32), dense),
        lambda: ops.linear(normal(3, 31), linear),
        lambda: ops.rms_norm(normal(3, 8), normal(16)[::2], 1e-5),
        lambda: ops.rms_norm(normal(3, 8), np.ones(8), 1e-5),
        lambda: ops.rope(normal(3, 2, 8), np.zeros(2, np.int32), 1e4),
        lambda: ops.swiglu(normal(3, 8), normal(3, 7)),
        lambda: ops.conv1d(normal(5, 8), linear, 4, 1, None, np.array([0, 5], np.int32)),
    ]


@pytest.mark.parametrize("number", range(12))
def test_arguments_that_do_not_fit_never_reach_c(number: int) -> None:
    with pytest.raises(BackendError, match="a caller's mistake"):
        wrong_calls(NativeOps(1))[number]()


def test_no_rows() -> None:
    for ops in (NativeOps(1), ReferenceOps()):
        none, heads, ends = normal(0, 8), normal(0, 2, 8), np.array([0, 0], np.int32)
        assert ops.rms_norm(none, normal(8), 1e-5).shape == (0, 8)
        assert ops.layer_norm(none, normal(8), normal(8), 1e-5).shape == (0, 8)
        assert ops.swiglu(none, none).shape == (0, 8)
        assert ops.rope(heads, np.zeros(0, np.int32), 1e4).shape == (0, 2, 8)
        assert ops.attention(heads, heads, heads, ends, ends, False).shape == (0, 2, 8)


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
    assert exit_code_of_child(lambda: np.array_equal(ops.linear(x, linear), expected)) == 0
    assert np.array_equal(ops.linear(x, linear), expected)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_threads_of_a_forked_child_share_one_pool() -> None:
    """Both call first: each finds the parent's pool, and one makes the child's."""
    ops = NativeOps(2)
    linear = ops.make_linear(quantize(normal(64, 96), INT4_G32), None)
    x = normal(33, 96)
    expected = ops.linear(x, linear)

    def together() -> bool:
        start = threading.Barrier(8)
        right = []

        def call() -> None:
            start.wait()
            right.extend(np.array_equal(ops.linear(x, linear), expected) for _ in range(20))

        threads = [threading.Thread(target=call) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return right == [True] * 160

    for _ in range(5):
        assert exit_code_of_child(together) == 0


def exit_code_of_child(work: Callable[[], bool]) -> int:
    """Return 0 where work is true in a forked child."""
    child = os.fork()
    if child == 0:
        os._exit(0 if work() else 1)
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        pid, status = os.waitpid(child, os.WNOHANG)
        if pid:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.01)
    os.kill(child, 9)
    pytest.fail("the child hangs")


def test_an_idle_pool_uses_no_processor_time() -> None:
    ops = NativeOps(4)
    ops.rms_norm(normal(100, 64), normal(64), 1e-5)
    time.sleep(0.05)  # the workers' spin is 0.2 ms
    start = time.process_time()
    time.sleep(0.2)
    assert time.process_time() - start < 0.1


def limited(code: str, *, memory: int | None = None) -> subprocess.CompletedProcess[str]:
    """Run code in a process that may have `memory` bytes more than it has when it calls `limit()`."""
    head = (
        "import resource, numpy as np\n"
        "from tianquan.backends.native import NativeOps\n"
        "from tianquan.quantization.format import INT4_G32\n"
        "from tianquan.quantization.quantizers import quantize\n"
        "def limit():\n"
        "    has = int(open('/proc/self/statm').read().split()[0]) * resource.getpagesize()\n"
        f"    resource.setrlimit(resource.RLIMIT_AS, (has + {memory},) * 2)\n"
    )
    environment = {**os.environ, "OPENBLAS_NUM_THREADS": "1"}
    return subprocess.run([sys.executable, "-c", head + code], capture_output=True, text=True, env=environment)


@pytest.mark.skipif(not os.path.exists("/proc/self/statm"), reason="needs /proc")
def test_threads_that_cannot_be_made_are_one_sentence() -> None:
    code = (
        "limit()\n"
        "try: NativeOps(1000)\n"
        "except Exception as error: print(type(error).__name__, error)\n"
        "ops = NativeOps(2)\n"
        "print(ops.rms_norm(np.ones((4, 8), np.float32), np.ones(8, np.float32), 1e-5)[0, 0])\n"
    )
    result = limited(code, memory=200 << 20)
    assert result.returncode == 0, result
    first, second = result.stdout.splitlines()
    assert first == "BackendError the system lets this process make no more threads; ask for fewer (--threads)"
    assert float(second) == pytest.approx(1, abs=1e-4)


@pytest.mark.skipif(not os.path.exists("/proc/self/statm"), reason="needs /proc")
@pytest.mark.parametrize("threads", [1, 2])
def test_too_little_memory_ends_one_call_and_not_the_process(threads: int) -> None:
    code = (
        f"ops = NativeOps({threads})\n"
        "linear = ops.make_linear(quantize(np.ones((32, 4096), np.float32), INT4_G32), None)\n"
        "x = np.ones((60_000, 4096), np.float32)\n"
        "limit()\n"
        "try: ops.linear(x, linear)\n"
        "except MemoryError as error: print('MemoryError')\n"
        "print(ops.linear(x[:3], linear)[0, 0])\n"
    )
    result = limited(code, memory=100 << 20)
    assert result.returncode == 0, result
    first, second = result.stdout.splitlines()
    assert first == "MemoryError"
    assert float(second) == pytest.approx(4096, rel=0.05)


def test_ceilings_are_positive() -> None:
    kernels = NativeOps(1, "scalar").library
    assert kernels.measure_read_gb_s(np.ones(2**20, np.uint8)) > 0
    assert kernels.measure_fma_gflop_s() > 0
