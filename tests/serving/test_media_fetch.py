"""Where media may come from. Each refusal here is a hole some other server had."""

from __future__ import annotations

import asyncio
import base64
import os

import pytest

from tianquan.errors import MediaError
from tianquan.serving.api_error import ApiError
from tianquan.serving.media_fetch import MediaFetcher, is_public

PUBLIC = "93.184.216.34"


class Web:
    """A stand-in for the internet: hosts by address, and a record of who was connected to."""

    def __init__(self, addresses=None, responses=()) -> None:
        self.addresses = addresses or {"good.example": [PUBLIC]}
        self.responses = list(responses)
        self.resolved, self.connected, self.requests = [], [], []

    async def resolve(self, host):
        self.resolved.append(host)
        return self.addresses[host]

    async def connect(self, address, host):
        self.connected.append((address, host))
        reader = asyncio.StreamReader()
        for piece in self.responses.pop(0):
            reader.feed_data(piece)
        reader.feed_eof()
        return reader, Writer(self.requests)

    def fetch(self, url, domains=("good.example",), max_bytes=1000, **options):
        async def run():
            fetcher = MediaFetcher(
                domains=frozenset(domains),
                max_bytes=max_bytes,
                resolve=self.resolve,
                connect=self.connect,
                **options,
            )
            return await fetcher(url)

        return asyncio.run(run())


class Writer:
    def __init__(self, requests) -> None:
        self.write = requests.append

    async def drain(self):
        pass

    def close(self):
        pass


def ok(body=b"picture", extra=b""):
    return [b"HTTP/1.1 200 OK\r\n" + extra + b"Content-Length: %d\r\n\r\n" % len(body), body]


def moved(location):
    return [b"HTTP/1.1 302 Found\r\nContent-Length: 0\r\nLocation: " + location.encode() + b"\r\n\r\n"]


def refused(web, url, **options):
    with pytest.raises(ApiError) as caught:
        web.fetch(url, **options)
    assert caught.value.status in (400, 413)
    return caught.value


def test_an_allowed_host_is_fetched_from_the_address_that_was_checked():
    web = Web(responses=[ok()])
    assert web.fetch("https://GOOD.example:443/a/b.png?c=d") == b"picture"
    assert web.resolved == ["good.example"]  # once: there is no second answer to be different
    assert web.connected == [(PUBLIC, "good.example")]
    assert web.requests[0].startswith(b"GET /a/b.png?c=d HTTP/1.1\r\n")
    assert b"Host: good.example\r\n" in web.requests[0]


@pytest.mark.parametrize("url", ["https://good.example/a", "http://good.example/a", "file:///etc/passwd"])
def test_nothing_is_fetched_by_default(url):
    web = Web(responses=[ok()])
    refused(web, url, domains=())
    assert web.resolved == web.connected == []


@pytest.mark.parametrize(
    "url",
    [
        "http://good.example/",
        "https://evil.example/",
        "https://good.example.evil.example/",
        "https://sub.good.example/",
        "https://good.example@evil.example/",
        "https://user:word@good.example/",
        "https://evil.example#@good.example/",
        "https://evil.example\\@good.example/",
        "https://good.example:8443/",
        "https://good.example:22/",
        "https://good.example:x/",
        "https://127.0.0.1/",
        "https://2130706433/",
        "https://0x7f000001/",
        "https://0177.0.0.1/",
        "https://127.1/",
        "https://[::1]/",
        "https://[::ffff:127.0.0.1]/",
        "https://[0:0:0:0:0:ffff:7f00:1]/",
        "https://localhost/",
        "https://①②⑦.0.0.1/",
        "https://good。example/",
        "https:///good.example/",
        "https:good.example",
        "https://good.example/\r\nHost: evil.example",
        "https://good.example/a b",
        "https://[good.example/",
        "ftp://good.example/",
        "gopher://good.example/",
        "javascript:alert(1)",
        "DATA:text/plain;base64,AAAA",
        "/etc/passwd",
        "etc/passwd",
        "//good.example/",
        "",
        "https://good.example/" + "a" * 5000,
    ],
)
def test_other_urls_are_refused_before_anything_is_looked_up(url):
    web = Web(addresses={}, responses=[ok()])
    error = refused(web, url)
    assert web.resolved == web.connected == []
    assert "passwd" not in error.message
    assert "evil" not in error.message


PRIVATE = [
    *("127.0.0.1", "127.8.8.8", "0.0.0.0", "10.1.2.3", "172.16.0.1", "172.31.255.255", "192.168.1.1"),
    *("169.254.169.254", "100.64.0.1", "100.127.255.255", "192.0.0.192", "198.18.0.1", "224.0.0.1"),
    *("255.255.255.255", "240.0.0.1", "::", "::1", "::ffff:127.0.0.1", "::ffff:10.0.0.1", "::ffff:8.8.8.8"),
    *("fe80::1", "fe80::1%eth0", "fc00::1", "fd12::1", "fec0::1", "ff02::1", "64:ff9b::7f00:1", "64:ff9b::a00:1"),
    *("2002:7f00:1::1", "2001:0:4136:e378:8000:63bf:3fff:fdd2", "2001:db8::1", "::7f00:1", "not an address", ""),
]


@pytest.mark.parametrize("address", PRIVATE)
def test_an_allowed_name_that_leads_inside_is_refused(address):
    assert not is_public(address)
    for addresses in ([address], [PUBLIC, address], [address, PUBLIC]):
        web = Web(addresses={"good.example": addresses}, responses=[ok()])
        error = refused(web, "https://good.example/")
        assert web.connected == []
        assert address not in error.message or not address


@pytest.mark.parametrize("address", [PUBLIC, "8.8.8.8", "2606:4700:4700::1111"])
def test_public_addresses_are_public(address):
    assert is_public(address)


@pytest.mark.parametrize("host", ["127.0.0.1", "2130706433", "0x7f.1", "0177.0.0.1", "127.1", "localhost", "::1"])
def test_spelled_out_addresses_are_refused_even_when_listed(host):
    """With the real resolver, which understands all of these."""

    async def connect(address, name):
        raise AssertionError("connected to this machine")

    url = f"https://[{host}]/" if ":" in host else f"https://{host}/"

    async def run():
        return await MediaFetcher(domains=frozenset([host]), max_bytes=10, connect=connect)(url)

    with pytest.raises(ApiError):
        asyncio.run(run())


@pytest.mark.parametrize(
    "location",
    [
        "https://127.0.0.1/",
        "http://good.example/",
        "https://evil.example/",
        "//evil.example/",
        "https://inside.example/",
        "file:///etc/passwd",
        "https://good.example:9200/",
    ],
)
def test_redirects_are_checked_like_first_urls(location):
    addresses = {"good.example": [PUBLIC], "inside.example": ["10.0.0.1"]}
    web = Web(addresses, [moved(location), ok()])
    refused(web, "https://good.example/", domains=("good.example", "inside.example"))
    assert web.connected == [(PUBLIC, "good.example")]


def test_a_name_that_moves_inside_between_redirects_is_refused():
    answers = iter([[PUBLIC], ["127.0.0.1"]])

    class Rebinding(Web):
        async def resolve(self, host):
            return next(answers)

    web = Rebinding(responses=[moved("/again"), ok()])
    refused(web, "https://good.example/")
    assert web.connected == [(PUBLIC, "good.example")]


def test_three_redirects_are_followed_and_no_more():
    web = Web(responses=[moved("/1"), moved("https://good.example/2"), moved("3"), ok()])
    assert web.fetch("https://good.example/") == b"picture"
    web = Web(responses=[moved("/1")] * 4 + [ok()])
    refused(web, "https://good.example/")
    assert len(web.connected) == 4


def test_bodies_are_capped_while_they_come():
    assert refused(Web(responses=[ok(b"a" * 2000)]), "https://good.example/").status == 413
    endless = [b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"] + [b"400\r\n" + b"a" * 1024 + b"\r\n"] * 5
    assert refused(Web(responses=[endless]), "https://good.example/").status == 413
    lying = [b"HTTP/1.1 200 OK\r\n\r\n", b"a" * 5000]
    assert refused(Web(responses=[lying]), "https://good.example/").status == 413


@pytest.mark.parametrize(
    "response",
    [
        [b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n"],
        [b"HTTP/1.1 302 Found\r\nContent-Length: 0\r\n\r\n"],
        [b"nonsense\r\n\r\n"],
        [b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n", b"short"],
        [b"HTTP/1.1 200 OK\r\nX: " + b"a" * 100_000],
        [],
    ],
)
def test_bad_answers_are_one_plain_error(response):
    error = refused(Web(responses=[response]), "https://good.example/secret")
    assert error.code == "fetch_failed"
    assert "secret" not in error.message
    assert PUBLIC not in error.message


def test_slow_hosts_are_given_up():
    class Silent(Web):
        async def connect(self, address, host):
            return asyncio.StreamReader(), Writer([])

    assert refused(Silent(), "https://good.example/", seconds=0.1).code == "fetch_failed"


def test_data_urls():
    url = "data:image/png;base64," + base64.b64encode(b"abc").decode()
    assert Web().fetch(url) == b"abc"
    for bad in ("data:image/png,abc", "data:;base64,@@@", "data:", "data:image/png;base64"):
        with pytest.raises(MediaError):
            Web().fetch(bad)


@pytest.fixture
def root(tmp_path):
    root = tmp_path / "media"
    (root / "sub").mkdir(parents=True)
    (root / "a.png").write_bytes(b"a")
    (root / "sub" / "b c.png").write_bytes(b"b")
    (root / "big").write_bytes(b"x" * 2000)
    (tmp_path / "secret").write_bytes(b"secret")
    (tmp_path / "media2").mkdir()
    (tmp_path / "media2" / "s").write_bytes(b"secret")
    (root / "out").symlink_to(tmp_path / "secret")
    (root / "outside").symlink_to(tmp_path)
    (root / "in").symlink_to("a.png")
    os.mkfifo(root / "pipe")
    return root


def test_files_of_the_media_root(root):
    for url in (f"file://{root}/a.png", "file:///a.png", "file:a.png", "file://localhost/a.png", "file:///in"):
        assert Web().fetch(url, root=root) == b"a"
    assert Web().fetch("file:///sub/b%20c.png", root=root) == b"b"


@pytest.mark.parametrize(
    "path",
    [
        "/../secret", "/%2e%2e/secret", "/sub/../../secret", "/out", "/outside/secret", "/../media2/s", "/sub",
        "/pipe", "/a.png%00.jpg", "/none", "", "/", "/..", "//etc/passwd", "/etc/passwd", "/proc/self/environ",
        "/%2e%2e%2fsecret", "/..\\secret", "/sub/%2e%2e/%2e%2e/secret", "/" + "a" * 300, "[/x.png",
    ],
)  # fmt: skip
def test_no_other_file_is_read(root, path):
    error = refused(Web(), f"file://{path}", root=root)
    assert error.code in ("file_not_found", "url_refused")
    assert "secret" not in error.message
    assert str(root) not in error.message


def test_large_files_and_files_without_a_root_are_refused(root):
    assert refused(Web(), "file:///big", root=root).status == 413
    assert refused(Web(), "file:///a.png").code == "url_refused"
