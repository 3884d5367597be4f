"""What a LoRA adapter costs beside int4 weights of the official size: python benchmarks/adapters.py OUTPUT.json

Rank 16 beside every matrix of the language model's layers, as `finetune` trains by default. The model and the same
model with the adapter, on the same stored weights, are asked in turn; the median of the ratios is of pairs.
"""

from __future__ import annotations

import datetime
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from tianquan.benchmark.run import machine_name
from tianquan.benchmark.synthetic import write_synthetic_folder
from tianquan.checkpoint import open_checkpoint
from tianquan.checkpoint.adapter import ADAPTER_CONFIG, ADAPTER_WEIGHTS, KEY_PREFIX
from tianquan.checkpoint.names import module_path
from tianquan.checkpoint.safetensors_file import write_safetensors
from tianquan.checkpoint.tensor_list import needed_weights
from tianquan.llm import LLM
from tianquan.loading import load
from tianquan.quantization.recipes import find_recipe
from tianquan.request import SamplingParams

RANK = 16
PAIRS = 5
PROMPT_WORDS, ANSWER_TOKENS = 500, 48


def write_adapter(folder: Path, model: Path) -> None:
    folder.mkdir()
    rng = np.random.default_rng(0)
    tensors = {}
    for weight in needed_weights(open_checkpoint(model).config):
        if weight.is_matrix and weight.name.startswith("language_model.layers."):
            out_features, in_features = weight.shape
            prefix = f"{KEY_PREFIX}{module_path(weight.name)}"
            for half, shape in (("A", (RANK, in_features)), ("B", (out_features, RANK))):
                values = rng.normal(0, 0.01, shape).astype(np.float32)
                tensors[f"{prefix}.lora_{half}.weight"] = ("F32", values)
    write_safetensors(folder / ADAPTER_WEIGHTS, tensors)
    settings = {"peft_type": "LORA", "r": RANK, "lora_alpha": 2 * RANK, "bias": "none"}
    (folder / ADAPTER_CONFIG).write_text(json.dumps(settings))


def ask(llm: LLM, salt: int) -> dict[str, float]:
    """Return seconds to the first token of a prompt that was never seen, and tokens a second after it."""
    text = f"{salt} " + " ".join(f"word{n % 10}" for n in range(PROMPT_WORDS))
    sampling = SamplingParams(temperature=0, max_tokens=ANSWER_TOKENS, ignore_eos=True)
    times = [time.perf_counter()]
    prompt_tokens = 0
    for chunk in llm.stream_chat([{"role": "user", "content": text}], sampling=sampling):
        times.append(time.perf_counter())
        if chunk.completion is not None:
            prompt_tokens = chunk.completion.usage.prompt_tokens
    decoding = times[-1] - times[1]
    return {
        "prompt_tokens": prompt_tokens,
        "first_token_s": times[1] - times[0],
        "decode_tokens_s": (ANSWER_TOKENS - 1) / decoding,
    }


def main() -> None:
    """Write the report."""
    with tempfile.TemporaryDirectory(prefix="tianquan-bench-") as temporary:
        folder, adapter = Path(temporary) / "synthetic", Path(temporary) / "adapter"
        write_synthetic_folder(folder, find_recipe("int4"))
        write_adapter(adapter, folder)
        llm = load(folder, adapters={"adapted": adapter})
        models = {"alone": llm, "adapted": llm.adapted["adapted"]}
        for model in models.values():
            ask(model, -1)  # pages and clocks
        pairs = []
        for n in range(PAIRS):
            pairs.append({name: ask(model, n) for name, model in models.items()})
            print(json.dumps(pairs[-1]), file=sys.stderr, flush=True)
        adapter_bytes = (adapter / ADAPTER_WEIGHTS).stat().st_size
    report = {
        "date": datetime.date.today().isoformat(),
        "machine": machine_name(),
        "threads": llm.model.ops.threads,
        "instructions": llm.model.ops.isa,
        "recipe": "int4",
        "rank": RANK,
        "adapter_file_bytes": adapter_bytes,
        "command": "python benchmarks/adapters.py",
        "adapted_of_alone": {
            key: round(statistics.median(pair["adapted"][key] / pair["alone"][key] for pair in pairs), 3)
            for key in ("first_token_s", "decode_tokens_s")
        },
        "pairs": pairs,
    }
    Path(sys.argv[1]).write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
