"""The commands as a user runs them: output on stdout, one clear line and code 2 for what is wrong."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
import wave

import numpy as np
import pytest
from safetensors.numpy import load_file

from command_line import BACKEND, assert_refused, run
from tianquan import SamplingParams


@pytest.fixture
def case(conformance):
    return json.loads((conformance / "cases" / "image_audio_text.json").read_text())


@pytest.fixture
def messages_file(case, tmp_path):
    path = tmp_path / "messages.json"
    path.write_text(json.dumps(case["messages"]))
    return path


def test_generate_json(checkpoint_folder, case, messages_file, media_root):
    result = run(
        "generate", checkpoint_folder, "--messages", messages_file, "--media-root", media_root, "--json",
        "--temperature", 0, "--max-tokens", 12, *BACKEND,
    )  # fmt: skip
    answer = json.loads(result.stdout)
    assert answer["token_ids"] == case["greedy_token_ids"]
    assert answer["prompt_token_ids"] == case["prompt_token_ids"]
    assert answer["finish_reason"] == "length"
    assert answer["usage"]["completion_tokens"] == 12
    assert answer["usage"]["image_tokens"] == 192
    assert answer["timings"]["ttft_ms"] > 0
    assert set(answer) == {"text", "token_ids", "prompt_token_ids", "usage", "finish_reason", "timings"}


def test_generate_from_stdin_as_text(checkpoint_folder):
    messages = json.dumps({"messages": [{"role": "user", "content": "Hi"}]})
    first, second = (
        run("generate", checkpoint_folder, "--messages", "-", "--seed", 5, "--max-tokens", 9, *BACKEND, stdin=messages)
        for _ in range(2)
    )
    assert first.stdout == second.stdout != "\n"
    assert first.stderr == "tianquan: cut off after 9 tokens; give more --max-tokens\n"


def test_trace(checkpoint_folder, messages_file, media_root, conformance, tmp_path):
    output = tmp_path / "trace.safetensors"
    arguments = ["--messages", messages_file, "--media-root", media_root, "--output", output]
    assert run("trace", checkpoint_folder, *arguments, *BACKEND).returncode == 0
    trace, expected = load_file(output), load_file(conformance / "cases" / "image_audio_text.safetensors")
    assert set(trace) == {"prompt_token_ids", "image_features", "audio_features.0", "logits"}
    np.testing.assert_allclose(trace["logits"][-8:], expected["logits_last8"], atol=1e-4)
    assert [path.name for path in tmp_path.iterdir() if path.suffix != ".json"] == ["trace.safetensors"]


def test_transcribe(checkpoint_folder, media_root):
    result = run("transcribe", checkpoint_folder, media_root / "speech_16k.wav", "--max-tokens", 5, "--json", *BACKEND)
    answer = json.loads(result.stdout)
    assert len(answer["clips"]) == 1
    assert answer["clips"][0]["usage"]["audio_tokens"] == 111


def test_transcribe_takes_long_sound_and_says_what_is_cut(checkpoint_folder, tmp_path):
    path = tmp_path / "long.wav"
    with wave.open(str(path), "wb") as file:
        file.setparams((1, 2, 16_000, 0, "NONE", ""))
        file.writeframes(np.random.default_rng(0).integers(-3000, 3000, 31 * 16_000, np.int16).tobytes())
    result = run("transcribe", checkpoint_folder, path, "--max-tokens", 2, "--json", *BACKEND)
    assert len(json.loads(result.stdout)["clips"]) == 2
    assert "a part was cut off" in result.stderr
    assert_refused(run("transcribe", checkpoint_folder), "is a model; name a recording")
    assert_refused(run("transcribe", checkpoint_folder, path, "--long-audio", "error"), "--long-audio")


def test_an_answer_that_is_cut_off_before_its_form_is_whole(checkpoint_folder, tmp_path):
    (tmp_path / "schema.json").write_text('{"type": "string", "minLength": 500}')
    messages = json.dumps([{"role": "user", "content": "Hi"}])
    arguments = ["--json-schema", tmp_path / "schema.json", "--max-tokens", 5]
    result = run("generate", checkpoint_folder, "--messages", "-", *arguments, *BACKEND, stdin=messages)
    assert result.returncode == 1
    assert "cut off after 5 tokens" in result.stderr


def test_a_pipe_gets_answers_alone_and_errors_have_a_code(checkpoint_folder):
    arguments = ["chat", checkpoint_folder, "--max-tokens", 3, "--temperature", 0, *BACKEND]
    result = run(*arguments, stdin="hi\n\n/quit\n")
    assert (result.returncode, result.stdout) == (0, run(*arguments[:2], "hi", *arguments[2:]).stdout)
    assert run(*arguments, "--image", "/no/file.png", stdin="hi\nyou\n").returncode == 2


def test_version_and_short_help():
    assert run("--version").stdout.startswith("tianquan 0.")
    assert "Usage" in run("chat", "-h").stdout


@pytest.mark.parametrize("name", ["megrez-int4", "model_v2", "model.int4", ""])
def test_a_folder_that_is_not_there_is_no_question(name, tmp_path):
    words = "is empty" if name == "" else "no such folder"
    assert_refused(run("chat", name, cwd=tmp_path, stdin=""), words)


def test_ctrl_c_while_it_starts(tmp_path):
    (tmp_path / "typer.py").write_text("import os, signal, time\nos.kill(os.getpid(), signal.SIGINT)\ntime.sleep(9)\n")
    environment = os.environ | {"PYTHONPATH": str(tmp_path)}
    command = [sys.executable, "-m", "tianquan", "chat", "hi"]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
    assert (result.returncode, result.stderr) == (130, "")


def test_info(checkpoint_folder):
    report = json.loads(run("info", checkpoint_folder, "--json", *BACKEND).stdout)
    assert report["components"]["resampler"]["parameters"] > 0
    assert report["total"]["file_bytes"] == 6593872
    assert report["config"]["language"]["num_layers"] == 3
    table = run("info", checkpoint_folder, "--backend", "reference").stdout
    assert "int4-g32" in table
    assert "int8-g64" in table


def test_names_are_shown_as_they_are(checkpoint_folder, tmp_path):
    folder = tmp_path / "q[" / "x]"
    shutil.copytree(checkpoint_folder, folder)
    result = run("info", folder, *BACKEND)
    assert result.returncode == 0, result
    assert "q[/x]" in result.stdout.replace("\n", "")


def test_one_answer(checkpoint_folder, media_root, reference_llm):
    image, audio = str(media_root / "tiny_100x60.png"), str(media_root / "speech_1s_16k.wav")
    result = run(
        "chat", checkpoint_folder, "What is this?", "--image", image, "--audio", audio,
        "--max-tokens", 5, "--temperature", 0, *BACKEND,
    )  # fmt: skip
    assert result.returncode == 0
    content = {"text": "What is this?", "image": [image], "audio": audio}
    sampling = SamplingParams(temperature=0, max_tokens=5)
    assert result.stdout == reference_llm.chat([{"role": "user", "content": content}], sampling=sampling).text + "\n"


def test_conversation(checkpoint_folder, media_root, tmp_path):
    lines = [
        "hello",
        f"/image {media_root / 'tiny_100x60.png'}",
        f"/audio {media_root / 'speech_1s_16k.wav'}",
        "what is it?",
        "/image /no/such/file",
        "/nonsense",
        "/save",
        f"/save {tmp_path / 'talk.json'}",
        "/clear",
        f"/save {tmp_path / 'empty.json'}",
        "/help",
        "/quit",
        "never read",
    ]
    result = run(
        "chat", checkpoint_folder, "--max-tokens", 4, "--temperature", 0, *BACKEND, stdin="\n".join(lines) + "\n"
    )
    assert result.returncode == 2  # some of what the pipe brought could not be done
    talk = json.loads((tmp_path / "talk.json").read_text(encoding="utf-8"))
    assert [turn["role"] for turn in talk] == ["user", "assistant"] * 2
    assert talk[2]["content"]["image"][0].endswith("tiny_100x60.png")
    assert json.loads((tmp_path / "empty.json").read_text()) == []
    for expected in ("no such file", "no such command", "needs a file name", "/audio FILE"):
        assert expected in result.stderr


def test_ctrl_c_stops_the_answer_not_the_program(checkpoint_folder, tmp_path):
    command = [sys.executable, "-u", "-m", "tianquan", "chat", str(checkpoint_folder), "--max-tokens", "4000"]
    # Nearly random tokens; this seed meets the end-of-turn token after some 2,600, seconds later than it is stopped.
    command += [*BACKEND, "--temperature", "50", "--top-p", "1", "--top-k", "0", "--seed", "54"]
    process = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True
    )
    process.stdin.write(b"hello\n")
    process.stdin.flush()
    os.read(process.stdout.fileno(), 100)  # "> "
    os.read(process.stdout.fileno(), 100)  # the answer has begun
    time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    talk = tmp_path / "talk.json"
    _, errors = process.communicate(f"/save {talk}\n/quit\n".encode(), timeout=30)
    assert process.returncode == 0
    assert b"stopped" in errors
    assert [turn["role"] for turn in json.loads(talk.read_text(encoding="utf-8"))] == ["user", "assistant"]


@pytest.mark.parametrize(
    ("content", "word"),
    [
        ({"image": "missing.png"}, "missing.png"),
        ({"image": "sample_16k.wav"}, "sample_16k.wav"),
        ({"audio": "tiny_100x60.png"}, "tiny_100x60.png"),
        ({"audio": "https://example.org/a.wav"}, "not fetched"),
        ({"text": "x " * 5000}, "context window"),
        ({"film": "a.mp4"}, "film"),
    ],
)
def test_bad_messages(checkpoint_folder, media_root, content, word):
    messages = json.dumps([{"role": "user", "content": content}])
    arguments = ["--messages", "-", "--media-root", media_root]
    stderr = assert_refused(run("generate", checkpoint_folder, *arguments, *BACKEND, stdin=messages), word)
    assert len(stderr.strip().splitlines()) == 1


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", "5", '{"messages": 3}', "[" * 100_000])
def test_messages_that_are_not_messages(checkpoint_folder, text):
    assert_refused(run("generate", checkpoint_folder, "--messages", "-", *BACKEND, stdin=text))


def test_bad_options(checkpoint_folder, tmp_path):
    messages = ["--messages", "-"]
    hello = '[{"role": "user", "content": "x"}]'
    assert_refused(run("generate", "/no/such/folder", *messages, stdin=hello), "no such folder")
    assert_refused(run("generate", checkpoint_folder, *messages, "--precision", "int3", stdin=hello), "int3")
    assert_refused(run("generate", checkpoint_folder, *messages, "--backend", "tpu", stdin=hello), "tpu")
    assert_refused(run("generate", checkpoint_folder, *messages, "--device", "cuda", stdin=hello), "cuda")
    assert_refused(run("generate", checkpoint_folder, *messages, *BACKEND, "--threads", 0, stdin=hello), "threads")
    assert_refused(run("generate", checkpoint_folder, *messages, *BACKEND, "--top-p", 2, stdin=hello), "top_p")
    assert_refused(run("generate", checkpoint_folder, "--messages", tmp_path / "no.json", *BACKEND), "no.json")
    assert_refused(run("trace", checkpoint_folder, *messages, "--output", "/no/x", stdin=hello), "/no")
    assert_refused(run("nonsense"), "nonsense")
