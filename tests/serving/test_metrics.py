"""Prometheus' text: every name of vLLM's that dashboards ask for, in a form that is read, with right numbers."""

from __future__ import annotations

import base64
import re

import pytest

STEMS = {
    **dict.fromkeys(("num_requests_running", "num_requests_waiting", "kv_cache_usage_perc"), "gauge"),
    **dict.fromkeys(("prefix_cache_queries_total", "prefix_cache_hits_total", "prompt_tokens_total"), "counter"),
    **dict.fromkeys(("generation_tokens_total", "encoder_cache_queries_total", "encoder_cache_hits_total"), "counter"),
    **dict.fromkeys(("time_to_first_token_seconds", "inter_token_latency_seconds"), "histogram"),
    **dict.fromkeys(("e2e_request_latency_seconds", "request_queue_time_seconds"), "histogram"),
    **dict.fromkeys(("vision_encode_seconds", "audio_encode_seconds"), "histogram"),
}
SAMPLE = re.compile(r'^(tianquan:\w+?)(_bucket|_sum|_count)?(\{(?:\w+="[^"\n]*",?)+\})? (-?[0-9.e+-]+)$')


@pytest.fixture
def read(serve):
    with serve(max_num_seqs=4) as server:

        def samples():
            reply = server.get("/metrics")
            assert reply.headers["content-type"].startswith("text/plain; version=0.0.4")
            kinds, values = {}, {}
            for line in reply.data.decode().splitlines():
                if line.startswith("# TYPE "):
                    _, _, name, kind = line.split()
                    assert name not in kinds, "a family is written twice"
                    kinds[name] = kind
                elif not line.startswith("# HELP "):
                    name, suffix, _, value = SAMPLE.match(line).groups()
                    assert (name if suffix and kinds.get(name) == "histogram" else name + (suffix or "")) in kinds, line
                    values[line.rpartition(" ")[0].removeprefix("tianquan:")] = float(value)
            return kinds, values

        yield server, samples


def test_every_stem_is_there(read):
    _, samples = read
    kinds, _ = samples()
    assert {name: kinds.get(f"tianquan:{name}") for name in STEMS} == STEMS


def test_the_numbers(read, data_url, media_root):
    server, samples = read
    _, before = samples()
    image = {"type": "image_url", "image_url": {"url": data_url("tiny_100x60.png"), "detail": "low"}}
    data = base64.b64encode((media_root / "speech_1s_16k.wav").read_bytes()).decode()
    audio = {"type": "input_audio", "input_audio": {"data": data, "format": "wav"}}
    prompt_tokens = 0
    for _ in range(2):
        reply = server.chat([image, audio], max_tokens=5, ignore_eos=True, cache_salt="metrics")
        prompt_tokens += reply.json["usage"]["prompt_tokens"]
    assert server.chat(temperature=-1).status == 400
    _, after = samples()

    def grown(name):
        return after[name] - before.get(name, 0)

    assert grown("generation_tokens_total") == 10
    assert grown("prompt_tokens_total") == prompt_tokens
    assert grown("prefix_cache_hits_total") > 64
    assert grown("time_to_first_token_seconds_count") == 2
    assert grown("inter_token_latency_seconds_count") == 8
    assert grown("e2e_request_latency_seconds_count") == grown("request_queue_time_seconds_count") == 2
    assert grown("vision_encode_seconds_count") == grown("audio_encode_seconds_count") == 1  # the second was cached
    assert grown('http_responses_total{route="/v1/chat/completions",status="200"}') == 2
    assert grown('http_responses_total{route="/v1/chat/completions",status="400"}') == 1
    assert after["num_requests_running"] == after["num_requests_waiting"] == after["kv_cache_usage_perc"] == 0
    for name in ("time_to_first_token_seconds", "e2e_request_latency_seconds"):
        buckets = [value for key, value in after.items() if key.startswith(f"{name}_bucket")]
        assert buckets == sorted(buckets)
        assert buckets[-1] == after[f"{name}_count"]
