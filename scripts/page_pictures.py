"""Take the pictures of the web page that the documentation shows.

python scripts/page_pictures.py                                            # the embedded model, into docs/images
python scripts/page_pictures.py FOLDER --url http://127.0.0.1:8000/        # a server that runs already
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from PIL import Image

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests"))
from browser import Browser, Page  # noqa: E402

EXAMPLES = ROOT / "examples"
WAIT_S = 120.0  # an official-size model looks at a picture for seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, nargs="?", default=ROOT / "docs" / "images")
    parser.add_argument("--url", help="Of a running server; without it the embedded model is served for the pictures.")
    arguments = parser.parse_args()
    arguments.folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as profile:
        browser = Browser(Path(profile))
        try:
            if arguments.url is not None:
                take(browser.open(), arguments.url, arguments.folder)
            else:
                with served_embedded_model() as url:
                    take(browser.open(), url, arguments.folder)
        finally:
            browser.close()


@contextmanager
def served_embedded_model() -> Iterator[str]:
    """Serve the embedded model on a free port and give the page's address."""
    command = [sys.executable, "-m", "tianquan", "serve", "--port", "0"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as server:
        assert server.stderr is not None
        try:
            for line in server.stderr:
                if listening := re.search(r"http://127\.0\.0\.1:\d+", line):
                    address = listening.group()
                if "ready:" in line:
                    yield f"{address}/"
                    return
            raise SystemExit("the server ended before it was ready")
        finally:
            server.terminate()


def take(page: Page, url: str, folder: Path) -> None:
    choices = {"tianquan.settings": '{"temperature": 0}'}
    page.start(url, choices)
    page.resize(1280, 900)
    add(page, "shapes.png")
    add(page, "question.wav")
    ask(page)
    ask(page, "What colour is the square?")
    keep(page, folder / "page-light.png", colours=128)
    page.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": "dark"}])
    keep(page, folder / "page-dark.png", colours=128)
    page.call("Emulation.setEmulatedMedia", features=[])
    page.resize(390, 844, is_phone=True)
    page.load()
    keep(page, folder / "page-phone.png", colours=64)
    page.start(url, {**choices, "tianquan.language": '"zh"'})
    page.resize(390, 844, is_phone=True)
    page.load()
    add(page, "number.png")
    ask(page, "图中的数字是什么？")
    keep(page, folder / "page-chinese.png", colours=64)


def add(page: Page, name: str) -> None:
    """Choose a file of the examples and wait until it is shown."""
    page.choose_files("#files", EXAMPLES / name)
    kind = "picture" if name.endswith(".png") else "sound"
    page.wait(f"document.querySelector('#composer .is-{kind}')")


def ask(page: Page, text: str = "") -> None:
    """Send what is in the composer and wait for the end of the answer."""
    number = page.count(".counters") + 1
    if text:
        page.click("#question")
        page.type(text)
    page.click(".go")
    page.wait(f"document.querySelectorAll('.counters').length === {number}", WAIT_S)
    page.evaluate("document.activeElement.blur()")


def keep(page: Page, path: Path, *, colours: int) -> None:
    page.browser.listen(0.5)  # let the last movement end
    page.screenshot(path)
    picture = Image.open(path).convert("RGB")
    picture.quantize(colours, dither=Image.Dither.NONE).save(path, optimize=True)
    print(f"{path.name}: {path.stat().st_size / 1024:.0f} KiB")


if __name__ == "__main__":
    main()
