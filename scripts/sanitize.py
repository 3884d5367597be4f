"""Build the kernels' test program with the sanitizers and run it: addresses and undefined behaviour, then threads.

Kernels that this processor cannot run are not built.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from tianquan.kernels.library import KernelLibrary

ROOT = Path(__file__).parents[1]


def main() -> None:
    tools = Path(sys.executable).parent  # cmake and ninja of the development environment
    has_vnni = "ON" if KernelLibrary(threads=1).isa == "avx512_vnni" else "OFF"
    for kind in ("address", "thread"):
        folder = ROOT / "build" / f"sanitize-{kind}"
        configure = ["-S", ROOT, "-B", folder, "-G", "Ninja", f"-DCMAKE_MAKE_PROGRAM={tools / 'ninja'}"]
        subprocess.run(
            [tools / "cmake", *configure, f"-DTIANQUAN_SANITIZE={kind}", f"-DTIANQUAN_AVX512_VNNI={has_vnni}"],
            check=True,
            stdout=subprocess.DEVNULL,
        )
        subprocess.run([tools / "cmake", "--build", folder], check=True, stdout=subprocess.DEVNULL)
        subprocess.run([folder / "sanitize"], check=True)
        print(f"{kind} sanitizer: clean")


if __name__ == "__main__":
    main()
