"""The service file and the proxy of docs/serving.md, as they stand there, with the programs they are written for."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest

from running_server import wait_until

DOCS = (Path(__file__).parents[2] / "docs" / "serving.md").read_text(encoding="utf-8")
NGINX = shutil.which("nginx")
KEY = "correct-horse-battery"


def block(kind, beginning):
    (found,) = [text for text in re.findall(rf"```{kind}\n(.*?)```", DOCS, re.DOTALL) if text.startswith(beginning)]
    return found


def free_port():
    with contextlib.closing(socket.create_server(("127.0.0.1", 0))) as taken:
        return taken.getsockname()[1]


@contextlib.contextmanager
def served(folder, config):
    """`tianquan serve --config` as a service runs it: from a folder that it may not write to."""
    file, still = folder / "serve.toml", folder / "empty"
    file.write_text(config)
    still.mkdir()
    still.chmod(0o500)
    command = [sys.executable, "-m", "tianquan", "serve", "--config", str(file)]
    with (folder / "log").open("wb") as log, subprocess.Popen(command, stderr=log, cwd=still) as process:
        try:
            wait_until(lambda: process.poll() is not None or b"ready: " in (folder / "log").read_bytes(), 60)
            assert process.poll() is None, (folder / "log").read_text()
            yield process
        finally:
            process.send_signal(signal.SIGTERM)
            assert process.wait(30) == 0
    assert os.listdir(still) == []


@pytest.fixture(scope="module")
def service(tmp_path_factory, checkpoint_folder):
    """A running server, its port and its log."""
    folder = tmp_path_factory.mktemp("service")
    (folder / "keys").write_text(KEY + "\n")
    (folder / "keys").chmod(0o400)
    port = free_port()
    config = block("toml", "model =")
    for old, new in (
        ("/srv/models/megrez-int4", str(checkpoint_folder)),
        ("8000", str(port)),
        ("/etc/tianquan/keys", str(folder / "keys")),
    ):
        assert old in config
        config = config.replace(old, new)
    with served(folder, config + "threads = 1\npreload = false\n"):
        yield port, folder / "log"


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="no systemd here")
def test_the_unit_is_valid(tmp_path):
    unit = block("ini", "[Unit]")
    assert "/opt/tianquan/bin/tianquan serve --config" in unit
    (tmp_path / "tianquan.service").write_text(unit.replace("/opt/tianquan/bin/tianquan", sys.executable))
    result = subprocess.run(
        ["systemd-analyze", "verify", str(tmp_path / "tianquan.service")], capture_output=True, text=True, timeout=60
    )
    mentioned = [line for line in result.stderr.splitlines() if "tianquan.service" in line]
    assert (result.returncode, mentioned) == (0, []), result.stderr


def test_it_stops_in_order_and_writes_nothing(service):
    """What the fixture asserts at its end; here that it answers, and that its log is lines of JSON."""
    port, log = service
    request = urllib.request.Request(f"http://127.0.0.1:{port}/v1/models", headers={"Authorization": f"Bearer {KEY}"})
    with urllib.request.urlopen(request, timeout=20) as response:
        assert json.load(response)["data"]
    wait_until(lambda: '"event": "request"' in log.read_text())
    lines = [
        json.loads(line[line.index("{") :]) for line in log.read_text().splitlines() if '"event": "request"' in line
    ]
    assert {"id", "method", "route", "status", "ms"} <= set(lines[-1])


@pytest.fixture(scope="module")
def proxy(service, tmp_path_factory):
    """nginx with the block of the documentation before the server; gives its port and the certificate."""
    if NGINX is None:
        pytest.skip("no nginx here; on Debian: apt-get install nginx")
    folder, port = tmp_path_factory.mktemp("nginx"), free_port()
    certificate, key = folder / "cert.pem", folder / "key.pem"
    names = ["-subj", "/CN=ai.example.org", "-addext", "subjectAltName=DNS:ai.example.org"]
    make = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2"]
    subprocess.run([*make, "-keyout", key, "-out", certificate, *names], check=True, capture_output=True)
    server = block("nginx", "server {")
    for old, new in (
        ("listen 443 ssl", f"listen 127.0.0.1:{port} ssl"),
        ("/etc/letsencrypt/live/ai.example.org/fullchain.pem", str(certificate)),
        ("/etc/letsencrypt/live/ai.example.org/privkey.pem", str(key)),
        ("http://127.0.0.1:8000", f"http://127.0.0.1:{service[0]}"),
    ):
        assert old in server
        server = server.replace(old, new)
    paths = "".join(
        f"{kind}_temp_path {folder}/{kind};" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    config = folder / "nginx.conf"
    config.write_text(
        f"daemon off; pid {folder}/pid; error_log {folder}/error.log;\nevents {{}}\n"
        f"http {{ access_log off; {paths}\n{server}\n}}\n"
    )
    with subprocess.Popen([NGINX, "-c", config, "-p", folder], stderr=subprocess.PIPE) as process:
        try:
            wait_until(lambda: process.poll() is not None or accepts(port))
            assert process.poll() is None, process.stderr.read()
            yield port, certificate
        finally:
            process.terminate()


def accepts(port):
    with contextlib.suppress(OSError):
        socket.create_connection(("127.0.0.1", port), 1).close()
        return True
    return False


@contextlib.contextmanager
def tls(proxy, data):
    """Send raw HTTP by the name that people use, and give the connection."""
    port, certificate = proxy
    context = ssl.create_default_context(cafile=str(certificate))
    with (
        socket.create_connection(("127.0.0.1", port), 20) as raw,
        context.wrap_socket(raw, server_hostname="ai.example.org") as connection,
    ):
        connection.sendall(data)
        yield connection


def head(method, path, *lines):
    return "\r\n".join([f"{method} {path} HTTP/1.1", "Host: ai.example.org", *lines, "", ""]).encode()


def read_all(connection):
    received = b""
    while piece := connection.recv(65536):
        received += piece
    return received


AUTHORIZED = f"Authorization: Bearer {KEY}"


def test_the_page_and_the_key_behind_the_proxy(proxy):
    for path, lines, status in (
        ("/", [], b"200"),
        ("/health", [], b"200"),
        ("/v1/models", [], b"401"),
        ("/v1/models", [AUTHORIZED], b"200"),
    ):
        with tls(proxy, head("GET", path, "Connection: close", *lines)) as connection:
            assert read_all(connection).startswith(b"HTTP/1.1 " + status), path


def test_the_page_s_requests_are_told_from_other_pages_behind_the_proxy(proxy):
    body = b'{"messages": [{"role": "user", "content": "a"}], "max_tokens": 1}'
    common = ["Connection: close", AUTHORIZED, "Content-Type: application/json", f"Content-Length: {len(body)}"]
    for origin, status in (("https://ai.example.org", b"200"), ("https://evil.example", b"403")):
        request = head("POST", "/v1/chat/completions", f"Origin: {origin}", *common)
        with tls(proxy, request + body) as connection:
            assert read_all(connection).startswith(b"HTTP/1.1 " + status), origin


def test_tokens_come_through_the_proxy_as_they_are_made(proxy, service):
    """The first piece arrives long before the last; a client that leaves the proxy ends its answer in the server."""
    fields = {"messages": [{"role": "user", "content": "go on"}], "stream": True, "ignore_eos": True}
    body = json.dumps({**fields, "max_tokens": 3000}).encode()
    lines = [AUTHORIZED, "Content-Type: application/json", f"Content-Length: {len(body)}"]
    with tls(proxy, head("POST", "/v1/chat/completions", *lines) + body) as connection:
        arrivals, received, end = 0, b"", time.monotonic() + 30
        while received.count(b"data: ") < 20:
            assert time.monotonic() < end
            received += connection.recv(4096)
            arrivals += 1
        assert b"[DONE]" not in received
        assert arrivals >= 3
    wait_until(lambda: '"status": 499' in service[1].read_text())
