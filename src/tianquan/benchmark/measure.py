"""Measuring one loaded model: each stage by itself, after a warm-up, the median of several runs.

Habits of llama-bench: prompt processing of 128 and 512 tokens, generation of 64 tokens at depth 0 and 1024.
"""

from __future__ import annotations

import resource
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from PIL import Image

from tianquan.backends.kv_cache import SequenceBatch
from tianquan.kernels.library import KernelLibrary
from tianquan.llm import GREEDY, LLM
from tianquan.models.omni_model import OmniModel
from tianquan.processing.audio import prepare_audio
from tianquan.processing.image import slice_image
from tianquan.request import ImagePolicy

SAMPLE_RATE = 16000
_READ_SAMPLE_BYTES = 256 * 2**20  # beyond any cache; the best of three passes takes about 25 ms
_STEPS_PER_SAMPLE = 4  # decode steps between two looks at the machine's bandwidth
OnStage = Callable[[str], None]


@dataclass(frozen=True)
class Plan:
    """What to measure, and how often."""

    prefill_lens: tuple[int, ...] = (128, 512)
    decode_depths: tuple[int, ...] = (0, 1024)
    decode_tokens: int = 64
    image_sizes: tuple[tuple[int, int], ...] = (
        (256, 256),
        (448, 448),
        (512, 512),
        (768, 768),
        (1024, 1024),
        (720, 1480),
    )
    audio_seconds: tuple[int, ...] = (1, 5, 30)
    repeats: int = 3
    turns: bool = True  # two turns of a conversation with a picture


QUICK = Plan(
    prefill_lens=(128,),
    decode_depths=(0,),
    decode_tokens=32,
    image_sizes=((448, 448), (512, 512)),
    audio_seconds=(5, 30),
    repeats=1,
    turns=False,
)


def median_seconds(body: Callable[[], object], repeats: int) -> float:
    """Return the median time of `repeats` runs after one that is not counted (when there are several)."""
    if repeats > 1:
        body()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        body()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def resident_bytes() -> int:
    """Return the memory of this process that is in RAM now, mapped files included."""
    if sys.platform == "linux":
        with open("/proc/self/statm", encoding="ascii") as file:
            return int(file.read().split()[1]) * resource.getpagesize()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


class Ceilings:
    """What this machine can do, sampled beside what is measured: on shared machines it drifts by a factor of two."""

    def __init__(self, library: KernelLibrary) -> None:
        self._library = library
        self._buffer = np.ones(_READ_SAMPLE_BYTES, np.uint8)  # written, so that every page exists
        self.read_gb_s: list[float] = []
        self.fma_gflop_s: list[float] = []

    def sample_read(self) -> float:
        """Measure the read bandwidth now, in GB/s."""
        self.read_gb_s.append(self._library.measure_read_gb_s(self._buffer))
        return self.read_gb_s[-1]

    def sample_fma(self) -> float:
        """Measure the float32 multiply-add rate now, in GFLOP/s."""
        self.fma_gflop_s.append(self._library.measure_fma_gflop_s())
        return self.fma_gflop_s[-1]

    def medians(self) -> dict[str, float]:
        """Return the medians of all samples by the report's names."""
        return {
            "read_bandwidth_gb_s": statistics.median(self.read_gb_s),
            "fma_gflop_s": statistics.median(self.fma_gflop_s),
        }


@dataclass(frozen=True)
class DecodeSpeed:
    """What `measure_decode` found."""

    seconds: float  # of one step, the median
    share_of_bandwidth: float  # median over runs of steps, each against the samples right before and after it


def measure_decode(
    model: OmniModel, depth: int, num_tokens: int, weight_bytes: int, ceilings: Ceilings, num_sequences: int = 1
) -> DecodeSpeed:
    """Measure decode steps with `depth` tokens cached.

    Bandwidth and decode of a shared machine drift together within seconds, so that a share of two medians taken
    apart moved between 73 % and 90 %. Here each run of a few steps has its own two samples.

    Args:
        model: the model.
        depth: tokens of each sequence before the first step.
        num_tokens: steps, after one that is not counted.
        weight_bytes: bytes of weights one step reads.
        ceilings: samples the bandwidth between runs of steps.
        num_sequences: sequences decoded together.
    """
    language = model.language_model
    blocks_each = -(-(depth + num_tokens + 1) // 32)
    cache = language.make_kv_cache(32 * blocks_each * num_sequences)
    tables = np.arange(blocks_each * num_sequences, dtype=np.int32).reshape(num_sequences, blocks_each)
    offsets, token_ids = np.arange(num_sequences + 1, dtype=np.int32), np.arange(num_sequences, dtype=np.int32)

    def step(n: int) -> float:
        start = time.perf_counter()
        batch = SequenceBatch(offsets, np.full(num_sequences, depth + n, np.int32), tables)
        model.forward(language.embed(token_ids), cache, batch)
        return time.perf_counter() - start

    step(0)
    times: list[float] = []
    shares = []
    before = ceilings.sample_read()
    while len(times) < num_tokens:
        run = [step(1 + len(times) + n) for n in range(min(_STEPS_PER_SAMPLE, num_tokens - len(times)))]
        after = ceilings.sample_read()
        shares.append(weight_bytes * len(run) / sum(run) / 1e9 / ((before + after) / 2))
        before = after
        times += run
    return DecodeSpeed(statistics.median(times), statistics.median(shares))


def measure_prefill(model: OmniModel, num_tokens: int, repeats: int) -> float:
    """Return the seconds of the first pass over a prompt of `num_tokens`."""
    language = model.language_model
    token_ids = np.arange(num_tokens, dtype=np.int32)
    cache = language.make_kv_cache(num_tokens)
    batch = SequenceBatch.alone(num_tokens, 0, cache)
    return median_seconds(lambda: model.forward(language.embed(token_ids), cache, batch), repeats)


def measure_image(llm: LLM, width: int, height: int, repeats: int) -> dict[str, Any]:
    """Return seconds and slices of one picture: slicing, vision encoder and resampler."""
    noise = np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)
    picture, settings = Image.fromarray(noise), llm.checkpoint.processor.settings.image
    image = slice_image(picture, settings, ImagePolicy())
    preprocess = median_seconds(lambda: slice_image(picture, settings, ImagePolicy()), repeats)
    seconds = median_seconds(lambda: llm.model.encode_images([image]), repeats)
    return {"seconds": seconds, "preprocess_seconds": preprocess, "num_slices": len(image.slices)}


def measure_audio(llm: LLM, seconds: int, repeats: int) -> dict[str, Any]:
    """Return seconds of one clip: log-mel and audio encoder."""
    waveform = np.random.default_rng(0).normal(0, 0.1, seconds * SAMPLE_RATE).astype(np.float32)
    settings = llm.checkpoint.processor.settings
    clips = prepare_audio([waveform], settings.num_mels, settings.max_audio_frames)
    preprocess = median_seconds(lambda: prepare_audio([waveform], settings.num_mels), repeats)
    encode = median_seconds(lambda: llm.model.encode_audios(clips), repeats)
    return {"seconds": encode, "preprocess_seconds": preprocess}


def measure_turns(llm: LLM) -> dict[str, Any]:
    """Return the time to the first token of two turns: a 512x512 picture and about 64 text tokens, then more text."""
    noise = np.random.default_rng(0).integers(0, 256, (512, 512, 3), np.uint8)
    text = "What is in the picture? Answer in one short sentence, please."
    sampling = replace(GREEDY, max_tokens=8, ignore_eos=True)
    messages: list[dict[str, Any]] = [{"role": "user", "content": {"text": text, "image": Image.fromarray(noise)}}]
    turns = {}
    for name in ("first_turn", "second_turn"):
        completion = llm.chat(messages, sampling=sampling)
        timings = completion.timings
        turns[name] = {
            "prompt_tokens": completion.usage.prompt_tokens,
            "preprocess_seconds": timings.preprocess_ms / 1000,
            "vision_seconds": timings.vision_ms / 1000,
            "prefill_seconds": timings.prefill_ms / 1000,
            "seconds": timings.ttft_ms / 1000,
        }
        messages += [{"role": "assistant", "content": completion.text}, {"role": "user", "content": "And then?"}]
    return turns


def measure_model(
    llm: LLM, weight_bytes_per_token: int, ceilings: Ceilings, plan: Plan, on_stage: OnStage
) -> dict[str, Any]:
    """Return the speed of each stage of a loaded model.

    Args:
        llm: the model.
        weight_bytes_per_token: bytes of weights one decode step reads.
        ceilings: samples the machine beside each stage.
        plan: what to measure.
        on_stage: told what is measured next.
    """
    model = llm.model
    report: dict[str, Any] = {"decode": {}, "prefill": {}, "vision": {}, "audio": {}}
    for depth in plan.decode_depths:
        on_stage(f"decode at depth {depth}")
        speed = measure_decode(model, depth, plan.decode_tokens, weight_bytes_per_token, ceilings)
        report["decode"][f"depth_{depth}"] = {
            "tokens_per_second": 1 / speed.seconds,
            "weights_gb_s": weight_bytes_per_token / speed.seconds / 1e9,
            "share_of_bandwidth": speed.share_of_bandwidth,
        }
    operations = 2 * matrix_parameters(llm)
    for length in plan.prefill_lens:
        on_stage(f"prefill of {length} tokens")
        before = ceilings.sample_fma()
        seconds = measure_prefill(model, length, plan.repeats)
        peak = (before + ceilings.sample_fma()) / 2
        rate = operations * length / seconds / 1e9
        report["prefill"][str(length)] = {
            "tokens_per_second": length / seconds,
            "gop_s": rate,
            "share_of_fma_peak": rate / peak,
        }
    for width, height in plan.image_sizes:
        label = str(width) if width == height else f"{width}x{height}"
        on_stage(f"picture of {width} x {height}")
        report["vision"][label] = measure_image(llm, width, height, plan.repeats)
    for seconds_of_sound in plan.audio_seconds:
        on_stage(f"{seconds_of_sound} s of sound")
        report["audio"][str(seconds_of_sound)] = measure_audio(llm, seconds_of_sound, plan.repeats)
    if plan.turns:
        on_stage("two turns with a picture")
        report.update(measure_turns(llm))
    return report


def matrix_parameters(llm: LLM) -> int:
    """Return the weights of the language model's layers: each is one multiply-add per prefilled token."""
    config = llm.model.config.language
    attention = config.hidden_size * config.head_dim * (2 * config.num_heads + 2 * config.num_kv_heads)
    return config.num_layers * (attention + 3 * config.hidden_size * config.intermediate_size)
