"""`chat`: one streamed answer, or a conversation in the terminal."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tianquan.cli import options
from tianquan.cli.generate import write_atomically
from tianquan.errors import ParameterError, TianquanError

if TYPE_CHECKING:
    from rich.console import Console

    from tianquan.llm import LLM
    from tianquan.request import Completion, MediaPolicy, SamplingParams

_HELP = """\
/image FILE   add a picture to the next message
/audio FILE   add a recording to the next message
/clear        start a new conversation
/save FILE    write the conversation as JSON
/quit         leave (Ctrl-D too); Ctrl-C stops an answer"""


def chat(
    model: Annotated[str | None, typer.Argument(help="A model folder, or a hub id: owner/name[@revision].")] = None,
    prompt: Annotated[str | None, typer.Argument(help="Ask this once; without it a conversation starts.")] = None,
    image: Annotated[list[Path] | None, typer.Option(help="A picture; may be repeated.")] = None,
    audio: Annotated[list[Path] | None, typer.Option(help="A recording; may be repeated.")] = None,
    system: Annotated[str | None, typer.Option(help="System prompt; the checkpoint's own by default.")] = None,
    precision: options.Precision = None,
    backend: options.BackendOption = "native",
    device: options.Device = "cpu",
    threads: options.Threads = None,
    revision: options.Revision = None,
    temperature: options.Temperature = None,
    top_p: options.TopP = None,
    top_k: options.TopK = None,
    min_p: options.MinP = None,
    repetition_penalty: options.RepetitionPenalty = None,
    max_tokens: options.MaxTokens = None,
    seed: options.Seed = None,
    stop: options.Stop = None,
    max_slices: options.MaxSlices = None,
    max_image_tokens: options.MaxImageTokens = None,
    long_audio: options.LongAudioOption = "error",
) -> None:
    """Ask once, or talk: text, pictures and sound."""
    from rich.console import Console

    from tianquan.llm import CHAT_SAMPLING

    if model is None:
        raise ParameterError("name a model folder or a hub id; this version has no embedded model")
    sampling = options.sampling_params(
        CHAT_SAMPLING,
        temperature=temperature,
        top_p=top_p,
        top_k=top_k,
        min_p=min_p,
        repetition_penalty=repetition_penalty,
        max_tokens=max_tokens,
        seed=seed,
        stop=stop,
    )
    policy = options.media_policy(max_slices, max_image_tokens, long_audio)
    llm = options.load_model(
        model, precision=precision, backend=backend, device=device, threads=threads, revision=revision
    )
    conversation = Conversation(llm, sampling, policy, system, Console(stderr=True))
    conversation.images, conversation.audios = list(image or []), list(audio or [])
    if prompt is not None:
        conversation.ask(prompt)
    else:
        conversation.run()


class Conversation:
    """A conversation in the terminal: the turns so far, and media waiting for the next one."""

    def __init__(
        self, llm: LLM, sampling: SamplingParams, policy: MediaPolicy, system: str | None, console: Console
    ) -> None:
        self.images: list[Path] = []
        self.audios: list[Path] = []
        self._llm = llm
        self._sampling = sampling
        self._policy = policy
        self._system = [] if system is None else [{"role": "system", "content": system}]
        self._turns: list[dict[str, Any]] = []
        self._console = console

    def run(self) -> None:
        """Read lines until the user leaves."""
        _enable_line_editing()
        self._console.print("[dim]/help lists the commands[/dim]")
        while True:
            try:
                line = self._read_line()
            except EOFError:
                self._console.print()
                return
            except KeyboardInterrupt:
                self._console.print()
                continue
            if line in ("/quit", "/exit"):
                return
            try:
                if line.startswith("/"):
                    self._command(line)
                elif line or self.images or self.audios:
                    self.ask(line)
            except TianquanError as error:
                self._console.print(f"[red]{error}[/red]", highlight=False)

    def ask(self, text: str) -> None:
        """Send one turn with the waiting media and stream the answer. Ctrl-C keeps what was said so far."""
        content: dict[str, Any] = {"text": text} if text else {}
        if self.images:
            content["image"] = [str(path) for path in self.images]
        if self.audios:
            content["audio"] = [str(path) for path in self.audios]
        turns = [*self._turns, {"role": "user", "content": content}]
        answer, completion = "", None
        try:
            pieces = self._llm.stream_chat(
                [*self._system, *turns], sampling=replace(self._sampling), media=self._policy
            )
            for piece in pieces:
                answer += piece.text
                print(piece.text, end="", flush=True)
                completion = piece.completion
        except KeyboardInterrupt:
            self._console.print("\n[dim](stopped)[/dim]", end="")
        print()
        self._turns = [*turns, {"role": "assistant", "content": answer}]
        self.images, self.audios = [], []
        if completion is not None and sys.stderr.isatty():
            self._console.print(_summary(completion), style="dim", highlight=False)

    def _read_line(self) -> str:
        waiting = "".join(f"[{path.name}] " for path in (*self.images, *self.audios))
        return input(f"{waiting}> ").strip()

    def _command(self, line: str) -> None:
        command, _, argument = line.partition(" ")
        argument = argument.strip().strip("\"'")
        if command == "/help":
            self._console.print(_HELP, highlight=False, markup=False)
        elif command == "/clear":
            self._turns, self.images, self.audios = [], [], []
        elif command in ("/image", "/audio", "/save") and not argument:
            raise ParameterError(f"{command} needs a file name")
        elif command in ("/image", "/audio"):
            path = Path(argument).expanduser()
            if not path.is_file():
                raise ParameterError(f"{path}: no such file")
            (self.images if command == "/image" else self.audios).append(path.absolute())
        elif command == "/save":
            path = Path(argument).expanduser()
            data = json.dumps([*self._system, *self._turns], ensure_ascii=False, indent=1)
            write_atomically(path, data.encode() + b"\n")
            self._console.print(f"saved {len(self._turns)} turns to {path}", highlight=False, markup=False)
        else:
            raise ParameterError(f"{command}: no such command; /help lists them")


def _summary(completion: Completion) -> str:
    usage, timings = completion.usage, completion.timings
    rate = timings.decode_tokens_per_second(usage.completion_tokens)
    speed = f", {rate:.1f} tokens/s" if rate else ""
    return (
        f"{usage.prompt_tokens} prompt tokens, first token after {timings.ttft_ms / 1000:.2f} s, "
        f"{usage.completion_tokens} tokens{speed}"
    )


def _enable_line_editing() -> None:
    """Arrow keys and history in `input`, where Python was built with readline."""
    try:
        import readline  # importing it is what turns it on
    except ImportError:
        return
    readline.set_auto_history(True)
