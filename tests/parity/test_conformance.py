"""The original model's outputs on a small checkpoint, compared stage by stage."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from tianquan.llm import GREEDY
from tolerances import OTHER_AUDIO_DECODER, conformance, relative_rmse

CASES = sorted((Path(__file__).parents[1] / "conformance" / "cases").glob("*.json"))


@pytest.fixture(scope="module", params=CASES, ids=lambda path: path.stem)
def case(request):
    return json.loads(request.param.read_text()), load_file(request.param.with_suffix(".safetensors"))


def test_trace(case, llm, media_root):
    expected, tensors = case
    trace = llm.trace(expected["messages"], media_root=media_root)
    arrays = trace.to_arrays()
    assert arrays["prompt_token_ids"].tolist() == expected["prompt_token_ids"]
    features = [name for name in tensors if "features" in name]
    assert sorted(features) == sorted(name for name in arrays if "features" in name)
    for name in features:
        assert relative_rmse(arrays[name], tensors[name]) < conformance(), name
    assert relative_rmse(trace.logits[-8:], tensors["logits_last8"]) < conformance()
    top = trace.logits.max(axis=1, keepdims=True)
    logsumexp = np.log(np.exp((trace.logits - top).astype(np.float64)).sum(axis=1)) + top[:, 0]
    assert logsumexp.mean() == pytest.approx(float(tensors["mean_logsumexp"][0]), abs=1e-5)


def test_greedy_tokens(case, llm, media_root):
    expected, _ = case
    num_tokens = len(expected["greedy_token_ids"])
    sampling = replace(GREEDY, max_tokens=num_tokens, ignore_eos=True)
    completion = llm.chat(expected["messages"], sampling=sampling, media_root=media_root)
    assert completion.token_ids == expected["greedy_token_ids"]
    assert completion.prompt_token_ids == expected["prompt_token_ids"]
    assert completion.usage.prompt_tokens == expected["num_prompt_tokens"]
    stopped = llm.chat(expected["messages"], sampling=replace(sampling, ignore_eos=False), media_root=media_root)
    assert stopped.token_ids == expected["greedy_token_ids"][: len(stopped.token_ids)]
    ends = [n for n, id in enumerate(expected["greedy_token_ids"]) if id in llm.checkpoint.stop_token_ids]
    assert stopped.finish_reason == ("stop" if ends else "length")
    assert len(stopped.token_ids) == (ends[0] + 1 if ends else num_tokens)


def test_mp3_is_close_to_wav(llm, media_root):
    def features(name):
        return llm.trace([{"role": "user", "content": {"audio": name}}], media_root=media_root).audio_features[0]

    wav, mp3 = features("sample_16k.wav"), features("sample_audio.mp3")
    assert relative_rmse(mp3, wav) < OTHER_AUDIO_DECODER
