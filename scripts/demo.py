"""What `make demo` shows: the embedded model sees pictures, hears recordings and holds a conversation."""

from __future__ import annotations

import sys
import time
from pathlib import Path

from rich.console import Console
from rich.table import Table

import tianquan
from tianquan.request import Completion

EXAMPLES = Path(__file__).parents[1] / "examples"
QUESTIONS: tuple[tuple[str, dict[str, str]], ...] = (
    ("a picture", {"text": "What is in the picture?", "image": "shapes.png"}),
    ("a picture of a number", {"text": "图中的数字是什么？", "image": "number.png"}),
    ("a recording to write down", {"text": "Convert speech to text.", "audio": "command.wav"}),
    ("a picture and a spoken question", {"image": "shapes.png", "audio": "question.wav"}),
)
TURNS = ("How many shapes are there?", "What colour is the square?")


def main() -> None:
    """Load the embedded model, ask, and print a table."""
    console = Console(highlight=False)
    start = time.perf_counter()
    llm = tianquan.load("embedded")
    loaded = time.perf_counter() - start
    console.print(f"[bold]Tianquan {tianquan.__version__}[/bold] on Python {sys.version.split()[0]}")
    console.print(f"the embedded model was loaded in {loaded:.2f} s\n")
    table = Table("input", "question", "prompt", "first token", "answer")
    for label, content in QUESTIONS:
        completion = llm.chat([{"role": "user", "content": content}], media_root=EXAMPLES)
        table.add_row(label, content.get("text", "(spoken)"), *_cells(completion))
    session = llm.session(media_root=EXAMPLES)
    for n, question in enumerate(TURNS):
        completion = session.send(question, images=["shapes.png"] if n == 0 else [])
        table.add_row(f"a conversation, turn {n + 1}", question, *_cells(completion))
    console.print(table)
    console.print(f"\nThe files are in {EXAMPLES}. What the model can and cannot do: docs/embedded-model.md")
    console.print("Talk to it:      .venv/bin/tianquan chat")
    console.print("A real model:    .venv/bin/tianquan chat FOLDER_OF_MEGREZ_3B_OMNI 'What is this?' --image photo.jpg")


def _cells(completion: Completion) -> tuple[str, str, str]:
    usage = completion.usage
    counts = [(usage.image_tokens, "picture"), (usage.audio_tokens, "sound")]
    media = "".join(f", {count} {kind}" for count, kind in counts if count)
    return f"{usage.prompt_tokens} tokens{media}", f"{completion.timings.ttft_ms:.0f} ms", completion.text


if __name__ == "__main__":
    main()
