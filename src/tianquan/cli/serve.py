"""`serve`: the model behind OpenAI's routes, and a page for a browser."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tianquan.cli import options
from tianquan.engine.parameter_checks import parse_bytes
from tianquan.errors import BackendError

if TYPE_CHECKING:
    from tianquan.llm import LLM
    from tianquan.serving.config import ServeConfig

Number = int | None
List = list[str] | None
Size = str | None


def _flag(text: str) -> Any:
    return typer.Option(help=text, show_default=False)


def serve(
    model: Annotated[str | None, typer.Argument(help="Folder or hub id; the embedded model by default.")] = None,
    config: Annotated[Path | None, _flag("TOML file with these options; what is given here comes first.")] = None,
    host: Annotated[str | None, _flag("Address to listen on; 127.0.0.1 by default.")] = None,
    port: Annotated[Number, _flag("Port; 8000 by default, 0 = a free one.")] = None,
    api_key_file: Annotated[Path | None, _flag("File with a key on each line; also TIANQUAN_API_KEY.")] = None,
    insecure: Annotated[bool, typer.Option("--insecure", help="Serve other machines without a key.")] = False,
    allowed_host: Annotated[List, _flag("Another host name this server is called by; may be repeated.")] = None,
    served_model_name: Annotated[str | None, _flag("What clients call the model.")] = None,
    max_num_seqs: Annotated[Number, _flag("Answers computed side by side; 16 by default.")] = None,
    max_queue: Annotated[Number, _flag("Requests that wait beyond those; more get 429; 64 by default.")] = None,
    max_model_len: Annotated[Number, _flag("Most tokens of a prompt and its answer.")] = None,
    max_tokens: Annotated[Number, _flag("Of answers whose request does not say; 1024 by default.")] = None,
    adapter: Annotated[
        List, _flag("NAME=FOLDER of a LoRA adapter, served as NAME beside the model; may be repeated.")
    ] = None,
    kv_cache_bytes: options.KVCacheBytes = None,
    max_memory: options.MaxMemory = None,
    kv_format: options.KVFormatOption = None,
    encoder_cache_bytes: Annotated[Size, _flag("For features of pictures and sound, as 256M, the default.")] = None,
    speculation: Annotated[
        bool | None, typer.Option(help="Guess tokens that repeat earlier ones; on by default.")
    ] = None,
    allow_media_domain: Annotated[List, _flag("Host whose https: URLs are fetched; may be repeated.")] = None,
    media_root: Annotated[Path | None, _flag("Folder whose files may be named by file: URLs.")] = None,
    max_body_bytes: Annotated[Size, _flag("Of one request, as 64M, the default.")] = None,
    max_media_bytes: Annotated[Size, _flag("Of one fetched or named file, as 32M, the default.")] = None,
    max_media: Annotated[Number, _flag("Pictures, recordings and videos of one request; 32 by default.")] = None,
    max_pixels: Annotated[Number, _flag("Of one picture; 100 million by default.")] = None,
    max_total_pixels: Annotated[Number, _flag("Of all pictures of one request; 300 million by default.")] = None,
    max_audio_seconds: Annotated[float | None, _flag("Of one recording; an hour by default.")] = None,
    max_video_seconds: Annotated[float | None, _flag("Of one video; ten minutes by default.")] = None,
    max_video_frames: Annotated[Number, _flag("Of one video that are looked at; 32 by default.")] = None,
    max_video_tokens: Annotated[Number, _flag("Most prompt tokens of one video; 2048 by default.")] = None,
    video_sound: Annotated[
        bool | None, typer.Option(help="Sound tracks of videos are heard too; off by default.")
    ] = None,
    max_slices: options.MaxSlices = None,
    max_image_tokens: options.MaxImageTokens = None,
    image_detail: Annotated[
        str | None, _flag("full (default), trim or economy: less of pictures with little in.")
    ] = None,
    long_audio: Annotated[str | None, _flag("Sound over 30 s in chats: error (default), truncate or chunk.")] = None,
    shutdown_seconds: Annotated[Number, _flag("For running requests when told to stop; 30 by default.")] = None,
    preload: Annotated[bool | None, typer.Option(help="Read all of the model before the first request.")] = None,
    precision: options.Precision = None,
    backend: Annotated[
        str | None, _flag("native (C++ kernels, the default), reference (numpy) or torch (PyTorch).")
    ] = None,
    device: Annotated[str | None, _flag("cpu, the default; with --backend torch also cuda or cuda:N.")] = None,
    threads: options.Threads = None,
    revision: options.Revision = None,
    replicas: Annotated[Number, _flag("With --ray: processes that answer, each with a model of its own; 1.")] = None,
    max_replicas: Annotated[Number, _flag("With --ray: more replicas while there is more to do, up to this.")] = None,
    ray: Annotated[str | None, _flag("Address of a Ray cluster, or local: replicas behind this endpoint.")] = None,
) -> None:
    """Serve the model to OpenAI clients and browsers."""
    flags = {**locals(), "insecure": insecure or None}
    from tianquan.serving.config import make_config

    file = flags.pop("config")
    settings = make_config(flags, file)
    try:
        from tianquan.serving.server import serve as run
    except ImportError as error:
        raise BackendError("serving needs packages that are not installed: pip install 'tianquan[serve]'") from error
    if settings.ray is None:
        run(settings, lambda: load_model(settings))
    else:
        _serve_replicas(settings)


def _serve_replicas(settings: ServeConfig) -> None:
    try:
        from tianquan.scaling.front import serve_replicas
    except ImportError as error:
        raise BackendError("--ray needs packages that are not installed: pip install 'tianquan[ray]'") from error
    serve_replicas(settings, load_model)


def load_model(settings: ServeConfig) -> LLM:
    """Load the model a configuration names, with a progress bar; replicas and batch workers call it too."""
    from tianquan.engine.interface import EngineOptions
    from tianquan.engine.scheduler import SchedulerLimits
    from tianquan.loading import load

    progress = options.LoadProgress()
    try:
        return load(
            settings.model,
            precision=settings.precision,
            backend=settings.backend,
            device=settings.device,
            threads=settings.threads,
            revision=settings.revision,
            on_progress=progress,
            adapters=settings.adapters,
            max_memory=parse_bytes(settings.max_memory, "--max-memory"),
            kv_format=settings.kv_format,
            engine=EngineOptions(
                kv_cache_bytes=parse_bytes(settings.kv_cache_bytes, "--kv-cache-bytes"),
                encoder_cache_bytes=settings.encoder_cache_bytes,
                speculation=settings.speculation,
                limits=SchedulerLimits(max_running=settings.max_num_seqs),
            ),
        )
    finally:
        progress.stop()
