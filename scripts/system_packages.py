"""Make sure there is what pip cannot install: a C++ compiler, and a browser for the tests of the page.

    python scripts/system_packages.py [compiler] [browser] [speech] [fonts]      the compiler alone by default

As root on a Debian-like system what is missing is installed; otherwise a line says what to install. Nothing works
without the compiler; without a browser the page's tests are skipped; speech and fonts train the embedded model.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from dataclasses import dataclass


@dataclass(frozen=True)
class Need:
    """A program under any of its names, the Debian packages it comes in, and what it is needed for."""

    programs: tuple[str, ...]
    package: str
    purpose: str
    is_optional: bool


FONTS = (
    "fonts-dejavu-core fonts-dejavu-extra fonts-liberation fonts-freefont-ttf fonts-open-sans fonts-lato fonts-hack "
    "fonts-cantarell fonts-comic-neue fonts-urw-base35 fonts-noto-cjk fonts-wqy-zenhei fonts-arphic-ukai "
    "fonts-arphic-uming fonts-roboto-unhinted fonts-crosextra-caladea fonts-crosextra-carlito fonts-inconsolata "
    "fonts-wqy-microhei fonts-droid-fallback"
)
NEEDS = {
    "compiler": Need((os.environ.get("CXX", ""), "c++", "g++", "clang++"), "g++", "to build the kernels", False),
    "speech": Need(("espeak-ng",), "espeak-ng", "to speak", True),
    "fonts": Need((), FONTS, "to write pictures", True),  # of which one is missing is not asked: apt knows
    "browser": Need(("chromium", "chromium-browser", "google-chrome"), "chromium", "to test the web page", True),
}


def main() -> None:
    for need in (NEEDS[name] for name in sys.argv[1:] or ["compiler"]):
        if not any(shutil.which(program) for program in need.programs):
            install(need)


def install(need: Need) -> None:
    """Install a missing package, or say that it is missing; end with an error if nothing works without it."""
    apt = shutil.which("apt-get")
    if apt is None or os.geteuid() != 0:
        problem = f"{need.package} is missing, needed {need.purpose}; on Debian: sudo apt-get install {need.package}"
    else:
        print(f"installing {need.package} (needed {need.purpose})", file=sys.stderr, flush=True)
        for arguments in (
            ["update", "-qq"],
            ["install", "-y", "-qq", "--no-install-recommends", *need.package.split()],
        ):
            if subprocess.run([apt, *arguments], stdout=subprocess.DEVNULL, check=False).returncode != 0:
                problem = f"{need.package} (needed {need.purpose}) cannot be installed; see apt-get's words above"
                break
        else:
            return
    if not need.is_optional:
        sys.exit(problem)
    print(problem, file=sys.stderr)


if __name__ == "__main__":
    main()
