"""`chat`: one streamed answer, or a conversation in the terminal."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tianquan.cli import options
from tianquan.cli.generate import show, warn_if_cut
from tianquan.cli.option_groups import Memory, Pictures, Running, Sampling, Videos, grouped
from tianquan.cli.output import one_line, write_atomically
from tianquan.errors import ParameterError, TianquanError
from tianquan.request import WhenFull

if TYPE_CHECKING:
    from tianquan.request import Completion
    from tianquan.session import Session

_HELP = """\
/image FILE   add a picture to the next message
/audio FILE   add a recording to the next message; an empty line sends what is added
/video FILE   add a video to the next message
/drop         take them off again
/undo         take back the last message and its answer
/tokens       show what each turn takes of the context window
/clear        start a new conversation
/save FILE    write the conversation as JSON
/load FILE    go on with a saved conversation
/quit         leave (Ctrl-D too); Ctrl-C stops an answer"""

ModelOrEmbedded = Annotated[
    str | None, typer.Argument(help="A model folder or a hub id; the embedded model by default.")
]
WhenFullOption = Annotated[
    WhenFull, typer.Option(help="When the window is full: refuse, forget the oldest turns, or sum them up.")
]
KeepMedia = Annotated[bool, typer.Option("--keep-media", help="Never forget turns with pictures or sound.")]


@grouped
def chat(
    model: ModelOrEmbedded = None,
    prompt: Annotated[str | None, typer.Argument(help="Ask this once; without it a conversation starts.")] = None,
    image: Annotated[list[str] | None, typer.Option(help="A picture; may be repeated.")] = None,
    audio: Annotated[list[str] | None, typer.Option(help="A recording; may be repeated.")] = None,
    video: Annotated[list[str] | None, typer.Option(help="A video; may be repeated.")] = None,
    system: Annotated[str | None, typer.Option(help="System prompt; the checkpoint's own by default.")] = None,
    when_full: WhenFullOption = "drop_oldest_turns",
    keep_media: KeepMedia = False,
    *,
    running: Running,
    sampling: Sampling,
    pictures: Pictures,
    videos: Videos,
    memory: Memory,
) -> None:
    """Ask once, or talk: text, pictures, sound and video."""
    from tianquan.checkpoint.hub import EMBEDDED, names_model

    if model is not None and prompt is None and not names_model(model):
        model, prompt = None, model
    if model is None:
        model = EMBEDDED
        print("using the embedded model: small, made for shapes, numbers and short speech", file=sys.stderr)
    progress = options.LoadProgress()
    llm = running.load(model, progress, memory)
    session = llm.session(
        system=system,
        sampling=sampling.over(llm.checkpoint.sampling),
        media=pictures.policy(videos),
        when_full=when_full,
        keep_media=keep_media,
    )
    given_media = {"image": list(image or []), "audio": list(audio or []), "video": list(video or [])}
    conversation = Conversation(session, progress, given_media)
    if prompt is None:
        if not conversation.run():
            raise typer.Exit(2)
    elif not conversation.ask(prompt):
        raise typer.Exit(130)


class Conversation:
    """A conversation in the terminal: the turns so far, and media waiting for the next one."""

    def __init__(self, session: Session, progress: options.LoadProgress, media: dict[str, list[str]]) -> None:
        from rich.console import Console

        self._waiting = media  # files by kind, for the next turn
        self._session = session
        self._progress = progress
        self._video_progress = options.VideoProgress()
        self._console = Console(stderr=True, highlight=False, soft_wrap=True)

    def run(self) -> bool:
        """Read lines until the user leaves; return whether all that a pipe brought could be done."""
        is_talk, is_done = sys.stdin.isatty(), True
        if is_talk:
            _enable_line_editing()
            self._console.print("[dim]/help lists the commands[/dim]")
        while True:
            try:
                line = self._read_line() if is_talk else _next_line()
            except EOFError:
                if is_talk:
                    self._console.print()
                return is_done
            except KeyboardInterrupt:
                self._console.print()
                continue
            if line in ("/quit", "/exit"):
                return is_done
            try:
                if line.startswith("/"):
                    self._command(line)
                elif line or any(self._waiting.values()):
                    self.ask(line)
            except TianquanError as error:
                is_done = is_talk  # a person has read it
                self._console.print(one_line(str(error)), style="red", markup=False)

    def ask(self, text: str) -> bool:
        """Send one turn with the waiting media and stream the answer. Ctrl-C keeps what was said so far.

        Returns:
            Whether the answer came to its end.

        Raises:
            TianquanError: the turn cannot be answered; it is not part of the conversation then.
        """
        media = self._waiting
        self._drop()  # sent once: a file that cannot be used must not stay in the way
        num_dropped = self._session.num_dropped
        completion = None
        stream = None
        try:
            stream = self._session.stream(
                text or None,
                images=media["image"],
                audios=media["audio"],
                videos=media["video"],
                on_video=self._video_progress,
            )
            self._video_progress.stop()
            for piece in stream:
                show(piece.text)
                completion = piece.completion
        except KeyboardInterrupt:
            if stream is not None:  # else a video was being read
                stream.close()  # the conversation keeps what was said
            self._console.print("\n[dim](stopped)[/dim]", end="")
        finally:
            self._video_progress.stop()
            self._progress.stop()
        print(flush=True)
        if self._session.num_dropped > num_dropped:
            self._console.print("[dim](the window was full: the oldest turns are forgotten)[/dim]")
        if completion is not None:
            warn_if_cut(completion)
        if completion is not None and sys.stderr.isatty():
            self._console.print(_summary(completion), style="dim")
        return completion is not None

    def _drop(self) -> None:
        self._waiting = {kind: [] for kind in self._waiting}

    def _read_line(self) -> str:
        waiting = "".join(f"[{Path(name).name}] " for files in self._waiting.values() for name in files)
        return input(f"{waiting}> ").strip()

    def _command(self, line: str) -> None:
        command, _, argument = line.partition(" ")
        if command == "/help":
            self._console.print(_HELP, markup=False)
        elif command == "/clear":
            self._session.clear()
            self._drop()
        elif command == "/undo":
            self._session.undo()
        elif command == "/tokens":
            self._show_tokens()
        elif command == "/drop":
            self._drop()
        elif command in ("/image", "/audio", "/video"):
            path = _parse_path(argument, command)
            if not path.is_file():
                raise ParameterError(f"{path}: no such file")
            self._waiting[command[1:]].append(str(path.absolute()))
        elif command == "/save":
            path = _parse_path(argument, command)
            write_atomically(path, self._session.to_json().encode("utf-8", "replace") + b"\n")
            self._console.print(f"saved {len(self._session.turns)} turns to {path}", markup=False)
        elif command == "/load":
            self._session.load(_parse_path(argument, command))
            self._console.print(f"{len(self._session.turns)} turns", markup=False)
        else:
            raise ParameterError(f"{command}: no such command; /help lists them")

    def _show_tokens(self) -> None:
        budget = self._session.budget()
        for n, row in enumerate(budget.turns, 1):
            media = [(row.image_tokens, "of pictures"), (row.video_tokens, "of video"), (row.audio_tokens, "of sound")]
            parts = ", ".join(f"{count} {what}" for count, what in media if count)
            self._console.print(f"{n:3} {row.role:9} {row.tokens:6}{f'  ({parts})' if parts else ''}", markup=False)
        forgotten = f", {budget.num_dropped} turns forgotten" if budget.num_dropped else ""
        self._console.print(f"{budget.used} of {budget.window} tokens, room for {budget.room}{forgotten}", markup=False)


def _next_line() -> str:
    """Return the next line of a pipe; nobody is there to be prompted."""
    line = sys.stdin.readline()
    if not line:
        raise EOFError
    return line.strip()


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
        f"{usage.prompt_tokens} prompt tokens, {usage.cached_tokens} of them known, "
        f"first token after {timings.ttft_ms / 1000:.2f} s, "
        f"{usage.completion_tokens} tokens{speed}"
    )


def _enable_line_editing() -> None:
    """Arrow keys and history in `input`, where Python was built with readline."""
    try:
        import readline  # importing it is what turns it on
    except ImportError:
        return
    readline.set_auto_history(True)
