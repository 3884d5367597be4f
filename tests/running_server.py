"""A server in a thread, and plain HTTP to it."""

from __future__ import annotations

import contextlib
import http.client
import json
import threading
import time
from dataclasses import dataclass, replace

import openai

from tianquan.serving.config import Patience, ServeConfig
from tianquan.serving.server import RunningServer

MODEL = "tiny"
HASTY = replace(Patience(), head=0.3, idle=0.3, body=0.3, write=0.3, ping=0.05)


@dataclass(frozen=True)
class Reply:
    status: int
    headers: dict[str, str]
    data: bytes

    @property
    def json(self):
        return json.loads(self.data)

    @property
    def error(self):
        return self.json["error"]

    @property
    def events(self):
        """The JSON of each event of a stream."""
        lines = [line for line in self.data.decode().split("\n\n") if line.startswith("data: ")]
        assert lines[-1] == "data: [DONE]"
        return [json.loads(line.removeprefix("data: ")) for line in lines[:-1]]


class Address:
    """A running server, and plain HTTP to it."""

    def __init__(self, server: RunningServer) -> None:
        self.server = server
        self.port = server.port
        self.service = server.service

    def connection(self) -> http.client.HTTPConnection:
        return http.client.HTTPConnection("127.0.0.1", self.port, timeout=20)

    def request(self, method, path, body=None, headers=()) -> Reply:
        headers = {"Content-Type": "application/json", **dict(headers)}
        if body is not None and not isinstance(body, bytes):
            body = json.dumps(body).encode()
        with contextlib.closing(self.connection()) as connection:
            connection.request(method, path, body, headers)
            response = connection.getresponse()
            return Reply(response.status, {k.lower(): v for k, v in response.getheaders()}, response.read())

    def get(self, path, **headers) -> Reply:
        return self.request("GET", path, headers=headers)

    def post(self, path, body, headers=()) -> Reply:
        return self.request("POST", path, body, headers)

    def chat(self, content="hello", **fields) -> Reply:
        messages = [{"role": "user", "content": content}]
        return self.post("/v1/chat/completions", {"messages": messages, "max_tokens": 4, "temperature": 0, **fields})

    def upload(self, content, filename="a.wav", **fields) -> Reply:
        """Send a transcription form."""
        parts = [f'Content-Disposition: form-data; name="{k}"\r\n\r\n{v}'.encode() for k, v in fields.items()]
        if content is not None:
            head = f'Content-Disposition: form-data; name="file"; filename="{filename}"\r\n\r\n'
            parts.append(head.encode() + content)
        body = b"".join(b"--x\r\n" + part + b"\r\n" for part in parts) + b"--x--\r\n"
        kind = {"Content-Type": "multipart/form-data; boundary=x"}
        return self.post("/v1/audio/transcriptions", body, kind)

    def openai(self, key="none", **options) -> openai.OpenAI:
        return openai.OpenAI(base_url=f"http://127.0.0.1:{self.port}/v1", api_key=key, max_retries=0, **options)

    @property
    def engine(self):
        return self.service.llm.driver.engine

    def is_idle(self) -> bool:
        statistics = self.engine.statistics()
        return not self.engine.has_work and statistics.num_blocks_in_use == 0 and self.service.admission.num_taken == 0


def wait_until(condition, seconds=10.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not come true in time"
        time.sleep(0.01)


@contextlib.contextmanager
def running(llm, *, load=None, **options):
    config = ServeConfig(**{"port": 0, "served_model_name": MODEL, "preload": False, "shutdown_seconds": 1, **options})
    server = RunningServer(config, load or (lambda: llm))
    thread = threading.Thread(target=server.run)
    thread.start()
    address = Address(server)
    try:
        wait_until(lambda: server.service.is_ready or load is not None)
        yield address
    finally:
        server.stop()
        thread.join(20)
        assert not thread.is_alive()
