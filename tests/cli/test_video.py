"""Videos on the command line and in sessions."""

from __future__ import annotations

import json
import signal
import subprocess
import sys

import numpy as np
import pytest

from command_line import BACKEND, assert_refused, run
from drawn_videos import encode, moving
from tianquan import SamplingParams
from tianquan.cli.chat import Conversation
from tianquan.cli.options import LoadProgress, VideoProgress
from tianquan.errors import PromptError
from tianquan.llm import GREEDY
from tianquan.request import MediaPolicy, VideoPolicy

SMALL = MediaPolicy(video=VideoPolicy(max_frames=4))


@pytest.fixture
def film(tmp_path):
    path = tmp_path / "film.mp4"
    path.write_bytes(encode(moving(12), tone=True))
    return path


def test_generate_tells_what_a_video_cost(checkpoint_folder, film, tmp_path):
    messages = tmp_path / "messages.json"
    parts = [{"type": "text", "text": "what moves?"}, {"type": "video_url", "video_url": {"url": film.name}}]
    messages.write_text(json.dumps([{"role": "user", "content": parts}]))
    result = run(
        "generate", checkpoint_folder, "--messages", messages, "--media-root", tmp_path, "--json", "--max-tokens", 2,
        "--video-frames", 3, "--video-sound", "--temperature", 0, "--ignore-eos", *BACKEND,
    )  # fmt: skip
    usage = json.loads(result.stdout)["usage"]
    assert usage["video_frames"] == 3
    assert usage["video_tokens"] == 3 * 64
    assert usage["audio_tokens"] > 20  # 1.2 s of sound
    assert usage["image_tokens"] == 0


def test_chat_refuses_what_is_no_video(checkpoint_folder, tmp_path):
    path = tmp_path / "film.mp4"
    path.write_bytes(encode(moving(12))[:-600])
    assert_refused(run("chat", checkpoint_folder, "what?", "--video", path, *BACKEND), "film.mp4", "damaged")


def test_ctrl_c_while_a_video_is_read(reference_llm, film, monkeypatch, capsys):
    def press(progress, done, total):
        raise KeyboardInterrupt

    monkeypatch.setattr(VideoProgress, "__call__", press)
    session = reference_llm.session(sampling=GREEDY)
    conversation = Conversation(session, LoadProgress(), {"image": [], "audio": [], "video": [str(film)]})
    assert not conversation.ask("what moves?")
    assert session.turns == ()
    assert "stopped" in capsys.readouterr().err


TELL_WHEN_FRAMES_ARE_ENCODED = """
import sys
from tianquan.cli import main
from tianquan.models.omni_model import OmniModel

encode = OmniModel.encode_images

def told(self, images):
    print("encoding", len(images), file=sys.stderr, flush=True)
    return encode(self, images)

OmniModel.encode_images = told
main()
"""


@pytest.mark.parametrize("question", [["what moves?"], []])
def test_ctrl_c_while_frames_are_encoded(checkpoint_folder, tmp_path, question):
    """A real signal to a real process: asked once it ends with 130, in a conversation that goes on."""
    film = tmp_path / "film.mp4"
    film.write_bytes(encode(moving(60), rate=4))
    command = [sys.executable, "-c", TELL_WHEN_FRAMES_ARE_ENCODED, "chat", str(checkpoint_folder), *question]
    process = subprocess.Popen(
        [*command, "--video", str(film), *BACKEND],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True,
    )  # fmt: skip
    if not question:
        process.stdin.write(b"what moves?\n")
        process.stdin.flush()
    errors = b""
    while b"encoding" not in errors:
        line = process.stderr.readline()
        assert line, errors
        errors += line
    process.send_signal(signal.SIGINT)
    output, rest = process.communicate(None if question else b"/quit\n", timeout=60)
    assert process.returncode == (130 if question else 0)
    assert b"(stopped)" in rest
    assert b"Traceback" not in rest
    assert output.replace(b"[film.mp4]", b"").strip(b"> \n") == b""  # no token had come


def test_a_session_keeps_videos(reference_llm, film, tmp_path):
    session = reference_llm.session(sampling=SamplingParams(temperature=0.0, max_tokens=2), media=SMALL)
    first = session.send("what moves?", videos=[film])
    assert first.usage.video_frames == 4
    second = session.send("and now?", audios=[(np.zeros(16000, np.float32), 16000)])
    assert second.usage.video_tokens == first.usage.video_tokens
    assert second.usage.cached_tokens > first.usage.video_tokens  # its keys and values were there
    assert [turn.video_tokens for turn in session.budget().turns if turn.video_tokens] == [4 * 64]
    session.save(tmp_path / "saved.json")
    loaded = reference_llm.session(sampling=GREEDY, media=SMALL)
    loaded.load(tmp_path / "saved.json")
    assert loaded.turns[0].has_media


def test_frames_in_memory_are_not_saved(reference_llm, tmp_path):
    session = reference_llm.session(sampling=SamplingParams(temperature=0.0, max_tokens=1), media=SMALL)
    session.send(videos=[(np.stack(moving(2)), 1.0)])
    with pytest.raises(PromptError, match="cannot be saved"):
        session.save(tmp_path / "saved.json")


def test_merged_frames_are_the_mean_of_their_tokens(reference_llm):
    """Two frames in one group give the mean of what each gives alone."""
    processor, model = reference_llm.processor, reference_llm.model
    frames = moving(2)
    video = processor.load_video((np.stack(frames), 1.0), MediaPolicy())
    alone = model.encode_images(video.frames)
    pixels = np.stack([image.slices[0] for image in video.frames])
    merged = model.encode_images([type(video.frames[0])((pixels,), video.frames[0].grid, b"", num_video_frames=2)])
    assert merged.shape == (1, *alone.shape[1:])
    assert np.allclose(merged[0], alone.mean(axis=0), atol=1e-5)
