"""What a user may set about the server, from flags and from a TOML file. Nothing of the web is imported here."""

from __future__ import annotations

import ipaddress
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, get_args, get_type_hints

from tianquan.backends import Backend
from tianquan.backends.kv_cache import KVFormat
from tianquan.checkpoint.hub import EMBEDDED
from tianquan.engine.interface import EngineOptions
from tianquan.engine.parameter_checks import parse_bytes
from tianquan.errors import BackendError, ParameterError
from tianquan.processing.frames import MAX_FRAMES
from tianquan.processing.labels import printable
from tianquan.request import ImageDetail, ImagePolicy, LongAudio, MediaPolicy, VideoPolicy

_PATHS = ("api_key_file", "media_root")
_SIZES = frozenset({"encoder_cache_bytes", "max_body_bytes", "max_media_bytes"})  # numbers, or texts such as 64M


@dataclass(frozen=True, kw_only=True)
class Patience:
    """How long the server waits for a client, in seconds.

    head: for the first line and headers of a request.
    idle: for the next request on an open connection.
    body, body_rate: for a body: this long, and one second more for each `body_rate` bytes that came.
    write: until a client takes the next piece of an answer.
    ping: without a token before a comment tells a streaming client that the server is alive.
    """

    head: float = 10.0
    idle: float = 30.0
    body: float = 20.0
    body_rate: int = 32 * 1024
    write: float = 60.0
    ping: float = 10.0


@dataclass(frozen=True, kw_only=True)
class ServeConfig:
    """Everything `tianquan serve` can be told. Field names are the flags' names.

    model, precision, backend, device, threads, revision: see `tianquan.load`.
    served_model_name: what clients call the model; its folder's or repository's name by default.
    host, port: where to listen; 0 takes a free port.
    api_key_file: a key on each line; every key has caches of its own.
    insecure: listen on other addresses than this machine's own without a key.
    allowed_host: names in the Host header taken beside this machine's own, when there is no key.
    max_num_seqs: answers computed side by side.
    max_queue: requests that wait beyond those; more get 429.
    max_model_len: most tokens of a prompt and its answer; the model's window by default.
    max_tokens: of an answer whose request does not say.
    adapter: NAME=FOLDER of each LoRA adapter served beside the model, to clients that call it NAME.
    kv_cache_bytes, max_memory: sizes such as 1G; see `tianquan.load`, and there kv_format too.
    encoder_cache_bytes, speculation: see `EngineOptions`.
    allow_media_domain: hosts whose https URLs are fetched; none by default.
    media_root: folder whose files may be named as file: URLs; none by default.
    max_body_bytes: of a request; max_media_bytes: of one fetched or named file.
    max_media: pictures and recordings of one request.
    max_pixels, max_total_pixels, max_audio_seconds, max_slices, max_image_tokens, image_detail, long_audio: see
        `MediaPolicy`.
    max_video_seconds, max_video_frames, max_video_tokens, video_sound: see `VideoPolicy`.
    media_threads: requests whose media are decoded at the same time.
    preload: read all of the model before the first request.
    shutdown_seconds: for running requests when the server is told to stop; then they are aborted.
    max_connections: open at the same time.
    ray: address of a Ray cluster, or local; the model is in replicas there then, each with these limits.
    replicas, max_replicas: how many at first and at least, and at most; their number is fixed by default.
    """

    model: str = EMBEDDED
    precision: str | None = None
    backend: Backend = "native"
    device: str = "cpu"
    threads: int | None = None
    revision: str | None = None
    served_model_name: str | None = None
    host: str = "127.0.0.1"
    port: int = 8000
    api_key_file: Path | None = None
    insecure: bool = False
    allowed_host: tuple[str, ...] = ()
    max_num_seqs: int = 16
    max_queue: int = 64
    max_model_len: int | None = None
    max_tokens: int = 1024
    adapter: tuple[str, ...] = ()
    kv_cache_bytes: str | None = None
    max_memory: str | None = None
    kv_format: KVFormat | None = None
    encoder_cache_bytes: int = EngineOptions.encoder_cache_bytes
    speculation: bool = EngineOptions.speculation
    allow_media_domain: tuple[str, ...] = ()
    media_root: Path | None = None
    max_body_bytes: int = 64 * 2**20
    max_media_bytes: int = 32 * 2**20
    max_media: int = 32
    max_pixels: int = 100_000_000
    max_total_pixels: int = 300_000_000
    max_audio_seconds: float = 3600.0
    max_video_seconds: float = 600.0
    max_video_frames: int = VideoPolicy.max_frames
    max_video_tokens: int = VideoPolicy.max_tokens
    video_sound: bool = False
    max_slices: int | None = None
    max_image_tokens: int | None = None
    image_detail: ImageDetail = "full"
    long_audio: LongAudio = "error"
    media_threads: int = 2
    preload: bool = True
    shutdown_seconds: int = 30
    max_connections: int = 512
    ray: str | None = None
    replicas: int | None = None
    max_replicas: int | None = None
    patience: Patience = field(default_factory=Patience)

    def __post_init__(self) -> None:
        for name, least, most in _RANGES:
            value = getattr(self, name)
            if value is not None and not least <= value <= most:
                raise ParameterError(f"{name} is {value}; expected {least} to {most}")
        choices = (
            ("backend", Backend),
            ("long_audio", LongAudio),
            ("image_detail", ImageDetail),
            ("kv_format", KVFormat),
        )
        for name, literal in choices:
            if getattr(self, name) not in (*get_args(literal), *((None,) if name == "kv_format" else ())):
                raise ParameterError(f"{name} must be one of {', '.join(get_args(literal))}")

        if self.ray is None and (self.replicas or self.max_replicas):
            raise ParameterError("replicas are processes of a Ray cluster: give ray, its address, or local")
        if self.max_replicas is not None and self.max_replicas < (self.replicas or 1):
            raise ParameterError(f"max_replicas is {self.max_replicas}, fewer than the {self.replicas or 1} replicas")
        self._check_adapters()

    def _check_adapters(self) -> None:
        """Hold adapters against their form, and their names against each other."""
        names = [self.model_name]
        for given in self.adapter:
            name, separator, folder = given.partition("=")
            if not (name and separator and folder) or name != printable(name.strip()):
                raise ParameterError(f"adapter must be NAME=FOLDER, got {printable(given)!r}")
            if name in names:
                other = "the model's own" if name == names[0] else "taken by another adapter"
                raise ParameterError(f"adapter {name}: the name is {other}; give the adapter a name of its own")
            names.append(name)

    @property
    def model_name(self) -> str:
        """What clients call the model itself, without an adapter."""
        return self.served_model_name or default_model_name(self.model)

    @property
    def adapters(self) -> dict[str, Path]:
        """Where each adapter is, by its name."""
        return {name: Path(folder) for name, _, folder in (given.partition("=") for given in self.adapter)}

    @property
    def is_local(self) -> bool:
        """True when only this machine can connect."""
        if self.host == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False

    @property
    def media_policy(self) -> MediaPolicy:
        """How pictures, sound and video of requests are looked at."""
        return MediaPolicy(
            image=ImagePolicy(
                max_slices=self.max_slices, max_image_tokens=self.max_image_tokens, image_detail=self.image_detail
            ),
            video=VideoPolicy(
                max_frames=self.max_video_frames,
                max_tokens=self.max_video_tokens,
                max_seconds=self.max_video_seconds,
                max_decoded_pixels=MAX_DECODED_PIXELS,
                with_sound=self.video_sound,
            ),
            long_audio=self.long_audio,
            max_pixels=self.max_pixels,
            max_total_pixels=self.max_total_pixels,
            max_audio_seconds=self.max_audio_seconds,
        )


# Of the videos of a request: some three minutes of one core, however their key frames lie.
MAX_DECODED_PIXELS = 40 * 10**9

_RANGES = (
    ("port", 0, 65535),
    ("max_num_seqs", 1, 1024),
    ("max_queue", 0, 100_000),
    ("max_model_len", 16, 2**31),
    ("max_tokens", 1, 2**31),
    ("encoder_cache_bytes", 0, 2**45),
    ("max_body_bytes", 1024, 2**33),
    ("max_media_bytes", 1024, 2**33),
    ("max_media", 0, 10_000),
    ("max_pixels", 1, 10**10),
    ("max_total_pixels", 1, 10**12),
    ("max_audio_seconds", 1, 10**6),
    ("max_video_seconds", 1, 10**6),
    ("max_video_frames", 1, MAX_FRAMES),
    ("max_video_tokens", 1, 10**6),
    ("media_threads", 1, 256),
    ("shutdown_seconds", 0, 86_400),
    ("max_connections", 1, 65_536),
    ("replicas", 1, 10_000),
    ("max_replicas", 1, 10_000),
)


def make_config(flags: Mapping[str, Any], file: Path | None = None) -> ServeConfig:
    """Return the configuration: flags first (None = not given), then the file, then the defaults.

    Raises:
        ParameterError: an unknown key, a value of the wrong type or out of range.
    """
    known = get_type_hints(ServeConfig)
    values: dict[str, Any] = {}
    for key, value in ({} if file is None else _read_file(file)).items():
        name = key.replace("-", "_")
        if name not in known or name == "patience":
            raise ParameterError(f"{printable(str(file))}: {printable(key)!r} is no option of serve")
        values[name] = _typed(name, value, str(known[name]))
    given = {name: value for name, value in flags.items() if value is not None and value != []}
    values.update({name: tuple(value) if isinstance(value, list) else value for name, value in given.items()})
    for name in _SIZES & set(values):
        values[name] = parse_bytes(values[name], name)
    return replace(ServeConfig(), **values)


def _read_file(file: Path) -> dict[str, Any]:
    if sys.version_info >= (3, 11):
        import tomllib
    else:
        try:
            import tomli as tomllib  # type: ignore[import-not-found,unused-ignore]
        except ImportError as error:
            raise BackendError("--config needs tomli on Python 3.10: pip install 'tianquan[serve]'") from error
    try:
        return tomllib.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise ParameterError(f"{file}: cannot be read ({error.strerror})") from error
    except ValueError as error:
        raise ParameterError(f"{file}: not valid TOML; {printable(str(error))}") from error


def _typed(name: str, value: Any, kind: str) -> Any:
    """Hold a value of the file against the field's type."""
    if "tuple" in kind and isinstance(value, list) and all(isinstance(item, str) for item in value):
        return tuple(value)
    if name in _PATHS and isinstance(value, str):
        return Path(value)
    is_number = isinstance(value, int) and not isinstance(value, bool)
    accepted = (
        ("bool" in kind and isinstance(value, bool))
        or ("int" in kind and is_number)
        or ("float" in kind and (is_number or isinstance(value, float)))
        or (name in _SIZES and isinstance(value, str))
        or (("str" in kind or "Literal" in kind) and "tuple" not in kind and isinstance(value, str))
    )
    if not accepted:
        expected = "a size such as 64M" if name in _SIZES else kind.removeprefix("<class '").removesuffix("'>")
        raise ParameterError(f"{name} has a value of the wrong type: {type(value).__name__}, expected {expected}")
    return value


def default_model_name(model: str) -> str:
    """Return what clients call a model: a hub id as it is, of a folder its last name alone."""
    if not Path(model).exists() and (model == EMBEDDED or model.count("/") == 1):
        return model.partition("@")[0]
    return printable(Path(model).resolve().name or "model")


assert {name for name, _, _ in _RANGES} <= {f.name for f in fields(ServeConfig)}
