"""The bytes behind the URLs in requests: data:, and where the server allows it https: and file:.

An https: URL is fetched so that it cannot reach into the network the server stands in:

    host on the allow-list, port 443, no user name -> resolved once -> every address public
    -> connected to that very address, certificate checked for the host -> at most 3 redirects, each checked anew
    -> at most `max_bytes`, within `seconds`, uncompressed

Text that spells an address in another way (decimal, octal, mapped into IPv6) is a host name like any other: it is
not on the list, and if it were, what it resolves to would be looked at.
"""

from __future__ import annotations

import asyncio
import ipaddress
import os
import socket
import ssl
import stat
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote, urljoin, urlsplit

import h11

from tianquan.errors import MediaError, PromptError
from tianquan.processing.messages import parse_source
from tianquan.serving.api_error import ApiError

HTTPS_PORT = 443
MAX_REDIRECTS = 3
MAX_URL_LEN = 4096
MAX_HEAD_LEN = 32 * 1024  # bytes of a response's headers
MAX_FETCHES = 8  # at the same time
_READ_LEN = 64 * 1024
_INLINE_LEN = 64 * 1024  # characters of a data: URL decoded on the event loop
_REDIRECTS = (301, 302, 303, 307, 308)

# What ipaddress counts as global in some versions of Python, and ways to write one address inside another.
_REFUSED_NETWORKS = tuple(
    ipaddress.ip_network(network)
    for network in (
        *("0.0.0.0/8", "10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "169.254.0.0/16", "172.16.0.0/12"),
        *("192.0.0.0/24", "192.0.2.0/24", "192.88.99.0/24", "192.168.0.0/16", "198.18.0.0/15", "198.51.100.0/24"),
        *("203.0.113.0/24", "224.0.0.0/4", "240.0.0.0/4"),
        *("::/96", "::ffff:0:0/96", "64:ff9b::/96", "64:ff9b:1::/48", "100::/64", "2001::/23", "2001:db8::/32"),
        *("2002::/16", "fc00::/7", "fe80::/10", "fec0::/10", "ff00::/8"),
    )
)

Address = str
Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]
Resolve = Callable[[str], Awaitable[list[Address]]]
Connect = Callable[[Address, str], Awaitable[Streams]]


def is_public(address: Address) -> bool:
    """Return whether an address, as the resolver wrote it, lies in the open internet."""
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:  # with a zone, as fe80::1%eth0
        return False
    return parsed.is_global and not any(
        parsed in network for network in _REFUSED_NETWORKS if network.version == parsed.version
    )


async def resolve_host(host: str) -> list[Address]:
    """Return the addresses of a host name."""
    found = await asyncio.get_running_loop().getaddrinfo(host, HTTPS_PORT, type=socket.SOCK_STREAM)
    return [str(entry[4][0]) for entry in found]


async def connect_tls(address: Address, host: str) -> Streams:
    """Connect to an address and check that it has a certificate for the host."""
    context = ssl.create_default_context()
    return await asyncio.open_connection(address, HTTPS_PORT, ssl=context, server_hostname=host, limit=_READ_LEN)


@dataclass
class _Head:
    status: int
    location: str | None


class MediaFetcher:
    """Gives the bytes of a URL.

    Args:
        domains: hosts whose https: URLs are fetched.
        root: folder whose files may be named by file: URLs, or None.
        max_bytes: of one medium.
        seconds: for one URL, redirects included.
        resolve, connect: stand-ins for tests.
    """

    def __init__(
        self,
        *,
        domains: frozenset[str] = frozenset(),
        root: Path | None = None,
        max_bytes: int,
        seconds: float = 20.0,
        resolve: Resolve = resolve_host,
        connect: Connect = connect_tls,
    ) -> None:
        self._domains = frozenset(domain.lower().rstrip(".") for domain in domains)
        self._root = None if root is None else root.resolve()
        self._max_bytes = max_bytes
        self._seconds = seconds
        self._resolve = resolve
        self._connect = connect
        self._places = asyncio.Semaphore(MAX_FETCHES)

    async def __call__(self, url: str) -> bytes:
        """Return the bytes of a URL.

        Raises:
            ApiError: a scheme, host, address or file that is not allowed, or a fetch that failed.
            MediaError: base64 that is not.
        """
        if url.startswith("data:"):
            return await asyncio.to_thread(_decode, url) if len(url) > _INLINE_LEN else _decode(url)
        if len(url) > MAX_URL_LEN or not url.isprintable():
            raise _refused("the URL is too long or holds control characters")
        scheme = url.partition(":")[0].lower()
        if scheme == "file":
            return await asyncio.to_thread(self._read_file, url)
        if scheme != "https":
            raise _refused("a medium must be a data: URL, or an https: URL of a host this server allows")
        if not self._domains:
            raise _refused("this server fetches no URLs; send the medium as a data: URL")
        async with self._places:
            try:
                return await asyncio.wait_for(self._fetch(url), self._seconds)
            except ApiError:
                raise
            except (OSError, EOFError, asyncio.TimeoutError, TimeoutError, h11.ProtocolError, ValueError) as error:
                raise ApiError(400, "the URL cannot be fetched", code="fetch_failed") from error

    # https: -----------------------------------------------------------------------------------------------
    async def _fetch(self, url: str) -> bytes:
        for _ in range(MAX_REDIRECTS + 1):
            host, target = self._check_url(url)
            addresses = await self._resolve(host)
            if not addresses or not all(is_public(address) for address in addresses):
                raise _refused("the URL's host is not in the public internet")
            reader, writer = await self._connect(addresses[0], host)
            try:
                head, data = await self._read_response(reader, writer, host, target)
            finally:
                writer.close()
            if head.status == 200:
                return data
            if head.status not in _REDIRECTS or head.location is None:
                raise ApiError(400, f"the URL's host answered with status {head.status}", code="fetch_failed")
            url = urljoin(url, head.location)
        raise _refused(f"the URL was redirected more than {MAX_REDIRECTS} times")

    def _check_url(self, url: str) -> tuple[str, str]:
        """Return the host and the request target of a URL that may be fetched."""
        try:
            parts = urlsplit(url)
            host, port = (parts.hostname or "").lower().rstrip("."), parts.port
        except ValueError as error:
            raise _refused("the URL is not valid") from error
        is_plain = url.isascii() and url.isprintable() and not any(c in url for c in ' \\"<>^`{|}')
        if parts.scheme != "https" or not is_plain or "@" in parts.netloc or port not in (None, HTTPS_PORT):
            raise _refused("only plain https: URLs without user names and ports are fetched")
        if host not in self._domains:
            raise _refused("the URL's host is not on this server's list")
        return host, (parts.path or "/") + (f"?{parts.query}" if parts.query else "")

    async def _read_response(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, host: str, target: str
    ) -> tuple[_Head, bytes]:
        connection = h11.Connection(h11.CLIENT, max_incomplete_event_size=MAX_HEAD_LEN)
        headers = [("Host", host), ("User-Agent", "tianquan"), ("Accept-Encoding", "identity"), ("Connection", "close")]
        request = connection.send(h11.Request(method="GET", target=target, headers=headers))
        assert request is not None
        writer.write(request)
        connection.send(h11.EndOfMessage())
        await writer.drain()
        head, data = _Head(0, None), bytearray()
        while True:
            event = connection.next_event()
            if event is h11.NEED_DATA:
                connection.receive_data(await reader.read(_READ_LEN))
            elif isinstance(event, h11.Response):
                fields = dict(event.headers)
                location = fields.get(b"location")
                head = _Head(event.status_code, None if location is None else location.decode("latin-1"))
                if head.status != 200:
                    return head, b""
                stated = fields.get(b"content-length", b"0")
                if int(stated) > self._max_bytes:
                    raise self._too_large()
            elif isinstance(event, h11.Data):
                data += event.data
                if len(data) > self._max_bytes:
                    raise self._too_large()
            elif isinstance(event, h11.EndOfMessage):
                return head, bytes(data)

    def _too_large(self) -> ApiError:
        return ApiError(413, f"the medium is larger than the {self._max_bytes} bytes taken here", code="too_large")

    # file: ------------------------------------------------------------------------------------------------
    def _read_file(self, url: str) -> bytes:
        """Read a file of the media root: a path below it, or a whole path that leads into it."""
        if self._root is None:
            raise _refused("this server reads no files; send the medium as a data: URL")
        missing = ApiError(400, "there is no such file in the server's media folder", code="file_not_found")
        try:
            parts = urlsplit(url)
            path = unquote(parts.path)
            if parts.netloc not in ("", "localhost") or "\0" in path:
                raise missing
            inside = Path(path).resolve()
            if not inside.is_relative_to(self._root):
                inside = (self._root / path.lstrip("/")).resolve()
            if not inside.is_relative_to(self._root):
                raise missing
            return self._read_below_root(inside.relative_to(self._root))
        except (OSError, ValueError, RuntimeError) as error:
            raise missing from error

    def _read_below_root(self, path: Path) -> bytes:
        """Open step by step without following links: what was resolved may have been replaced by one."""
        assert self._root is not None
        folder = os.open(self._root, os.O_RDONLY | os.O_DIRECTORY)
        try:
            for name in path.parts[:-1]:
                below = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=folder)
                os.close(folder)
                folder = below
            handle = os.open(path.name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=folder)
        finally:
            os.close(folder)
        with os.fdopen(handle, "rb") as file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise OSError("not a regular file")
            if status.st_size > self._max_bytes:
                raise self._too_large()
            return file.read(self._max_bytes)


def _decode(url: str) -> bytes:
    try:
        data = parse_source(url, "the data: URL")
    except PromptError as error:
        raise MediaError("the data: URL is not valid") from error
    assert isinstance(data, bytes), "a data: URL gives bytes"
    return data


def _refused(message: str) -> ApiError:
    return ApiError(400, message, code="url_refused")
