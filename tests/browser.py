"""A real browser without a window, driven over its DevTools pipe: real keys, real files, real clicks.

Only the standard library: the protocol is JSON objects, each ended by a zero byte, on file descriptors 3 and 4
of the browser (https://chromedevtools.github.io/devtools-protocol/).
"""

from __future__ import annotations

import base64
import json
import os
import re
import select
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

EXECUTABLE = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
FLAGS = [
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",
    "--hide-scrollbars",
    "--use-fake-device-for-media-stream",  # a microphone that plays a file
    "--use-fake-ui-for-media-stream",  # and permission to use it
    "--remote-debugging-pipe",
]
# `subprocess` closes what it does not know, and gives no way to choose numbers: a step in between does.
_MOVE_PIPES = (
    "import os, sys; os.dup2(int(sys.argv[1]), 3); os.dup2(int(sys.argv[2]), 4); os.execv(sys.argv[3], sys.argv[3:])"
)
_WAIT_S = 20.0
# The middle of an element once it stands still and nothing covers it.
_PLACE = """(async () => {
  let before = null;
  for (let n = 0; n < 120; n += 1) {
    QUERY?.scrollIntoView({block: "nearest"});
    await new Promise((done) => requestAnimationFrame(done));
    const node = QUERY, box = node?.getBoundingClientRect();
    if (!box) continue;
    const at = [box.x + box.width / 2, box.y + box.height / 2];
    if (before?.join() === at.join() && node.contains(document.elementFromPoint(...at))) return at;
    before = at;
  }
  return null;
})()"""
# The answer at the end of our page, an expression to be closed by the reader, and that it is there.
LAST = "document.querySelector('.message:last-child"
ANSWERED = f"{LAST} .counters')"
CHAT = "/v1/chat/completions"
_KEYS = {"Enter": 13, "Escape": 27, "ArrowUp": 38, "Tab": 9}


def stream(text: str, timings: Mapping[str, float] | None = None, **usage: Any) -> str:
    """Return what a server sends for an answer."""
    events: list[dict[str, Any]] = [
        {"choices": [{"index": 0, "delta": {"role": "assistant", "content": ""}, "finish_reason": None}]},
        *(
            {"choices": [{"index": 0, "delta": {"content": c}, "finish_reason": None}]}
            for c in re.findall(r"(?s).{1,7}", text)
        ),
        {"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]},
        {"choices": [], "usage": {"prompt_tokens": 3, "completion_tokens": 5, "total_tokens": 8, **usage}},
    ]
    if timings is not None:
        events[-1]["timings"] = timings
    return "".join(f"data: {json.dumps(event)}\n\n" for event in events) + "data: [DONE]\n\n"


class Browser:
    """A browser process with a profile of its own."""

    def __init__(self, profile: Path, *flags: str) -> None:
        assert EXECUTABLE is not None
        command_read, self._write_fd = _high_pipe()
        self._read_fd, event_write = _high_pipe()
        arguments = [EXECUTABLE, *FLAGS, *flags, f"--user-data-dir={profile}"]
        self._process = subprocess.Popen(
            [sys.executable, "-c", _MOVE_PIPES, str(command_read), str(event_write), *arguments],
            pass_fds=(command_read, event_write),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(command_read)
        os.close(event_write)
        self._buffer = b""
        self._next_id = 0
        self.handlers: dict[tuple[str | None, str], Callable[[dict[str, Any]], None]] = {}

    def call(self, method: str, session: str | None = None, **params: Any) -> dict[str, Any]:
        """Run a command and return its result; events that come meanwhile go to their handlers."""
        number = self._send(method, session, params)
        deadline = time.monotonic() + _WAIT_S
        while True:
            message = self._read(deadline)
            assert message is not None, f"the browser did not answer {method} in {_WAIT_S:.0f} s"
            if message.get("id") == number:
                assert "error" not in message, f"{method}: {message['error']}"
                return message["result"]
            self._dispatch(message)

    def post(self, method: str, session: str | None = None, **params: Any) -> None:
        """Send a command without waiting for its result."""
        self._send(method, session, params)

    def listen(self, seconds: float) -> None:
        """Hand events to their handlers for a while."""
        deadline = time.monotonic() + seconds
        while (message := self._read(deadline)) is not None:
            self._dispatch(message)

    def open(self, beside: Page | None = None) -> Page:
        """Open a tab that shares storage and cache with the one beside it, or with none; input goes to the first."""
        context = self.call("Target.createBrowserContext")["browserContextId"] if beside is None else beside.context
        target = self.call("Target.createTarget", url="about:blank", browserContextId=context)["targetId"]
        return Page(self, self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"], context)

    def close(self) -> None:
        """End the process."""
        try:
            self._send("Browser.close", None, {})
            self._process.wait(10)
        except (OSError, subprocess.TimeoutExpired):
            self._process.kill()
            self._process.wait()
        finally:
            os.close(self._write_fd)
            os.close(self._read_fd)

    def _send(self, method: str, session: str | None, params: dict[str, Any]) -> int:
        self._next_id += 1
        command = {"id": self._next_id, "method": method, "params": params}
        data = json.dumps(command if session is None else {**command, "sessionId": session}).encode() + b"\0"
        while data:
            data = data[os.write(self._write_fd, data) :]
        return self._next_id

    def _read(self, deadline: float) -> dict[str, Any] | None:
        while b"\0" not in self._buffer:
            ready, _, _ = select.select([self._read_fd], [], [], max(0.0, deadline - time.monotonic()))
            if not ready:
                return None
            piece = os.read(self._read_fd, 1 << 20)
            assert piece, "the browser ended"
            self._buffer += piece
        message, _, self._buffer = self._buffer.partition(b"\0")
        return json.loads(message)

    def _dispatch(self, message: dict[str, Any]) -> None:
        handler = self.handlers.get((message.get("sessionId"), message.get("method", "")))
        if handler is not None:
            handler(message["params"])


class Page:
    """One tab."""

    def __init__(self, browser: Browser, session: str, context: str) -> None:
        self.context = context
        self.browser, self.session, self.url = browser, session, "about:blank"
        self.complaints: list[str] = []  # exceptions, refused content, console errors
        self.bodies: list[dict[str, Any]] = []  # of the page's JSON requests
        self._answers: dict[str, tuple[int, str] | None] = {}
        self._held: dict[str, list[dict[str, Any]]] = {}
        self._caught: set[str] = set()
        for method, handler in (
            ("Runtime.exceptionThrown", self._on_exception),
            ("Log.entryAdded", self._on_log),
            ("Fetch.requestPaused", self._on_paused),
            ("Network.requestWillBeSent", self._on_request),
        ):
            browser.handlers[session, method] = handler
        for domain in ("Runtime", "Log", "Page", "DOM"):
            self.call(f"{domain}.enable")
        self.call("Network.enable", maxPostDataSize=1 << 25)
        self.call("Emulation.setFocusEmulationEnabled", enabled=True)

    def start(self, url: str, choices: Mapping[str, str] = MappingProxyType({}), language: str = "en") -> None:
        """Open an address as on the first visit.

        Args:
            url: the address.
            choices: what the browser's local storage already holds.
            language: what the browser is set to.
        """
        self.url = url
        self.call("Page.navigate", url=f"{url}star.svg")  # of the same origin, with no page that holds the database
        self.wait("location.href.endsWith('star.svg')")
        self.call("Storage.clearDataForOrigin", origin=url.rstrip("/"), storageTypes="all")
        self.evaluate(f"Object.assign(localStorage, {json.dumps(dict(choices))})")
        agent = self.evaluate("navigator.userAgent")
        self.call("Emulation.setUserAgentOverride", userAgent=agent, acceptLanguage=language)
        self.forget_answers()
        self.resize(1280, 800)
        self.call("Emulation.setEmulatedMedia", features=[])
        self.complaints.clear()
        self.bodies.clear()
        self.load()

    def resize(self, width: int, height: int, *, is_phone: bool = False) -> None:
        """Show the page in a window, or on a phone's screen, of this many pixels."""
        self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=2 if is_phone else 1,
            mobile=is_phone,
        )
        self.call("Emulation.setTouchEmulationEnabled", enabled=is_phone)
        self.wait(f"innerWidth === {width}")
        self.evaluate(
            "new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))"
        )  # laid out, drawn

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        return self.browser.call(method, self.session, **params)

    def load(self) -> None:
        """Go to the page's address, or reload it, and wait until it is ready (`data-ready` on its root)."""
        if self.evaluate("location.href").startswith(self.url) and self.count("#page"):
            self.evaluate("void delete document.documentElement.dataset.ready")
            self.call("Page.reload")
        else:
            self.call("Page.navigate", url=self.url)
        self.wait("document.documentElement?.dataset.ready === 'true'")

    def evaluate(self, expression: str) -> Any:
        """Return the value of an expression, awaited."""
        result = self.call("Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in result, f"{expression}: {result['exceptionDetails']}"
        return result["result"].get("value")

    def wait(self, expression: str, seconds: float = _WAIT_S) -> None:
        """Wait until an expression is true."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            try:
                if self.evaluate(f"Promise.resolve({expression}).then(Boolean)"):
                    return
            except AssertionError as error:
                if "context" not in str(error):  # a page that is just being left has none
                    raise
            self.browser.listen(0.03)
        raise AssertionError(f"not true within {seconds:.0f} s: {expression}\n{self.complaints}")

    def text(self, selector: str) -> str:
        """Return the text of the last element a selector finds."""
        return self.evaluate(f"[...document.querySelectorAll({json.dumps(selector)})].at(-1)?.innerText ?? ''")

    def count(self, selector: str) -> int:
        return self.evaluate(f"document.querySelectorAll({json.dumps(selector)}).length")

    def click(self, selector: str) -> None:
        """Press where the last element that a selector finds is."""
        query = f"[...document.querySelectorAll({json.dumps(selector)})].at(-1)"
        self.wait(f"!!{query}")
        box = self.evaluate(_PLACE.replace("QUERY", query))
        assert box is not None, f"{selector} is covered or out of sight"
        at = {"x": box[0], "y": box[1], "button": "left", "clickCount": 1}
        for kind in ("mouseMoved", "mousePressed", "mouseReleased"):
            self.call("Input.dispatchMouseEvent", type=kind, **at)

    def type(self, text: str) -> None:
        """Write where the cursor is."""
        self.call("Input.insertText", text=text)

    def compose(self, text: str) -> None:
        """Write with an input method, which has not yet given the text to the page."""
        self.call("Input.imeSetComposition", text=text, selectionStart=len(text), selectionEnd=len(text))

    def ask(self, text: str) -> None:
        """Send our page a message."""
        self.click("#question")
        self.wait("document.activeElement.id === 'question'")
        self.type(text)
        self.press("Enter")

    def press(self, key: str, *, shift: bool = False) -> None:
        """Press a key: one of Enter, Escape, ArrowUp, Tab."""
        params = {"key": key, "code": key, "windowsVirtualKeyCode": _KEYS[key], "modifiers": 8 if shift else 0}
        text = {"text": "\r"} if key == "Enter" else {}
        self.call("Input.dispatchKeyEvent", type="keyDown" if text else "rawKeyDown", **params, **text)
        self.call("Input.dispatchKeyEvent", type="keyUp", **params)

    def choose_files(self, selector: str, *paths: Path) -> None:
        """Give files to an input, as its dialog would."""
        root = self.call("DOM.getDocument")["root"]["nodeId"]
        node = self.call("DOM.querySelector", nodeId=root, selector=selector)["nodeId"]
        self.call("DOM.setFileInputFiles", nodeId=node, files=[str(path) for path in paths])

    def drop_files(self, x: float, y: float, *paths: Path) -> None:
        """Drag files from the desktop and drop them."""
        data = {"items": [], "files": [str(path) for path in paths], "dragOperationsMask": 1}
        for kind in ("dragEnter", "dragOver", "drop"):
            self.call("Input.dispatchDragEvent", type=kind, x=x, y=y, data=data)

    def hold_requests(self, path: str) -> None:
        """Let the page's requests to a path wait for `answer_requests`."""
        self._answers[path] = None
        self._catch_requests()

    def answer_requests(self, path: str, body: str, status: int = 200) -> None:
        """Answer the page's requests to a path here instead of in the server: what a hostile model would say."""
        self._answers[path] = (status, body)
        self._catch_requests()
        for params in self._held.pop(path, ()):
            self._on_paused(params)

    def forget_answers(self) -> None:
        """Let every request reach the server again."""
        self._answers.clear()
        self._held.clear()
        self._caught.clear()
        self.call("Fetch.disable")

    def _catch_requests(self) -> None:
        if self._caught != set(self._answers):  # enabled again it would let go of a request that is on its way
            self._caught = set(self._answers)
            self.call("Fetch.enable", patterns=[{"urlPattern": f"*{path}"} for path in self._caught])

    def screenshot(self, path: Path) -> None:
        path.write_bytes(base64.b64decode(self.call("Page.captureScreenshot", format="png")["data"]))

    def _on_exception(self, params: dict[str, Any]) -> None:
        details = params["exceptionDetails"]
        self.complaints.append(details.get("exception", {}).get("description", details["text"]))

    def _on_log(self, params: dict[str, Any]) -> None:
        entry = params["entry"]
        # The picture that `start` opens names no icon, so that the browser may look for this one, now or later.
        if entry["level"] == "error" and not entry.get("url", "").endswith("/favicon.ico"):
            self.complaints.append(f"{entry['text']} {entry.get('url', '')}")

    def _on_request(self, params: dict[str, Any]) -> None:
        data = params["request"].get("postData", "")
        if data.startswith("{"):
            self.bodies.append(json.loads(data))

    def _on_paused(self, params: dict[str, Any]) -> None:
        path = next(path for path in self._answers if params["request"]["url"].endswith(path))
        answer = self._answers[path]
        if answer is None:
            self._held.setdefault(path, []).append(params)
            return
        status, body = answer
        kind = "text/event-stream" if body.startswith("data:") else "application/json"
        self.browser.post(
            "Fetch.fulfillRequest",
            self.session,
            requestId=params["requestId"],
            responseCode=status,
            responseHeaders=[{"name": "content-type", "value": kind}],
            body=base64.b64encode(body.encode()).decode(),
        )


def _high_pipe() -> tuple[int, int]:
    """A pipe whose numbers are out of the way of 3 and 4."""
    import fcntl

    ends = os.pipe()
    moved = tuple(fcntl.fcntl(end, fcntl.F_DUPFD_CLOEXEC, 10) for end in ends)
    for end in ends:
        os.close(end)
    return moved[0], moved[1]
