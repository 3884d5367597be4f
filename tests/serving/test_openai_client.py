"""The official client against the server: what people's tools do."""

from __future__ import annotations

import base64
import io
import json
import re
import threading
import wave

import numpy as np
import openai
import pytest

from running_server import running, wait_until
from tianquan.request import SamplingParams
from tianquan.serving import transcription_route

MODEL = "tiny"
HELLO = [{"role": "user", "content": "hello"}]
GREEDY = {"model": MODEL, "temperature": 0, "max_tokens": 6, "extra_body": {"ignore_eos": True}}


def test_text_is_what_the_engine_says(client, served_llm):
    answer = client.chat.completions.create(messages=HELLO, **GREEDY)
    expected = served_llm.chat(HELLO, sampling=SamplingParams(temperature=0, max_tokens=6, ignore_eos=True))
    assert answer.choices[0].message.content == expected.text
    assert answer.choices[0].message.role == "assistant"
    assert answer.choices[0].finish_reason == expected.finish_reason == "length"
    assert answer.usage.prompt_tokens == expected.usage.prompt_tokens
    assert answer.usage.completion_tokens == 6
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + 6
    assert answer.model == MODEL
    assert answer.timings["predicted_n"] == 6


def test_stream(client):
    whole = client.chat.completions.create(messages=HELLO, **GREEDY)
    chunks = list(
        client.chat.completions.create(messages=HELLO, stream=True, stream_options={"include_usage": True}, **GREEDY)
    )
    assert chunks[0].choices[0].delta.role == "assistant"
    assert len({chunk.id for chunk in chunks}) == 1
    *texts, last, usage = chunks
    assert "".join(chunk.choices[0].delta.content or "" for chunk in texts) == whole.choices[0].message.content
    assert last.choices[0].finish_reason == "length"
    assert last.choices[0].delta.content is None
    assert all(chunk.choices[0].finish_reason is None and chunk.usage is None for chunk in texts)
    assert usage.choices == []
    assert usage.usage.completion_tokens == 6


def test_image_and_its_cache(client, data_url):
    image = {"type": "image_url", "image_url": {"url": data_url("tiny_100x60.png"), "detail": "low"}}
    messages = [{"role": "user", "content": [image, {"type": "text", "text": "what is this?"}]}]
    first = client.chat.completions.create(messages=messages, **GREEDY, user="image test")
    again = client.chat.completions.create(messages=messages, **GREEDY, user="image test")
    details = first.usage.prompt_tokens_details
    assert details.image_tokens == 64
    assert details.cached_tokens == 0
    assert again.usage.prompt_tokens_details.cached_tokens > 64
    assert again.choices[0].message.content == first.choices[0].message.content


def test_caches_of_users_are_apart(client, data_url):
    image = {"type": "image_url", "image_url": {"url": data_url("tiny_100x60.png")}}
    messages = [{"role": "user", "content": [image, {"type": "text", "text": "salted"}]}]
    for user in ("a", "b"):
        usage = client.chat.completions.create(messages=messages, **GREEDY, user=user).usage
        assert usage.prompt_tokens_details.cached_tokens == 0


def test_detail_low_costs_one_overview(client, data_url):
    def tokens(detail):
        image = {"type": "image_url", "image_url": {"url": data_url("crop_448x448.png"), "detail": detail}}
        wide = {"type": "image_url", "image_url": {"url": data_url("wide_3000x300.png"), "detail": detail}}
        messages = [{"role": "user", "content": [image, wide, {"type": "text", "text": "?"}]}]
        return client.chat.completions.create(messages=messages, **GREEDY).usage.prompt_tokens_details.image_tokens

    assert tokens("low") == 128
    assert tokens("high") > 128


def test_audio(client, media_root):
    data = base64.b64encode((media_root / "speech_1s_16k.wav").read_bytes()).decode()
    audio = {"type": "input_audio", "input_audio": {"data": data, "format": "wav"}}
    messages = [{"role": "user", "content": [{"type": "text", "text": "what is said?"}, audio]}]
    answer = client.chat.completions.create(messages=messages, **GREEDY)
    assert answer.usage.prompt_tokens_details.audio_tokens == 27


def test_stop(client):
    whole = client.chat.completions.create(messages=HELLO, **GREEDY).choices[0].message.content
    stop = whole[3:6]
    answer = client.chat.completions.create(messages=HELLO, stop=[stop], **GREEDY)
    assert answer.choices[0].message.content == whole[: whole.index(stop)]
    assert answer.choices[0].finish_reason == "stop"


def test_several_answers_with_seeds(client):
    fields = {**GREEDY, "temperature": 1.5, "seed": 7}
    answer = client.chat.completions.create(messages=HELLO, n=3, **fields)
    alone = client.chat.completions.create(messages=HELLO, **{**fields, "seed": 9})
    assert [choice.index for choice in answer.choices] == [0, 1, 2]
    assert answer.choices[2].message.content == alone.choices[0].message.content
    assert answer.usage.completion_tokens == 18


@pytest.mark.parametrize("stream", [False, True])
def test_logprobs(client, stream):
    fields = dict(messages=HELLO, logprobs=True, top_logprobs=3, **GREEDY)
    if stream:
        chunks = client.chat.completions.create(stream=True, **fields)
        found = [chunk.choices[0].logprobs for chunk in chunks if chunk.choices]
        content = [entry for logprobs in found if logprobs for entry in logprobs.content]
    else:
        content = client.chat.completions.create(**fields).choices[0].logprobs.content
    assert len(content) == 6
    for entry in content:
        assert len(entry.top_logprobs) == 3
        assert entry.top_logprobs[0].token == entry.token  # greedy
        assert entry.logprob <= 0


def test_json_schema(client):
    schema = {
        "type": "object",
        "properties": {"n": {"type": "integer", "minimum": 0, "maximum": 9}},
        "required": ["n"],
        "additionalProperties": False,
    }
    form = {"type": "json_schema", "json_schema": {"name": "n", "schema": schema, "strict": True}}
    answer = client.chat.completions.create(
        messages=HELLO, response_format=form, model=MODEL, temperature=0, max_tokens=60
    )
    assert answer.choices[0].finish_reason == "stop"
    assert 0 <= json.loads(answer.choices[0].message.content)["n"] <= 9


WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "The weather of a city.",
        "parameters": {
            "type": "object",
            "properties": {"city": {"enum": ["Xi'an", "北京"]}},
            "required": ["city"],
            "additionalProperties": False,
        },
    },
}


@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "weather"}}], ids=str)
def test_a_tool_call_and_its_answer(client, choice):
    fields = {"model": MODEL, "temperature": 0, "max_tokens": 200, "tools": [WEATHER]}
    answer = client.chat.completions.create(messages=HELLO, tool_choice=choice, **fields).choices[0]
    assert answer.finish_reason == "tool_calls"
    assert answer.message.content is None
    (call,) = answer.message.tool_calls
    assert call.function.name == "weather"
    assert json.loads(call.function.arguments)["city"] in ("Xi'an", "北京")
    chunks = list(client.chat.completions.create(messages=HELLO, tool_choice=choice, stream=True, **fields))
    deltas = [chunk.choices[0].delta for chunk in chunks if chunk.choices]
    (streamed,) = [delta.tool_calls[0] for delta in deltas if delta.tool_calls]
    assert streamed.index == 0
    assert streamed.function.arguments == call.function.arguments
    assert not any(delta.content for delta in deltas)
    assert chunks[-1].choices[0].finish_reason == "tool_calls"
    without = {
        "id": "b",
        "type": "function",
        "function": {"name": "weather", "arguments": ""},
    }  # some clients' form of {}
    for said in (answer.message, {"role": "assistant", "name": None, "tool_calls": [without]}):
        conversation = [*HELLO, said, {"role": "tool", "tool_call_id": call.id, "content": "sunny"}]
        more = client.chat.completions.create(messages=conversation, **{**fields, "max_tokens": 4})
        assert more.usage.prompt_tokens > 100


def test_tools_of_another_form(client):
    for fields, param in (
        ({"tool_choice": "required"}, "tool_choice"),
        ({"tools": [WEATHER, WEATHER]}, "tools"),
        ({"tools": [{"type": "function", "function": {"name": "a b"}}]}, "tools"),
        ({"tools": [WEATHER], "tool_choice": {"type": "function", "function": {"name": "x"}}}, "tool_choice"),
        ({"tools": [WEATHER], "response_format": {"type": "json_object"}}, "response_format"),
    ):
        with pytest.raises(openai.BadRequestError) as caught:
            client.chat.completions.create(messages=HELLO, **{**GREEDY, **fields})
        assert caught.value.param == param


def test_text_completions(client, served_llm):
    answer = client.completions.create(prompt=["hello", "the picture"], logprobs=2, **GREEDY)
    assert [choice.index for choice in answer.choices] == [0, 1]
    assert answer.choices[0].text
    assert len(answer.choices[1].logprobs.tokens) == 6
    ids = [served_llm.tokenizer.encode_text(text) for text in ("hello", "the picture")]
    assert answer.usage.prompt_tokens == sum(map(len, ids))
    from_ids = client.completions.create(prompt=ids, **GREEDY)
    assert [choice.text for choice in from_ids.choices] == [choice.text for choice in answer.choices]
    streamed = list(client.completions.create(prompt="hello", stream=True, **GREEDY))
    assert "".join(chunk.choices[0].text for chunk in streamed) == answer.choices[0].text
    assert streamed[-1].choices[0].finish_reason == "length"


def test_transcription(client, served_llm, media_root, monkeypatch):
    sampling = SamplingParams(temperature=0, max_tokens=40)
    monkeypatch.setattr(transcription_route, "TRANSCRIBE_SAMPLING", sampling)
    path = media_root / "speech_1s_16k.wav"
    expected = served_llm.transcribe(path, sampling=sampling)
    with path.open("rb") as file:
        assert client.audio.transcriptions.create(model=MODEL, file=file).text == expected
    content = ("speech.wav", path.read_bytes())
    text = client.audio.transcriptions.create(model=MODEL, file=content, response_format="text")
    assert text.rstrip("\n") == expected.rstrip("\n")
    verbose = client.audio.transcriptions.create(model=MODEL, file=content, response_format="verbose_json")
    assert verbose.duration == 1.0
    assert verbose.text == expected
    events = list(client.audio.transcriptions.create(model=MODEL, file=content, stream=True))
    assert "".join(event.delta for event in events[:-1]) == expected == events[-1].text
    assert events[-1].usage.input_token_details.audio_tokens == 27


def test_a_long_recording_is_transcribed_clip_after_clip(client, server, media_root, monkeypatch):
    """70 s become clips of 30 s at most, a line of the text each, and the stream says what the whole says."""
    monkeypatch.setattr(transcription_route, "TRANSCRIBE_SAMPLING", SamplingParams(temperature=0, max_tokens=5))
    rng = np.random.default_rng(0)
    samples = rng.normal(0, 3000, 70 * 16_000).astype(np.int16)
    samples[25 * 16_000 : 26 * 16_000] = samples[50 * 16_000 : 51 * 16_000] = 0
    file = io.BytesIO()
    with wave.open(file, "wb") as writer:
        writer.setparams((1, 2, 16_000, 0, "NONE", ""))
        writer.writeframes(samples.tobytes())
    content = ("long.wav", file.getvalue())
    verbose = client.audio.transcriptions.create(model=MODEL, file=content, response_format="verbose_json")
    assert verbose.duration == 70.0
    assert verbose.text.count("\n") >= 2
    assert verbose.usage.output_tokens == 3 * 5
    assert verbose.finish_reason == "length"  # the limit above cut it
    events = list(client.audio.transcriptions.create(model=MODEL, file=content, stream=True))
    assert [event.type for event in events[:-1]] == ["transcript.text.delta"] * (len(events) - 1)
    assert "".join(event.delta for event in events[:-1]) == events[-1].text == verbose.text
    assert events[-1].finish_reason == "length"
    tokens = events[-1].usage.input_token_details.audio_tokens
    assert tokens == verbose.usage.input_token_details["audio_tokens"] > 70 * 25
    wait_until(server.is_idle)


def test_models(client):
    (model,) = client.models.list().data
    assert model.id == MODEL
    assert model.input_modalities == ["text", "image", "audio", "video"]
    assert model.max_model_len == 4096
    assert client.models.retrieve(MODEL).id == MODEL
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("other")


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"temperature": -1}, "temperature"),
        ({"top_p": 0}, "top_p"),
        ({"n": 33}, "n"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"top_logprobs": 2}, "top_logprobs"),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
        ({"stop": [""]}, None),
        ({"seed": -1}, "seed"),
        ({"logit_bias": {"x": 1}}, "logit_bias"),
        ({"extra_body": {"chat_template_kwargs": {"a": 1}}}, "chat_template_kwargs"),
        ({"extra_body": {"chat_template": "{{ 1 }}"}}, "chat_template"),
        ({"stream_options": {"include_usage": True}}, "stream_options"),
        ({"response_format": {"type": "xml"}}, "response_format"),
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "king", "content": "a"}]}, "messages[0]"),
        ({"messages": [{"role": "user", "content": [{"type": "text", "text": 3}]}]}, "messages[0].content[0].text"),
        ({"messages": [{"role": "user", "content": [{"type": "film"}]}]}, "messages[0].content[0]"),
        ({"messages": [{"role": "user", "content": "a", "name": "b"}]}, "messages[0].name"),
    ],
    ids=str,
)
def test_bad_requests_say_which_field(client, fields, param):
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(**{"messages": HELLO, **GREEDY, **fields})
    assert caught.value.type == "invalid_request_error"
    assert caught.value.param == param


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"stop": ["a"] * 65}, "stop list must have at most 64 items"),
        ({"messages": [{"role": "user", "content": []}]}, "messages[0].content list must have at least 1 item"),
    ],
    ids=["stop", "content"],
)
def test_of_two_forms_that_do_not_fit_the_one_that_was_meant_is_told(client, fields, words):
    with pytest.raises(openai.BadRequestError, match=re.escape(words)):
        client.chat.completions.create(**{"messages": HELLO, **GREEDY, **fields})


def test_unknown_model(client):
    with pytest.raises(openai.NotFoundError) as caught:
        client.chat.completions.create(messages=HELLO, **{**GREEDY, "model": "gpt-4o"})
    assert caught.value.code == "model_not_found"


def test_errors_of_the_server_are_the_client_s_own(serve, served_llm):
    """413, 429 and 503, by the types that programs catch."""
    with serve(max_num_seqs=1, max_queue=0, max_body_bytes=20_000) as server, server.openai() as client:
        with pytest.raises(openai.APIStatusError) as caught:
            client.chat.completions.create(messages=[{"role": "user", "content": "a" * 30_000}], model=MODEL)
        assert (caught.value.status_code, caught.value.code) == (413, "too_large")
        place = server.service.admission.enter()
        with pytest.raises(openai.RateLimitError) as full:
            client.chat.completions.create(messages=HELLO, **GREEDY)
        assert full.value.code == "queue_full"
        assert int(full.value.response.headers["retry-after"]) >= 1
        place.give_back()
        assert client.chat.completions.create(messages=HELLO, **GREEDY).choices
    ready = threading.Event()
    with running(served_llm, load=lambda: ready.wait(20) and served_llm) as server, server.openai() as client:
        with pytest.raises(openai.InternalServerError) as loading:
            client.models.list()
        assert (loading.value.status_code, loading.value.code) == (503, "loading")
        ready.set()
        wait_until(lambda: server.service.is_ready)
        assert client.models.list().data


def test_wrong_key(serve, tmp_path):
    keys = tmp_path / "keys"
    keys.write_text("# ours\ncorrect-horse\n")
    with serve(api_key_file=keys) as server:
        with pytest.raises(openai.AuthenticationError), server.openai("battery-staple") as client:
            client.models.list()
        with server.openai("correct-horse") as client:
            assert client.models.list().data
