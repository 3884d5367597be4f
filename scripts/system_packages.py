"""Make sure there is what pip cannot install: a C++ compiler.

As root on a Debian-like system it is installed; otherwise one line says what to install.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys


def main() -> None:
    if any(shutil.which(compiler) for compiler in (os.environ.get("CXX", ""), "c++", "g++", "clang++")):
        return
    apt = shutil.which("apt-get")
    if apt is None or os.geteuid() != 0:
        sys.exit("a C++ compiler is needed to build the kernels; install one (Debian: sudo apt-get install g++)")
    print("installing g++ (needed to build the kernels)", file=sys.stderr)
    for arguments in (["update", "-qq"], ["install", "-y", "-qq", "--no-install-recommends", "g++"]):
        subprocess.run([apt, *arguments], check=True, stdout=subprocess.DEVNULL)


if __name__ == "__main__":
    main()
