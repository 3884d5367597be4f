"""`chat`: one streamed answer, or a conversation in the terminal."""

from __future__ import annotations

import json
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tianquan.cli import options
from tianquan.cli.generate import show
from tianquan.cli.output import one_line, write_atomically
from tianquan.errors import ParameterError, TianquanError

if TYPE_CHECKING:
    from tianquan.llm import LLM
    from tianquan.request import Completion, MediaPolicy, SamplingParams

_HELP = """\
/image FILE   add a picture to the next message
/audio FILE   add a recording to the next message
/drop         take them off again
/clear        start a new conversation
/save FILE    write the conversation as JSON
/quit         leave (Ctrl-D too); Ctrl-C stops an answer"""


def chat(
    model: Annotated[str | None, typer.Argument(help="A model folder, or a hub id: owner/name[@revision].")] = None,
    prompt: Annotated[str | None, typer.Argument(help="Ask this once; without it a conversation starts.")] = None,
    image: Annotated[list[str] | None, typer.Option(help="A picture; may be repeated.")] = None,
    audio: Annotated[list[str] | None, typer.Option(help="A recording; may be repeated.")] = None,
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
    progress = options.LoadProgress()
    llm = options.load_model(
        model,
        precision=precision,
        backend=backend,
        device=device,
        threads=threads,
        revision=revision,
        progress=progress,
    )
    conversation = Conversation(llm, sampling, policy, system, progress)
    conversation.images, conversation.audios = list(image or []), list(audio or [])
    if prompt is None:
        conversation.run()
    elif not conversation.ask(prompt):
        raise typer.Exit(130)


class Conversation:
    """A conversation in the terminal: the turns so far, and media waiting for the next one."""

    def __init__(
        self,
        llm: LLM,
        sampling: SamplingParams,
        policy: MediaPolicy,
        system: str | None,
        progress: options.LoadProgress,
    ) -> None:
        from rich.console import Console

        self.images: list[str] = []
        self.audios: list[str] = []
        self._progress = progress
        self._llm = llm
        self._sampling = sampling
        self._policy = policy
        self._system = [] if system is None else [{"role": "system", "content": system}]
        self._turns: list[dict[str, Any]] = []
        self._console = Console(stderr=True, highlight=False, soft_wrap=True)

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
                self._console.print(one_line(str(error)), style="red", markup=False)

    def ask(self, text: str) -> bool:
        """Send one turn with the waiting media and stream the answer. Ctrl-C keeps what was said so far.

        Returns:
            Whether the answer came to its end.

        Raises:
            TianquanError: the turn cannot be answered; it is not part of the conversation then.
        """
        content: dict[str, Any] = {"text": text} if text else {}
        if self.images:
            content["image"] = self.images
        if self.audios:
            content["audio"] = self.audios
        self.images, self.audios = [], []  # sent once: a file that cannot be used must not stay in the way
        turns = [*self._turns, {"role": "user", "content": content}]
        answer, completion = "", None
        try:
            for piece in self._llm.stream_chat([*self._system, *turns], sampling=self._sampling, media=self._policy):
                answer += piece.text
                show(piece.text)
                completion = piece.completion
        except KeyboardInterrupt:
            self._console.print("\n[dim](stopped)[/dim]", end="")
        finally:
            self._progress.stop()
        print(flush=True)
        self._turns = [*turns, {"role": "assistant", "content": answer}]
        if completion is not None and sys.stderr.isatty():
            self._console.print(_summary(completion), style="dim")
        return completion is not None

    def _read_line(self) -> str:
        waiting = "".join(f"[{Path(name).name}] " for name in (*self.images, *self.audios))
        return input(f"{waiting}> ").strip()

    def _command(self, line: str) -> None:
        command, _, argument = line.partition(" ")
        if command == "/help":
            self._console.print(_HELP, markup=False)
        elif command == "/clear":
            self._turns, self.images, self.audios = [], [], []
        elif command == "/drop":
            self.images, self.audios = [], []
        elif command in ("/image", "/audio"):
            path = _parse_path(argument, command)
            if not path.is_file():
                raise ParameterError(f"{path}: no such file")
            (self.images if command == "/image" else self.audios).append(str(path.absolute()))
        elif command == "/save":
            path = _parse_path(argument, command)
            data = json.dumps([*self._system, *self._turns], ensure_ascii=False, indent=1)
            write_atomically(path, data.encode("utf-8", "replace") + b"\n")
            self._console.print(f"saved {len(self._turns)} turns to {path}", markup=False)
        else:
            raise ParameterError(f"{command}: no such command; /help lists them")


def _parse_path(argument: str, command: str) -> Path:
    """Return the path a user typed or dropped: as it stands if it exists, else with quotes and backslashes undone."""
    argument = argument.strip()
    if not argument:
        raise ParameterError(f"{command} needs a file name")
    try:
        path = Path(argument).expanduser()
        if path.exists():
            return path
        words = shlex.split(argument)
        path = Path(words[0] if len(words) == 1 else argument).expanduser()
        path.exists()  # a name the system cannot take raises here
        return path
    except (OSError, RuntimeError, ValueError) as error:
        raise ParameterError(f"{argument}: not a usable file name") from error


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
