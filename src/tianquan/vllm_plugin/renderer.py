"""Conversations and texts to prompts for vLLM, by this package's processor.

vLLM fetches and decodes the media; the template, the breaking of special strings that users wrote, and the tokens are
the processor's. Where a medium goes the prompt holds an empty frame, `<|image_start|><|image_end|>` or the same of
audio, which no text can spell and no finished prompt contains; `media_processor.py` fills the frames.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any, get_args

from vllm.config import VllmConfig
from vllm.exceptions import VLLMValidationError
from vllm.inputs import TextPrompt, TokensPrompt
from vllm.multimodal.media.connector import merge_media_io_kwargs
from vllm.renderers.base import BaseRenderer
from vllm.renderers.chat_utils import (
    ChatCompletionMessageParam,
    ConversationMessage,
    parse_chat_messages,
    parse_chat_messages_async,
)
from vllm.renderers.inputs import DictPrompt
from vllm.renderers.params import ChatParams, TokenizeParams
from vllm.tokenizers.hf import HfTokenizer
from vllm.utils.async_utils import make_async

from tianquan.errors import PromptError, TianquanError
from tianquan.processing.labels import printable
from tianquan.processing.messages import ImageReference, Message
from tianquan.processing.processor import MediaKind, Processor
from tianquan.request import Role
from tianquan.vllm_plugin.model_folder import open_model_folder

# Pictures come in the mode they are stored in: what is transparent, grey or 16 bits deep is the processor's business.
_MEDIA_AS_STORED: dict[str, dict[str, Any]] = {"image": {"image_mode": None}}
_UNPLACED = ""  # the source of a medium that vLLM holds: here only their number and order count


def empty_frames(processor: Processor) -> dict[MediaKind, list[int]]:
    """Return the tokens that stand in a prompt where a medium of each kind goes."""
    tokens = processor.settings.tokens
    ids = processor.placeholder_ids
    return {
        "image": [ids[tokens.image_start], ids[tokens.image_end]],
        "audio": [ids[tokens.audio_start], ids[tokens.audio_end]],
    }


class MegrezoRenderer(BaseRenderer[HfTokenizer]):
    """Makes prompts for one engine."""

    def __init__(self, config: VllmConfig, tokenizer: HfTokenizer | None) -> None:
        super().__init__(config, tokenizer)
        self._processor = open_model_folder(config.model_config).processor
        self._frames = empty_frames(self._processor)
        self._encode_async = make_async(self._encode_conversation, executor=self._executor)

    def render_messages(
        self, messages: list[ChatCompletionMessageParam], params: ChatParams
    ) -> tuple[list[ConversationMessage], DictPrompt]:
        """Return the conversation as vLLM parsed it, and its prompt with the media beside it.

        Raises:
            VLLMValidationError: messages or options that this model cannot take.
        """
        _check_request(messages, params)
        conversation, media, uuids = parse_chat_messages(messages, **self._parse_options(params))
        token_ids = self._encode_conversation(messages, conversation, params)
        return conversation, _prompt(token_ids, media, uuids)

    async def render_messages_async(
        self, messages: list[ChatCompletionMessageParam], params: ChatParams
    ) -> tuple[list[ConversationMessage], DictPrompt]:
        """As `render_messages`, while the media of other requests are fetched."""
        _check_request(messages, params)
        conversation, media, uuids = await parse_chat_messages_async(messages, **self._parse_options(params))
        token_ids = await self._encode_async(messages, conversation, params)
        return conversation, _prompt(token_ids, media, uuids)

    def _parse_options(self, params: ChatParams) -> dict[str, Any]:
        return {
            "model_config": self.model_config,
            "content_format": "openai",  # parts in their order, media as parts without data
            "media_io_kwargs": merge_media_io_kwargs(_MEDIA_AS_STORED, params.media_io_kwargs),
            "mm_processor_kwargs": params.mm_processor_kwargs,
        }

    def _encode_conversation(
        self,
        messages: Sequence[ChatCompletionMessageParam],
        conversation: Sequence[ConversationMessage],
        params: ChatParams,
    ) -> list[int]:
        try:
            turns = [
                _turn(parsed, is_plain=isinstance(message.get("content"), str), where=f"messages[{n}]")
                for n, (message, parsed) in enumerate(zip(messages, conversation, strict=True))
            ]
            add_generation_prompt = params.chat_template_kwargs.get("add_generation_prompt", True)
            pieces = self._processor.encode_turns(turns, bool(add_generation_prompt))
        except TianquanError as error:
            raise VLLMValidationError(str(error), parameter="messages") from error
        return self._joined(pieces)

    def _joined(self, pieces: Sequence[list[int] | MediaKind]) -> list[int]:
        token_ids: list[int] = []
        for piece in pieces:
            token_ids += self._frames[piece] if isinstance(piece, str) else piece
        return token_ids

    def _tokenize_prompt(self, prompt: TextPrompt, params: TokenizeParams) -> TokensPrompt:
        """Encode text that a program wrote: special tokens and media marks in it are what they spell."""
        try:
            pieces = self._processor.encode_marked(prompt["prompt"], hidden="")
        except TianquanError as error:
            raise VLLMValidationError(str(error), parameter="prompt") from error
        return self._build_tokens_prompt(self._joined(pieces), prompt)

    def _process_tokens(self, prompt: TokensPrompt, *, skip_mm_cache: bool = False) -> Any:
        self._require_media(prompt)
        return super()._process_tokens(prompt, skip_mm_cache=skip_mm_cache)

    async def _process_tokens_async(self, prompt: TokensPrompt, *, skip_mm_cache: bool = False) -> Any:
        self._require_media(prompt)
        return await super()._process_tokens_async(prompt, skip_mm_cache=skip_mm_cache)

    def _require_media(self, prompt: TokensPrompt) -> None:
        """Raise when a prompt without media has places for some; with media, `media_processor.py` counts."""
        if prompt.get("multi_modal_data"):
            return
        for kind, frame in self._frames.items():
            if count := count_frames(prompt["prompt_token_ids"], frame):
                raise VLLMValidationError(
                    f"the prompt has {count} places for {kind} inputs, got none; "
                    f"give them as multi_modal_data[{kind!r}]",
                    parameter="prompt",
                )


def count_frames(token_ids: Sequence[int], frame: Sequence[int]) -> int:
    """Return how often the two tokens of an empty frame stand side by side."""
    start, end = frame
    return sum(a == start and b == end for a, b in pairwise(token_ids))


def _prompt(token_ids: list[int], media: Any, uuids: Any) -> DictPrompt:
    prompt = TokensPrompt(prompt_token_ids=token_ids)
    if media is not None:
        prompt["multi_modal_data"] = media
    if uuids is not None:
        prompt["multi_modal_uuids"] = uuids
    return prompt


def _check_request(messages: Sequence[ChatCompletionMessageParam], params: ChatParams) -> None:
    """Refuse what would be silently left out of the prompt, or read as something else."""
    for n, message in enumerate(messages):
        if isinstance(message.get("content"), Mapping):
            raise VLLMValidationError(
                f"messages[{n}].content is an object; expected a string or a list of parts", parameter="messages"
            )
    options: Mapping[str, Any] = params.chat_template_kwargs
    for name in ("tools", "documents", "continue_final_message"):
        if options.get(name):
            raise VLLMValidationError(
                f"{name} is not supported with this model in vLLM; expected messages alone; `tianquan serve` has tools",
                parameter=name,
            )
    if params.chat_template is not None:
        raise VLLMValidationError(
            "chat_template is given; this model runs the template of its own folder, change it there",
            parameter="chat_template",
        )


def _turn(parsed: ConversationMessage, is_plain: bool, where: str) -> Message:
    """Return vLLM's parsed message as a turn, the media of which vLLM holds.

    Raises:
        PromptError: a role, a part, or a tool call, that this model cannot take.
    """
    if parsed.get("tool_calls"):
        raise PromptError(f"{where} has tool_calls; expected text; `tianquan serve` has tools")
    # The model has no role for developers: what they say is what systems say.
    role: Any = "system" if parsed["role"] == "developer" else parsed["role"]
    if role not in get_args(Role):
        raise PromptError(f"{where}.role must be one of {', '.join(get_args(Role))}, got {printable(repr(role), 40)}")
    content = parsed.get("content")
    parts = [{"type": "text", "text": content}] if isinstance(content, str) else list(content or ())
    kinds = [part["type"] for part in parts]
    unknown = sorted(set(kinds) - {"text", "image", "audio"})
    if unknown or not parts:
        raise PromptError(f"{where} has {', '.join(unknown) or 'no content'}; expected text, image or audio parts")
    texts = [part["text"] for part in parts if part["type"] == "text"]
    return Message(
        role,
        "\n".join(texts) if texts else None,
        images=(ImageReference(_UNPLACED),) * kinds.count("image"),
        audios=(_UNPLACED,) * kinds.count("audio"),
        is_plain=is_plain,
        listed=frozenset(("image", "audio")),
    )
