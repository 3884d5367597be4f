"""The engine: many requests, one model, one loop. `Engine.step()` is the only place answers are generated.

It sees token ids, features and spans, never text. One thread at a time calls `step`; `add` and `abort` may be
called from any thread, and take effect at the next step. See docs/engine.md.
"""

from __future__ import annotations

import logging
import time
from collections import Counter, deque
from dataclasses import dataclass, field
from itertools import count

import numpy as np
import numpy.typing as npt

from tianquan.engine.encoder_cache import EncoderCache
from tianquan.engine.interface import (
    EndReason,
    EngineOptions,
    EngineRequest,
    EngineStatistics,
    RequestEnd,
    RequestOutput,
)
from tianquan.engine.memory import plan_blocks
from tianquan.engine.model_runner import MediaFeatures, ModelRunner
from tianquan.engine.parameter_checks import check_params
from tianquan.engine.prefix_cache import PrefixCache, prompt_units
from tianquan.engine.sampler import sample, token_logprob
from tianquan.engine.scheduler import Scheduler, StepPlan
from tianquan.engine.sequence import Sequence
from tianquan.engine.speculative import DraftSource
from tianquan.errors import ModelError, PromptError, TianquanError
from tianquan.models.omni_model import OmniModel
from tianquan.request import Timings, TokenLogprob, Usage

logger = logging.getLogger(__name__)

_ROWS_WORTH_A_DRAFT = 9  # of a decode step, all requests together: beyond, a row costs what it saves
_MAX_UNITS_BESIDE_DECODE = 1  # slices or clips encoded in a step while others wait for tokens


@dataclass
class _Clock:
    """When things happened to a request, in seconds of `perf_counter`."""

    arrived: float = field(default_factory=time.perf_counter)
    started: float = 0.0  # first work on it
    first_token: float = 0.0
    last_token: float = 0.0
    prefill_ms: float = 0.0


@dataclass(eq=False)
class _Active:
    """A request between `add` and its end."""

    request: EngineRequest
    sequence: Sequence
    media: MediaFeatures
    generator: np.random.Generator
    draft_source: DraftSource | None
    clock: _Clock = field(default_factory=_Clock)
    new_token_ids: list[int] = field(default_factory=list)  # of this step
    new_logprobs: list[TokenLogprob] = field(default_factory=list)


class Engine:
    """Answers many requests at once with one model.

    Args:
        model: the model; nobody else runs it from another thread meanwhile.
        options: memory and limits.

    Raises:
        ParameterError: the memory asked for holds no useful context.
    """

    def __init__(self, model: OmniModel, options: EngineOptions | None = None) -> None:
        self.options = options or EngineOptions()
        self.model = model
        cache = plan_blocks(model, self.options)
        self._prefixes = PrefixCache(cache.num_blocks, cache.block_size)
        self._scheduler = Scheduler(self._prefixes, self.options.limits)
        self._encoder_cache = EncoderCache(self.options.encoder_cache_bytes)
        self._runner = ModelRunner(model, cache, self._encoder_cache)
        self._inbox: deque[_Active | int] = deque()  # requests to add, ids to abort; appending is atomic
        self._active: dict[int, _Active] = {}
        self._ids = count()
        self._outputs: list[RequestOutput] = []
        self._ended: Counter[str] = Counter()
        self._num_steps = self._prompt_tokens = self._generated_tokens = 0
        self._drafted_tokens = self._accepted_tokens = 0
        self._vision_ms = self._audio_ms = 0.0

    def started_anew(self) -> Engine:
        """Return an empty engine in place of this one. Ids go on: a late `abort` of a lost request hits no new one."""
        engine = Engine(self.model, self.options)
        engine._ids = self._ids
        return engine

    @property
    def max_sequence_tokens(self) -> int:
        """Tokens a prompt and its answer may have together: the context window, or all blocks if they are fewer."""
        window = self.model.config.language.max_position_embeddings
        return min(window, self._scheduler.max_sequence_tokens)

    @property
    def has_work(self) -> bool:
        """True while a request has not ended."""
        return bool(self._active) or self._num_new > 0

    @property
    def _num_new(self) -> int:
        """Requests that no step has seen; an abort in the inbox may be of one that has ended."""
        return sum(isinstance(item, _Active) for item in tuple(self._inbox))

    def add(self, request: EngineRequest) -> int:
        """Queue a request and return its id. May be called from any thread.

        Raises:
            ParameterError: a sampling parameter is out of range.
            PromptError: the prompt can never fit, or has an id that is no token.
        """
        check_params(request.sampling, self.model.config.language.vocab_size)
        prompt, limit = request.prompt, self.max_sequence_tokens
        num_prompt = len(prompt.token_ids)
        if num_prompt == 0:
            raise PromptError("the prompt is empty; expected at least one token")
        if num_prompt >= limit:
            raise PromptError(self._too_long(request))
        vocab_size = self.model.config.language.vocab_size
        outside = prompt.token_ids[(prompt.token_ids < 0) | (prompt.token_ids >= vocab_size)]
        if outside.size:
            raise PromptError(f"the prompt has token id {outside[0]}; expected 0 to {vocab_size - 1}")
        namespace = (request.adapter, request.salt)
        units = prompt_units(prompt)
        sequence = Sequence(
            id=next(self._ids),
            units=units,
            token_ids=prompt.token_ids.tolist(),
            num_prompt=num_prompt,
            max_tokens=min(num_prompt + request.sampling.max_tokens, limit),
            namespace=namespace,
        )
        draft_source = DraftSource(sequence.token_ids) if self.options.speculation else None
        generator = np.random.Generator(np.random.PCG64(request.sampling.seed))
        active = _Active(request, sequence, MediaFeatures(prompt, namespace), generator, draft_source)
        self._inbox.append(active)
        return sequence.id

    def _too_long(self, request: EngineRequest) -> str:
        prompt = request.prompt
        window = self.model.config.language.max_position_embeddings
        pool = self._scheduler.max_sequence_tokens
        found = (
            f"the prompt has {len(prompt.token_ids)} tokens ({prompt.num_image_tokens} of pictures, "
            f"{prompt.num_video_tokens} of video, {prompt.num_audio_tokens} of sound)"
        )
        if pool < window:
            return f"{found}, the KV cache holds {pool}; shorten it, or give more kv_cache_bytes or max_memory"
        limits = "max_slices, max_image_tokens or the max_tokens of videos"
        return f"{found}, the context window {window}; shorten it, or limit {limits}"

    def abort(self, request_id: int) -> None:
        """End a request at the next step, which reports it. Unknown and ended ids are ignored. Any thread."""
        self._inbox.append(request_id)

    def step(self) -> list[RequestOutput]:
        """Do one unit of work and return what it gave: one token or more of each request that decodes, and one
        chunk of prompts. An error inside a request ends that request alone and is reported in its output.
        """
        self._outputs = []
        self._empty_inbox()
        plan = self._scheduler.schedule(self._draft if self.options.speculation else None)
        self._runner.copy_blocks(plan.copies)
        if plan.decodes:
            self._decode([self._active[sequence.id] for sequence in plan.decodes])
        self._prefill(plan)
        self._num_steps += 1
        return self._outputs

    def statistics(self) -> EngineStatistics:
        """Return a snapshot, between steps."""
        prefix, encoder, scheduler = self._prefixes.statistics, self._encoder_cache.statistics, self._scheduler
        return EngineStatistics(
            num_running=len(scheduler.running),
            num_waiting=len(scheduler.waiting) + self._num_new,
            num_blocks=self._prefixes.num_blocks,
            num_blocks_in_use=self._prefixes.num_blocks - self._prefixes.num_available,
            num_blocks_cached=self._prefixes.num_cached,
            kv_cache_bytes=self._runner.cache.num_bytes,
            prefix_queries=prefix.queries,
            prefix_hits=prefix.hits,
            prefix_evictions=prefix.evicted_blocks,
            encoder_queries=encoder.queries,
            encoder_hits=encoder.hits,
            encoder_cache_bytes=self._encoder_cache.num_bytes,
            num_preemptions=scheduler.num_preemptions,
            num_steps=self._num_steps,
            prompt_tokens=self._prompt_tokens,
            generated_tokens=self._generated_tokens,
            drafted_tokens=self._drafted_tokens,
            accepted_tokens=self._accepted_tokens,
            vision_ms=self._vision_ms,
            audio_ms=self._audio_ms,
            ended=dict(self._ended),
        )

    # One step ---------------------------------------------------------------------------------------------
    def _empty_inbox(self) -> None:
        while self._inbox:
            item = self._inbox.popleft()
            if isinstance(item, _Active):
                self._active[item.sequence.id] = item
                self._scheduler.add(item.sequence)
            elif item in self._active:
                self._end(self._active[item], "abort")

    def _draft(self, sequence: Sequence) -> list[int]:
        source = self._active[sequence.id].draft_source
        assert source is not None
        room = sequence.max_tokens - len(sequence.token_ids) - 1
        worthwhile = _ROWS_WORTH_A_DRAFT // len(self._scheduler.running) - 1
        return source.propose(sequence.token_ids, min(room, worthwhile))

    def _decode(self, actives: list[_Active]) -> None:
        try:
            logits = self._runner.decode([active.sequence for active in actives])
        except Exception as error:  # nobody knows whose fault it is: all of the call end, the engine goes on
            for active in actives:
                self._fail(active, error)
            return
        row = 0
        for active in actives:
            sequence = active.sequence
            draft = sequence.draft
            num_new = self._choose(active, logits[row : row + 1 + len(draft)])
            row += 1 + len(draft)
            if active.draft_source is not None and num_new:
                active.draft_source.record(len(draft), num_new - 1)
                self._drafted_tokens += len(draft)
                self._accepted_tokens += num_new - 1

    def _prefill(self, plan: StepPlan) -> None:
        actives, chunks = [], []
        max_units = _MAX_UNITS_BESIDE_DECODE if plan.decodes else None
        for sequence, num_tokens in plan.prefills:
            active = self._active[sequence.id]
            active.clock.started = active.clock.started or time.perf_counter()
            if self._encode(active, num_tokens, max_units):
                actives.append(active)
                chunks.append((sequence, num_tokens, active.media))
        if not chunks:
            return
        began = time.perf_counter()
        try:
            logits = self._runner.prefill(chunks)
        except Exception as error:
            for active in actives:
                self._fail(active, error)
            return
        milliseconds = 1000 * (time.perf_counter() - began)
        for active, (sequence, num_tokens, _), row in zip(actives, chunks, logits, strict=True):
            active.clock.prefill_ms += milliseconds
            if num_tokens == sequence.num_pending:
                active.media.rows.clear()
                self._choose(active, row[None], num_tokens - 1)
            else:
                self._scheduler.advance(sequence, num_tokens)

    def _encode(self, active: _Active, num_tokens: int, max_units: int | None) -> bool:
        """Return whether the features of the next chunk are there; if not, the chunk waits for the next step."""
        media, sequence = active.media, active.sequence
        before = media.vision_ms, media.audio_ms
        try:
            is_ready = self._runner.encode(media, sequence.num_computed, sequence.num_computed + num_tokens, max_units)
        except Exception as error:
            self._fail(active, error)
            return False
        self._vision_ms += media.vision_ms - before[0]
        self._audio_ms += media.audio_ms - before[1]
        if not is_ready:
            self._scheduler.defer(sequence)
        return is_ready

    def _choose(self, active: _Active, logits: npt.NDArray[np.float32], num_before: int = 0) -> int:
        """Choose a token from each row of logits (rows, V), as long as the draft behind it holds.

        `num_before` tokens were computed in the same call before the first row's. Returns how many were chosen.
        A token chosen where the draft guessed another ends the draft; it was drawn from the same distribution,
        with the same draw, as without a draft.
        """
        sequence, draft = active.sequence, active.sequence.draft
        reason: EndReason | None = None
        num_new = 0
        try:
            for n, row in enumerate(logits):
                token_id = self._choose_one(active, row)
                num_new += 1
                reason = self._end_reason(active, token_id)
                if reason is not None or (n < len(draft) and token_id != draft[n]):
                    break
        except Exception as error:
            self._fail(active, error)
            return 0
        self._scheduler.advance(sequence, num_before + num_new)
        if reason is not None:
            self._end(active, reason)
        else:
            self._emit(active, None)
        return num_new

    def _choose_one(self, active: _Active, logits: npt.NDArray[np.float32]) -> int:
        if not np.isfinite(logits).all():
            raise ModelError("the model's output is not finite; its weights are damaged, verify or download them again")
        request, sequence = active.request, active.sequence
        params, constraint = request.sampling, request.constraint
        forbidden = request.stop_token_ids if sequence.num_answer < params.min_tokens else frozenset()
        allowed = None if constraint is None else constraint.allowed()
        token_id = sample(logits, params, sequence.token_ids, active.generator, sequence.num_prompt, forbidden, allowed)
        if constraint is not None:
            constraint.accept(token_id)
        if params.logprobs is not None:
            active.new_logprobs.append(token_logprob(logits, token_id, params.logprobs))
        sequence.append(token_id)
        active.new_token_ids.append(token_id)
        now = time.perf_counter()
        active.clock.first_token = active.clock.first_token or now
        active.clock.last_token = now
        self._generated_tokens += 1
        return token_id

    @staticmethod
    def _end_reason(active: _Active, token_id: int) -> EndReason | None:
        request, sequence = active.request, active.sequence
        if token_id in request.stop_token_ids:
            return "stop"
        if request.is_stopped is not None and request.is_stopped(token_id):
            return "stop"
        return "length" if len(sequence.token_ids) >= sequence.max_tokens else None

    # Ends -------------------------------------------------------------------------------------------------
    def _fail(self, active: _Active, error: Exception) -> None:
        if not isinstance(error, TianquanError):
            logger.error("request %d ended by an error", active.sequence.id, exc_info=error)
        self._end(active, "error", error)

    def _end(self, active: _Active, reason: EndReason, error: Exception | None = None) -> None:
        sequence = active.sequence
        self._scheduler.remove(sequence)
        del self._active[sequence.id]
        self._ended[reason] += 1
        self._prompt_tokens += sequence.num_prompt
        prompt = active.request.prompt
        usage = Usage(
            prompt_tokens=sequence.num_prompt,
            completion_tokens=sequence.num_answer,
            image_tokens=prompt.num_image_tokens,
            audio_tokens=prompt.num_audio_tokens,
            cached_tokens=sequence.num_cached or 0,
            video_tokens=prompt.num_video_tokens,
            video_frames=prompt.num_video_frames,
        )
        self._emit(active, RequestEnd(reason=reason, usage=usage, timings=_timings(active), error=error))

    def _emit(self, active: _Active, end: RequestEnd | None) -> None:
        self._outputs.append(
            RequestOutput(
                request_id=active.sequence.id,
                token_ids=tuple(active.new_token_ids),
                logprobs=tuple(active.new_logprobs),
                end=end,
            )
        )
        active.new_token_ids, active.new_logprobs = [], []


def _timings(active: _Active) -> Timings:
    clock, preprocess_ms = active.clock, active.request.preprocess_ms
    ttft = 1000 * (clock.first_token - clock.arrived) + preprocess_ms if clock.first_token else 0.0
    return Timings(
        preprocess_ms=preprocess_ms,
        vision_ms=active.media.vision_ms,
        audio_ms=active.media.audio_ms,
        prefill_ms=clock.prefill_ms,
        ttft_ms=ttft,
        decode_ms=1000 * (clock.last_token - clock.first_token),
        queue_ms=1000 * (clock.started - clock.arrived) if clock.started else 0.0,
    )
