"""Take the pictures of the web page that the documentation shows, from a running server.

tianquan serve FOLDER &
python scripts/page_pictures.py http://127.0.0.1:8000/ docs/images
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from PIL import Image

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests"))
from browser import Browser, Page  # noqa: E402

MEDIA = ROOT / "tests" / "conformance" / "media"
ANSWERED = "document.querySelector('.message:last-child .counters')"
WAIT_S = 120.0  # an official-size model looks at a picture for seconds


def main() -> None:
    url, folder = sys.argv[1], Path(sys.argv[2])
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as profile:
        browser = Browser(Path(profile))
        try:
            take(browser.open(), url, folder)
        finally:
            browser.close()


def take(page: Page, url: str, folder: Path) -> None:
    choices = {"tianquan.settings": '{"temperature": 0}'}
    page.start(url, choices)
    page.choose_files("#files", MEDIA / "shapes_640x480.png", MEDIA / "speech_16k.wav")
    page.wait("document.querySelector('#composer .is-picture') && document.querySelector('#composer .is-sound')")
    ask(page, "Which shapes are in this picture?")
    keep(page, folder / "page-light.png", colours=128)
    page.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": "dark"}])
    keep(page, folder / "page-dark.png", colours=128)
    page.start(url, choices)
    page.resize(390, 844, is_phone=True)
    page.load()
    keep(page, folder / "page-phone.png", colours=64)
    page.start(url, {**choices, "tianquan.language": '"zh"'})
    page.resize(390, 844, is_phone=True)
    page.load()
    page.choose_files("#files", MEDIA / "shapes_640x480.png")
    page.wait("document.querySelector('#composer .is-picture')")
    ask(page, "图里有什么？")
    keep(page, folder / "page-chinese.png", colours=64)


def ask(page: Page, text: str) -> None:
    page.click("#question")
    page.type(text)
    page.click(".go")
    page.wait(ANSWERED, WAIT_S)
    page.evaluate("document.activeElement.blur()")


def keep(page: Page, path: Path, *, colours: int) -> None:
    page.browser.listen(0.5)  # let the last movement end
    page.screenshot(path)
    picture = Image.open(path).convert("RGB")
    picture.quantize(colours, dither=Image.Dither.NONE).save(path, optimize=True)
    print(f"{path.name}: {path.stat().st_size / 1024:.0f} KiB")


if __name__ == "__main__":
    main()
