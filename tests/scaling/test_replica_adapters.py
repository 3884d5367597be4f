"""Adapters behind replicas: the same names, the same answers as in one process."""

from __future__ import annotations

from dataclasses import replace

import openai
import pytest

import tianquan
from random_adapter import write_adapter
from scaling.endpoint import Endpoint
from tianquan.llm import GREEDY

NAMES = ("language_model.layers.0.attention.query", "language_model.head")


def test_names_choose_in_every_replica(checkpoint_folder, tmp_path, monkeypatch):
    folder, _ = write_adapter(tmp_path / "adapter", checkpoint_folder, NAMES, size=0.6)
    monkeypatch.chdir(tmp_path)  # workers stand elsewhere
    endpoint = Endpoint(checkpoint_folder, tmp_path / "log", "--replicas", "1", "--adapter", "team/mine=adapter")
    try:
        said = {}
        for name, adapter in (("checkpoint", None), ("team/mine", folder)):
            llm = tianquan.load(checkpoint_folder, precision="float32", threads=1, adapter=adapter)
            messages = [{"role": "user", "content": "hello"}]
            said[name] = llm.chat(messages, sampling=replace(GREEDY, max_tokens=6)).text
            answer = endpoint.client.chat.completions.create(model=name, messages=messages, max_tokens=6, temperature=0)
            assert answer.choices[0].message.content == said[name]
            assert answer.model == name
        assert said["checkpoint"] != said["team/mine"]
        assert [model.id for model in endpoint.client.models.list()] == list(said)
        assert endpoint.client.models.retrieve("team/mine").id == "team/mine"
        with pytest.raises(openai.NotFoundError):
            endpoint.client.models.retrieve("mine")
    finally:
        endpoint.stop()
