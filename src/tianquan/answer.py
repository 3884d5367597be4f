"""One answer on its way: token ids from the engine become text, piece by piece."""

from __future__ import annotations

import queue
from collections.abc import Iterator
from dataclasses import dataclass, replace

from tianquan.engine.interface import EngineRequest, RequestEnd, RequestOutput
from tianquan.engine_driver import EngineDriver
from tianquan.processing.tokenizer import Tokenizer
from tianquan.request import Completion, FinishReason, TokenLogprob
from tianquan.text_stream import TextStream, stop_watch


@dataclass(frozen=True)
class TextPiece:
    """A piece of an answer being streamed. The last piece carries the completion."""

    text: str
    completion: Completion | None = None


class Answer(Iterator[TextPiece]):
    """Pieces of one answer. Closing it before its end, or losing it, aborts the request.

    Args:
        driver: the engine's.
        request: what to answer; its stop strings are watched for here.
        tokenizer: makes text of ids.

    Raises:
        ParameterError, PromptError: see `Engine.add`.
    """

    def __init__(self, driver: EngineDriver, request: EngineRequest, tokenizer: Tokenizer) -> None:
        self._is_over = True  # until it has begun
        self._request = request
        self._driver = driver
        self._stream = TextStream(tokenizer, request.sampling.stop)
        self._text = ""
        self._token_ids: list[int] = []
        self._logprobs: list[TokenLogprob] = []
        self._arrived: queue.SimpleQueue[RequestOutput | Exception] = queue.SimpleQueue()
        if request.sampling.stop:
            request = replace(request, is_stopped=stop_watch(tokenizer, request.sampling.stop))
        self._id = driver.submit(request, self._arrived.put, self._arrived.put)
        self._is_over = False

    def __next__(self) -> TextPiece:
        """Wait for text and return it.

        Raises:
            ModelError and others: the request ended by an error.
        """
        while not self._is_over:
            output = self._arrived.get()
            if isinstance(output, Exception):
                self._is_over = True
                raise output
            text = self._take(output)
            if output.end is not None:
                self._is_over = True
                if output.end.error is not None:
                    raise output.end.error
                return TextPiece(text, self._completion(output.end))
            if text:
                return TextPiece(text)
        raise StopIteration

    def _take(self, output: RequestOutput) -> str:
        """Return the text that became certain with an output."""
        text = ""
        for token_id in output.token_ids:
            self._token_ids.append(token_id)
            if token_id not in self._request.stop_token_ids:
                text += self._stream.add(token_id)
        self._logprobs += output.logprobs
        if output.end is not None:
            text += self._stream.finish()
        self._text += text
        return text

    def _completion(self, end: RequestEnd) -> Completion:
        assert end.reason != "error"
        reason: FinishReason = "stop" if self._stream.stopped else end.reason
        return Completion(
            text=self._text,
            token_ids=self._token_ids,
            prompt_token_ids=self._request.prompt.token_ids.tolist(),
            finish_reason=reason,
            usage=end.usage,
            timings=end.timings,
            logprobs=tuple(self._logprobs),
        )

    def close(self) -> None:
        """Abort the request if it has not ended."""
        if not self._is_over:
            self._is_over = True
            self._driver.abort(self._id)

    def __del__(self) -> None:
        self.close()


def last(pieces: Iterator[TextPiece]) -> Completion:
    """Return the completion at the end of a stream."""
    completion = None
    for piece in pieces:
        completion = piece.completion
    assert completion is not None, "a stream ends with its completion"
    return completion
