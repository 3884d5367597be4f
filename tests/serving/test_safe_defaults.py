"""Who may ask what, and how much: each test fails without its defence."""

from __future__ import annotations

import base64
import contextlib
import hmac
import io
import json
import logging
import os
import socket
import time
import wave
import zlib

import numpy as np
import pytest
from PIL import Image
from pydantic import ValidationError

from drawn_videos import encode, moving
from running_server import HASTY, wait_until
from tianquan.errors import ParameterError
from tianquan.request import SamplingParams
from tianquan.serving import transcription_route
from tianquan.serving.config import ServeConfig
from tianquan.serving.gate import read_keys
from tianquan.serving.protocol import ChatRequest, CompletionRequest
from tianquan.serving.routes import ROUTES

KEY = "correct-horse-battery"


# The key --------------------------------------------------------------------------------------------------
@pytest.fixture
def key_file(tmp_path):
    path = tmp_path / "keys"
    path.write_text(f"{KEY}\nanother-good-key\n")
    return path


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.5", "example.org"])
def test_other_addresses_need_a_key(host, key_file, monkeypatch):
    with pytest.raises(ParameterError, match="--api-key-file"):
        read_keys(ServeConfig(host=host))
    assert read_keys(ServeConfig(host=host, insecure=True)) == ()
    assert read_keys(ServeConfig(host=host, api_key_file=key_file))[0] == KEY
    monkeypatch.setenv("TIANQUAN_API_KEY", "from-the-environment")
    assert read_keys(ServeConfig(host=host)) == ("from-the-environment",)


@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "localhost"])
def test_this_machine_needs_none(host):
    assert read_keys(ServeConfig(host=host)) == ()


def test_it_binds_to_this_machine_by_default():
    assert ServeConfig().host == "127.0.0.1"


@pytest.mark.parametrize("content", ["", "# only a comment\n", "short\n", "with space in it\n", "schlüssel-lang\n"])
def test_bad_key_files(tmp_path, content):
    path = tmp_path / "keys"
    path.write_text(content)
    with pytest.raises(ParameterError):
        read_keys(ServeConfig(api_key_file=path))


def test_every_route_but_health_and_the_page_is_locked(serve, key_file):
    with serve(api_key_file=key_file) as server:
        assert server.get("/health").status == 200
        tries = [
            {},
            {"Authorization": ""},
            {"Authorization": "Bearer"},
            {"Authorization": "Bearer "},
            {"Authorization": f"Bearer {KEY}x"},
            {"Authorization": f"Bearer {KEY[:-1]}"},
            {"Authorization": f"Basic {KEY}"},
            {"Authorization": KEY},
            {"Authorization": f"Bearer {KEY.upper()}"},
            {"Authorization": "Bearer ü"},
            {"X-Api-Key": KEY},
        ]
        paths = [*ROUTES, "/v1/models/tiny", "/nothing", "/v1/../metrics", "/health/", "/health/../metrics", "//health"]
        for path in paths:
            if path == "/health":
                continue
            for method in ("GET", "POST", "PUT", "OPTIONS"):
                for headers in tries if method == "GET" else tries[:1]:
                    reply = server.request(method, path, b"{}", {k: v.encode() for k, v in headers.items()})
                    assert reply.status == 401, (method, path, headers)
                    assert reply.error["code"] == "invalid_api_key"
                    assert reply.headers["www-authenticate"] == "Bearer"
        for host in ("x/health?", "x/health#", "x/health?@", "[/health", "x/health\\"):
            assert server.get("/v1/models", Host=host).status == 401  # a URL of both would have the path /health
        for key in (KEY, "another-good-key"):
            assert server.get("/v1/models", Authorization=f"Bearer {key}").status == 200
            assert server.get("/v1/models", authorization=f"bearer {key}").status == 200


def test_keys_are_compared_in_constant_time(serve, key_file, monkeypatch):
    compared = []

    def compare(a, b):
        compared.append((a, b))
        return original(a, b)

    original = hmac.compare_digest
    monkeypatch.setattr("tianquan.serving.gate.hmac.compare_digest", compare)
    with serve(api_key_file=key_file) as server:
        for key in (KEY, "another-good-key", "x"):
            compared.clear()
            server.get("/v1/models", Authorization=f"Bearer {key}")
            assert len(compared) == 2  # every key, whichever matches
            assert all(len(a) == len(b) == 32 for a, b in compared)  # digests: the length tells nothing


def test_keys_do_not_share_caches(serve, key_file):
    with serve(api_key_file=key_file) as server:
        for key in (KEY, "another-good-key"):
            reply = server.post(
                "/v1/chat/completions",
                {"messages": [{"role": "user", "content": "a secret of one tenant" * 5}], "max_tokens": 2},
                {"Authorization": f"Bearer {key}"},
            )
            assert reply.json["usage"]["prompt_tokens_details"]["cached_tokens"] == 0


# Browsers -------------------------------------------------------------------------------------------------
def test_no_cors(server):
    reply = server.request("OPTIONS", "/v1/chat/completions", headers={"Origin": "https://evil.example"})
    assert not [name for name in reply.headers if name.startswith("access-control")]
    assert not [name for name in server.get("/v1/models").headers if name.startswith("access-control")]


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "https://evil.example"},
        {"Origin": "null"},
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"},
    ],
)
def test_other_web_pages_cannot_post(server, headers):
    assert server.post("/v1/chat/completions", {}, headers).status == 403
    assert server.post("/v1/audio/transcriptions", b"", headers).status == 403


def test_forms_of_other_pages_are_not_json(server):
    """What a page may post without asking: the three types of forms."""
    body = b'{"messages": [{"role": "user", "content": "a"}], "max_tokens": 1}'
    for kind in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data", ""):
        assert server.post("/v1/chat/completions", body, {"Content-Type": kind}).status == 400


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:80", "127.0.0.1.evil.example", "", "[", "a@127.0.0.1.x"]
)
def test_names_that_were_made_to_lead_here_are_refused(server, host):
    """DNS rebinding: a page of evil.example whose name now means 127.0.0.1 is same-origin with us."""
    assert server.get("/v1/models", Host=host).status == 403


def test_own_names_are_taken(serve, server):
    for host in ("localhost", f"localhost:{server.port}", "127.0.0.1", "[::1]:80"):
        assert server.get("/v1/models", Host=host).status == 200
    with serve(allowed_host=("AI.lan",)) as named:
        assert named.get("/v1/models", Host="ai.lan").status == 200


def test_headers_of_every_response(server):
    for path in ("/health", "/v1/models", "/nothing"):
        headers = server.get(path).headers
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["x-frame-options"] == "DENY"
        assert headers["x-request-id"]
        assert "server" not in headers


def test_request_ids(server):
    assert server.get("/health", **{"X-Request-Id": "abc-1"}).headers["x-request-id"] == "abc-1"
    for bad in ("a" * 65, "a b", "ä", 'x"y'):
        assert server.get("/health", **{"X-Request-Id": bad.encode()}).headers["x-request-id"] != bad


# Sizes ----------------------------------------------------------------------------------------------------
def test_large_bodies_are_refused_before_they_are_read(serve):
    with serve(max_body_bytes=10_000) as server:
        assert server.chat("a" * 20_000).status == 413
        with contextlib.closing(socket.create_connection(("127.0.0.1", server.port), 5)) as raw:
            raw.sendall(
                b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
                b"Content-Length: 99999999999\r\n\r\n"
            )
            assert raw.recv(100).startswith(b"HTTP/1.1 413")
        with contextlib.closing(socket.create_connection(("127.0.0.1", server.port), 5)) as raw:
            raw.sendall(
                b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
                b"Transfer-Encoding: chunked\r\n\r\n" + b"1000\r\n" + b" " * 4096 + b"\r\n"
            )
            with contextlib.suppress(OSError):
                for _ in range(5):
                    raw.sendall(b"1000\r\n" + b" " * 4096 + b"\r\n")
            assert raw.recv(100).startswith(b"HTTP/1.1 413")
        assert server.upload(b"x" * 20_000).status == 413
        wait_until(server.is_idle)


def test_bodies_of_all_requests_together_are_bounded(serve):
    """Nine clients send a whole body each but for its last byte; there is memory for eight."""
    head = (
        b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        b"Content-Length: 4096\r\n\r\n"
    )
    with serve(max_body_bytes=4096, max_queue=20) as server, contextlib.ExitStack() as stack:
        admission = server.service.admission
        for n in range(1, 9):
            raw = stack.enter_context(contextlib.closing(socket.create_connection(("127.0.0.1", server.port), 5)))
            raw.sendall(head + b" " * 4095)
            wait_until(lambda n=n: admission.num_bytes == n * 4095)
        assert server.chat("a" * 1000).status == 429
        stack.close()
        wait_until(server.is_idle)
        assert admission.num_bytes == 0


def test_long_heads_are_refused(server):
    with contextlib.closing(socket.create_connection(("127.0.0.1", server.port), 5)) as raw:
        raw.sendall(b"GET / HTTP/1.1\r\nX: " + b"a" * 100_000)
        assert raw.recv(100).startswith(b"HTTP/1.1 400")


@pytest.mark.parametrize("values", [b"1,", b"[],", b"{},", b'"",'])
def test_wide_json_is_refused_before_it_is_parsed(server, values, monkeypatch):
    monkeypatch.setattr(ChatRequest, "model_validate_json", lambda _: pytest.fail("16 MB become 1.4 GB"))
    reply = server.post("/v1/chat/completions", b'{"metadata":[' + values * 600_000 + b"1]}")
    assert reply.status == 400
    assert "commas" in reply.error["message"]


@pytest.mark.parametrize("depth", [300, 100_000])
def test_deep_json(server, depth):
    body = b'{"messages": ' + b"[" * depth + b"]" * depth + b"}"
    assert server.post("/v1/chat/completions", body).status == 400
    schema = b'{"a":' * 100 + b"1" + b"}" * 100
    form = b'{"type":"json_schema","json_schema":{"name":"x","schema":' + schema + b"}}"
    body = b'{"messages":[{"role":"user","content":"a"}],"response_format":' + form + b"}"
    assert server.post("/v1/chat/completions", body).status == 400


@pytest.mark.parametrize(
    "body",
    [
        b"", b"{", b"[]", b"null", b'"a"', b"\xff\xfe", b'{"messages": NaN}', b'{"max_tokens": ' + b"9" * 5000 + b"}",
        b'{"messages":[{"role":"user","content":"\\ud800"}]}', b'{"temperature": 1e999}',
        b'{"messages":[{"role":"user","content":"a"}],"temperature":"0"}',
        b'{"messages":[{"role":"user","content":"a"}],"stream":1}',
        b'{"messages":[{"role":"user","content":"a"}],"seed":1e3}',
    ],
)  # fmt: skip
def test_bodies_that_are_no_request(server, body):
    reply = server.post("/v1/chat/completions", body)
    assert reply.status == 400
    assert reply.error["type"] == "invalid_request_error"


def test_counts_are_capped(server):
    text = {"type": "text", "text": "a"}
    user = {"role": "user", "content": "a"}
    for fields in (
        {"messages": [user] * 3000},
        {"messages": [{"role": "user", "content": [text] * 300}]},
        {"messages": [user], "n": 33},
        {"messages": [user], "n": 10**12},
        {"messages": [user], "stop": ["a"] * 65},
        {"messages": [user], "stop": ["a" * 2000]},
        {"messages": [user], "logit_bias": {str(n): 1 for n in range(2000)}},
        {"messages": [{"role": "user", "content": "a" * 1_000_001}]},
        {"messages": [user], "max_tokens": -5},
        {"messages": [user], "top_k": -1},
        {
            "messages": [user],
            "response_format": {
                "type": "json_schema",
                "json_schema": {"name": "a", "schema": {"enum": ["x" * 100] * 1000}},
            },
        },
    ):
        reply = server.post("/v1/chat/completions", fields)
        assert reply.status == 400, fields
    assert server.post("/v1/completions", {"prompt": ["a"] * 65}).status == 400
    assert server.post("/v1/completions", {"prompt": [10**9]}).status == 400
    assert server.post("/v1/completions", {"prompt": [-1]}).status == 400


def test_long_prompts_are_one_clear_error(serve):
    with serve(max_model_len=64) as server:
        reply = server.chat("a word " * 200)
        assert reply.status == 400
        assert "64" in reply.error["message"]
        whole = server.chat("hello", max_tokens=1000, ignore_eos=True).json["usage"]
        assert whole["total_tokens"] == 64
        assert server.get("/v1/models").json["data"][0]["max_model_len"] == 64


# Media ----------------------------------------------------------------------------------------------------
def image_part(data: bytes):
    return [{"type": "image_url", "image_url": {"url": "data:image/png;base64," + base64.b64encode(data).decode()}}]


def audio_part(data: bytes, kind="wav"):
    return [{"type": "input_audio", "input_audio": {"data": base64.b64encode(data).decode(), "format": kind}}]


def png_header(width, height):
    def chunk(name, data):
        return len(data).to_bytes(4, "big") + name + data + zlib.crc32(name + data).to_bytes(4, "big")

    size = width.to_bytes(4, "big") + height.to_bytes(4, "big")
    pixels = zlib.compress(b"\0" * 1000)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", size + b"\x08\x02\0\0\0") + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")
    )


def test_image_bombs_are_refused_by_their_header(server):
    began = time.monotonic()
    reply = server.chat(image_part(png_header(30_000, 30_000)))
    assert reply.status == 400
    assert reply.error["code"] == "invalid_media"
    assert "cap of 100000000" in reply.error["message"]
    assert time.monotonic() - began < 2


def test_many_large_pictures_are_refused_by_their_headers(server):
    """Each is within the cap of one; to decode 32 of the largest takes a core about a minute."""
    part = image_part(png_header(9_000, 10_000))
    reply = server.chat(part * 4)
    assert reply.status == 400
    assert reply.error["code"] == "invalid_media"
    assert "the first 4 of 4 pictures" in reply.error["message"]
    assert "360000000 pixels together, more than the cap of 300000000" in reply.error["message"]
    assert_plain(reply.error["message"])
    assert "damaged" in server.chat(part * 3).error["message"]  # it was looked into: what follows its header is none


def test_the_cap_on_all_pictures_of_a_request(serve, data_url):
    part = {"type": "image_url", "image_url": {"url": data_url("tiny_100x60.png"), "detail": "low"}}
    text = {"type": "text", "text": "what?"}
    with serve(max_total_pixels=2 * 100 * 60) as server:
        assert server.chat([part, part, text]).status == 200
        for messages in (
            [{"role": "user", "content": [part] * 3}],
            [{"role": "user", "content": [part, part, text]}, {"role": "assistant", "content": "a"},
             {"role": "user", "content": [part]}],
        ):  # fmt: skip
            for path in ("/v1/chat/completions", "/tokenize"):
                reply = server.post(path, {"messages": messages})
                assert reply.status == 400, (path, len(messages))
                assert "3 of 3 pictures" in reply.error["message"]


def test_videos_of_a_request_share_the_cap_on_decoding(server, monkeypatch):
    """One video is within the cap, and so is each of two; the two together are not."""
    frames = moving(8)
    pixels = sum(frame.shape[0] * frame.shape[1] for frame in frames)
    monkeypatch.setattr("tianquan.serving.config.MAX_DECODED_PIXELS", int(1.5 * pixels))
    data = base64.b64encode(encode(frames, container="matroska")).decode()
    part = {"type": "video_url", "video_url": {"url": f"data:video/x-matroska;base64,{data}"}}
    assert server.chat([part]).status == 200
    reply = server.chat([part, part])
    assert reply.status == 400
    assert "max_decoded_pixels" in reply.error["message"]


def test_recordings_of_a_request_share_the_cap_on_their_length(serve):
    file = io.BytesIO()
    with wave.open(file, "wb") as writer:
        writer.setparams((1, 2, 16_000, 0, "NONE", ""))
        writer.writeframes(bytes(2 * 16_000 * 12))
    (part,) = audio_part(file.getvalue())
    with serve(max_audio_seconds=20, long_audio="chunk") as server:
        assert server.chat([part]).status == 200
        reply = server.chat([part, part])
        assert reply.status == 400
        assert "cap of 10 s" in reply.error["message"]
        assert server.upload(file.getvalue()).status == 200


def test_of_a_gif_the_first_frame_is_decoded_and_no_more(server):
    frames = [Image.new("RGB", (64, 64), colour) for colour in ("red", "blue")]
    file = io.BytesIO()
    frames[0].save(file, "GIF", save_all=True, append_images=frames[1:], duration=50)
    data = file.getvalue()
    start = data.rindex(b"\x21\xf9")  # the last frame's control block
    bomb = data[:start] + data[start:-1] * 50_000 + b";"
    with_bomb = server.chat(image_part(bomb))
    assert with_bomb.status == 200
    assert with_bomb.json["usage"]["prompt_tokens_details"]["image_tokens"] == 64
    assert with_bomb.json["timings"]["preprocess_ms"] < 2000


def test_long_sound_in_few_bytes_is_cut_off_while_decoding(serve):
    import av

    file = io.BytesIO()
    with av.open(file, "w", format="ogg") as container:
        stream = container.add_stream("libopus", rate=48_000, layout="mono", options={"b": "6000"})
        silence = np.zeros((1, 48_000), np.int16)
        for n in range(120):
            frame = av.AudioFrame.from_ndarray(silence, format="s16", layout="mono")
            frame.sample_rate, frame.pts = 48_000, n * 48_000
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    bomb = file.getvalue()
    assert len(bomb) < 200_000
    with serve(max_audio_seconds=20) as server:
        for reply in (server.chat(audio_part(bomb, "opus")), server.upload(bomb, "a.ogg")):
            assert reply.status == 400
            assert "20 s" in reply.error["message"]


@pytest.mark.parametrize(
    "data",
    [
        b"", b"GIF89a", b"\x00\x00\x00\x0cjP  \r\n\x87\n" + b"a" * 100, b"\xff\x4f\xff\x51" + b"a" * 100, b"<svg>",
        b"%PDF-1.4", b"RIFF\xff\xff\xff\xffWEBPVP8 ", png_header(0, 5), b"\x89PNG\r\n\x1a\n" + b"\xff" * 50,
    ],
)  # fmt: skip
def test_hostile_pictures_end_in_one_plain_line(server, data):
    reply = server.chat(image_part(data))
    assert reply.status == 400
    assert reply.error["code"] == "invalid_media"
    assert_plain(reply.error["message"])


def assert_plain(message):
    """No exception's own words, no path, no address."""
    assert "\n" not in message
    for word in ("Error", "Traceback", "0x", "object at", ".py", "/work", "/tmp", "site-packages", "PIL", "av."):
        assert word not in message, message


def test_tiny_and_thin_pictures(server):
    for size in ((1, 1), (1, 2000), (2000, 1)):
        file = io.BytesIO()
        Image.new("RGB", size).save(file, "PNG")
        assert server.chat(image_part(file.getvalue())).status in (200, 400)


@pytest.mark.parametrize(
    "url", ["https://127.0.0.1/a.png", "http://127.0.0.1:1/", "file:///etc/passwd", "/etc/passwd", "a"]
)
def test_no_url_is_fetched_by_default(server, url):
    for part in (
        {"type": "image_url", "image_url": {"url": url}},
        {"type": "audio_url", "audio_url": {"url": url}},
    ):
        reply = server.chat([part])
        assert reply.status == 400
        assert reply.error["code"] == "url_refused"
        assert reply.error["param"] == "messages[0].content[0]"


def test_media_root(serve, media_root, data_url):
    with serve(media_root=media_root) as server:
        named = server.chat([{"type": "image_url", "image_url": {"url": "file:///tiny_100x60.png"}}])
        inline = server.chat([{"type": "image_url", "image_url": {"url": data_url("tiny_100x60.png")}}])
        assert named.status == 200
        assert named.json["choices"] == inline.json["choices"]
        assert server.chat([{"type": "image_url", "image_url": {"url": "file:///../case"}}]).status == 400


def test_named_media_are_read_once_and_bounded_together(serve, tmp_path, media_root):
    names = [f"{n}.png" for n in range(8)]
    data = (media_root / "tiny_100x60.png").read_bytes()
    size = max(len(data), 4096)
    for name in names:
        (tmp_path / name).write_bytes(data + bytes(size - len(data)))
    parts = [{"type": "image_url", "image_url": {"url": f"file:///{name}", "detail": "low"}} for name in names]
    with serve(media_root=tmp_path, max_media_bytes=size, max_media=16) as server:
        fetch, asked = server.service.fetcher, []

        async def fetcher(url):
            asked.append(url)
            return await fetch(url)

        server.service.fetcher = fetcher
        assert server.chat(parts[:1] * 12).status == 200  # one file
        assert len(asked) == 1
        assert server.chat(parts[:4]).status == 200
        assert server.chat(parts[:5]).status == 413
        assert server.chat(parts[:5]).error["code"] == "too_large"
        wait_until(lambda: server.service.admission.num_bytes == 0)


def test_many_media(serve, data_url):
    part = {"type": "image_url", "image_url": {"url": data_url("tiny_100x60.png"), "detail": "low"}}
    with serve(max_media=2) as server:
        assert server.chat([part] * 2).status == 200
        assert server.chat([part] * 3).error["code"] == "too_many_media"


def test_video(server):
    data = base64.b64encode(encode(moving(8), container="matroska")).decode()
    part = {"type": "video_url", "video_url": {"url": f"data:video/x-matroska;base64,{data}"}}
    answer = server.chat([{"type": "text", "text": "what moves?"}, part])
    assert answer.status == 200
    details = answer.json["usage"]["prompt_tokens_details"]
    assert details["video_frames"] >= 2
    assert details["video_tokens"] == 64 * details["video_frames"]
    assert details["image_tokens"] == 0


def test_what_is_no_video_is_refused_in_one_line(server, media_root):
    for data in (b"", b"hello" * 100, encode(moving(8), container="matroska")[:300]):
        url = "data:video/mp4;base64," + base64.b64encode(data).decode()
        answer = server.chat([{"type": "video_url", "video_url": {"url": url}}])
        assert answer.status == 400
        assert "video" in answer.error["message"]


# Uploads --------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", ["../../evil.wav", "/etc/passwd", "a\\..\\b", "%2e%2e%2f", "x" * 500, ""])
def test_names_of_uploads_are_not_looked_at(server, media_root, name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(transcription_route, "TRANSCRIBE_SAMPLING", SamplingParams(temperature=0, max_tokens=4))
    content = (media_root / "speech_1s_16k.wav").read_bytes()
    reply = server.upload(content, filename=name, temperature=0)
    assert reply.status == 200
    assert os.listdir(tmp_path) == []  # nothing is written where we stand


def test_uploads_stay_in_memory(server, monkeypatch):
    import tempfile

    def fail(*args, **kwargs):
        raise AssertionError("a file was made")

    monkeypatch.setattr(tempfile, "TemporaryFile", fail)
    monkeypatch.setattr(tempfile, "NamedTemporaryFile", fail)
    assert server.upload(b"RIFF" + b"\0" * 3_000_000).error["code"] == "invalid_media"  # it was read


@pytest.mark.parametrize(
    ("content", "fields", "word"),
    [
        (None, {}, "file"),
        (b"", {}, "empty"),
        (b"not sound", {}, "file"),
        (b"x", {"response_format": "srt"}, "timestamps"),
        (b"x", {"response_format": "vtt"}, "timestamps"),
        (b"x", {"response_format": "text", "stream": "true"}, "events"),
        (b"x", {"response_format": "xml"}, "response_format"),
        (b"x", {"timestamp_granularities[]": "word"}, "timestamp_granularities"),
        (b"x", {"language": "fr"}, "language"),
        (b"x", {"temperature": "warm"}, "temperature"),
        (b"x", {"temperature": "nan"}, "temperature"),
        (b"x", {"temperature": "-1"}, "temperature"),
        (b"x", {"stream": "maybe"}, "stream"),
        (b"x", {"surprise": "1"}, "surprise"),
        (b"x", {"model": "other"}, "model"),
        (b"x", {"prompt": "a" * 3000}, "prompt"),
        (b"x", {"prompt": "a" * 30_000}, "form"),
    ],
)
def test_bad_forms(server, content, fields, word):
    reply = server.upload(content, **fields)
    assert reply.status in (400, 404)
    assert word in reply.error["message"]
    assert_plain(reply.error["message"])


def test_many_fields(server):
    assert server.upload(b"x", **{f"f{n}": "" for n in range(100)}).status == 400
    damaged = {"Content-Type": "multipart/form-data; boundary=x"}
    for body in (b"", b"--x\r\n", b"--y\r\n\r\n", b"--x\r\nContent-Disposition: form-data\r\n\r\na\r\n--x--"):
        assert server.post("/v1/audio/transcriptions", body, damaged).status == 400
    assert server.post("/v1/audio/transcriptions", b"", {"Content-Type": "multipart/form-data"}).status == 400


# Time -----------------------------------------------------------------------------------------------------
def closed_after(server, data, seconds=5.0):
    """Return what comes before the server closes the connection."""
    with contextlib.closing(socket.create_connection(("127.0.0.1", server.port), seconds)) as raw:
        raw.sendall(data)
        received = b""
        while piece := raw.recv(10_000):
            received += piece
        return received


@pytest.fixture(scope="module")
def hasty(serve):
    with serve(patience=HASTY) as server:
        yield server


@pytest.mark.parametrize("data", [b"", b"GET", b"GET /health HTTP/1.1\r\nHost: lo"])
def test_slow_heads_are_hung_up_on(hasty, data):
    assert closed_after(hasty, data) == b""


def test_slow_heads_after_a_request_are_hung_up_on(hasty):
    received = closed_after(hasty, b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\nGET /hea")
    assert received.count(b"HTTP/1.1 200") == 1


def test_slow_bodies_end_in_408(hasty):
    head = (
        b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        b"Connection: close\r\nContent-Length: 1000\r\n\r\n"
    )
    assert closed_after(hasty, head + b'{"me').startswith(b"HTTP/1.1 408")
    wait_until(hasty.is_idle)


def test_long_answers_are_no_slow_heads(hasty):
    reply = hasty.chat(max_tokens=300, ignore_eos=True)
    assert reply.json["usage"]["completion_tokens"] == 300


# Logs and errors ------------------------------------------------------------------------------------------
def test_logs_hold_ids_and_no_content(server, caplog):
    caplog.set_level(logging.DEBUG)
    server.request(
        "POST",
        "/v1/chat/completions?word=in-the-query",
        {"messages": [{"role": "user", "content": "the-secret-word"}], "max_tokens": 3, "user": "the-user"},
        {"X-Request-Id": "id-of-this"},
    )
    server.get("/nothing/the-secret-path", **{"X-Request-Id": "other-id"})
    server.chat("the-secret-word", temperature=-3)
    wait_until(lambda: "other-id" in caplog.text)
    assert '"id": "id-of-this"' in caplog.text
    for secret in ("the-secret", "the-user", "in-the-query"):
        assert secret not in caplog.text


def test_text_that_can_never_fit_is_refused_before_it_is_made_into_tokens(server, monkeypatch):
    def fail(*_):
        raise AssertionError("it was made into tokens")

    monkeypatch.setattr(server.service, "chat_prompt", fail)
    monkeypatch.setattr(type(server.service.llm.tokenizer), "encode_text", fail)
    parts = [{"type": "text", "text": "a" * 500_000}] * 2
    for reply in (
        server.chat(parts),
        server.chat("a" * 1_000_000),
        server.post("/v1/completions", {"prompt": "a" * 1_000_000}),
        server.post("/tokenize", {"prompt": "a" * 1_000_000}),
        server.post("/tokenize", {"messages": [{"role": "user", "content": parts}]}),
    ):
        assert reply.status == 400
        assert "1000000 characters" in reply.error["message"]


def test_calls_of_tools_are_text_too(server):
    function = {"name": "f", "arguments": json.dumps({"x": "a" * 900_000})}
    calls = [{"id": "1", "type": "function", "function": function}]
    messages = [{"role": "user", "content": "?"}, {"role": "assistant", "content": None, "tool_calls": calls}]
    reply = server.post("/v1/chat/completions", {"messages": [*messages, {"role": "user", "content": "?"}]})
    assert reply.status == 400
    assert "9000" in reply.error["message"]


def test_arguments_of_any_depth_are_an_error_of_the_client(server):
    function = {"name": "f", "arguments": '{"a":' * 994 + "1" + "}" * 994}
    calls = [{"id": "1", "type": "function", "function": function}]
    messages = [{"role": "user", "content": "?"}, {"role": "assistant", "content": None, "tool_calls": calls}]
    for depth in (900, 960, 990, 994, 996, 998, 1000):
        function["arguments"] = '{"a":' * depth + "1" + "}" * depth
        reply = server.post("/v1/chat/completions", {"messages": messages, "max_tokens": 1})
        assert reply.status in (200, 400), depth


def test_a_list_of_wrong_values_is_few_errors(server):
    body = {"prompt": [1.5] * 400_000}  # an error each took half a gigabyte
    assert server.post("/v1/completions", body).status == 400
    with pytest.raises(ValidationError) as error:
        CompletionRequest.model_validate(body)
    assert error.value.error_count() < 10


def test_bugs_are_logged_and_not_shown(server, monkeypatch, caplog):
    def fail(*args, **kwargs):
        raise RuntimeError("internal detail at 0x7f00")

    monkeypatch.setattr(server.service, "chat_prompt", fail)
    reply = server.chat()
    assert reply.status == 500
    assert_plain(reply.error["message"])
    assert "detail" not in reply.error["message"]
    assert "internal detail" in caplog.text
    assert server.is_idle()


def test_page_has_a_strict_policy(server):
    reply = server.get("/")
    policy = reply.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert "frame-ancestors 'none'" in policy
    for path in ("/../config.py", "/%2e%2e/config.py", "/web/../../errors.py", "/server.py", "/index.html/../x"):
        assert server.get(path).status == 404
