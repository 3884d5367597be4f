"""What keys, files and dialogs do on the page, and what they must not do."""

from __future__ import annotations

from browser import ANSWERED, CHAT, stream


def test_settings_reach_the_server(page):
    page.answer_requests(CHAT, stream("fine"))
    page.click("#open-settings")
    for field, value in (("system", "Be brief."), ("top_p", "0.5"), ("seed", "7"), ("max_tokens", "0")):
        page.evaluate(f"document.getElementById('setting-{field}').focus()")
        page.evaluate("document.activeElement.select()")
        page.type(value)
    page.evaluate("document.getElementById('setting-detail').value = 'low'")
    page.click(".settings-dialog .strong-button")
    assert page.count(".settings-dialog") == 1  # 0 tokens are out of range
    page.evaluate("document.getElementById('setting-max_tokens').select()")
    page.type("9")
    page.press("Enter")
    page.wait("!document.querySelector('.settings-dialog')")
    page.ask("hello")
    page.wait(ANSWERED)
    body = page.bodies[-1]
    assert body["messages"][0] == {"role": "system", "content": "Be brief."}
    assert {key: body[key] for key in ("temperature", "top_p", "seed", "max_tokens")} == {
        "temperature": 0,
        "top_p": 0.5,
        "seed": 7,
        "max_tokens": 9,
    }
    assert body["stream_options"] == {"include_usage": True}


def test_keyboard_input_methods_languages_and_themes(page):
    page.click("#question")
    page.type("a")
    page.press("Enter", shift=True)
    assert page.evaluate("document.querySelector('#question').value") == "a\n"
    page.evaluate(
        "document.querySelector('#question')"
        ".dispatchEvent(new KeyboardEvent('keydown', {key: 'Enter', keyCode: 229, bubbles: true}))"
    )
    assert page.count(".message") == 0  # Enter of an input method chooses a word, it does not send
    colour = "getComputedStyle(document.body).backgroundColor"
    light = page.evaluate(colour)
    page.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": "dark"}])
    dark = page.evaluate(colour)
    assert dark != light
    page.click("#switch-theme")
    assert page.evaluate(colour) == light
    page.click("#switch-language")
    assert page.evaluate("document.documentElement.lang") == "zh-CN"
    page.load()
    assert page.evaluate(colour) == light
    assert page.text("h2") == "想了解什么？"
    page.start(page.url, language="zh-TW")
    assert page.text("h2") == "想了解什么？"
    assert page.evaluate("document.querySelector('#question').placeholder") == "输入问题"
    unnamed = (
        "[...document.querySelectorAll('button, input, select, textarea')].filter((n) => !n.innerText && !n.ariaLabel)"
    )
    assert page.evaluate(f"{unnamed}.map((n) => n.outerHTML)") == []


def test_escape_of_an_input_method_does_nothing_else(page):
    page.answer_requests(CHAT, stream("fine"))
    page.ask("one")
    page.wait(ANSWERED)

    page.click(".user [aria-label=Edit]")
    page.compose("ni hao")
    page.press("Escape")
    page.press("Enter")
    assert page.count(".edit-area") == 1
    page.evaluate("document.activeElement.blur()")
    page.click(".editor .text-button")

    page.click(".conversation-list .more")
    page.click(".menu button:nth-child(1)")
    page.compose("ni hao")
    page.press("Escape")
    page.press("Enter")
    page.evaluate(
        "for (const key of ['Enter', 'Escape']) document.querySelector('.rename')"
        "  .dispatchEvent(new KeyboardEvent('keydown', { key, keyCode: 229, bubbles: true }))"
    )
    assert page.count(".rename") == 1
    page.compose("")
    page.press("Escape")
    assert page.count(".rename") == 0

    page.click("#open-settings")
    page.click("#setting-system")
    page.compose("ni hao")
    page.press("Escape")
    assert page.count(".settings-dialog") == 1
    page.compose("")
    page.press("Escape")
    page.wait("!document.querySelector('.settings-dialog')")

    page.hold_requests(CHAT)
    page.ask("two")
    page.wait("document.querySelector('.go').ariaLabel === 'Stop'")
    page.compose("ni hao")
    page.press("Escape")
    page.answer_requests(CHAT, stream("not stopped"))
    page.wait("document.querySelector('.message:last-child').innerText.includes('not stopped')")
    assert page.count(".ending") == 0


def test_a_file_that_cannot_be_read_stops_the_message_it_belongs_to(page, tmp_path, media_root):
    (tmp_path / "no.png").write_bytes(b"not a picture")
    page.answer_requests(CHAT, stream("fine"))
    page.evaluate(
        "const read = createImageBitmap; const open = new Promise((done) => { window.openGate = done; });"
        "window.createImageBitmap = async (file) => { await open; return read(file); }"
    )
    page.choose_files("#files", tmp_path / "no.png", media_root / "tiny_100x60.png")
    page.ask("what is this?")
    page.wait("document.querySelector('.go').ariaLabel === 'Stop'")
    page.evaluate("openGate()")
    page.wait("document.querySelectorAll('.notice').length === 2")
    assert "no.png is not a picture" in page.text("#notices")
    assert "Nothing was sent" in page.text("#notices")
    page.wait("document.querySelector('.go').ariaLabel === 'Send'")
    assert page.bodies == []
    assert page.count(".message") == 0
    assert page.count("#composer .is-picture img") == 1
    assert page.evaluate("document.querySelector('#question').value") == "what is this?"
    page.click(".go")
    page.wait(ANSWERED)
    assert [part["type"] for part in page.bodies[-1]["messages"][-1]["content"]] == ["image_url", "text"]


def test_settings_are_kept_when_they_are_saved_and_only_then(page):
    def shown(field):
        return page.evaluate(f"document.getElementById('setting-{field}').value")

    def write(field, value):
        page.evaluate(f"document.getElementById('setting-{field}').select()")
        page.type(value)

    page.click("#open-settings")
    write("system", "not to be kept")
    page.press("Escape")
    page.wait("!document.querySelector('.settings-dialog')")
    page.click("#open-settings")
    assert shown("system") == ""
    write("system", "not to be kept")
    page.click(".settings-dialog .dialog-head .quiet")
    page.wait("!document.querySelector('.settings-dialog')")

    page.click("#open-settings")
    assert shown("system") == ""
    write("system", "You are a careful lawyer.")
    write("temperature", "3")
    assert page.text(".settings-dialog .strong-button") == "Save"
    page.click(".settings-dialog .strong-button")
    assert page.text(".settings-dialog .error-line:not([hidden])") == "Expected a number from 0 to 2."
    assert page.evaluate("document.activeElement.id") == "setting-temperature"
    assert shown("system") == "You are a careful lawyer."
    write("temperature", "1")
    assert page.count(".settings-dialog .error-line:not([hidden])") == 0
    page.press("Enter")
    page.wait("!document.querySelector('.settings-dialog')")
    page.click("#open-settings")
    assert (shown("system"), shown("temperature")) == ("You are a careful lawyer.", "1")
