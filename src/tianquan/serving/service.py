"""What all routes share: the model once it is loaded, places in the queue, threads for media, limits."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, TypeVar

from tianquan.engine.interface import EngineRequest, EngineStatistics
from tianquan.errors import PromptError
from tianquan.llm import LLM
from tianquan.request import MediaPolicy, Prompt, SamplingParams
from tianquan.serving.admission import Admission, Place
from tianquan.serving.api_error import ApiError, ClientGoneError
from tianquan.serving.body import BodyReader
from tianquan.serving.budget import Budget
from tianquan.serving.call import Call
from tianquan.serving.config import ServeConfig
from tianquan.serving.conversation import resolve
from tianquan.serving.generation import Generation, Inbox, Mailroom
from tianquan.serving.media_fetch import MediaFetcher
from tianquan.serving.metrics import Metrics

_MAX_BODIES = 8  # bodies, or named media, of full size in memory at the same time
_MAX_FETCHED = 4  # media of full size that one request may name
_MAX_DECODED = 4  # recordings of full length that are decoded at the same time: 230 MB an hour each

Result = TypeVar("Result")


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """A prompt, and what making it took."""

    prompt: Prompt
    preprocess_ms: float


@dataclass(frozen=True, kw_only=True)
class ServedModel:
    """What answers to a name: the model itself, or the model with an adapter."""

    name: str
    llm: LLM


class Service:
    """One model, its adapters, their limits and their queue."""

    def __init__(self, config: ServeConfig) -> None:
        self.config = config
        self.model_name = config.model_name
        self.created = int(time.time())
        self.metrics = Metrics()
        names_media = config.media_root is not None or config.allow_media_domain
        largest = max(config.max_body_bytes, config.max_media_bytes if names_media else 0)
        self.admission = Admission(config.max_num_seqs, config.max_queue, _MAX_BODIES * largest)
        self.reader = BodyReader(config.max_body_bytes, config.patience)
        self.decoded_seconds = Budget(_MAX_DECODED * config.max_audio_seconds)
        self.fetcher = MediaFetcher(
            domains=frozenset(config.allow_media_domain),
            root=config.media_root,
            max_bytes=config.max_media_bytes,
        )
        self._threads = ThreadPoolExecutor(config.media_threads, thread_name_prefix="tianquan-media")
        self._llm: LLM | None = None
        self._longest_token = 0  # bytes
        self._mailroom: Mailroom | None = None

    @property
    def is_ready(self) -> bool:
        """True once the model is loaded."""
        return self._llm is not None

    def set_ready(self, llm: LLM) -> None:
        """Begin to answer; may be called from any thread."""
        vocab_size = llm.model.config.language.vocab_size
        self._longest_token = max(len(llm.tokenizer.token_bytes(token_id)) for token_id in range(vocab_size))
        self._llm = llm

    @property
    def mailroom(self) -> Mailroom:
        """The one of the event loop that asks first, and is the only one."""
        if self._mailroom is None:
            self._mailroom = Mailroom()
        return self._mailroom

    @property
    def llm(self) -> LLM:
        """The model itself; what it knows of text, media and limits holds for its adapters too.

        Raises:
            ApiError: 503 while it is being loaded.
        """
        if self._llm is None:
            raise ApiError(503, "the model is being loaded", code="loading", headers={"Retry-After": "5"})
        return self._llm

    @property
    def vocab_size(self) -> int:
        """Number of token ids."""
        return self.llm.model.config.language.vocab_size

    @property
    def default_sampling(self) -> SamplingParams:
        """How tokens are chosen where a request does not say."""
        return replace(self.llm.checkpoint.sampling, max_tokens=self.config.max_tokens)

    @property
    def max_model_len(self) -> int:
        """Most tokens of a prompt and its answer."""
        limit = self.llm.max_sequence_tokens
        return limit if self.config.max_model_len is None else min(limit, self.config.max_model_len)

    @property
    def models(self) -> list[ServedModel]:
        """All that answers, the model itself first."""
        llm = self.llm
        adapted = [ServedModel(name=name, llm=one) for name, one in llm.adapted.items()]
        return [ServedModel(name=self.model_name, llm=llm), *adapted]

    def find_model(self, name: str | None) -> ServedModel:
        """Return what answers to a name; without one, the model itself.

        Raises:
            ApiError: 404, no model has this name.
        """
        for model in self.models:
            if name is None or name == model.name:
                return model
        raise ApiError(
            404, "no model of this name is served here; see /v1/models", param="model", code="model_not_found"
        )

    def statistics(self) -> EngineStatistics:
        """Return what all engines did and hold, together."""
        return EngineStatistics.of_all([model.llm.statistics() for model in self.models])

    @property
    def has_work(self) -> bool:
        """True while an engine has a request that has not ended."""
        return self.is_ready and any(model.llm.driver.engine.has_work for model in self.models)

    # Prompts ----------------------------------------------------------------------------------------------
    def check_text_len(self, num_characters: int) -> None:
        """Refuse text that can never fit before it is made into tokens, which takes seconds for each megabyte.

        Raises:
            PromptError: it is longer than the window full of the longest token.
        """
        most = self.max_model_len * self._longest_token
        if num_characters > most:
            raise PromptError(
                f"the text has {num_characters} characters; {self.max_model_len} tokens, which this server takes with "
                f"the answer, have {most} at the very most; shorten it"
            )

    async def on_thread(self, function: Callable[..., Result], *arguments: Any) -> Result:
        """Run work on media and text off the event loop; cancelled work that waits is never begun."""
        return await asyncio.get_running_loop().run_in_executor(self._threads, function, *arguments)

    async def resolve(self, inbox: Inbox, place: Place, messages: Sequence[Any]) -> list[dict[str, Any]]:
        """Return a conversation with the bytes of its media; see `conversation.resolve`.

        Raises:
            ApiError: also 413, the media it names are too large together; 429, those of all requests are.
            ClientGoneError: nobody waits for it any more.
        """
        num_bytes, most = 0, _MAX_FETCHED * self.config.max_media_bytes

        def hold(num_more: int) -> None:
            nonlocal num_bytes
            num_bytes += num_more
            if num_bytes > most:
                raise ApiError(413, f"the media that are named have more than {most} bytes together", code="too_large")
            place.hold(num_more)

        return await inbox.unless_gone(resolve(messages, self.config.max_media, self.fetcher, hold))

    async def prepare(self, inbox: Inbox, make: Callable[[], Prompt]) -> Prepared:
        """Make a prompt on a thread.

        Raises:
            PromptError, MediaError: see `Processor`; or the prompt is too long.
            ClientGoneError: nobody waits for it any more.
        """

        def work() -> Prepared:
            if inbox.is_gone:
                raise ClientGoneError
            began = time.perf_counter()
            prompt = make()
            return Prepared(prompt=prompt, preprocess_ms=1000 * (time.perf_counter() - began))

        return await self.on_thread(work)

    def chat_prompt(self, messages: list[dict[str, Any]], policy: MediaPolicy | None = None) -> Prompt:
        """Return the prompt of a conversation; all media must be bytes. Its recordings, and its videos, share a cap."""
        policy = policy or self.config.media_policy
        parts = [part for message in messages if isinstance(message["content"], list) for part in message["content"]]
        kinds = Counter(part["type"] for part in parts)
        max_pixels = policy.video.max_decoded_pixels // max(1, kinds["video_url"])
        max_seconds = policy.max_audio_seconds / max(1, kinds["audio_url"])  # an hour is 230 MB
        video = replace(policy.video, max_decoded_pixels=max_pixels)
        return self.llm.processor(messages, replace(policy, video=video, max_audio_seconds=max_seconds))

    # Answers ----------------------------------------------------------------------------------------------
    async def generate(
        self,
        call: Call,
        inbox: Inbox,
        place: Place,
        prepared: list[Prepared],
        sampling: SamplingParams,
        *,
        model: ServedModel,
        salt: str = "",
        is_last: bool = True,
    ) -> Generation:
        """Begin `sampling.n` answers to each prompt; answer i has the seed plus i.

        Args:
            call: the HTTP request.
            inbox: of the HTTP request.
            place: its places are given back when the engine is done, if `is_last`.
            prepared: the prompts.
            sampling: how tokens are chosen.
            model: who answers.
            salt: see `EngineRequest`.
            is_last: nothing else is generated for this request.

        Raises:
            PromptError, ParameterError: see `Engine.add`.
        """
        call.notes["model"] = model.name
        requests = []
        for item in prepared:
            limit = self.max_model_len
            num_prompt = len(item.prompt.token_ids)
            if num_prompt >= limit:
                raise PromptError(
                    f"the prompt has {num_prompt} tokens ({item.prompt.num_image_tokens} of pictures, "
                    f"{item.prompt.num_video_tokens} of video, {item.prompt.num_audio_tokens} of sound), "
                    f"this server takes {limit} with the answer; shorten it"
                )
            max_tokens = min(sampling.max_tokens, limit - num_prompt)
            params = replace(sampling, n=1, max_tokens=max_tokens, min_tokens=min(sampling.min_tokens, max_tokens))
            for n in range(sampling.n):
                seed = None if params.seed is None else (params.seed + n) % 2**63
                requests.append(await self._request(item, replace(params, seed=seed), salt))
        return Generation(
            model.llm.driver,
            self.llm.tokenizer,
            requests,
            inbox,
            self.mailroom,
            self.metrics,
            began=call.began,
            on_end=place.give_back if is_last else lambda: None,
        )

    async def _request(self, item: Prepared, params: SamplingParams, salt: str) -> EngineRequest:
        make = partial(self.llm.request, item.prompt, params, salt=salt, preprocess_ms=item.preprocess_ms)
        return make() if params.output_format is None else await self.on_thread(make)  # a form is compiled

    def close(self) -> None:
        """Stop the threads; what waits is dropped."""
        self._threads.shutdown(wait=False, cancel_futures=True)
