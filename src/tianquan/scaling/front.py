"""One endpoint before many replicas: the server's own gate, queue and page here, the model in actors of Ray Serve.

Everything strangers meet is what `tianquan serve` has without Ray: keys, host check, limits on bodies and time, 429. A
request that passed is handed to a replica, whose response comes back part by part. Ray keeps the replicas running.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import logging
import uuid
from collections.abc import AsyncGenerator, Callable, Sequence
from dataclasses import replace
from typing import Any

import ray.exceptions
from ray import serve
from ray.serve.config import RequestRouterConfig

from tianquan.errors import TianquanError
from tianquan.llm import LLM
from tianquan.scaling.cluster import LOCAL, check_model, connected, plan_share, with_whole_paths
from tianquan.scaling.replica import REPLICA_HEADER, ConversationRouter, ForwardedRequest, Message, Replica
from tianquan.serving.admission import Admission
from tianquan.serving.api_error import ApiError, ClientGoneError
from tianquan.serving.body import BodyReader, check_marks
from tianquan.serving.call import Call
from tianquan.serving.config import ServeConfig
from tianquan.serving.gate import Gate
from tianquan.serving.openapi import openapi_document
from tianquan.serving.page import Page
from tianquan.serving.routes import ROUTES
from tianquan.serving.server import RunningServer

logger = logging.getLogger(__name__)

_HEALTH_PERIOD = 5.0  # seconds between two questions to a replica
_HEALTH_TIMEOUT = 60.0  # a replica that prepares a long recording may be slow to say that it lives
_KEPT_HEADERS = (b"content-type", b"content-length", b"cache-control", b"x-accel-buffering", b"retry-after", b"allow")
_INLINE_BODY = 64 * 1024  # bytes; a larger one is looked through on a thread
_MAX_BODIES = 8  # of full size, in memory at the same time, for each replica
_PROMPT_START = 512  # characters or tokens of a plain prompt that tell conversations apart


Load = Callable[[ServeConfig], LLM]


class Front:
    """Answers calls: its own few routes here, all others by a replica."""

    def __init__(self, config: ServeConfig, admission: Admission, reader: BodyReader, page: Page) -> None:
        self._config = config
        self._admission = admission
        self._reader = reader
        self._page = page
        self._handle: Any = None  # a ray.serve DeploymentHandle

    def set_ready(self, handle: Any) -> None:
        """Begin to answer; may be called from any thread."""
        self._handle = handle

    def is_open(self, path: str) -> bool:
        """Return whether a path needs no key."""
        return path == "/health" or path in self._page

    async def __call__(self, call: Call) -> None:
        """Answer a call that passed the gate."""
        path = call.path
        is_model = path.startswith("/v1/models/")
        call.route = "/v1/models/{model}" if is_model else path if path in ROUTES else "none"
        if path == "/metrics":
            raise ApiError(404, "with replicas the metrics are Ray's; see docs/scaling.md", code="not_found")
        if path == "/openapi.json" and call.request.method == "GET":
            await call.respond_json(openapi_document())
        elif path in self._page and call.request.method in ("GET", "HEAD"):
            call.route = "page"
            await call.respond(self._page.response(path))
        elif path not in ROUTES and not is_model:
            raise ApiError(404, "there is nothing at this path; see /openapi.json", code="not_found")
        elif self._handle is None:
            raise ApiError(503, "the model is being loaded", code="loading", headers={"Retry-After": "5"})
        elif path == "/health":  # without a key: it takes no place in the queue, and no body
            if call.request.method not in ("GET", "HEAD"):
                raise ApiError(405, "send GET", code="method", headers={"Allow": "GET"})
            await call.respond_json({"status": "ok"})
        else:
            await self._forward(call)

    async def _forward(self, call: Call) -> None:
        with self._admission.enter() as place:
            body = await self._reader.read(call.request, place)
            request = ForwardedRequest(
                method=call.request.method,
                path=call.path,
                content_type=call.request.headers.get("content-type", ""),
                id=call.id,
                salt=call.salt,
                body=body,
            )
            if len(body) > _INLINE_BODY:
                conversation = await asyncio.to_thread(conversation_of, request)
            else:
                conversation = conversation_of(request)
            gone = asyncio.create_task(_until_gone(call))
            try:
                if not await self._pass_on(call, conversation, request, gone):
                    logger.warning("request %s: its replica was lost before it answered, another one is asked", call.id)
                    if not await self._pass_on(call, conversation, request, gone):
                        raise _replica_lost()
            finally:
                gone.cancel()

    async def _pass_on(
        self, call: Call, conversation: str, request: ForwardedRequest, gone: asyncio.Task[None]
    ) -> bool:
        """Have a replica answer; return False when it was lost before the response began, so that another may.

        Raises:
            ApiError: it was lost later.
            ClientGoneError: nobody waits for it any more.
        """
        parts = self._handle.options(stream=True).answer.remote(conversation, request)
        try:
            async with contextlib.aclosing(_until(parts, gone)) as arriving:
                async for part in arriving:
                    await call.forward(_kept(call, part))
                    if part["type"] == "http.response.body" and not part.get("more_body", False):
                        break  # from here on the client may hang up: it has everything
        except (ray.exceptions.RayActorError, ray.exceptions.OwnerDiedError) as error:
            if not call.status:
                return False
            raise _replica_lost() from error
        except (ray.exceptions.RayError, serve.exceptions.RayServeException) as error:
            logger.error("request %s failed", call.id, exc_info=error)
            raise ApiError(503, "no replica can answer now; send the request again", code="no_replica") from error
        return True


def _replica_lost() -> ApiError:
    message = "the replica that was answering is gone; send the request again, another one takes it"
    return ApiError(503, message, code="replica_lost", headers={"Retry-After": "1"})


def _kept(call: Call, part: Message) -> Message:
    """Return a part of a replica's response without the headers that the front adds itself."""
    if part["type"] != "http.response.start":
        return part
    headers = dict(part["headers"])
    call.notes["replica"] = headers.get(REPLICA_HEADER, b"").decode()
    return {**part, "headers": [(name, headers[name]) for name in _KEPT_HEADERS if name in headers]}


async def _until_gone(call: Call) -> None:
    while (await call.request.receive())["type"] != "http.disconnect":
        pass


async def _until(parts: Any, gone: asyncio.Task[None]) -> AsyncGenerator[Message, None]:
    """Yield what comes; when the client goes first, cancel it.

    Raises:
        ClientGoneError: the client is gone.
    """
    try:
        while True:
            coming = asyncio.ensure_future(anext(parts, None))
            await asyncio.wait((coming, gone), return_when=asyncio.FIRST_COMPLETED)
            if not coming.done():
                coming.cancel()
                await asyncio.gather(coming, return_exceptions=True)
                raise ClientGoneError
            part = coming.result()
            if part is None:
                return
            yield part
    finally:
        parts.cancel()


def conversation_of(request: ForwardedRequest) -> str:
    """Return what requests of one conversation share: a digest of its beginning, up to the first user message.

    Requests without one get a number of their own, which spreads them.

    Raises:
        ApiError: 400, JSON of more values than a replica takes.
    """
    if not request.content_type.lower().startswith("application/json"):
        return uuid.uuid4().hex
    check_marks(request.body)
    try:
        body = json.loads(request.body)
        messages, prompt = body.get("messages"), body.get("prompt")
        if messages is not None:
            roles = [message.get("role") for message in messages]
            beginning = messages[: roles.index("user") + 1] if "user" in roles else messages
        elif prompt is not None:
            beginning = prompt[:_PROMPT_START]
        else:
            return uuid.uuid4().hex
        text = json.dumps([request.salt, body.get("model"), body.get("user"), body.get("cache_salt"), beginning])
    except (ValueError, RecursionError, AttributeError, TypeError, LookupError):
        return uuid.uuid4().hex  # the replica says what is wrong with it
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


class FrontServer(RunningServer):
    """The server of `RunningServer` with replicas in place of a model.

    Args:
        config: what the user set; each replica has its limits, the queue is in front of all of them.
        load: loads the model, in each replica.

    Raises:
        ParameterError: see `RunningServer`.
    """

    def __init__(self, config: ServeConfig, load: Load) -> None:
        most = config.max_replicas or config.replicas or 1
        admission = Admission(most * config.max_num_seqs, config.max_queue, most * _MAX_BODIES * config.max_body_bytes)
        self._front = Front(config, admission, BodyReader(config.max_body_bytes, config.patience), Page())
        self._load_replica = load
        self._name = f"tianquan-{uuid.uuid4().hex[:8]}"  # another front on the cluster has another
        super().__init__(config, lambda: load(config))

    def _build_app(self, keys: Sequence[str]) -> Gate:
        return Gate(self._config, keys, self.service.metrics, self._front.is_open, self._front)

    def run(self) -> None:
        """See `RunningServer.run`. The cluster comes first: Ray takes signals over, and the server takes them back."""
        assert self._config.ray is not None
        check_model(self._config)
        with connected(self._config.ray):
            try:
                super().run()
            finally:
                if self._config.ray != LOCAL:  # a cluster made here ends with all that is in it
                    serve.delete(self._name)

    def _prepare(self) -> None:
        share = plan_share(self._config.replicas or 1, self._config.threads)
        config = replace(with_whole_paths(self._config), threads=share.num_threads, api_key_file=None)
        scaling: dict[str, Any] = {"num_replicas": share.num_workers}
        if config.max_replicas is not None:
            bounds = {"min_replicas": share.num_workers, "max_replicas": config.max_replicas}
            scaling = {"autoscaling_config": {**bounds, "target_ongoing_requests": max(1, config.max_num_seqs // 2)}}
        deployment = serve.deployment(
            Replica,
            name="replica",
            max_ongoing_requests=2 * config.max_num_seqs,
            ray_actor_options={"num_cpus": share.num_threads},
            health_check_period_s=_HEALTH_PERIOD,
            health_check_timeout_s=_HEALTH_TIMEOUT,
            graceful_shutdown_timeout_s=config.shutdown_seconds,
            max_constructor_retry_count=1,
            request_router_config=RequestRouterConfig(request_router_class=ConversationRouter),
            **scaling,
        )
        quiet = {"log_level": "WARNING", "enable_access_log": False}
        serve.start(proxy_location="Disabled", logging_config=quiet)  # the endpoint is ours
        logging.getLogger("ray.serve").setLevel(logging.WARNING)
        try:
            handle = serve.run(
                deployment.bind(config, self._load_replica), name=self._name, route_prefix=None, logging_config=quiet
            )
        except RuntimeError as error:
            raise TianquanError(f"the replicas do not start: {str(error).strip().splitlines()[-1]}") from error
        self._front.set_ready(handle)
        logger.info("ready: %s, %d replicas of %d threads", config.model_name, share.num_workers, share.num_threads)


def serve_replicas(config: ServeConfig, load: Load) -> None:
    """Serve until stopped; see `FrontServer`."""
    FrontServer(config, load).run()
