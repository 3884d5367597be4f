"""The original's way to run this model, on the same machine in the same run: PyTorch and transformers.

The language model, vision encoder and audio encoder have the official sizes and constant weights; the
attention of the audio encoder is the plain one that stores all scores, as in the vendor's code.
"""

from __future__ import annotations

import importlib.util
import time
from typing import Any

from tianquan.benchmark.measure import OnStage, median_seconds
from tianquan.benchmark.synthetic import OFFICIAL_CONFIG
from tianquan.errors import BackendError

_DECODE_TOKENS = 8


def require_transformers() -> None:
    """Raise BackendError unless PyTorch and transformers are there: before hours are measured, not after."""
    missing = [name for name in ("torch", "transformers") if importlib.util.find_spec(name) is None]
    if missing:
        raise BackendError(f"the baseline needs {' and '.join(missing)}, not installed here")


def measure_transformers(threads: int, quick: bool, on_stage: OnStage) -> dict[str, Any]:
    """Return seconds and tokens per second of the original path.

    Args:
        threads: threads PyTorch may use.
        quick: float32 only; bfloat16, the original's default, is many times slower on most CPUs.
        on_stage: told what is measured next.

    Raises:
        BackendError: torch or transformers is not installed.
    """
    torch, transformers, report = _open_torch(threads)
    for name in ("float32",) if quick else ("float32", "bfloat16"):
        dtype = getattr(torch, name)
        on_stage(f"transformers, language model in {name}")
        report[name] = {"language": _measure_language(torch, transformers, dtype)}
        on_stage(f"transformers, vision encoder in {name}")
        report[name]["vision_448_seconds"] = _measure_vision(torch, transformers, dtype)
        on_stage(f"transformers, audio encoder in {name}")
        for seconds in (5,) if name == "bfloat16" else (5, 30):
            report[name][f"audio_{seconds}_seconds"] = _measure_audio(torch, transformers, dtype, seconds)
    return report


def measure_first_turn(
    threads: int, precision: str, num_slices: int, prompt_tokens: int, on_stage: OnStage
) -> dict[str, Any]:
    """Return the seconds to the first token of a prompt with a picture on the original path.

    The vision encoder sees all slices in one batch, and the language model the whole prompt. Preprocessing, the
    resampler and the tokenizer are left out, in the original's favour.

    Args:
        threads: threads PyTorch may use.
        precision: float32 or bfloat16.
        num_slices: slices of the picture, of 448 x 448 each.
        prompt_tokens: tokens of the prompt, those of the picture included.
        on_stage: told what is measured next.

    Raises:
        BackendError: torch or transformers is not installed.
    """
    torch, transformers, report = _open_torch(threads)
    dtype = getattr(torch, precision)
    on_stage(f"transformers, {num_slices} slices in {precision}")
    vision = _measure_vision(torch, transformers, dtype, num_slices)
    on_stage(f"transformers, a prompt of {prompt_tokens} tokens in {precision}")
    prefill = _prefill_seconds(torch, _language_model(torch, transformers, dtype), prompt_tokens)
    return {
        **report,
        "precision": precision,
        "vision_seconds": vision,
        "prefill_seconds": prefill,
        "seconds": vision + prefill,
    }


def _open_torch(threads: int) -> tuple[Any, Any, dict[str, Any]]:
    """Return torch, transformers, and the beginning of a report."""
    try:
        import torch
        import transformers
    except ImportError as error:
        raise BackendError("the baseline needs torch and transformers: pip install torch transformers") from error
    torch.set_num_threads(threads)
    torch.set_grad_enabled(False)
    return (
        torch,
        transformers,
        {
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "instructions": torch.backends.cpu.get_cpu_capability(),
        },
    )


def _build(torch: Any, make: Any, dtype: Any) -> Any:
    """Return a module without drawing random numbers: every page is written, so that reads cost what they cost."""
    with torch.device("meta"):
        module = make()
    module = module.to(dtype).to_empty(device="cpu").eval()
    for tensor in (*module.parameters(), *module.buffers()):
        tensor.fill_(0.01)
    return module


def _language_model(torch: Any, transformers: Any, dtype: Any) -> Any:
    keys = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads")
    config = transformers.LlamaConfig(
        **{key: OFFICIAL_CONFIG[key] for key in keys}, vocab_size=OFFICIAL_CONFIG["vocab_size"]
    )
    return _build(torch, lambda: transformers.LlamaForCausalLM(config), dtype)


def _prefill_seconds(torch: Any, model: Any, num_tokens: int) -> float:
    prompt = torch.arange(num_tokens)[None]
    return median_seconds(lambda: model(prompt, logits_to_keep=1), 1)


def _measure_language(torch: Any, transformers: Any, dtype: Any) -> dict[str, float]:
    model = _language_model(torch, transformers, dtype)
    prefill = _prefill_seconds(torch, model, 128)
    state = model(torch.arange(128)[None], use_cache=True, logits_to_keep=1)
    start = time.perf_counter()
    for _ in range(_DECODE_TOKENS):
        state = model(torch.tensor([[1]]), past_key_values=state.past_key_values, use_cache=True)
    decode = (time.perf_counter() - start) / _DECODE_TOKENS
    return {"prefill_128_tokens_per_second": 128 / prefill, "decode_tokens_per_second": 1 / decode}


def _measure_vision(torch: Any, transformers: Any, dtype: Any, num_slices: int = 1) -> float:
    keys = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "patch_size")
    vision = OFFICIAL_CONFIG["vision_config"]
    config = transformers.SiglipVisionConfig(**{key: vision[key] for key in keys}, image_size=448)
    model = _build(torch, lambda: transformers.SiglipVisionModel(config), dtype)
    embeddings = getattr(model, "vision_model", model).embeddings
    embeddings.position_ids = torch.arange(embeddings.num_positions)[None]
    pixels = torch.zeros(num_slices, 3, 448, 448, dtype=dtype)
    return median_seconds(lambda: model(pixels), 1)


def _measure_audio(torch: Any, transformers: Any, dtype: Any, seconds: int) -> float:
    audio = OFFICIAL_CONFIG["audio_config"]
    frames = 50 * seconds
    config = transformers.WhisperConfig(
        d_model=audio["n_state"],
        encoder_layers=audio["n_layer"],
        encoder_attention_heads=audio["n_head"],
        encoder_ffn_dim=4 * audio["n_state"],
        num_mel_bins=audio["n_mels"],
        max_source_positions=frames,
    )
    config._attn_implementation = "eager"
    encoder = transformers.models.whisper.modeling_whisper.WhisperEncoder
    model = _build(torch, lambda: encoder(config), dtype)
    mel = torch.zeros(1, audio["n_mels"], 2 * frames, dtype=dtype)
    return median_seconds(lambda: model(mel), 1)
