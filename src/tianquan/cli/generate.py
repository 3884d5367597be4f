"""`generate`, `trace` and `transcribe`: one result for one input."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tianquan.cli import options
from tianquan.cli.option_groups import Memory, Pictures, Running, Sampling, Videos, grouped
from tianquan.cli.output import check_writable, terminal_safe, write_atomically
from tianquan.errors import ParameterError, PromptError
from tianquan.request import OutputFormat

if TYPE_CHECKING:
    from tianquan.request import Completion

Messages = Annotated[str, typer.Option(help="JSON file with messages, vendor or OpenAI form; - reads stdin.")]
JsonSchema = Annotated[Path | None, typer.Option(help="File with a JSON schema the answer must keep to.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of the text.")]


def read_messages(source: str) -> Any:
    """Return the messages of a JSON file or of stdin: a list, or an object with the key messages.

    Raises:
        PromptError: it cannot be read, is not JSON, or has no messages.
    """
    try:
        data = sys.stdin.buffer.read() if source == "-" else Path(source).read_bytes()
        value = json.loads(data.decode("utf-8-sig"))
    except OSError as error:
        raise PromptError(f"{source}: cannot be read ({error.strerror})") from error
    except (ValueError, RecursionError) as error:
        raise PromptError(f"{source}: not valid JSON in UTF-8; expected a list of messages") from error
    if not isinstance(value, dict):
        return value
    if "messages" not in value:
        raise PromptError(f"{source}: the JSON object has no messages")
    others = sorted(set(value) - {"messages"})
    if others:
        print(f"tianquan: {source}: only messages is read; not {', '.join(others)}", file=sys.stderr)
    return value["messages"]


def read_schema(path: Path) -> OutputFormat:
    """Return the form that a file's JSON schema asks for; whether it is one, the engine says.

    Raises:
        ParameterError: it cannot be read.
    """
    try:
        return OutputFormat(kind="json_schema", definition=path.read_text("utf-8-sig"))
    except OSError as error:
        raise ParameterError(f"{path}: cannot be read ({error.strerror})") from error
    except ValueError as error:
        raise ParameterError(f"{path}: not UTF-8; expected a JSON schema") from error


def show(text: str) -> None:
    """Print a piece of an answer; on a terminal without characters that steer it."""
    print(terminal_safe(text) if sys.stdout.isatty() else text, end="", flush=True)


def warn_if_cut(completion: Completion) -> bool:
    """Say on stderr that an answer ended where it was allowed no more tokens; return whether it did."""
    is_cut = completion.finish_reason == "length"
    if is_cut:
        print(
            f"tianquan: cut off after {completion.usage.completion_tokens} tokens; give more --max-tokens",
            file=sys.stderr,
        )
    return is_cut


def completion_to_dict(completion: Completion) -> dict[str, Any]:
    """Return the documented JSON form of an answer."""
    usage = completion.usage
    timings = {name: round(value, 3) for name, value in asdict(completion.timings).items()}
    timings["decode_tokens_per_second"] = round(completion.timings.decode_tokens_per_second(usage.completion_tokens), 3)
    return {
        "text": completion.text,
        "token_ids": completion.token_ids,
        "prompt_token_ids": completion.prompt_token_ids,
        "usage": {**asdict(usage), "total_tokens": usage.prompt_tokens + usage.completion_tokens},
        "finish_reason": completion.finish_reason,
        "timings": timings,
    }


@grouped
def generate(
    model: options.ModelArgument,
    messages: Messages,
    media_root: options.MediaRoot = None,
    json_output: Json = False,
    json_schema: JsonSchema = None,
    ignore_eos: options.IgnoreEos = False,
    *,
    running: Running,
    sampling: Sampling,
    pictures: Pictures,
    videos: Videos,
    memory: Memory,
) -> None:
    """Answer the messages of a JSON file; with code 1 where --json-schema asks for more than there were tokens for."""
    conversation = read_messages(messages)
    schema = None if json_schema is None else read_schema(json_schema)
    llm = running.load(model, memory=memory)
    chosen = replace(sampling.over(llm.checkpoint.sampling), ignore_eos=ignore_eos, output_format=schema)
    progress = options.VideoProgress()
    try:
        pieces = llm.stream_chat(
            conversation,
            sampling=chosen,
            media=pictures.policy(videos),
            media_root=media_root,
            on_video=progress,
        )
    finally:
        progress.stop()
    for piece in pieces:
        if not json_output:
            show(piece.text)
        if piece.completion is not None:
            print(json.dumps(completion_to_dict(piece.completion), ensure_ascii=False) if json_output else "")
            if not ignore_eos and warn_if_cut(piece.completion) and schema is not None:
                raise typer.Exit(1)


@grouped
def trace(
    model: options.ModelArgument,
    messages: Messages,
    output: Annotated[Path, typer.Option(help="Safetensors file to write.")],
    media_root: options.MediaRoot = None,
    *,
    running: Running,
    pictures: Pictures,
) -> None:
    """Write the tensors of each stage: prompt_token_ids, image_features, audio_features.N, logits."""
    import numpy as np
    from safetensors.numpy import save

    conversation = read_messages(messages)
    check_writable(output)
    llm = running.load(model)
    arrays = llm.trace(conversation, media=pictures.policy(), media_root=media_root).to_arrays()
    write_atomically(output, save({name: np.ascontiguousarray(array) for name, array in arrays.items()}))


@grouped
def transcribe(
    model: Annotated[
        str, typer.Argument(help="A model folder or a hub id; alone, the recording, for the embedded model.")
    ],
    audio: Annotated[str | None, typer.Argument(help="Sound file: WAV, FLAC, MP3, OGG, M4A or WebM.")] = None,
    long_audio: options.LongAudioOption = "chunk",
    instruction: Annotated[str | None, typer.Option(help="What to ask; the vendor's prompt by default.")] = None,
    json_output: Json = False,
    max_tokens: options.MaxTokens = None,
    *,
    running: Running,
) -> None:
    """Print what is said in a recording."""
    from tianquan.checkpoint.hub import EMBEDDED
    from tianquan.llm import TRANSCRIBE_INSTRUCTION, TRANSCRIBE_SAMPLING

    if audio is None:
        if Path(model).is_dir() or model == EMBEDDED:
            raise ParameterError(f"{model}: is a model; name a recording behind it")
        model, audio = EMBEDDED, model
    sampling = TRANSCRIBE_SAMPLING if max_tokens is None else replace(TRANSCRIBE_SAMPLING, max_tokens=max_tokens)
    llm = running.load(model)
    clips, is_cut = [], False
    for piece in llm.stream_transcription(
        audio, long_audio=long_audio, instruction=instruction or TRANSCRIBE_INSTRUCTION, sampling=sampling
    ):
        if not json_output:
            show(piece.text)
        if piece.completion is not None:
            clips.append(completion_to_dict(piece.completion))
            is_cut |= piece.completion.finish_reason == "length"
    text = "\n".join(clip["text"] for clip in clips)
    print(json.dumps({"text": text, "clips": clips}, ensure_ascii=False) if json_output else "")
    if is_cut:
        print("tianquan: a part was cut off; give more --max-tokens", file=sys.stderr)
