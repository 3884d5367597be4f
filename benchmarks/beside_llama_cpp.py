"""Decode and prefill beside llama.cpp in one run: `python benchmarks/beside_llama_cpp.py --rival PYTHON --output STEM`.

PYTHON is an interpreter with llama-cpp-python and gguf, in an environment of its own. The fair build is one for the
same instruction set as our kernels:

    CMAKE_ARGS="-DGGML_NATIVE=OFF -DGGML_AVX2=ON -DGGML_FMA=ON -DGGML_F16C=ON -DGGML_BMI2=ON -DGGML_AVX512=OFF" \\
        PYTHON -m pip install --no-binary llama-cpp-python llama-cpp-python gguf

Both engines hold the official language model with meaningless weights: ours in the recipe `int4`, llama.cpp in the
mixture that `llama-quantize` makes of Q4_0 (all matrices Q4_0, the output Q6_K). Each lives in a process of its own
and takes turns with the other, stage by stage, so that a drift of the machine meets both; what is reported is the
median of the ratios of neighbours. A decode step of ours stands between two samples of the read bandwidth.

Schema of the JSON: versions, machine, threads, command; `decode` and `prefill.N`, each with `ours` and `llama_cpp`
(median tokens/s), `ratio` (median) and `ratios`; `ours_share_of_bandwidth`; `ceilings`.
"""

from __future__ import annotations

import argparse
import datetime
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

HIDDEN, INTERMEDIATE, LAYERS, HEADS, KV_HEADS, HEAD_DIM = 2560, 7168, 32, 40, 10, 64
VOCAB, ROPE_THETA, NORM_EPS = 122880, 5e6, 1e-5
DECODE_TOKENS = 64
PREFILL_LENS = (128, 512)
UBATCH = 512
# weights of a block and its bytes: a float16 scale and nibbles; 4 + 2 bits, 16 scales of 8 bits and a float16
Q4_0_BLOCK, Q4_0_BYTES = 32, 2 + 16
Q6_K_BLOCK, Q6_K_BYTES = 256, 128 + 64 + 16 + 2


# The rival's process --------------------------------------------------------------------------------------
def write_gguf(path: Path) -> None:
    """Write the language model of the official size with random codes, without making a float model first."""
    import gguf
    import numpy as np

    types = gguf.GGMLQuantizationType
    rng = np.random.default_rng(0)

    def blocks(out: int, in_: int, weights: int, num_bytes: int, scale_at: int) -> Any:
        """Return rows of blocks with random codes and one small scale."""
        count = in_ // weights
        pattern = rng.integers(0, 256, (4096, num_bytes), np.uint8)
        pattern[:, scale_at : scale_at + 2] = np.frombuffer(np.float16(2.0**-10).tobytes(), np.uint8)
        return np.resize(pattern, (out * count, num_bytes)).reshape(out, count * num_bytes)

    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(4096)
    writer.add_embedding_length(HIDDEN)
    writer.add_feed_forward_length(INTERMEDIATE)
    writer.add_block_count(LAYERS)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_rope_dimension_count(HEAD_DIM)
    writer.add_rope_freq_base(ROPE_THETA)
    writer.add_layer_norm_rms_eps(NORM_EPS)
    writer.add_vocab_size(VOCAB)
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_Q4_0)
    writer.add_tokenizer_model("no_vocab")

    def add(name: str, out: int, in_: int) -> None:
        data = blocks(out, in_, Q4_0_BLOCK, Q4_0_BYTES, 0)
        writer.add_tensor(f"{name}.weight", data, raw_dtype=types.Q4_0)

    norm = np.ones(HIDDEN, np.float32)
    add("token_embd", VOCAB, HIDDEN)
    writer.add_tensor("output_norm.weight", norm)
    head = blocks(VOCAB, HIDDEN, Q6_K_BLOCK, Q6_K_BYTES, Q6_K_BYTES - 2)
    writer.add_tensor("output.weight", head, raw_dtype=types.Q6_K)
    for layer in range(LAYERS):
        for name in ("attn_norm", "ffn_norm"):
            writer.add_tensor(f"blk.{layer}.{name}.weight", norm)
        for name, out, in_ in (
            ("attn_q", HEADS * HEAD_DIM, HIDDEN),
            ("attn_k", KV_HEADS * HEAD_DIM, HIDDEN),
            ("attn_v", KV_HEADS * HEAD_DIM, HIDDEN),
            ("attn_output", HIDDEN, HEADS * HEAD_DIM),
            ("ffn_gate", INTERMEDIATE, HIDDEN),
            ("ffn_up", INTERMEDIATE, HIDDEN),
            ("ffn_down", HIDDEN, INTERMEDIATE),
        ):
            add(f"blk.{layer}.{name}", out, in_)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


class LlamaCpp:
    """llama.cpp through the plain C interface, with the settings of llama-bench."""

    def __init__(self, path: Path, threads: int) -> None:
        import llama_cpp

        self._api = llama_cpp
        llama_cpp.llama_backend_init()
        self._quiet = llama_cpp.llama_log_callback(lambda *_: None)
        llama_cpp.llama_log_set(self._quiet, None)
        self._model = llama_cpp.llama_model_load_from_file(str(path).encode(), llama_cpp.llama_model_default_params())
        if not self._model:
            raise SystemExit(f"llama.cpp cannot load {path}")
        settings = llama_cpp.llama_context_default_params()
        settings.n_ctx, settings.n_batch, settings.n_ubatch = 1024, UBATCH, UBATCH
        settings.n_threads = settings.n_threads_batch = threads
        self._context = llama_cpp.llama_init_from_model(self._model, settings)

    def versions(self) -> dict[str, Any]:
        """Return what was built and for which instructions."""
        flags = self._api.llama_print_system_info().decode().split("|")
        return {"llama_cpp_python": self._api.__version__, "features": " ".join(f.strip() for f in flags).strip()}

    def prefill(self, num_tokens: int) -> dict[str, float]:
        """Return the seconds of the first pass over a prompt."""
        self._clear()
        return {"seconds": self._timed_step(num_tokens)}

    def decode(self, num_tokens: int) -> dict[str, float]:
        """Return the median seconds of a step."""
        self._clear()
        self._timed_step(1)
        return {"seconds": statistics.median(self._timed_step(1) for _ in range(num_tokens))}

    def _clear(self) -> None:
        self._api.llama_memory_clear(self._api.llama_get_memory(self._context), True)

    def _timed_step(self, num_tokens: int) -> float:
        tokens = (self._api.llama_token * num_tokens)(*range(num_tokens))
        start = time.perf_counter()
        code = self._api.llama_decode(self._context, self._api.llama_batch_get_one(tokens, num_tokens))
        self._api.llama_synchronize(self._context)
        seconds = time.perf_counter() - start
        if code != 0:
            raise SystemExit(f"llama_decode returned {code}")
        return seconds


# Our process ----------------------------------------------------------------------------------------------
class Ours:
    """Tianquan through the stages of `tianquan bench`."""

    def __init__(self, folder: Path, threads: int) -> None:
        from tianquan.benchmark.measure import Ceilings
        from tianquan.benchmark.run import decode_bytes
        from tianquan.loading import load

        llm = load(folder, threads=threads)
        self._model, self._decode_bytes = llm.model, decode_bytes(llm)
        self._ceilings = Ceilings(llm.model.ops.library)
        self._isa = llm.model.ops.isa

    def versions(self) -> dict[str, Any]:
        """Return version, instruction set and machine."""
        from tianquan import __version__
        from tianquan.benchmark.run import machine_name

        return {"tianquan": __version__, "isa": self._isa, "machine": machine_name()}

    def prefill(self, num_tokens: int) -> dict[str, float]:
        """Return the seconds of the first pass over a prompt."""
        from tianquan.benchmark.measure import measure_prefill

        fma = self._ceilings.sample_fma()
        return {"seconds": measure_prefill(self._model, num_tokens, 1), "fma_gflop_s": fma}

    def decode(self, num_tokens: int) -> dict[str, float]:
        """Return the median seconds of a step and its share of the read bandwidth beside it."""
        from tianquan.benchmark.measure import measure_decode

        speed = measure_decode(self._model, 0, num_tokens, self._decode_bytes, self._ceilings)
        return {
            "seconds": speed.seconds,
            "share_of_bandwidth": speed.share_of_bandwidth,
            "read_gb_s": statistics.median(self._ceilings.read_gb_s),
        }


def serve(engine: Ours | LlamaCpp) -> None:
    """Answer one request (a JSON line: stage and number of tokens) after the other."""
    print(json.dumps(engine.versions()), flush=True)
    for line in sys.stdin:
        stage, num_tokens = json.loads(line)
        result = engine.decode(num_tokens) if stage == "decode" else engine.prefill(num_tokens)
        print(json.dumps(result), flush=True)


# The parent -----------------------------------------------------------------------------------------------
class Child:
    """One engine in its process."""

    def __init__(self, python: str, role: str, path: Path, threads: int) -> None:
        command = [python, __file__, "--role", role, "--path", str(path), "--threads", str(threads)]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.versions = self._answer()

    def ask(self, stage: str, num_tokens: int) -> dict[str, float]:
        """Return what the engine measured."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps([stage, num_tokens]) + "\n")
        self._process.stdin.flush()
        return self._answer()

    def close(self) -> None:
        """End the process."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit("an engine's process ended; its message is above")
        return json.loads(line)


def compare(ours: Child, rival: Child, stage: str, num_tokens: int, repeats: int) -> dict[str, Any]:
    """Return the speeds of both, measured in turns after one that is not counted."""
    tokens = 1 if stage == "decode" else num_tokens
    pairs = [(ours.ask(stage, num_tokens), rival.ask(stage, num_tokens)) for _ in range(repeats + 1)][1:]
    ratios = [b["seconds"] / a["seconds"] for a, b in pairs]
    result = {
        "ours": statistics.median(tokens / a["seconds"] for a, _ in pairs),
        "llama_cpp": statistics.median(tokens / b["seconds"] for _, b in pairs),
        "ratio": statistics.median(ratios),
        "ratios": ratios,
    }
    for key in pairs[0][0].keys() - {"seconds"}:
        result[key] = statistics.median(a[key] for a, _ in pairs)
    return result


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def run(rival_python: str, threads: int, repeats: int) -> dict[str, Any]:
    """Return the report of one run."""
    from tianquan.benchmark.synthetic import write_synthetic_folder
    from tianquan.quantization.recipes import find_recipe

    with tempfile.TemporaryDirectory(prefix="tianquan-bench-") as temporary:
        folder, gguf = Path(temporary) / "synthetic", Path(temporary) / "q4_0.gguf"
        say("writing synthetic weights")
        write_synthetic_folder(folder, find_recipe("int4"))
        subprocess.run([rival_python, __file__, "--role", "write", "--path", str(gguf)], check=True)
        ours, rival = Child(sys.executable, "ours", folder, threads), Child(rival_python, "llama.cpp", gguf, threads)
        report = {
            "date": datetime.date.today().isoformat(),
            **ours.versions,
            "rival": rival.versions,
            "threads": threads,
            "repeats": repeats,
            "command": f"benchmarks/{Path(__file__).name} --rival PYTHON --threads {threads} --repeats {repeats}",
            "prefill": {},
        }
        say("decode")
        report["decode"] = compare(ours, rival, "decode", DECODE_TOKENS, repeats)
        for length in PREFILL_LENS:
            say(f"prefill of {length} tokens")
            report["prefill"][str(length)] = compare(ours, rival, "prefill", length, repeats)
        for child in (ours, rival):
            child.close()
    return report


def to_markdown(report: dict[str, Any]) -> str:
    """Return the report as a table."""
    decode = report["decode"]
    lines = [
        f"{report['machine']}, {report['threads']} threads, {report['date']}; Tianquan {report['tianquan']} "
        f"({report['isa']}, recipe int4) and llama.cpp (llama-cpp-python {report['rival']['llama_cpp_python']}, "
        f"Q4_0 with its Q6_K output; {report['rival']['features']}) in turns, {report['repeats']} repeats",
        "",
        "| stage | Tianquan int4, tokens/s | llama.cpp Q4_0, tokens/s | ratio (median of neighbours, range) |",
        "|---|---|---|---|",
    ]
    rows = {f"decode of {DECODE_TOKENS}, depth 0": decode}
    rows |= {f"prefill of {length}": row for length, row in report["prefill"].items()}
    for name, row in rows.items():
        span = f"{min(row['ratios']):.2f} to {max(row['ratios']):.2f}"
        lines.append(f"| {name} | {row['ours']:.1f} | {row['llama_cpp']:.1f} | {row['ratio']:.2f} ({span}) |")
    lines += [
        "",
        f"Our decode takes {decode['share_of_bandwidth']:.0%} of the read bandwidth sampled between its steps",
    ]
    return "\n".join(lines) + f" ({decode['read_gb_s']:.1f} GB/s).\n"


def show(report: dict[str, Any], output: Path | None) -> None:
    """Print the table, and write OUTPUT.json and OUTPUT.md."""
    markdown = to_markdown(report)
    if output is not None:
        output.with_suffix(".json").write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
        output.with_suffix(".md").write_text(markdown, encoding="utf-8")
    print(markdown)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rival", help="python with llama-cpp-python and gguf")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--output", type=Path, help="also write OUTPUT.json and OUTPUT.md")
    parser.add_argument("--role", choices=("ours", "llama.cpp", "write"), help=argparse.SUPPRESS)
    parser.add_argument("--path", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.role == "write":
        write_gguf(options.path)
    elif options.role is not None:
        serve((Ours if options.role == "ours" else LlamaCpp)(options.path, options.threads))
    elif options.rival is None:
        parser.error("--rival PYTHON is needed")
    else:
        show(run(options.rival, options.threads, options.repeats), options.output)


if __name__ == "__main__":
    main()
