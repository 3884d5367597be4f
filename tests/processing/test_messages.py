from __future__ import annotations

import base64
import io

import numpy as np
import pytest

from tianquan.errors import MediaError, PromptError
from tianquan.processing.messages import parse_messages

PNG = base64.b64encode(b"\x89PNG....").decode()


def one(content, role="user"):
    return parse_messages([{"role": role, "content": content}])[0]


def test_vendor_form():
    turn = one({"text": "hi", "image": ["a.png", "b.png"], "audio": "c.wav"})
    assert [image.source for image in turn.images] == ["a.png", "b.png"]
    assert turn.audios == ("c.wav",)
    assert turn.listed == {"image"}


def test_openai_parts():
    turn = one(
        [
            {"type": "text", "text": "one"},
            {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{PNG}", "detail": "low"}},
            {"type": "input_audio", "input_audio": {"data": PNG, "format": "wav"}},
            {"type": "audio_url", "audio_url": {"url": "c.wav"}},
            {"type": "text", "text": "two"},
        ]
    )
    assert turn.text == "one\ntwo"
    assert turn.images[0].source == b"\x89PNG...."
    assert turn.images[0].detail == "low"
    assert turn.audios == (b"\x89PNG....", "c.wav")


@pytest.mark.parametrize(
    "messages",
    [
        None,
        [],
        {},
        "hello",
        [None],
        ["hello"],
        [{}],
        [{"role": "user"}],
        [{"role": "nobody", "content": "x"}],
        [{"role": "user", "content": None}],
        [{"role": "user", "content": 5}],
        [{"role": "user", "content": []}],
        [{"role": "user", "content": {}}],
        [{"role": "user", "content": {"text": 5}}],
        [{"role": "user", "content": {"text": "x", "film": "a.mp4"}}],
        [{"role": "user", "content": {"image": 5}}],
        [{"role": "user", "content": {"image": ""}}],
        [{"role": "user", "content": [{"type": "text"}]}],
        [{"role": "user", "content": [{"type": "text", "text": None}]}],
        [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "a", "detail": "huge"}}]}],
        [{"role": "user", "content": [{"type": "input_audio", "input_audio": "abc"}]}],
        [{"role": "user", "content": [{"type": "video_url", "video_url": {"url": 5}}]}],
        [{"role": "user", "content": [5]}],
        [{"role": "user", "content": "x", "name": "y"}],
        [{"role": "user", "content": "x", "name": "y", 5: 6}],
        [{"role": "user", "content": {"text": "x", "line\nfeed": "y", 5: 6}}],
        [{"role": np.zeros(3), "content": "x"}],
        [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "a", "detail": np.zeros(3)}}]}],
    ],
)
def test_wrong_forms_are_refused(messages):
    with pytest.raises(PromptError) as caught:
        parse_messages(messages)
    assert str(caught.value).isprintable()


@pytest.mark.parametrize(
    "url",
    [
        "https://example.org/a.png",
        "http://127.0.0.1/a.png",
        "file:///etc/passwd",
        "ftp://example.org/a.png",
        "data:image/png,abc",
        "data:image/png;base64,@@@",
    ],
)
def test_urls_are_not_fetched(url):
    with pytest.raises(MediaError):
        one({"image": url})


def test_errors_do_not_print_content():
    with pytest.raises(PromptError) as error:
        one([{"type": "secret", "text": "my private words"}])
    assert "private" not in str(error.value)


@pytest.mark.parametrize("data", [bytearray(b"abc"), io.BytesIO(b"abc")])
def test_bytes_in_other_containers(data):
    assert one({"image": data}).images[0].source == b"abc"


def test_tuples():
    samples = np.zeros(3, np.float32)
    for rate in (16_000, 16_000.0, np.int64(16_000), "16000"):  # `as_waveform` judges it
        assert one({"audio": (samples, rate)}).audios[0][1] is rate
    with pytest.raises(MediaError, match="a tuple of 3"):
        one({"audio": (samples, 16_000, 1)})


def test_a_url_is_quoted_in_one_line():
    with pytest.raises(MediaError) as caught:
        one({"image": "ht\ntp://example.org"})
    assert str(caught.value).isprintable()
