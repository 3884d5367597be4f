from __future__ import annotations

import pytest

import tianquan
from tianquan.engine.engine import Engine
from tianquan.engine.interface import EngineOptions, EngineRequest
from tianquan.engine.scheduler import SchedulerLimits
from tianquan.request import SamplingParams

SMALL = SchedulerLimits(max_running=6, prefill_chunk=96, prefill_chunk_beside_decode=32)


class Bench:
    """One model, fresh engines over few blocks, and answers of a request alone and cold."""

    def __init__(self, llm: tianquan.LLM, media_root) -> None:
        self.llm = llm
        self.media_root = media_root
        self.block_bytes = llm.model.language_model.make_kv_cache(1).num_bytes
        self._alone = {}

    def engine(self, num_blocks=64, limits=SMALL, **options) -> Engine:
        return Engine(
            self.llm.model, EngineOptions(kv_cache_bytes=num_blocks * self.block_bytes, limits=limits, **options)
        )

    def prompt(self, text, system=None, **media):
        content = {"text": text, **media} if media else text
        messages = [] if system is None else [{"role": "system", "content": system}]
        messages.append({"role": "user", "content": content})
        return self.llm.checkpoint.processor(messages, media_root=self.media_root)

    def request(self, prompt, **options) -> EngineRequest:
        fields = {name: options.pop(name) for name in list(options) if name in EngineRequest.__dataclass_fields__}
        sampling = SamplingParams(**{"temperature": 0.0, "max_tokens": 12, **options})
        return EngineRequest(prompt=prompt, sampling=sampling, **fields)

    def alone(self, request: EngineRequest):
        """Return the outputs' (token ids, logprobs, end) in an engine of its own."""
        return collect(self.engine(), [request])[0]


class Result:
    def __init__(self) -> None:
        self.token_ids, self.logprobs, self.end, self.num_outputs = [], [], None, 0

    def add(self, output) -> None:
        assert self.end is None, "nothing comes after the end"
        self.token_ids += output.token_ids
        self.logprobs += output.logprobs
        self.end = output.end
        self.num_outputs += 1


def collect(engine, requests, max_steps=5000):
    """Run requests to their ends and return their results in order."""
    results = {engine.add(request): Result() for request in requests}
    run_to_end(engine, results, max_steps)
    return list(results.values())


def run_to_end(engine, results, max_steps=5000):
    for _ in range(max_steps):
        if not engine.has_work:
            return
        for output in engine.step():
            results[output.request_id].add(output)
    raise AssertionError("requests are left")


@pytest.fixture(scope="session")
def each_bench(llm, media_root):
    return Bench(llm, media_root)


@pytest.fixture(scope="session")
def reference_bench(reference_llm, media_root):
    return Bench(reference_llm, media_root)


@pytest.fixture(scope="session")
def bench(checkpoint_folder, media_root):
    return Bench(tianquan.load(checkpoint_folder, precision="float32", backend="native"), media_root)
