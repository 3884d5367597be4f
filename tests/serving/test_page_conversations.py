"""Conversations on the page: kept, listed, changed in several tabs, and undone."""

from __future__ import annotations

import json

import pytest

from browser import ANSWERED, CHAT, LAST, stream

MESSAGES = "document.querySelectorAll('.message').length"
ANSWER_ENDS = "document.querySelector('.go').ariaLabel === 'Send'"
BUSY_ELSEWHERE = "!document.querySelector('#busy-elsewhere').hidden"


def test_two_tabs_lose_nothing_of_each_other(browser, server, media_root):
    address, settings = f"http://127.0.0.1:{server.port}/", {"tianquan.settings": '{"max_tokens": 3}'}
    first = browser.open()
    first.start(address, settings)
    first.answer_requests(CHAT, stream("fine"))
    first.ask("one")
    first.wait(ANSWERED)
    second = browser.open(beside=first)
    second.url = address
    second.resize(1280, 800)
    second.load()
    first.choose_files("#files", media_root / "tiny_100x60.png")
    first.ask("two")
    first.wait("document.querySelectorAll('.message').length === 4")
    first.wait(ANSWERED)
    second.wait("document.querySelectorAll('.conversation-list li').length === 1")
    second.evaluate("document.querySelector('.conversation-list li button').click()")
    second.wait("document.querySelectorAll('.message').length === 4")
    second.wait("document.querySelectorAll('#column .thumbnail').length === 1")
    first.load()
    first.wait("document.querySelectorAll('#column .thumbnail').length === 1")
    assert first.count(".message") == 4
    second.evaluate("document.querySelector('.conversation-list .more').click()")
    second.wait("document.querySelector('.menu .is-grave')")
    second.evaluate("document.querySelector('.menu .is-grave').click()")
    first.wait("document.querySelectorAll('.conversation-list li').length === 0")
    assert first.count(".welcome") == 1


def test_edit_regenerate_and_undo(page):
    page.answer_requests(CHAT, stream("first"))
    for number, text in enumerate(("one", "two"), 1):
        page.ask(text)
        page.wait(f"document.querySelectorAll('.counters').length === {number}")
    page.answer_requests(CHAT, stream("second"))
    page.click(".answer:last-child .again")
    page.wait("document.querySelector('.answer:last-child').innerText.includes('second')")
    page.evaluate("document.querySelector('.user [aria-label=Edit]').click()")
    page.type(" changed")
    page.press("Enter")
    page.wait(f"document.querySelectorAll('.message').length === 2 && {ANSWERED}")
    assert page.bodies[-1]["messages"] == [{"role": "user", "content": "one changed"}]
    page.click(".notice .text-button")
    page.wait("document.querySelectorAll('.message').length === 4")
    assert page.text(".message:last-child .markdown") == "second"
    page.wait(ANSWER_ENDS)
    page.press("ArrowUp")  # an empty question and the arrow up: the last one again
    assert page.evaluate("document.activeElement.value") == "two"


def test_conversations_are_renamed_deleted_and_brought_back(page, media_root):
    page.answer_requests(CHAT, stream("fine"))
    page.choose_files("#files", media_root / "tiny_100x60.png")
    page.ask("look")
    page.wait(ANSWERED)
    page.click(".conversation-list .more")
    page.click(".menu button:nth-child(1)")
    page.type("About <b>stars</b>")
    page.press("Enter")
    assert page.text(".conversation-name") == "About <b>stars</b>"
    page.click("#new-conversation")
    assert page.count(".welcome") == 1
    page.click(".conversation-list .more")
    page.click(".menu .is-grave")
    page.wait("document.querySelectorAll('.conversation-list li').length === 0")
    page.click(".notice .text-button")
    page.wait("document.querySelectorAll('#column .thumbnail').length === 1")
    page.load()
    page.wait("document.querySelectorAll('#column .thumbnail').length === 1")
    exported = page.evaluate(
        "import('/conversation.js').then(async ({ jsonFile, markdownFile }) => {"
        "  const { Store } = await import('/store.js'); const store = new Store(); await store.open();"
        "  const [kept] = await store.list();"
        "  const json = await jsonFile(kept, (id) => store.readMedium(id));"
        "  return [await json.text(), await markdownFile(kept).text()]; })"
    )
    assert json.loads(exported[0])["messages"][0]["content"][0]["image_url"]["url"].startswith("data:image/png;base64,")
    assert exported[1].startswith("# About <b>stars</b>\n\n## You\n\n*[tiny_100x60.png]*\n\nlook\n\n## Answer\n\nfine")


@pytest.fixture
def tabs(browser, server):
    """Two tabs on one conversation, with a question and an answer in it."""
    first = browser.open()
    first.start(f"http://127.0.0.1:{server.port}/", {"tianquan.settings": '{"max_tokens": 3}'})
    first.answer_requests(CHAT, stream("fine"))
    first.ask("one")
    first.wait(ANSWERED)
    second = browser.open(beside=first)
    second.url = first.evaluate("location.href")
    second.resize(1280, 800)
    second.load()
    second.wait(f"{MESSAGES} === 2")
    for tab in (first, second):
        tab.hold_requests(CHAT)
    yield first, second
    assert first.complaints == second.complaints == []


def send_unfocused(page, text):
    """Send a message from a tab that keys do not reach."""
    page.evaluate(
        f"document.querySelector('#question').value = {json.dumps(text)};"
        "document.querySelector('#question').dispatchEvent(new Event('input'));"
        "document.querySelector('#composer').requestSubmit()"
    )


def texts(page):
    return page.evaluate("[...document.querySelectorAll('.bubble, .markdown')].map((node) => node.innerText.trim())")


def test_a_conversation_is_answered_in_one_tab_at_a_time(tabs):
    first, second = tabs
    first.ask("two")
    second.wait(f"{MESSAGES} === 4 && {BUSY_ELSEWHERE}")
    send_unfocused(second, "three")
    second.wait("document.querySelector('#notices').innerText.includes('answered in another tab')")
    assert second.evaluate("document.querySelector('#question').value") == "three"
    second.evaluate("document.querySelector('.conversation-list .more').click()")
    second.evaluate("document.querySelector('.menu button').click()")
    second.evaluate("document.querySelector('.rename').value = 'named here'; document.querySelector('.rename').blur()")
    first.wait("document.querySelector('#conversation-title').innerText === 'named here'")
    first.answer_requests(CHAT, stream("long awaited"))
    for tab in tabs:
        tab.wait("document.querySelector('.message:last-child').innerText.includes('long awaited')")
    second.wait(f"!({BUSY_ELSEWHERE})")
    second.answer_requests(CHAT, stream("welcome"))
    second.evaluate("document.querySelector('#composer').requestSubmit()")
    first.wait("document.querySelector('.message:last-child').innerText.includes('welcome')")
    first.load()
    assert texts(first) == ["one", "fine", "two", "long awaited", "three", "welcome"]
    assert first.text(".conversation-name") == "named here"


def test_tabs_without_locks_lose_no_answer(tabs):
    first, second = tabs
    for tab in tabs:
        tab.evaluate("void delete Navigator.prototype.locks")  # as where the page comes over http from elsewhere
    first.ask("two")
    second.wait(f"{MESSAGES} === 4")
    send_unfocused(second, "three")
    first.wait(f"{MESSAGES} === 6")
    first.answer_requests(CHAT, stream("to the first"))
    second.wait("document.body.innerText.includes('to the first')")
    second.answer_requests(CHAT, stream("to the second"))
    for tab in tabs:  # each shows its own answer when it has been drawn
        for words in ("to the first", "to the second"):
            tab.wait(f"document.body.innerText.includes('{words}')")
    everything = ["one", "fine", "two", "to the first", "three", "to the second"]
    assert [texts(tab) for tab in tabs] == [everything, everything]
    first.load()
    assert texts(first) == everything


def test_an_answer_of_a_tab_that_goes_away_is_interrupted_in_the_others(tabs):
    first, second = tabs
    first.ask("two")
    second.wait(BUSY_ELSEWHERE)
    second.load()
    second.wait(BUSY_ELSEWHERE)
    assert second.count(".ending") == 0
    first.call("Page.close")
    second.wait(f"{LAST} .ending')?.innerText === 'Interrupted'")
    assert second.evaluate(BUSY_ELSEWHERE) is False


@pytest.mark.parametrize("language", ["en", "zh"])
def test_a_picture_the_browser_has_dropped_does_not_end_the_conversation(page, media_root, language):
    page.start(page.url, {"tianquan.settings": '{"max_tokens": 3, "temperature": 0}'}, language)
    page.choose_files("#files", media_root / "tiny_100x60.png")
    page.wait("document.querySelector('#composer .is-picture img')")
    page.click(".go")
    page.wait(ANSWERED)
    page.evaluate(
        "new Promise((done) => { indexedDB.open('tianquan').onsuccess = ({ target: { result } }) => {"
        "  const all = result.transaction('media', 'readwrite'); all.objectStore('media').clear();"
        "  all.oncomplete = () => { result.close(); done(); } } })"
    )
    page.load()
    for number in (2, 3):
        page.ask("and now?")
        page.wait(f"document.querySelectorAll('.counters').length === {number}")
    assert page.count(".error") == 0
    said = {"en": "[tiny_100x60.png is no longer there]", "zh": "[tiny_100x60.png 已不存在]"}[language]
    assert page.bodies[-1]["messages"][0]["content"] == [{"type": "text", "text": said}]


def test_undo_brings_pictures_back_whatever_was_looked_at_meanwhile(page, media_root):
    page.answer_requests(CHAT, stream("fine"))
    page.ask("one")
    page.wait(ANSWERED)
    page.choose_files("#files", media_root / "tiny_100x60.png")
    page.wait("document.querySelector('#composer .is-picture img')")
    page.ask("two")
    page.wait(f"document.querySelectorAll('.counters').length === 2 && {ANSWERED}")
    page.evaluate("document.querySelector('.user [aria-label=Edit]').click()")
    page.press("Enter")
    page.wait(f"{MESSAGES} === 2 && {ANSWERED}")
    page.evaluate("document.querySelector('.notice').dispatchEvent(new PointerEvent('pointerenter'))")  # it stays
    page.click("#new-conversation")
    page.click(".conversation-name")
    page.wait(f"{MESSAGES} === 2")
    page.browser.listen(0.5)  # what no message names is dropped behind the page
    page.click(".notice .text-button")
    page.wait(f"{MESSAGES} === 4 && document.querySelectorAll('#column .thumbnail').length === 1")
    page.load()
    page.wait("document.querySelectorAll('#column .thumbnail img').length === 1")
    page.ask("three")
    page.wait("document.querySelectorAll('.counters').length === 3")
    assert [part["type"] for part in page.bodies[-1]["messages"][2]["content"]] == ["image_url", "text"]


@pytest.fixture
def two_conversations(page):
    """The older one is "older", the open one "newer", in which an answer is awaited."""
    page.answer_requests(CHAT, stream("fine"))
    page.ask("older")
    page.wait(ANSWERED)
    page.click("#new-conversation")
    page.ask("newer")
    page.wait(ANSWERED)
    page.hold_requests(CHAT)
    page.ask("slowly")
    page.wait("document.querySelector('.go').ariaLabel === 'Stop'")
    return page


def test_a_name_is_typed_while_an_answer_ends(two_conversations):
    page = two_conversations
    page.click("#conversation-list li:last-child .more")
    page.click(".menu button:nth-child(1)")
    page.type("half a ")
    page.answer_requests(CHAT, stream("late"))
    page.wait(ANSWER_ENDS)
    page.type("name")
    page.press("Enter")
    assert page.text(".conversation-name") == "half a name"
    assert page.evaluate("document.activeElement.innerText") == "half a name"
    page.click("#conversation-list li:last-child .more")
    page.click(".menu button:nth-child(1)")
    page.type("another")
    page.press("Escape")
    assert page.evaluate("document.activeElement.innerText") == "half a name"


def test_the_list_keeps_the_focus_while_its_order_changes(two_conversations):
    page = two_conversations
    page.evaluate("document.querySelector('#conversation-list li:last-child .conversation-name').click()")
    page.answer_requests(CHAT, stream("late"))
    page.wait("document.querySelector('#conversation-title').innerText === 'older'")
    page.hold_requests(CHAT)
    page.ask("again")
    page.wait("document.querySelector('#conversation-list li').innerText === 'older'")
    page.evaluate("document.querySelector('#conversation-list li:last-child .more').focus()")
    page.answer_requests(CHAT, stream("later"))
    page.wait(ANSWER_ENDS)
    assert page.evaluate("document.activeElement.ariaLabel") == "Actions for “newer”"


def test_a_message_goes_to_the_conversation_it_was_sent_in(page, media_root):
    page.answer_requests(CHAT, stream("fine"))
    for text in ("other", "meant"):
        page.click("#new-conversation")
        page.ask(text)
        page.wait(ANSWERED)
    page.evaluate(
        "const read = createImageBitmap; const open = new Promise((done) => { window.openGate = done; });"
        "window.createImageBitmap = async (file) => { await open; return read(file); }"
    )
    page.choose_files("#files", media_root / "tiny_100x60.png")
    page.ask("look")
    page.press("Enter")
    page.wait("document.querySelector('.go').ariaLabel === 'Stop'")
    page.click("#conversation-list li:last-child .conversation-name")
    page.wait("document.querySelector('#conversation-title').innerText === 'other'")
    page.evaluate("openGate()")
    page.wait("document.querySelector('#question').value === ''")
    page.wait("document.querySelectorAll('#composer .attachment').length === 0")
    page.wait("document.querySelector('#conversation-list li').innerText === 'meant'")
    assert texts(page) == ["other", "fine"]
    page.click("#conversation-list li:first-child .conversation-name")
    page.wait(f"{MESSAGES} === 4 && {ANSWERED}")
    assert [part["type"] for part in page.bodies[-1]["messages"][-1]["content"]] == ["image_url", "text"]
