"""Kernels beside their ceilings: `python benchmarks/kernels.py [--threads N] [--isa avx2] [--only NAME]`.

On a machine that others use, `--threads 1 --processor-time` counts the time the thread itself ran, and gives no
shares, because the peaks are taken on the wall. What is limited by arithmetic then repeats within a few per cent; what
is limited by memory still depends on the neighbours.

Each line is the best of several repeats and its share of the peak that bounds it (float32 multiply-adds or
read bandwidth), measured in the same run. Sizes are those of the official model; weights are random codes.
"""

from __future__ import annotations

import argparse
import datetime
import time
from collections.abc import Callable
from functools import partial

import numpy as np

from tianquan.backends.kv_cache import SequenceBatch
from tianquan.backends.native import NativeOps
from tianquan.backends.ops import DecoderLayer, DecoderShape
from tianquan.benchmark.run import machine_name
from tianquan.kernels.library import ISAS
from tianquan.quantization.dense import DenseTensor
from tianquan.quantization.format import FORMATS, INT4_G32, INT8_G64, QuantFormat, QuantizedTensor

RNG = np.random.default_rng(0)
HIDDEN, INTERMEDIATE, HEADS, KV_HEADS, HEAD_DIM, LAYERS, VOCAB = 2560, 7168, 40, 10, 64, 32, 122880


def best_seconds(body: Callable[[], object], clock: Callable[[], float], repeats: int = 5) -> float:
    body()
    times = []
    for _ in range(repeats):
        start = clock()
        body()
        times.append(clock() - start)
    return min(times)


def random_weight(out: int, in_: int, format: QuantFormat) -> QuantizedTensor:
    arrays = {}
    for name, (shape, dtype) in format.array_shapes((out, in_)).items():
        if name == "codes":
            low, high = (0, 256) if format.bits == 4 else (-64, 65)
            block = RNG.integers(low, high, 2**20).astype(dtype)
            arrays[name] = np.resize(block, shape)
        else:
            arrays[name] = np.full(shape, 0.01, dtype)
    return QuantizedTensor.from_arrays(format, (out, in_), arrays)


def normal(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape, dtype=np.float32)


class Bench:
    def __init__(self, ops: NativeOps, clock: Callable[[], float]) -> None:
        self.ops = ops
        self.clock = clock
        self.peak = ops.library.measure_fma_gflop_s()
        self.bandwidth = ops.library.measure_read_gb_s(np.ones(512 * 2**20, np.uint8))
        today = datetime.date.today().isoformat()
        self.has_shares = clock is time.perf_counter
        print(f"{machine_name()}, {today}, {'wall' if self.has_shares else 'processor'} time")
        peaks = f"fma {self.peak:.1f} GFLOP/s  read {self.bandwidth:.1f} GB/s" if self.has_shares else ""
        print(f"threads {ops.threads}  isa {ops.isa}  {peaks}")

    def compute(self, name: str, operations: float, body: Callable[[], object]) -> None:
        seconds = best_seconds(body, self.clock)
        rate = operations / seconds * 1e-9
        share = f"  {rate / self.peak:5.2f} x fma peak" if self.has_shares else ""
        print(f"{name:44s} {seconds * 1e3:9.3f} ms {rate:8.1f} GOP/s{share}")

    def memory(self, name: str, num_bytes: float, body: Callable[[], object]) -> None:
        seconds = best_seconds(body, self.clock)
        rate = num_bytes / seconds * 1e-9
        share = f"   {rate / self.bandwidth:5.2f} x read peak" if self.has_shares else ""
        print(f"{name:44s} {seconds * 1e3:9.3f} ms {rate:8.1f} GB/s{share}")

    def products(self) -> None:
        for rows, out, in_ in ((128, 7168, 2560), (512, 7168, 2560), (128, 2560, 7168), (1024, 4304, 1152)):
            x = normal(rows, in_)
            for format in FORMATS.values():
                linear = self.ops.make_linear(random_weight(out, in_, format), None)
                operations = 2.0 * rows * out * in_
                self.compute(
                    f"{format} {rows} x {in_} -> {out}", operations, lambda w=linear, x=x: self.ops.linear(x, w)
                )

    def batches(self) -> None:
        for format in (INT4_G32, INT8_G64):
            weights = [random_weight(14336, 2560, format) for _ in range(8)]  # beyond the last-level cache
            linears = [self.ops.make_linear(w, None) for w in weights]
            for rows in (1, 2, 3, 4, 5, 6, 8, 12, 16, 24, 32):
                x = normal(rows, 2560)
                num_bytes = sum(w.nbytes for w in weights)
                self.memory(
                    f"{format} {rows} rows", num_bytes, lambda x=x, ws=linears: [self.ops.linear(x, w) for w in ws]
                )

    def dense(self) -> None:
        for name in ("float32", "float16", "bfloat16"):
            weight = DenseTensor(normal(4304, 1152), "float32").cast(name)
            linear = self.ops.make_linear(weight, None)
            for rows in (1, 128, 1024):
                x = normal(rows, 1152)
                operations = 2.0 * rows * 4304 * 1152
                self.compute(f"dense {name} {rows} x 1152 -> 4304", operations, partial(self.ops.linear, x, linear))

    def attention(self) -> None:
        for name, tokens, heads, dim, causal in (
            ("vision", 1024, 16, 72, False),
            ("audio", 1500, 20, 64, False),
            ("prefill", 512, 40, 64, True),
        ):
            kv_heads = KV_HEADS if causal else heads
            q, k, v = normal(tokens, heads, dim), normal(tokens, kv_heads, dim), normal(tokens, kv_heads, dim)
            offsets = np.array([0, tokens], np.int32)
            operations = 4.0 * tokens * tokens * heads * dim * (0.5 if causal else 1)
            self.compute(
                f"attention {name} {tokens} x {heads} x {dim}",
                operations,
                lambda a=(q, k, v, offsets, offsets, causal): self.ops.attention(*a),
            )

    def rows(self) -> None:
        x = normal(1024, 1152)
        weight = normal(1152)
        gate, up = normal(512, INTERMEDIATE), normal(512, INTERMEDIATE)
        q = normal(512, HEADS, HEAD_DIM)
        positions = np.arange(512, dtype=np.int32)
        self.memory("rms_norm 1024 x 1152", x.nbytes, lambda: self.ops.rms_norm(x, weight, 1e-5))
        self.memory("layer_norm 1024 x 1152", x.nbytes, lambda: self.ops.layer_norm(x, weight, weight, 1e-5))
        self.memory("swiglu 512 x 7168", 2 * gate.nbytes, lambda: self.ops.swiglu(gate, up))
        self.memory("rope 512 x 40 x 64", q.nbytes, lambda: self.ops.rope(q, positions, 5e6))

    def quantize(self) -> None:
        weight = normal(2560, 2560) * 0.02
        for format in FORMATS.values():
            seconds = best_seconds(lambda f=format: self.ops.quantize(weight, f), self.clock, repeats=2)
            print(f"quantize {format}: {weight.size / seconds * 1e-6:.1f} million weights/s")

    def decode(self) -> None:
        for format in (INT4_G32, INT8_G64):
            self._decode(format)

    def _decode(self, format: QuantFormat) -> None:
        ops = self.ops
        layers = []
        for _ in range(LAYERS):
            weights = {
                name: random_weight(*shape, format)
                for name, shape in {
                    "q": (HIDDEN, HIDDEN),
                    "k": (640, HIDDEN),
                    "v": (640, HIDDEN),
                    "o": (HIDDEN, HIDDEN),
                    "gate": (INTERMEDIATE, HIDDEN),
                    "up": (INTERMEDIATE, HIDDEN),
                    "down": (HIDDEN, INTERMEDIATE),
                }.items()
            }
            norm = np.ones(HIDDEN, np.float32)
            layers.append(
                DecoderLayer(
                    norm,
                    ops.make_linear_group([weights[n] for n in "qkv"], [None] * 3),
                    ops.make_linear(weights["o"], None),
                    norm,
                    ops.make_linear_group([weights["gate"], weights["up"]], [None] * 2),
                    ops.make_linear(weights["down"], None),
                )
            )
        head = random_weight(VOCAB, HIDDEN, format)
        num_bytes = format.bits_per_weight / 8 * (LAYERS * (HIDDEN * (2 * HIDDEN + 1280) + 3 * HIDDEN * INTERMEDIATE))
        num_bytes += head.nbytes
        shape = DecoderShape(HEADS, KV_HEADS, HEAD_DIM, 1e-5, 5e6)
        decoder = ops.make_fused_decoder(layers, np.ones(HIDDEN, np.float32), ops.make_linear(head, None), shape)
        for batch, depth in ((1, 0), (1, 1024), (2, 0), (4, 0), (8, 0)):
            cache = ops.make_kv_cache(LAYERS, batch * 40, KV_HEADS, 32, HEAD_DIM)
            tables = np.arange(batch * 40, dtype=np.int32).reshape(batch, 40)
            rows = SequenceBatch(np.arange(batch + 1, dtype=np.int32), np.full(batch, depth, np.int32), tables)
            hidden = normal(batch, HIDDEN)
            self.memory(
                f"decode {format} batch {batch} depth {depth}",
                num_bytes,
                lambda h=hidden, c=cache, r=rows: decoder(h, c, r),
            )


def main() -> None:
    names = ("products", "batches", "dense", "attention", "rows", "quantize", "decode")
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--isa", choices=ISAS)
    parser.add_argument("--processor-time", action="store_true", help="instead of the time on the wall")
    parser.add_argument("--only", choices=names, action="append")
    options = parser.parse_args()
    if options.processor_time and options.threads != 1:
        parser.error("--processor-time counts all threads together: it needs --threads 1")
    clock = time.process_time if options.processor_time else time.perf_counter
    bench = Bench(NativeOps(options.threads, options.isa), clock)
    for name in options.only or names:
        getattr(bench, name)()


if __name__ == "__main__":
    main()
