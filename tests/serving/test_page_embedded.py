"""The page, a real browser and the embedded model: what somebody sees who has just installed this.

What the model answers is tests/test_embedded.py's business, and changes with its training; here is looked at whether
an answer of some words comes, piece by piece, of which media, and whether it stays.
"""

from __future__ import annotations

import re
import time
from dataclasses import replace
from pathlib import Path

import pytest

import tianquan
from browser import EXECUTABLE, LAST, Browser
from drawn_videos import encode, moving
from running_server import running, wait_until

pytestmark = pytest.mark.skipif(EXECUTABLE is None, reason="no chromium here; on Debian: apt-get install chromium")
EXAMPLES = Path(__file__).parents[2] / "examples"
CHOICES = {"tianquan.settings": '{"temperature": 0, "max_tokens": 60}'}
SECONDS = 60.0  # for an answer, on a machine that does other work


@pytest.fixture(scope="module")
def llm():
    return tianquan.load("embedded", threads=2)


@pytest.fixture(scope="module")
def server(llm):
    with running(llm, served_model_name=None, preload=True) as address:
        yield address


@pytest.fixture(scope="module")
def tab(tmp_path_factory):
    microphone = f"--use-file-for-fake-audio-capture={EXAMPLES / 'command.wav'}"
    browser = Browser(tmp_path_factory.mktemp("browser"), microphone)
    yield browser.open()
    browser.close()


@pytest.fixture
def page(tab, server):
    tab.start(f"http://127.0.0.1:{server.port}/", CHOICES)
    yield tab
    assert tab.complaints == []


def answer(page, number):
    """Wait for the end of answer `number` and return its text and its counters, by their names."""
    page.wait(f"document.querySelectorAll('.counters').length === {number}", SECONDS)
    assert page.count(".error") == 0, page.text(".error")
    page.click(".message:last-child .counters summary")
    lines = page.text(".message:last-child .counters dl").split("\n")
    text = page.text(".message:last-child .markdown")
    assert re.search(r"\w", text)
    assert "\ufffd" not in text
    return text, dict(zip(lines[::2], lines[1::2]))


def test_text_picture_recording_and_video_are_answered_and_stay(page, tmp_path):
    (tmp_path / "moving.mp4").write_bytes(encode(moving(12)))
    said = []

    page.ask("Hello! What can you do?")
    said.append(answer(page, 1)[0])

    page.choose_files("#files", EXAMPLES / "shapes.png")
    page.wait("document.querySelector('#composer .is-picture img')?.complete")
    page.ask("What is in the picture?")
    text, counters = answer(page, 2)
    said.append(text)
    media = picture = int(counters["of them pictures"])
    assert picture > 0

    page.click("#composer [aria-label='Record sound']")
    page.wait("document.querySelector('.recording .sound-time').textContent === '0:02'", SECONDS)
    page.press("Enter")
    page.wait("document.querySelector('#composer .is-sound canvas')?.width > 0")
    page.click(".go")
    text, counters = answer(page, 3)
    said.append(text)
    media += int(counters["of them sound"])
    assert media > picture + 25  # more than a second

    page.choose_files("#files", tmp_path / "moving.mp4")
    page.wait("document.querySelector('#composer video')")
    page.ask("What moves?")
    text, counters = answer(page, 4)
    said.append(text)
    media += int(counters["of them video"])
    assert int(counters["of them video"]) >= 2 * picture  # several frames

    kinds = [part["type"] for message in page.bodies[-1]["messages"] for part in parts(message)]
    assert [kind for kind in kinds if kind != "text"] == ["image_url", "input_audio", "video_url"]
    page.load()
    page.wait("document.querySelectorAll('#column .message').length === 8")
    page.wait("document.querySelector('#column .thumbnail img')?.naturalWidth > 0")
    page.wait("document.querySelector('#column .sound canvas')?.width > 0")
    page.wait("document.querySelector('#column video')?.readyState > 0")  # it plays
    kept = page.evaluate("[...document.querySelectorAll('#column .answer .markdown')].map((node) => node.innerText)")
    assert kept == said
    assert page.text("h1, .conversation-name")
    page.ask("Thank you.")
    _, counters = answer(page, 5)
    assert int(counters["of them from the cache"]) > media  # that of the turns before


def parts(message):
    return message["content"] if isinstance(message["content"], list) else []


@pytest.fixture
def slow(llm, monkeypatch):
    """A step takes as long as on a large model, so that a browser can see an answer grow."""
    engine = llm.driver.engine
    step = engine.step

    def slow_step():
        time.sleep(0.04)
        return step()

    monkeypatch.setattr(engine, "step", slow_step)


def test_answers_grow_piece_by_piece(page, slow):
    page.evaluate(
        "window.seen = []; new MutationObserver(() => {"
        "  const text = document.querySelector('.answer .markdown')?.innerText ?? '';"
        "  if (text !== window.seen.at(-1)) window.seen.push(text);"
        "}).observe(document.body, { childList: true, subtree: true, characterData: true })"
    )
    page.ask("Please count from one to ten.")
    text, _ = answer(page, 1)
    page.wait("window.seen.length >= 3")
    seen = [piece for piece in page.evaluate("window.seen") if piece.strip()]
    assert seen[-1] == text
    assert len(seen) >= 2
    assert all(text.startswith(piece.rstrip()[:1]) for piece in seen)
    assert sorted(seen, key=len) == seen  # it only grows


def test_stop_keeps_what_was_said(page, server, llm, slow, monkeypatch):
    monkeypatch.setattr(llm, "checkpoint", replace(llm.checkpoint, stop_token_ids=frozenset()))  # it does not end
    page.evaluate("""localStorage.setItem("tianquan.settings", '{"max_tokens": 1500}')""")
    page.load()
    page.choose_files("#files", EXAMPLES / "shapes.png")
    page.wait("document.querySelector('#composer .is-picture')")
    page.ask("Describe the picture.")
    page.wait(f"{LAST} .markdown')?.innerText.length > 3", SECONDS)
    page.click(".go")  # the same button stops
    page.wait(f"{LAST} .ending')?.innerText === 'Stopped'")
    text = page.text(".message:last-child .markdown")
    assert text.strip()
    wait_until(lambda: server.is_idle())
    page.load()
    page.wait("document.querySelectorAll('#column .message').length === 2")
    assert page.text(".message:last-child .markdown") == text
    assert page.text(".message:last-child .ending") == "Stopped"


def test_everything_fits_on_a_phone(page, tmp_path):
    (tmp_path / "moving.mp4").write_bytes(encode(moving(12)))
    page.resize(360, 640, is_phone=True)
    page.load()
    page.choose_files("#files", EXAMPLES / "shapes.png", EXAMPLES / "command.wav", tmp_path / "moving.mp4")
    page.wait("document.querySelectorAll('#composer :is(.is-picture, .is-sound, video)').length >= 3")
    page.click(".go")
    answer(page, 1)
    outside = page.evaluate(
        "[...document.querySelectorAll('.message *')].map((node) => [node.className, node.getBoundingClientRect()])"
        "  .filter(([, box]) => box.width > 0 && (box.left < 0 || box.right > innerWidth)).map(([name]) => name)"
    )
    assert outside == []
