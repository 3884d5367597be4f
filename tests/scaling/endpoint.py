"""`serve --ray local` in a process of its own, and what its log and its clients tell."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time

import openai

from scaling.ray_processes import PATIENCE


class Endpoint:
    """A server with replicas of one thread.

    Args:
        folder: of the model.
        log: file for what it says.
        options: of `serve`, beside these.
    """

    def __init__(self, folder, log, *options):
        self._log = log
        common = ["--precision", "float32", "--threads", "1", "--ray", "local", "--port", "0"]
        command = [sys.executable, "-m", "tianquan", "serve", str(folder), *common, "--shutdown-seconds", "1", *options]
        with open(log, "wb") as file:
            self.process = subprocess.Popen(command, stdout=file, stderr=file)
        try:
            self.port = int(self.wait_for(r"listening on http://127\.0\.0\.1:(\d+)")[1])
            self.wait_for(r"ready: .* \d+ replicas")
        except BaseException:
            self.process.terminate()
            self.process.wait(PATIENCE)
            raise
        url = f"http://127.0.0.1:{self.port}/v1"
        self.client = openai.OpenAI(base_url=url, api_key="none", max_retries=0, timeout=PATIENCE)

    def said(self):
        """Return the log as it is now."""
        return self._log.read_text(errors="replace")

    def wait_for(self, pattern, after=0):
        """Return the first match of a pattern in the log, beyond so many characters of it."""
        end = time.monotonic() + PATIENCE
        while (found := re.search(pattern, self.said()[after:])) is None:
            assert self.process.poll() is None, self.said()
            assert time.monotonic() < end, self.said()
            time.sleep(0.05)
        return found

    def chat(self, *texts, **options):
        roles = ["user", "assistant"] * len(texts)
        messages = [{"role": role, "content": text} for role, text in zip(roles, texts)]
        options = {"max_tokens": 6, "temperature": 0, **options}
        return self.client.chat.completions.create(model="checkpoint", messages=messages, **options)

    def long_stream(self, text, max_tokens=3000):
        """Return a stream that has begun and does not end soon."""
        stream = self.chat(text, stream=True, max_tokens=max_tokens, extra_body={"ignore_eos": True})
        next(stream)
        return stream

    def replica_of(self, *texts):
        """Return the process that answers a conversation, from the log."""
        answer = self.chat(*texts, max_tokens=1)
        id = answer.id.removeprefix("chatcmpl-")
        line = self.wait_for(rf'\{{"event": "request", "id": "{id}".*\}}')[0]
        return int(json.loads(line)["replica"].rpartition(":")[2])

    def wait_for_replicas(self, count):
        """Return the processes that answer, once there are so many: conversations are spread over them."""
        end = time.monotonic() + PATIENCE
        found = set()
        number = 0
        while len(found) < count:
            assert time.monotonic() < end, self.said()
            found.add(self.replica_of(f"whose turn is it? {number}"))
            number += 1
        return found

    def stop(self):
        self.process.terminate()
        assert self.process.wait(PATIENCE) == 0, self.said()
