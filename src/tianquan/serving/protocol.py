"""The bodies of requests, by OpenAI's names. What is not here is answered with 400, never ignored.

Fields that clients send although they mean nothing here (null, or the one value that is what we do) are taken
with exactly that value. Ranges of sampling parameters are the engine's to check.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from tianquan.processing.labels import printable
from tianquan.serving.api_error import ApiError

MAX_MESSAGES = 2048
MAX_PARTS = 256  # of one message
MAX_PROMPTS = 64  # of one completion request
MAX_TEXT = 1_000_000  # characters of one text
MAX_NAME = 256

Text = Annotated[str, Field(max_length=MAX_TEXT)]
Name = Annotated[str, Field(max_length=MAX_NAME)]


class Body(BaseModel):
    """Base of all: exact types, no unknown fields."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False, frozen=True)


# Parts of a message ---------------------------------------------------------------------------------------
class TextPart(Body):
    """Text."""

    type: Literal["text"]
    text: Text


class ImageUrl(Body):
    """A picture. detail: low looks at an overview only; auto and high cut it into slices."""

    url: str
    detail: Literal["auto", "low", "high"] = "auto"


class ImagePart(Body):
    """A picture by data:, https: (if the server allows its host) or file: (if it has a media root)."""

    type: Literal["image_url"]
    image_url: ImageUrl


class InputAudio(Body):
    """Sound in base64. The format is found out from the bytes; the name is checked only."""

    data: str
    format: Literal["wav", "mp3", "flac", "ogg", "opus", "m4a", "mp4", "aac", "webm"]


class InputAudioPart(Body):
    """Sound in base64."""

    type: Literal["input_audio"]
    input_audio: InputAudio


class Url(Body):
    """Where a medium is."""

    url: str


class AudioUrlPart(Body):
    """Sound by URL, as for pictures."""

    type: Literal["audio_url"]
    audio_url: Url


class VideoUrlPart(Body):
    """Video by URL, as for pictures: frames are chosen and fitted into a budget of tokens."""

    type: Literal["video_url"]
    video_url: Url


UserPart = Annotated[
    TextPart | ImagePart | InputAudioPart | AudioUrlPart | VideoUrlPart,
    Field(discriminator="type"),
]
Parts = Annotated[list[UserPart], Field(min_length=1, max_length=MAX_PARTS)]
TextParts = Annotated[list[TextPart], Field(min_length=1, max_length=MAX_PARTS)]


# Messages -------------------------------------------------------------------------------------------------
class SystemMessage(Body):
    """Instructions."""

    role: Literal["system"]
    name: None = None
    content: Text | TextParts


class DeveloperMessage(Body):
    """Instructions, by OpenAI's newer name."""

    role: Literal["developer"]
    name: None = None
    content: Text | TextParts


class UserMessage(Body):
    """A turn of the user."""

    role: Literal["user"]
    name: None = None
    content: Text | Parts


class FunctionCall(Body):
    """The function the model called, with its arguments as JSON text."""

    name: Name
    arguments: Text


class ToolCall(Body):
    """A call the model made in an earlier turn."""

    id: Name
    type: Literal["function"] = "function"
    function: FunctionCall


class AssistantMessage(Body):
    """A turn of the model; the empty fields are those OpenAI's clients send back."""

    role: Literal["assistant"]
    content: Text | TextParts | None = None
    tool_calls: Annotated[list[ToolCall], Field(max_length=128)] | None = None
    name: None = None
    refusal: None = None
    audio: None = None
    function_call: None = None
    annotations: Annotated[list[Any], Field(max_length=0)] | None = None


class ToolMessage(Body):
    """What a called tool answered."""

    role: Literal["tool"]
    content: Text | TextParts
    tool_call_id: Name


Message = Annotated[
    SystemMessage | DeveloperMessage | UserMessage | AssistantMessage | ToolMessage,
    Field(discriminator="role"),
]


# The form of answers --------------------------------------------------------------------------------------
class TextFormat(Body):
    """Any text."""

    type: Literal["text"]


class JsonObjectFormat(Body):
    """A JSON object of any shape."""

    type: Literal["json_object"]


class NamedSchema(Body):
    """A schema; it is always kept to, whatever `strict` says."""

    name: Name
    schema_: dict[str, Any] = Field(alias="schema")
    description: str | None = None
    strict: bool | None = None


class JsonSchemaFormat(Body):
    """JSON of a schema."""

    type: Literal["json_schema"]
    json_schema: NamedSchema


ResponseFormat = Annotated[TextFormat | JsonObjectFormat | JsonSchemaFormat, Field(discriminator="type")]


class Function(Body):
    """A tool the model may call."""

    name: Name
    description: Text | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class Tool(Body):
    """A tool the model may call."""

    type: Literal["function"]
    function: Function


class FunctionName(Body):
    """Which function."""

    name: Name


class NamedTool(Body):
    """The tool that must be called."""

    type: Literal["function"]
    function: FunctionName


class StreamOptions(Body):
    """include_usage: one more chunk at the end, with the usage."""

    include_usage: bool | None = None


# Requests -------------------------------------------------------------------------------------------------
class SamplingFields(Body):
    """What chat and text completions share. None: the model's advice."""

    model: Name | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    max_tokens: int | None = None
    min_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    logit_bias: Annotated[dict[str, float], Field(max_length=1024)] | None = None
    stop: str | Annotated[list[str], Field(max_length=64)] | None = None
    seed: int | None = None
    n: int | None = None
    ignore_eos: bool | None = None
    user: Name | None = None
    cache_salt: Name | None = None


class ChatRequest(SamplingFields):
    """The body of `POST /v1/chat/completions`."""

    messages: Annotated[list[Message], Field(min_length=1, max_length=MAX_MESSAGES)]
    max_completion_tokens: int | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = None
    response_format: ResponseFormat | None = None
    tools: Annotated[list[Tool], Field(max_length=128)] | None = None
    tool_choice: Literal["none", "auto", "required"] | NamedTool | None = None
    parallel_tool_calls: bool | None = None
    modalities: list[Literal["text"]] | None = None
    store: Literal[False] | None = None
    service_tier: Literal["auto", "default"] | None = None
    metadata: None = None


TokenIds = Annotated[list[int], Field(max_length=MAX_TEXT, fail_fast=True)]  # one error, not a million


class CompletionRequest(SamplingFields):
    """The body of `POST /v1/completions`."""

    prompt: (
        Text
        | Annotated[list[Text], Field(min_length=1, max_length=MAX_PROMPTS)]
        | TokenIds
        | Annotated[list[TokenIds], Field(min_length=1, max_length=MAX_PROMPTS)]
    )
    logprobs: int | None = None
    echo: Literal[False] | None = None
    suffix: None = None
    best_of: Literal[1] | None = None


class TokenizeRequest(Body):
    """The body of `POST /tokenize`: exactly one of prompt (or content, the same), and messages."""

    model: Name | None = None
    prompt: Text | None = None
    content: Text | None = None
    messages: Annotated[list[Message], Field(min_length=1, max_length=MAX_MESSAGES)] | None = None


class TranscriptionRequest(Body):
    """The fields of `POST /v1/audio/transcriptions` beside the file."""

    model: Name | None = None
    language: Literal["zh", "en"] | None = None
    prompt: Annotated[str, Field(max_length=2000)] | None = None
    response_format: Literal["json", "text", "verbose_json"] = "json"
    temperature: float | None = None
    stream: bool = False
    chunking_strategy: Literal["auto"] | None = None


# Errors ---------------------------------------------------------------------------------------------------
_OWN_WORDS = {
    "extra_forbidden": "is not supported",
    "missing": "is missing",
    "none_required": "is not supported",
    "literal_error": "has a value that is not supported",
    "union_tag_invalid": "is of a type that is not supported",
    "union_tag_not_found": "has no type",
}
_TAGS = frozenset(
    ("system", "developer", "user", "assistant", "tool", "text", "image_url", "input_audio", "audio_url", "video_url")
)
_FORMAT_TAGS = ("text", "json_object", "json_schema")
_BRANCHES = ("str", "int", "float", "bool", "none", "nullable", "constrained-str", "NamedTool")


def invalid_body(error: ValidationError) -> ApiError:
    """Return the answer to a body of the wrong form: which field, and what was expected there."""
    found = error.errors(include_url=False, include_context=True, include_input=False)
    # of a union each branch complains: the one that got furthest is what the client meant, and then not one of a type
    first = max(
        found,
        key=lambda item: (
            item["type"] != "none_required",
            len(_path(item["loc"])),
            not item["type"].endswith("_type"),
        ),
    )
    kind, words = first["type"], str(first["msg"])
    if kind == "json_invalid":
        return ApiError(400, f"the body is not valid JSON: {words.removeprefix('Invalid JSON: ')}", code="invalid_json")
    where = printable(_shown(_path(first["loc"])), 120)
    words = _OWN_WORDS.get(kind) or words.replace("Input should", "must").replace("should", "must")
    expected = first.get("ctx", {}).get("expected") or first.get("ctx", {}).get("expected_tags")
    if expected:
        words += f"; expected {expected}"
    words = words[0].lower() + words[1:]
    return ApiError(400, f"{where or 'the body'} {words}", param=where or None, code="invalid_value")


def _path(loc: tuple[int | str, ...]) -> list[int | str]:
    """Return where in the body an error is, without pydantic's names of union branches."""
    path: list[int | str] = []
    for n, item in enumerate(loc):
        before = loc[n - 1] if n else None
        is_last = n == len(loc) - 1
        is_branch = isinstance(item, str) and (item in _BRANCHES or any(c in item for c in "[("))
        is_tag = (isinstance(before, int) and item in _TAGS) or (before == "response_format" and item in _FORMAT_TAGS)
        if not is_tag and (not is_branch or (is_last and n == 0)):
            path.append(item)
    return path


def _shown(path: list[int | str]) -> str:
    shown = ""
    for item in path:
        shown += f"[{item}]" if isinstance(item, int) else f".{item}" if shown else item
    return shown
