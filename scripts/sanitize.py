"""Build the kernels' test program with the sanitizers and run it: addresses and undefined behaviour, then threads."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def main() -> None:
    tools = Path(sys.executable).parent  # cmake and ninja of the development environment
    for kind in ("address", "thread"):
        folder = ROOT / "build" / f"sanitize-{kind}"
        configure = ["-S", ROOT, "-B", folder, "-G", "Ninja", f"-DCMAKE_MAKE_PROGRAM={tools / 'ninja'}"]
        subprocess.run(
            [tools / "cmake", *configure, f"-DTIANQUAN_SANITIZE={kind}"], check=True, stdout=subprocess.DEVNULL
        )
        subprocess.run([tools / "cmake", "--build", folder], check=True, stdout=subprocess.DEVNULL)
        subprocess.run([folder / "sanitize"], check=True)
        print(f"{kind} sanitizer: clean")


if __name__ == "__main__":
    main()
