"""The original model's outputs, through vLLM: prompts and greedy tokens, cold, cached and in one batch."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from tolerances import GREEDY_MARGIN
from vllm_plugin.conftest import openai_messages

CASES = sorted((Path(__file__).parents[1] / "conformance" / "cases").glob("*.json"))


def load(path: Path) -> dict:
    return json.loads(path.read_text())


def greedy(num_tokens: int, ignore_eos: bool = True):
    from vllm import SamplingParams

    return SamplingParams(temperature=0.0, max_tokens=num_tokens, ignore_eos=ignore_eos)


def answer(llm, expected: dict, media_root: Path, ignore_eos: bool = True):
    params = greedy(len(expected["greedy_token_ids"]), ignore_eos)
    return llm.chat(openai_messages(expected["messages"], media_root), params, use_tqdm=False)[0]


def check(output, expected: dict) -> None:
    assert list(output.prompt_token_ids) == expected["prompt_token_ids"]
    assert list(output.outputs[0].token_ids) == expected["greedy_token_ids"]


@pytest.mark.parametrize("path", CASES, ids=lambda path: path.stem)
def test_greedy_tokens(vllm_llm, media_root, path):
    expected = load(path)
    check(answer(vllm_llm, expected, media_root), expected)
    again = answer(vllm_llm, expected, media_root)  # media and the prompt's beginning are in the caches now
    check(again, expected)
    assert again.num_cached_tokens > 0 or len(expected["prompt_token_ids"]) < 128  # blocks hold 128 tokens


def test_all_cases_together(vllm_llm, media_root):
    vllm_llm.reset_prefix_cache()
    vllm_llm.llm_engine.reset_mm_cache()
    cases = [load(path) for path in CASES]
    messages = [openai_messages(case["messages"], media_root) for case in cases]
    outputs = vllm_llm.chat(messages, greedy(12), use_tqdm=False)
    for output, case in zip(outputs, cases, strict=True):
        check(output, case)


def test_stops_at_the_end_of_a_turn(vllm_llm, media_root):
    expected = load(next(path for path in CASES if path.stem == "image_sample_7_slices"))
    output = answer(vllm_llm, expected, media_root, ignore_eos=False).outputs[0]
    assert output.finish_reason == "stop"
    assert list(output.token_ids) == expected["greedy_token_ids"][:1]


def test_margins_of_the_cases_are_wide_enough_to_ask_for_equality():
    """Equal tokens are asked for above; the first one's margin is known, and is far from a coin toss."""
    for path in CASES:
        last = np.sort(load_file(path.with_suffix(".safetensors"))["logits_last8"][-1])
        assert last[-1] - last[-2] > GREEDY_MARGIN
