"""What `make demo` shows: a picture, a recording and text go in, an answer comes out, with the time each part took.

There is no embedded model in this version, so a small random checkpoint of the official layout is made on the
spot. It has learned nothing: the answers are noise, and only the machinery around them is real.
"""

from __future__ import annotations

import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

from rich.console import Console
from rich.table import Table

import tianquan
from random_checkpoint import write_random_checkpoint
from tianquan.llm import CHAT_SAMPLING

EXAMPLES = Path(__file__).parents[1] / "examples"
QUESTIONS = (
    ("a picture", {"text": "What is in the picture?", "image": "shapes.png"}),
    ("a recording", {"text": "Convert speech to text.", "audio": "question.wav"}),
    ("a spoken question", {"image": "shapes.png", "audio": "question.wav"}),
    ("text", {"text": "你好！你能做什么？"}),
)


def main() -> None:
    console = Console(highlight=False)
    folder = Path(tempfile.mkdtemp(prefix="tianquan-demo-"))
    start = time.perf_counter()
    write_random_checkpoint(folder)
    made, start = time.perf_counter() - start, time.perf_counter()
    llm = tianquan.load(folder)
    loaded = time.perf_counter() - start
    console.print(f"[bold]Tianquan {tianquan.__version__}[/bold] on Python {sys.version.split()[0]}")
    console.print(f"made a small random checkpoint in {made:.2f} s, loaded it in int4 in {loaded:.2f} s: {folder}")
    console.print("[yellow]It has learned nothing: expect noise for answers, in the right place.[/yellow]\n")
    table = Table("input", "prompt", "pictures", "sound", "first token", "answer")
    for label, content in QUESTIONS:
        sampling = replace(CHAT_SAMPLING, seed=1, max_tokens=12)
        messages = [{"role": "user", "content": content}]
        completion = llm.chat(messages, sampling=sampling, media_root=EXAMPLES)
        usage, timings = completion.usage, completion.timings
        table.add_row(
            label,
            f"{usage.prompt_tokens} tokens",
            f"{usage.image_tokens}" if usage.image_tokens else "",
            f"{usage.audio_tokens}" if usage.audio_tokens else "",
            f"{timings.ttft_ms:.0f} ms",
            completion.text.replace("\n", " "),
        )
    console.print(table)
    console.print("\nTalk to it:      .venv/bin/tianquan chat " + str(folder))
    console.print("A real model:    .venv/bin/tianquan chat FOLDER_OF_MEGREZ_3B_OMNI 'What is this?' --image photo.jpg")


if __name__ == "__main__":
    main()
