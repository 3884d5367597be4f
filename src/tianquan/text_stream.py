"""From token ids to the text a reader sees: whole characters, and nothing of a stop string."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from tianquan.processing.tokenizer import StreamDecoder, Tokenizer


class TextStream:
    """Feeds on token ids and gives out text that is certain: it can no longer become part of a stop string."""

    def __init__(self, tokenizer: Tokenizer, stop: Sequence[str] = ()) -> None:
        self._decoder = StreamDecoder(tokenizer)
        self._stop = tuple(stop)
        self._held = ""  # text that may be the beginning of a stop string
        self.stopped = False  # a stop string was found

    def add(self, token_id: int) -> str:
        """Return the text that became certain with this token."""
        return self._release(self._decoder.add(token_id))

    def finish(self) -> str:
        """Return the rest of the text: what was held back, and U+FFFD for an unfinished character."""
        text = self._release(self._decoder.finish())
        if not self.stopped:
            text, self._held = text + self._held, ""
        return text

    def _release(self, text: str) -> str:
        if self.stopped:
            return ""
        text = self._held + text
        found = [position for stop in self._stop if (position := text.find(stop)) >= 0]
        if found:
            self.stopped, self._held = True, ""
            return text[: min(found)]
        keep = max((_overlap(text, stop) for stop in self._stop), default=0)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]


def stop_watch(tokenizer: Tokenizer, stop: Sequence[str]) -> Callable[[int], bool]:
    """Return the engine's question whether a token completes a stop string; it has a stream of its own."""
    stream = TextStream(tokenizer, stop)

    def is_stopped(token_id: int) -> bool:
        stream.add(token_id)
        return stream.stopped

    return is_stopped


def _overlap(text: str, stop: str) -> int:
    """Return how many characters at the end of text begin the stop string."""
    longest = min(len(text), len(stop) - 1)
    return next((n for n in range(longest, 0, -1) if stop.startswith(text[-n:])), 0)
