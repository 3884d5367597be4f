"""The fonts of text pictures: which files, from which Debian packages, and which are kept for evaluation.

Families, not files, are held out: a bold face of a family seen in training is not a new font.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Literal

from PIL import ImageFont

Split = Literal["train", "heldout"]
Script = Literal["latin", "chinese"]
Font = ImageFont.FreeTypeFont | ImageFont.ImageFont

HERE = Path(__file__).resolve().parent
FOLDERS = (  # searched in this order; the first lets a machine without packages bring its own files
    HERE / "cache" / "fonts",
    Path("/usr/share/fonts"),
    Path("/usr/local/share/fonts"),
    Path.home() / ".local/share/fonts",
    Path.home() / ".fonts",
)
PILLOW = "Pillow"  # the outline font inside Pillow: ImageFont.load_default(size)
PILLOW_BITMAP = "Pillow bitmap"  # ImageFont.load_default_imagefont(): 11 pixels high, one size
LATIN_OF_CHINESE = 0.12  # share of Latin text and digits set in a Chinese font


class MissingFontsError(RuntimeError):
    """Font files the generator needs are not installed."""


@dataclass(frozen=True, kw_only=True)
class Family:
    """Font files that belong together."""

    package: str  # Debian package
    files: tuple[str, ...]
    split: Split
    script: Script = "latin"
    face: int = 0  # index inside a collection
    has_latin: bool = True


FAMILIES: tuple[Family, ...] = (
    Family(
        package="fonts-dejavu-core",
        files=("DejaVuSans.ttf", "DejaVuSans-Bold.ttf", "DejaVuSansMono.ttf", "DejaVuSerif.ttf"),
        split="train",
    ),
    Family(
        package="fonts-dejavu-extra",
        files=("DejaVuSans-Oblique.ttf", "DejaVuSansCondensed.ttf", "DejaVuSerif-Italic.ttf"),
        split="train",
    ),
    Family(
        package="fonts-liberation",
        files=(
            *("LiberationSans-Regular.ttf", "LiberationSans-Bold.ttf", "LiberationSans-Italic.ttf"),
            *("LiberationSerif-Regular.ttf", "LiberationSerif-Bold.ttf"),
            *("LiberationMono-Regular.ttf", "LiberationMono-Bold.ttf"),
        ),
        split="train",
    ),
    Family(package="fonts-freefont-ttf", files=("FreeSans.ttf", "FreeSansBold.ttf", "FreeSerif.ttf"), split="train"),
    Family(package="fonts-open-sans", files=("OpenSans-Regular.ttf", "OpenSans-Bold.ttf"), split="train"),
    Family(package="fonts-lato", files=("Lato-Regular.ttf", "Lato-Heavy.ttf"), split="train"),
    Family(package="fonts-hack", files=("Hack-Regular.ttf", "Hack-Bold.ttf"), split="train"),
    Family(package="fonts-cantarell", files=("Cantarell-Regular.otf", "Cantarell-Bold.otf"), split="train"),
    Family(package="fonts-comic-neue", files=("ComicNeue-Regular.otf", "ComicNeue-Bold.otf"), split="train"),
    Family(
        package="fonts-urw-base35",
        files=("NimbusSans-Regular.otf", "NimbusRoman-Regular.otf", "P052-Roman.otf", "URWGothic-Book.otf"),
        split="train",
    ),
    Family(
        package="fonts-noto-cjk",
        files=("NotoSansCJK-Regular.ttc", "NotoSansCJK-Bold.ttc", "NotoSerifCJK-Regular.ttc", "NotoSerifCJK-Bold.ttc"),
        split="train",
        script="chinese",
        face=2,  # simplified Chinese
    ),
    Family(package="fonts-wqy-zenhei", files=("wqy-zenhei.ttc",), split="train", script="chinese"),
    Family(package="fonts-arphic-ukai", files=("ukai.ttc",), split="train", script="chinese"),
    Family(package="fonts-arphic-uming", files=("uming.ttc",), split="train", script="chinese"),
    Family(package="fonts-roboto-unhinted", files=("Roboto-Regular.ttf", "Roboto-Bold.ttf"), split="heldout"),
    Family(package="fonts-crosextra-caladea", files=("Caladea-Regular.ttf", "Caladea-Bold.ttf"), split="heldout"),
    Family(package="fonts-crosextra-carlito", files=("Carlito-Regular.ttf", "Carlito-Bold.ttf"), split="heldout"),
    Family(package="fonts-inconsolata", files=("Inconsolata.otf",), split="heldout"),
    Family(package="fonts-wqy-microhei", files=("wqy-microhei.ttc",), split="heldout", script="chinese"),
    Family(
        package="fonts-droid-fallback",
        files=("DroidSansFallbackFull.ttf",),
        split="heldout",
        script="chinese",
        has_latin=False,
    ),
)


@lru_cache(maxsize=8)
def font_names(split: Split, script: Script, *, latin: bool = False) -> tuple[str, ...]:
    """Return the fonts of a split made for a script, by file name; with `latin`, those that have Latin too.

    Pillow's own fonts are for training.
    """
    families = [f for f in FAMILIES if (f.split, f.script) == (split, script) and (f.has_latin or not latin)]
    names = tuple(name for family in families for name in family.files)
    return (PILLOW, PILLOW, PILLOW_BITMAP, *names) if (split, script) == ("train", "latin") else names


@lru_cache(maxsize=1)
def installed() -> dict[str, Path]:
    """Return where each font file lies, by name; the first folder that has it wins."""
    found: dict[str, Path] = {}
    wanted = {name for family in FAMILIES for name in family.files}
    for folder in FOLDERS:
        for path in sorted(folder.rglob("*")) if folder.is_dir() else ():
            if path.name in wanted:
                found.setdefault(path.name, path)
    return found


def missing_packages() -> list[str]:
    """Return the Debian packages whose font files were not found."""
    return sorted({f.package for f in FAMILIES if not set(f.files) <= set(installed())})


def require_fonts() -> None:
    """Raise if any font is missing: the samples of a seed depend on all of them.

    Raises:
        MissingFontsError: naming the packages to install.
    """
    missing = missing_packages()
    if missing:
        folders = ", ".join(map(str, FOLDERS))
        raise MissingFontsError(
            f"fonts not found in {folders}. On Debian: apt-get install {' '.join(missing)}; "
            f"elsewhere copy the files named in {__name__} into {FOLDERS[0]}"
        )


@lru_cache(maxsize=2048)
def load_font(name: str, size: int) -> Font:
    """Return a font at a size in pixels; sizes are few, so that the cache holds them all."""
    if name == PILLOW:
        return ImageFont.load_default(size)
    if name == PILLOW_BITMAP:
        return ImageFont.load_default_imagefont()
    face = next(family.face for family in FAMILIES if name in family.files)
    return ImageFont.truetype(str(installed()[name]), size, index=face, layout_engine=ImageFont.Layout.BASIC)
