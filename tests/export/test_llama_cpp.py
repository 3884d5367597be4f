"""llama.cpp's greedy tokens beside ours. Needs llama-cpp-python; skipped without it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from tianquan.answer import last
from tianquan.export.gguf_file import save_gguf
from tianquan.llm import GREEDY
from tianquan.request import Prompt

llama_cpp = pytest.importorskip("llama_cpp")

NUM_TOKENS = 24
# Two logits may change places when they are closer than llama.cpp's arithmetic is exact: it rounds keys, values and
# activations to 16 bits, and in q8_0 and q4_0 activations to 8. The conformance checkpoint's logits spread by about 1.
MARGIN = {"f16": 0.02, "q8_0": 0.1}
MESSAGES = [
    [{"role": "user", "content": "Describe the weather."}],
    [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "你好，今天是 2026 年吗？"}],
    [
        {"role": "user", "content": "one two three"},
        {"role": "assistant", "content": "four"},
        {"role": "user", "content": "and\n\nthen?  It's 12345 "},
    ],
]


@pytest.fixture(scope="module", params=["f16", "q8_0", "q4_0"])
def engine(request, reference_llm, tmp_path_factory):
    path = tmp_path_factory.mktemp("gguf") / "model.gguf"
    save_gguf(reference_llm.checkpoint, request.param, path)
    return request.param, llama_cpp.Llama(str(path), n_ctx=1024, n_threads=1, verbose=False, logits_all=True)


@pytest.mark.parametrize("messages", MESSAGES, ids=["english", "chinese", "turns"])
def test_greedy_tokens_agree(engine, reference_llm, messages):
    kind, model = engine
    prompt_ids = reference_llm.checkpoint.processor(messages).token_ids.tolist()
    formatter = llama_cpp.llama_chat_format.Jinja2ChatFormatter(
        template=model.metadata["tokenizer.chat_template"], eos_token="", bos_token=""
    )
    text = formatter(messages=messages).prompt
    assert model.tokenize(text.encode(), add_bos=False, special=True) == prompt_ids
    if kind == "q4_0":  # of random weights 4 bits leave too little for tokens to agree; that it runs is what is tested
        assert len(greedy(model, prompt_ids)) == NUM_TOKENS
        return
    sampling = replace(GREEDY, max_tokens=NUM_TOKENS, ignore_eos=True, logprobs=2)
    ours = last(reference_llm.answer(Prompt(np.array(prompt_ids, np.int32)), sampling))
    theirs = greedy(model, prompt_ids)
    for place, (expected, got) in enumerate(zip(ours.token_ids, theirs, strict=True)):
        if expected != got:
            best, second = ours.logprobs[place].top
            assert best[1] - second[1] < MARGIN[kind], f"token {place}: {got} instead of {expected}"
            assert place > 0
            return


def greedy(model, prompt_ids):
    model.reset()
    tokens = []
    for token in model.generate(prompt_ids, temp=0.0, repeat_penalty=1.0):
        tokens.append(int(token))
        if len(tokens) == NUM_TOKENS:
            return tokens
    raise AssertionError("it stopped by itself")
