"""The web page, in a real browser, against a real server with the conformance checkpoint."""

from __future__ import annotations

import base64
import io
import json
import re
import time
import wave
from dataclasses import replace

import pytest
from PIL import Image

from browser import ANSWERED, CHAT, LAST, stream
from running_server import wait_until
from tianquan.serving.page import FOLDER


def wav_seconds(part):
    with wave.open(io.BytesIO(base64.b64decode(part["input_audio"]["data"]))) as file:
        assert (file.getframerate(), file.getnchannels(), file.getsampwidth()) == (16000, 1, 2)
        return file.getnframes() / 16000


def test_text_picture_and_recording_are_answered_and_survive_a_reload(page, media_root):
    page.ask("hello")
    page.wait(ANSWERED)
    page.drop_files(700, 300, media_root / "tiny_100x60.png", media_root / "crop_448x448.png")
    page.wait("document.querySelectorAll('#composer .is-picture').length === 2")
    page.click("#composer [aria-label='Record sound']")
    page.wait("document.querySelector('.recording .sound-time').textContent === '0:01'")
    page.press("Enter")  # the button that finishes has the focus
    page.wait("document.querySelector('#composer .is-sound canvas')?.width > 0")
    page.ask("what is this?")
    page.wait("document.querySelectorAll('.counters').length === 2")

    content = page.bodies[-1]["messages"][-1]["content"]
    assert [part["type"] for part in content] == ["image_url", "image_url", "input_audio", "text"]
    assert (
        base64.b64decode(content[0]["image_url"]["url"].partition(",")[2])
        == (media_root / "tiny_100x60.png").read_bytes()
    )
    assert 1 <= wav_seconds(content[2]) < 2.5
    page.click(".message:last-child .counters summary")
    counters = page.text(".message:last-child .counters dl")
    assert re.search(r"of them pictures\n\d+", counters)
    assert re.search(r"of them sound\n\d+", counters)
    assert re.search(r"\d+ of 4,096 tokens of context used", page.text("#context"))

    before = page.text("#column .message:last-child .markdown")
    page.load()
    page.wait("document.querySelectorAll('#column .thumbnail img').length === 2")
    page.wait("document.querySelector('#column .sound canvas')?.width > 0")
    assert page.text("#column .message:last-child .markdown") == before
    assert page.text(".conversation-name") == "hello"
    page.ask("and now?")
    page.wait("document.querySelectorAll('.counters').length === 3")
    assert page.bodies[-1]["messages"][2]["content"] == content  # to the byte, so that the server knows it again
    assert "cached" in page.text(".message:last-child .counters summary")


def test_sound_that_comes_before_the_bar_is_seen(page):
    num_peaks = page.evaluate(
        "import('/recording_bar.js').then(async ({ RecordingBar }) => {"
        "  let kept; const bar = new RecordingBar((sound) => { kept = sound; }, () => {});"
        "  await bar.start();"
        "  for (let n = 0; bar.time.textContent === '0:00' && n < 300; n += 1)"  # a busy machine is late with samples
        "    await new Promise((done) => setTimeout(done, 50));"
        "  await bar.finish();"
        "  return kept.peaks.length; })"
    )
    assert num_peaks > 0
    page.browser.listen(0.1)  # errors, which the fixture looks for


def test_transcript(page, media_root):
    page.choose_files("#files", media_root / "speech_1s_16k.wav")
    page.click("#composer .sound-foot .text-button")
    page.wait("!document.querySelector('#composer .transcript').hidden")


@pytest.fixture
def never_done(served_llm, monkeypatch):
    """Answers do not end by themselves before a browser on a busy machine has ended them."""
    engine = served_llm.driver.engine
    step = engine.step

    def slow_step():
        time.sleep(0.02)
        return step()

    monkeypatch.setattr(engine, "step", slow_step)
    monkeypatch.setattr(served_llm, "checkpoint", replace(served_llm.checkpoint, stop_token_ids=frozenset()))


def test_stop_ends_the_answer_in_the_server_too(page, server, never_done):
    page.evaluate("""localStorage.setItem("tianquan.settings", '{"max_tokens": 3000, "temperature": 1.5}')""")
    page.load()
    page.ask("count to a million")
    page.wait(f"{LAST} .markdown')?.innerText.length > 3")
    page.press("Escape")
    page.wait(f"{LAST} .ending')?.innerText === 'Stopped'")
    assert page.text(".message:last-child .markdown")
    wait_until(server.is_idle)
    page.wait("document.querySelector('.go').getAttribute('aria-label') === 'Send'")  # drawn a moment after the end
    page.click(".message:last-child .again")
    page.wait(f"!document.querySelector('.ending') && {LAST} .markdown')?.innerText.length > 3")
    page.load()  # a page that goes away stops its answer too
    page.wait(f"{LAST} .ending')?.innerText === 'Interrupted'")
    wait_until(server.is_idle)


def test_key_is_asked_for_until_it_is_right(browser, serve, tmp_path):
    keys = tmp_path / "keys"
    keys.write_text("the-right-key-of-this-server\n")
    keys.chmod(0o600)
    with serve(api_key_file=keys) as server:
        page = browser.open()
        page.start(f"http://127.0.0.1:{server.port}/")
        for key in ("wrong", "the-right-key-of-this-server"):
            page.wait("document.activeElement?.id === 'key' && document.activeElement.value === ''")
            assert page.count(".error-line") == (key != "wrong")
            page.type(key)
            page.press("Enter")
        page.wait("!document.querySelector('dialog')")
        page.load()
        page.browser.listen(0.3)
        assert page.count("dialog") == 0  # kept for the tab
        assert "the-right-key-of-this-server" not in page.evaluate("JSON.stringify({...localStorage})")
        page.evaluate("sessionStorage.setItem('tianquan.key', 'stale')")
        page.load()
        page.wait("document.querySelector('.error-line')")
        page.press("Escape")
        page.ask("hello")  # declined: asked again with the next message, and then said in words
        page.wait("document.querySelector('dialog')")
        page.press("Escape")
        page.wait(f"{LAST} .error')")
        assert "The server needs a key." in page.text(".error")


def test_a_key_that_comes_late_still_gives_the_list_of_models(browser, serve, tmp_path):
    keys = tmp_path / "keys"
    keys.write_text("the-right-key-of-this-server\n")
    keys.chmod(0o600)
    with serve(api_key_file=keys) as server:
        page = browser.open()
        page.start(f"http://127.0.0.1:{server.port}/", {"tianquan.settings": '{"max_tokens": 3}'})
        page.wait("document.activeElement?.id === 'key'")
        page.press("Escape")
        page.wait("!document.querySelector('dialog')")
        page.ask("hello")
        page.wait("document.activeElement?.id === 'key'")
        page.type("the-right-key-of-this-server")
        page.press("Enter")
        page.wait(ANSWERED)
        page.wait("document.querySelectorAll('#model option').length === 1")


def test_a_file_that_is_gone_is_said_in_words(page, media_root):
    """The browser reads a file when it is sent, which fails once it has been moved."""
    page.answer_requests(CHAT, stream("fine"))
    page.choose_files("#files", media_root / "tiny_100x60.png")
    page.wait("document.querySelector('#composer .thumbnail')")
    page.evaluate(
        "window.readAsDataURL = FileReader.prototype.readAsDataURL;"
        "FileReader.prototype.readAsDataURL = function () {"
        "  Object.defineProperty(this, 'error', { value: new DOMException('moved', 'NotReadableError') });"
        "  this.dispatchEvent(new ProgressEvent('error')); }"
    )
    page.ask("look")
    page.wait(f"{LAST} .error')")
    assert "could not send this" in page.text(".error")
    page.evaluate("FileReader.prototype.readAsDataURL = window.readAsDataURL")
    page.click(f"{'.error button'}")
    page.wait(ANSWERED)


HOSTILE = """<img src=x onerror="window.hit=1"><script>window.hit=1</script><svg onload=window.hit=1>

[a](javascript:window.hit=1) [b](data:text/html,<script>window.hit=1</script>) [c](JaVaScRiPt&colon;window.hit=1)
[d]( javascript:window.hit=1 "t") <javascript:window.hit=1> ![e](x" onerror="window.hit=1) [f](/v1/models)
[good](https://example.org/?a=1&b="2")

| <b onclick=window.hit=1>x</b> | [g](vbscript:x) |
|---|---|
| `</code><script>window.hit=1</script>` | <iframe srcdoc="<script>window.hit=1</script>"> |

```html"><script>window.hit=1</script>
</code></pre><script>window.hit=1</script>
```
"""


def test_hostile_text_stays_text(page):
    page.answer_requests(CHAT, stream(HOSTILE))
    page.drop_files(700, 300)  # a drop without files does nothing
    page.ask(HOSTILE)
    page.wait(ANSWERED)
    assert page.evaluate("window.hit") is None
    tags = page.evaluate(
        "[...new Set([...document.querySelectorAll('.markdown *, .bubble *')].map((n) => n.localName))].sort()"
    )
    assert not {"img", "script", "svg", "iframe", "b", "style", "object", "form"} & (set(tags) - {"svg"})
    assert page.count(".markdown svg:not(.icon)") == 0
    links = page.evaluate("[...document.querySelectorAll('#column a')].map((a) => [a.href, a.rel, a.target])")
    assert links == [["https://example.org/?a=1&b=%222%22", "noopener noreferrer nofollow", "_blank"]]
    names = page.evaluate("[...document.querySelectorAll('#column *')].flatMap((n) => n.getAttributeNames())")
    assert [name for name in names if name.startswith("on")] == []
    assert "onerror" in page.text(".message:last-child .markdown")
    page.load()
    assert page.evaluate("window.hit") is None


MARKDOWN = """# Title
Some **bold**, *slanted* and `code`, **中文。**后面.

1. one
   - nested
2. two

| a | b |
|---|--:|
| 1 | 2 |

> said

```python
x = "<b>"
```
"""


def test_markdown(page):
    page.answer_requests(CHAT, stream(MARKDOWN))
    page.ask("show me")
    page.wait(ANSWERED)
    inside = ".message:last-child .markdown"
    for selector, text in {
        "h3": "Title",
        "strong": "中文。",
        "em": "slanted",
        "p code": "code",
        "ol > li > ul > li": "nested",
        "td.align-end": "2",
        "blockquote": "said",
        "pre code": 'x = "<b>"',
    }.items():
        assert page.text(f"{inside} {selector}") == text
    page.wait("document.querySelector('#announcements').textContent.includes('slanted')")  # read out once, whole
    growing = ["a **b", "a **b *", "see `c", "so:\n\n| a | b", "```\nx ** y", "- l\n  ```\n  x ** y"]
    shown = page.evaluate(
        "import('/markdown_view.js').then(({ MarkdownView }) =>"
        f"  {json.dumps(growing)}.map((text) => {{ const view = new MarkdownView(); view.show(text, true);"
        "    return view.node.textContent; }))"
    )
    assert shown == ["a b", "a b", "see c", "so:", "Codex ** y", "lCodex ** y"]  # marks that are open do not flicker
    page.click(f"{inside} .copy-code")
    page.wait("document.querySelector('.copy-code.is-done')")


def test_errors_are_said_in_words_and_can_be_tried_again(page):
    page.answer_requests(CHAT, json.dumps({"error": {"message": "the queue is full"}}), 429)
    page.ask("hello")
    page.wait("document.querySelector('.error')")
    assert "The server is busy." in page.text(".error")
    assert "the queue is full" in page.text(".error")
    page.answer_requests(CHAT, stream("half an answer").partition("data: [DONE]")[0])
    page.click(".error .strong-button")
    page.wait("document.querySelector('.error')?.innerText.includes('in the middle of the answer')")
    assert page.text(".message:last-child .markdown") == "half an answer"
    page.forget_answers()
    page.click(".error .strong-button")
    page.wait(f"{ANSWERED} && !document.querySelector('.error')")
    assert page.count(".message") == 2
    page.complaints = [text for text in page.complaints if "429" not in text]


def test_a_question_the_server_cannot_take_does_not_spoil_later_ones(page):
    page.answer_requests(CHAT, json.dumps({"error": {"message": "too large"}}), 413)
    page.ask("much too long")
    page.wait("document.querySelector('.error')")
    assert "shorter sound or video" in page.text(".error")
    page.answer_requests(CHAT, stream("fine"))
    page.ask("short")
    page.wait(f"document.querySelectorAll('.message').length === 4 && {ANSWERED}")
    sent = page.bodies[-1]["messages"]
    assert [message["content"] for message in sent] == ["short"]
    page.complaints = [text for text in page.complaints if "413" not in text]


def test_media_are_brought_into_the_form_the_model_takes(page, tmp_path):
    Image.new("RGB", (4000, 500), "navy").save(tmp_path / "wide.png")
    (tmp_path / "no.png").write_bytes(b"not a picture")
    (tmp_path / "notes.txt").write_text("words")
    with wave.open(str(tmp_path / "long.wav"), "wb") as file:
        file.setparams((2, 2, 8000, 0, "NONE", ""))
        file.writeframes(bytes(4 * 8000 * 70))
    page.answer_requests(CHAT, stream("fine"))
    page.drop_files(700, 300, *(tmp_path / name for name in ("wide.png", "no.png", "notes.txt", "long.wav")))
    page.wait("document.querySelectorAll('#composer :is(.is-picture, .is-sound)').length === 2")
    page.wait("document.querySelectorAll('.notice').length === 3")
    notices = page.text("#notices")
    assert "4000×500 → 2048×256" in notices
    assert "no.png is not a picture" in notices
    assert "notes.txt is neither" in notices
    assert "sent in parts" in page.text("#composer .sound-foot")
    page.evaluate(
        "const pasted = new DataTransfer(); pasted.items.add(new File([new Uint8Array(9)], 'x.pdf'));"
        "document.querySelector('#question').dispatchEvent("
        "  new ClipboardEvent('paste', { clipboardData: pasted, bubbles: true, cancelable: true }))"
    )
    page.wait("document.querySelector('#notices').innerText.includes('x.pdf is neither')")
    page.click(".go")
    page.wait(ANSWERED)
    picture, *parts = page.bodies[-1]["messages"][-1]["content"]
    content = base64.b64decode(picture["image_url"]["url"].partition(",")[2])
    assert Image.open(io.BytesIO(content)).size == (2048, 256)
    seconds = [wav_seconds(part) for part in parts]
    assert max(seconds) <= 30
    assert sum(seconds) == pytest.approx(70, abs=0.01)


def test_phone(page):
    page.answer_requests(
        CHAT, stream("| a | b |\n|-|-|\n| " + "wide" * 60 + " | x |\n\n```\n" + "long " * 60 + "\n```\n" + "w" * 200)
    )
    page.resize(360, 640, is_phone=True)
    page.load()
    page.ask("hello")  # Enter is a new line on a phone
    assert page.count(".message") == 0
    page.click(".go")
    page.wait(ANSWERED)
    assert (
        page.evaluate("Math.max(...['html', '#messages', '#column'].map((s) => document.querySelector(s).scrollWidth))")
        <= 360
    )
    page.click("#open-sidebar")
    page.wait("document.querySelector('#sidebar').getBoundingClientRect().left === 0")
    page.press("Escape")
    page.wait("getComputedStyle(document.querySelector('#sidebar')).visibility === 'hidden'")


@pytest.mark.parametrize("language", ["en", "zh"])
def test_counters_fit_on_a_phone_however_large(page, language):
    numbers = dict.fromkeys(("queue_ms", "vision_ms", "audio_ms", "prompt_ms", "predicted_per_second"), 987654.3)
    page.start(page.url, language=language)
    page.answer_requests(CHAT, stream("fine", numbers, prompt_tokens_details={"cached_tokens": 1234567}))
    page.resize(360, 640, is_phone=True)
    page.load()
    page.ask("hello")
    page.click(".go")
    page.wait(ANSWERED)
    page.click(".message:last-child .counters summary")
    edges = page.evaluate("[...document.querySelectorAll('.counters *')].map((n) => n.getBoundingClientRect().right)")
    assert len(edges) > 20
    assert max(edges) <= 360


def test_sources_keep_their_promises():
    """No markup from strings, no inline code, nothing from elsewhere, small files, no string that nobody shows."""
    sources = {path.name: path.read_text(encoding="utf-8") for path in FOLDER.iterdir()}
    scripts = "".join(text for name, text in sources.items() if name.endswith(".js"))
    assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(|new Function", scripts)
    assert not re.search(r"https?://(?!www\.w3\.org/2000/svg)[a-z]", scripts)
    assert not re.search(r"<script(?![^>]* src=)|<style| style=| on\w+=", sources["index.html"])
    lines = [line for name, text in sources.items() if name.endswith(".js") for line in text.splitlines()]
    assert max(len(line) for line in lines if "：" not in line) <= 140
    assert max(len(text.splitlines()) for text in sources.values()) <= 400
    modules = {name for name in sources if name.endswith(".js")} - {"first_paint.js", "recorder_worklet.js"}
    assert set(re.findall(r'modulepreload" href="(\S+)"', sources["index.html"])) == modules  # one round trip for all
    keys = re.findall(r"^  (\w+): \[", sources["strings.js"], re.MULTILINE)
    assert len(keys) == len(set(keys)) > 100
    used = scripts + sources["index.html"]
    unused = [key for key in keys if len(re.findall(rf"\b{key}\b", used)) < 2]
    assert [key for key in unused if key.removesuffix("More") not in keys] == []  # "More" is added by name
