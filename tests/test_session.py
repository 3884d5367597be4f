"""Conversations: what is remembered, taken back, copied and saved, and what happens when the window is full."""

from __future__ import annotations

import base64
import io
import json
import os
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

import tianquan
from tianquan.backends.kv_cache import SequenceBatch
from tianquan.engine.interface import EngineOptions
from tianquan.errors import MediaError, ParameterError, PromptError, TianquanError
from tianquan.llm import GREEDY
from tianquan.request import SamplingParams
from tianquan.session_file import read_messages, write_messages
from tolerances import KV_STORAGE, relative_rmse

SHORT = replace(GREEDY, max_tokens=6, ignore_eos=True)
CAT, DOG = (np.random.default_rng(seed).integers(0, 256, (60, 80, 3), np.uint8) for seed in (0, 1))
SOUND = (np.random.default_rng(2).normal(0, 0.1, 16000).astype(np.float32), 16000)
SOUND_16_BIT = ((SOUND[0] * 32768).astype(np.int16), 16000)
LONGER = (np.random.default_rng(3).normal(0, 0.1, 30000).astype(np.float32), 16000)


def png(pixels):
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


@pytest.fixture(scope="module")
def llm(checkpoint_folder):
    return tianquan.load(checkpoint_folder, precision="float32")


@pytest.fixture
def small_llm(checkpoint_folder, llm):
    """A window of 640 tokens."""
    block_bytes = llm.model.language_model.make_kv_cache(1).num_bytes
    options = EngineOptions(kv_cache_bytes=20 * block_bytes)
    return tianquan.load(checkpoint_folder, precision="float32", engine=options)


def test_a_session_is_the_same_as_chat_with_all_messages(llm):
    session = llm.session(system="Be brief.", sampling=SHORT)
    first = session.send("What is this?", images=[CAT])
    second = session.send("And this?", images=[DOG], audios=[SOUND])
    third = session.send("And now listen.", audios=[LONGER])
    assert [len(turn.content) for turn in session.turns] == [2] * 6
    for n, completion in ((2, first), (4, second), (6, third)):
        alone = llm.chat(session.messages[:n], sampling=SHORT)
        assert alone.prompt_token_ids == completion.prompt_token_ids
        assert alone.text == completion.text


def test_the_second_turn_encodes_nothing_and_prefills_what_is_new(llm):
    session = llm.session(system="A salt of this test.", sampling=SHORT)
    first = session.send("What is this?", images=[CAT])
    before = llm.statistics()
    second = session.send("And what else?")
    after = llm.statistics()
    assert after.vision_ms == before.vision_ms
    assert second.timings.vision_ms == 0
    assert second.usage.cached_tokens >= first.usage.prompt_tokens
    assert second.usage.image_tokens == first.usage.image_tokens


def user_texts(session):
    return [message["content"]["text"] for message in session.messages if message["role"] == "user"]


def test_undo_fork_and_clear(llm):
    session = llm.session(sampling=SHORT)
    session.send("One")
    fork = session.fork()
    session.send("Two")
    fork.send("Three")
    assert user_texts(session) == ["One", "Two"]
    assert user_texts(fork) == ["One", "Three"]
    session.undo()
    again = session.send("Three")
    assert again.text == fork.messages[-1]["content"]
    session.clear()
    assert session.messages == []
    with pytest.raises(ParameterError, match="nothing to undo"):
        session.undo()


def test_left_early_it_keeps_what_was_said(llm):
    session = llm.session(sampling=replace(SHORT, max_tokens=200))
    stream = session.stream("Count.")
    said = next(stream).text
    stream.close()
    assert session.messages[-1] == {"role": "assistant", "content": said}
    assert session.send("Go on.", sampling=SHORT).usage.completion_tokens == 6


def test_a_message_that_cannot_be_used_is_not_part_of_it(llm):
    session = llm.session(sampling=SHORT)
    session.send("One")
    with pytest.raises(MediaError, match="no such file"):
        session.send("Two", images=["missing.png"])
    with pytest.raises(PromptError, match="empty"):
        session.send()
    with pytest.raises(ParameterError, match="temperature"):
        session.send("Two", sampling=replace(SHORT, temperature=-1))
    assert len(session.turns) == 2


def test_save_and_load_change_no_token(llm, tmp_path, media_root):
    session = llm.session(system="Be brief.", sampling=SHORT)
    session.send("Look", images=[CAT, media_root / "tiny_100x60.png"], audios=[SOUND_16_BIT])
    session.send("Thanks")
    path = tmp_path / "conversation.json"
    session.save(path)
    assert [message["role"] for message in json.loads(path.read_text("utf-8"))] == [
        "system",
        *["user", "assistant"] * 2,
    ]
    loaded = llm.session(sampling=SHORT)
    loaded.load(path)
    expected, got = session.send("And?"), loaded.send("And?")
    assert got.prompt_token_ids == expected.prompt_token_ids
    assert got.text == expected.text
    assert got.usage.cached_tokens > expected.usage.prompt_tokens - 64, "equal media are known media"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "not valid JSON"),
        ('{"a": 1}', "not a list of messages"),
        ('[{"role": "user"}]', "not a list of messages"),
        ('[{"role": "user", "content": "x"}]', "user and assistant in turn"),
        ('[{"role": "assistant", "content": "x"}, {"role": "user", "content": "x"}]', "user and assistant in turn"),
        ('[{"role": "king", "content": "x"}, {"role": "assistant", "content": "x"}]', "in turn"),
    ],
)
def test_files_that_are_no_conversations(llm, tmp_path, text, message):
    path = tmp_path / "c.json"
    path.write_text(text)
    session = llm.session(sampling=SHORT)
    session.send("One")
    with pytest.raises(PromptError, match=message):
        session.load(path)
    assert len(session.turns) == 2
    with pytest.raises(PromptError, match="cannot be read"):
        session.load(tmp_path / "missing.json")


def turned_sideways():
    picture = Image.fromarray(CAT)
    picture.getexif()[0x0112] = 6
    return picture


def test_names_of_files_that_are_no_text_come_back(tmp_path):
    name = os.fsdecode(b"/tmp/caf\xe9 \xff.png")
    messages = [{"role": "user", "content": {"text": "咖啡", "image": [name]}}]
    write_messages(tmp_path / "talk.json", messages)
    assert read_messages(tmp_path / "talk.json") == messages
    assert "咖啡" in (tmp_path / "talk.json").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    "picture",
    [
        turned_sideways(),
        Image.fromarray(np.dstack([CAT, np.full(CAT.shape[:2], 90, np.uint8)])),
        Image.fromarray(np.arange(0, 60 * 80 * 13, 13, dtype=np.uint16).reshape(60, 80)),
        io.BytesIO(png(CAT)),
        bytearray(png(CAT)),
    ],
    ids=["sideways", "transparent", "16 bits", "file", "bytes"],
)
def test_pictures_in_memory_are_saved_as_the_model_saw_them(llm, tmp_path, picture):
    session = llm.session(sampling=SHORT)
    first = session.send("What is this?", images=[picture])
    session.save(tmp_path / "talk.json")
    again = llm.session(sampling=SHORT)
    again.load(tmp_path / "talk.json")
    again.undo()
    kept = json.loads((tmp_path / "talk.json").read_text(encoding="utf-8"))[0]["content"]["image"]
    prompts = [llm.processor([{"role": "user", "content": {"text": "?", "image": one}}]) for one in (picture, *kept)]
    assert prompts[0].images[0].digest == prompts[1].images[0].digest
    assert first.usage.image_tokens == 64


def test_recordings_of_open_files_are_saved(llm, media_root):
    data = (media_root / "speech_1s_16k.wav").read_bytes()
    session = llm.session(sampling=SHORT)
    session.send("What is said?", audios=[io.BytesIO(data), bytearray(data)])
    kept = json.loads(session.to_json())[0]["content"]["audio"]
    assert [base64.b64decode(url.partition(",")[2]) for url in kept] == [data, data]


def test_the_budget_adds_up(llm):
    session = llm.session(system="Be brief.", sampling=SHORT)
    assert session.budget().used < 40
    session.send("What is this?", images=[CAT], audios=[SOUND])
    budget = session.budget()
    assert [row.role for row in budget.turns] == ["system", "user", "assistant"]
    assert budget.turns[1].image_tokens == 64
    assert budget.turns[1].audio_tokens == 27
    opening = budget.used - sum(row.tokens for row in budget.turns)
    assert 0 < opening < 10, "what is left is the opening of the next answer"
    assert budget.window == 4096
    assert budget.room == 4096 - budget.used


def fill(session, num_turns, **media):
    for n in range(num_turns):
        session.send(f"{n} " + "word " * 25, **(media if n == 0 else {}))


def test_a_full_window_is_an_error_by_default(small_llm):
    session = small_llm.session(sampling=SHORT)
    with pytest.raises(PromptError, match=r"the window 640; undo turns, start anew, or choose when_full"):
        fill(session, 20)
    assert session.budget().used < 640


@pytest.mark.parametrize("keep_media", [False, True])
def test_oldest_turns_are_dropped(small_llm, keep_media):
    session = small_llm.session(system="SYSTEM", sampling=SHORT, when_full="drop_oldest_turns", keep_media=keep_media)
    fill(session, 14, images=[CAT])
    assert session.num_dropped > 0
    messages = session.messages
    assert messages[0] == {"role": "system", "content": "SYSTEM"}
    assert messages[-2]["content"]["text"].startswith("13 ")
    assert any(turn.has_media for turn in session.turns) == keep_media
    assert [m["role"] for m in messages[1:]] == ["user", "assistant"] * (len(messages) // 2)
    assert session.budget().used <= 640
    assert session.budget().num_dropped == session.num_dropped
    with pytest.raises(PromptError, match=r"the message has .* the window 640; make it shorter"):
        session.send("word " * 600)


@pytest.mark.parametrize("when_full", ["drop_oldest_turns", "summarize"])
def test_a_message_that_fails_forgets_nothing(small_llm, when_full):
    session = small_llm.session(sampling=SHORT, when_full=when_full)
    fill(session, 4)
    for _ in range(3):
        with pytest.raises(PromptError, match="make it shorter"):
            session.send("word " * 700)
    with pytest.raises(TianquanError):  # of the temperature, or of a summary that takes too much room
        session.send("word " * 120, sampling=replace(SHORT, temperature=-1.0))
    assert session.num_dropped == 0
    assert len(session.turns) == 8


def test_an_exchange_as_long_as_the_window_is_dropped_where_no_summary_of_it_fits(small_llm):
    session = small_llm.session(sampling=replace(SHORT, max_tokens=600), when_full="summarize")
    session.send("word " * 120)
    assert session.budget().used > 640 - 40
    completion = session.send("hi", sampling=SHORT)
    assert completion.usage.completion_tokens == 6
    assert user_texts(session) == ["hi"]
    assert session.num_dropped == 2


def test_old_turns_are_summarized(small_llm):
    session = small_llm.session(sampling=SHORT, when_full="summarize")
    fill(session, 14)
    assert session.messages[0]["content"].startswith("Summary of our conversation so far: ")
    assert session.messages[-2]["content"]["text"].startswith("13 ")
    assert session.num_dropped > 0
    assert session.budget().used <= 640


def test_what_was_summed_up_is_summed_up_again(small_llm, monkeypatch):
    asked = []
    answer = small_llm.answer

    def listen(prompt, sampling, **options):
        asked.append(small_llm.processor.tokenizer.decode(prompt.token_ids.tolist()))
        return answer(prompt, sampling, **options)

    monkeypatch.setattr(small_llm, "answer", listen)
    session = small_llm.session(sampling=SHORT, when_full="summarize")
    fill(session, 22)
    summaries = [text for text in asked if "Summarize our conversation" in text]
    assert len(summaries) > 2
    assert all("Summary of our conversation so far" in text for text in summaries[1:])
    assert "user0 word" in summaries[0]  # nothing is left out before


@pytest.mark.parametrize("when_full", ["drop_oldest_turns", "summarize"])
def test_what_was_said_before_may_be_said_again(small_llm, when_full):
    session = small_llm.session(sampling=SHORT, when_full=when_full)
    for _ in range(8):
        session.send("again " * 25, images=[CAT.copy()])
    assert session.num_dropped > 0
    assert session.turns[-2].has_media


def test_places_that_cannot_be_written_or_read(llm, tmp_path):
    session = llm.session(sampling=SHORT)
    (tmp_path / "file").write_text("x")
    for place in (tmp_path / "file" / "c.json", tmp_path / "missing" / "c.json", tmp_path / ("n" * 300), tmp_path):
        with pytest.raises(TianquanError, match="cannot be written"):
            session.save(place)
    with pytest.raises(TianquanError, match="is a folder"):
        session.save("")
    with pytest.raises(PromptError, match="is not a regular file"):
        session.load("/dev/zero")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_an_unknown_policy_is_refused(llm):
    with pytest.raises(ParameterError, match="when_full must be one of error, drop_oldest_turns, summarize"):
        llm.session(when_full="forget")


def test_memory_options(checkpoint_folder):
    def load(**options):
        return tianquan.load(checkpoint_folder, precision="float32", **options)

    with pytest.raises(ParameterError, match=r"max_memory is 1 MiB; the weights take \d+ MiB, .* expected more than"):
        load(max_memory=2**20)
    with pytest.raises(ParameterError, match=r"this machine has \d+ MiB; ask for less"):
        load(engine=EngineOptions(kv_cache_bytes=2**50))
    with pytest.raises(ParameterError, match="max_memory leaves"):
        load(max_memory=2**30, engine=EngineOptions(kv_cache_bytes=2**30))
    with pytest.raises(ParameterError, match="kv_format 'int3'"):
        load(kv_format="int3")
    small = load(max_memory=640 * 2**20)
    assert small.statistics().kv_cache_bytes < 64 * 2**20


@pytest.mark.parametrize("kv_format", ["float16", "int8"])
def test_formats_of_keys_and_values(checkpoint_folder, kv_format):
    """Quality against float32 keys and values, on logits behind 70 cached tokens; and the memory it takes."""
    llms = [tianquan.load(checkpoint_folder, precision="float32", kv_format=f) for f in ("float32", kv_format)]
    logits, sizes = [], []
    for llm in llms:
        model = llm.model
        token_ids = np.random.default_rng(0).integers(0, 900, 70).astype(np.int32)
        cache = model.language_model.make_kv_cache(70)
        sizes.append(cache.num_bytes)
        batch = SequenceBatch.alone(70, 0, cache)
        logits.append(model.forward(model.language_model.embed(token_ids), cache, batch, all_rows=True))
    assert relative_rmse(logits[1], logits[0]) < KV_STORAGE[kv_format]
    assert sizes[1] < sizes[0] * (0.51 if kv_format == "float16" else 0.3)
    assert llms[1].chat([{"role": "user", "content": "Hello"}], sampling=SHORT).usage.completion_tokens == 6


def test_what_is_saved_is_what_was_seen(llm, tmp_path):
    pixels = np.full((64, 64, 3), 200, np.uint8)
    picture = Image.fromarray(pixels.copy())
    samples = np.linspace(-0.5, 0.5, 16_000, dtype=np.float32)
    session = llm.session(sampling=SHORT)
    session.send("a", images=[pixels, picture], audios=[(samples, 16_000)])
    session.save(tmp_path / "before.json")
    pixels[...] = 20
    picture.paste((0, 0, 0), (0, 0, 64, 64))
    samples[...] = 0
    session.save(tmp_path / "after.json")
    assert (tmp_path / "after.json").read_bytes() == (tmp_path / "before.json").read_bytes()
    other = llm.session(sampling=SHORT)
    other.load(tmp_path / "after.json")
    assert other.turns[0].recordings[0][0].any()


def test_sound_far_beyond_full_scale_is_not_saved_clipped(llm, tmp_path):
    session = llm.session(sampling=SHORT)
    session.send("a", audios=[(np.full(16_000, 3.0, np.float32), 16_000)])
    with pytest.raises(PromptError, match="reaches 3 times full scale"):
        session.save(tmp_path / "loud.json")


def test_sampling_of_wrong_types_is_refused(llm):
    with pytest.raises(ParameterError, match="max_tokens must be an integer"):
        llm.session().send("hi", sampling=SamplingParams(max_tokens="5"))
