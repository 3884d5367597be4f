"""Adapters behind one server: a request's model chooses, and what is cached for one name never reaches another."""

from __future__ import annotations

import base64
import logging
from concurrent.futures import ThreadPoolExecutor

import openai
import pytest

import command_line
import tianquan
from random_adapter import write_adapter
from running_server import MODEL, running, wait_until
from tianquan.engine.interface import EngineOptions
from tianquan.engine.scheduler import SchedulerLimits
from tianquan.errors import ParameterError
from tianquan.request import SamplingParams
from tianquan.serving import transcription_route
from tianquan.serving.config import ServeConfig, make_config

NAMES = {
    "radio": ("language_model.layers.0.attention.query", "language_model.head"),
    "team/eyes": ("resampler.output", "language_model.layers.1.mlp.down"),
}
PROMPT = "a long beginning that fills more than one block of keys and values, so that it would be found again: " * 2


@pytest.fixture(scope="module")
def adapters(tmp_path_factory, checkpoint_folder):
    root = tmp_path_factory.mktemp("adapters")
    return {
        name: write_adapter(root / str(seed), checkpoint_folder, names, seed=seed, size=0.6)[0]
        for seed, (name, names) in enumerate(NAMES.items())
    }


@pytest.fixture(scope="module")
def alone(checkpoint_folder, adapters):
    """Each name's model, loaded by itself."""
    return {
        name: tianquan.load(checkpoint_folder, precision="float32", threads=1, adapter=adapters.get(name))
        for name in (MODEL, *adapters)
    }


@pytest.fixture(scope="module")
def three(checkpoint_folder, adapters):
    options = EngineOptions(limits=SchedulerLimits(max_running=4))
    llm = tianquan.load(checkpoint_folder, precision="float32", threads=1, adapters=adapters, engine=options)
    with running(llm, max_num_seqs=4, max_queue=40) as server:
        yield server


def is_idle(server):
    service = server.service
    in_use = service.statistics().num_blocks_in_use
    return not service.has_work and in_use == 0 and service.admission.num_taken == 0


def expected(llm, content):
    completion = llm.chat(
        [{"role": "user", "content": content}], sampling=SamplingParams(temperature=0, max_tokens=8, ignore_eos=True)
    )
    return completion.text


def test_each_name_gives_its_own_answers_all_at_once(three, alone, data_url, media_root):
    image = {"type": "image_url", "image_url": {"url": data_url("tiny_100x60.png")}}
    sound = base64.b64encode((media_root / "speech_1s_16k.wav").read_bytes()).decode()
    audio = {"type": "input_audio", "input_audio": {"data": sound, "format": "wav"}}
    contents = [PROMPT, [image, {"type": "text", "text": "what?"}], [audio, {"type": "text", "text": "what?"}]]
    right = {(name, n): expected(llm, content) for name, llm in alone.items() for n, content in enumerate(contents)}
    assert all(len({right[name, n] for name in alone}) == 3 for n in range(3)), "the adapters change nothing here"

    def ask(name, n, stream):
        reply = three.chat(contents[n], model=name, max_tokens=8, ignore_eos=True, stream=stream)
        assert reply.status == 200, reply.data
        if not stream:
            assert reply.json["model"] == name
            return name, n, reply.json["choices"][0]["message"]["content"]
        assert {event["model"] for event in reply.events} == {name}
        return name, n, "".join(event["choices"][0]["delta"].get("content") or "" for event in reply.events)

    with ThreadPoolExecutor(12) as pool:  # twice, so that the second time finds what the first left in the caches
        jobs = [pool.submit(ask, name, n, stream) for stream in (False, True) for n in range(3) for name in alone]
        for job in jobs:
            name, n, text = job.result(120)
            assert text == right[name, n], (name, n)
    wait_until(lambda: is_idle(three))


def test_caches_are_a_name_s_own(three):
    def cached(name, salt):
        reply = three.chat(PROMPT, model=name, cache_salt=salt)
        return reply.json["usage"]["prompt_tokens_details"]["cached_tokens"]

    for name in (MODEL, *NAMES):
        assert cached(name, "one test") == 0, name
    for name in (MODEL, *NAMES):
        assert cached(name, "one test") > 0, name


def test_pictures_seen_by_one_name_are_not_found_by_another(three, data_url):
    image = {"type": "image_url", "image_url": {"url": data_url("crop_448x448.png"), "detail": "low"}}
    for name in (MODEL, *NAMES):
        before = three.service.statistics()
        assert three.chat([image], model=name).status == 200
        after = three.service.statistics()
        assert after.encoder_queries > before.encoder_queries
        assert after.encoder_hits == before.encoder_hits, name


def test_the_log_says_who_answered(three, caplog):
    caplog.set_level(logging.INFO)
    for name in (MODEL, *NAMES):
        assert three.chat(model=name).status == 200
    assert three.chat(model="a name that a client made up").status == 404
    wait_until(lambda: "model_not_found" in caplog.text)
    for name in (MODEL, *NAMES):
        assert f'"model": "{name}"' in caplog.text
    assert "made up" not in caplog.text


def test_models_are_listed(three):
    data = three.get("/v1/models").json["data"]
    assert [model["id"] for model in data] == [MODEL, *NAMES]
    assert [model.get("parent") for model in data] == [None, MODEL, MODEL]
    assert len({model["max_model_len"] for model in data}) == 1
    for name in (MODEL, *NAMES):
        assert three.get(f"/v1/models/{name}").json["id"] == name
    with three.openai() as client:
        assert [model.id for model in client.models.list()] == [MODEL, *NAMES]


def test_unknown_names_are_404_on_every_route(three):
    for name in ("other", "", "radio ", "Radio", "eyes", "radio=x"):
        assert three.chat(model=name).status == 404
        assert three.post("/v1/completions", {"model": name, "prompt": "a"}).status == 404
        assert three.post("/tokenize", {"model": name, "prompt": "a"}).status == 404
        assert three.upload(b"x", model=name).status == 404
    assert three.chat(model="other").error["code"] == "model_not_found"
    assert three.get("/v1/models/other").status == 404
    with three.openai() as client, pytest.raises(openai.NotFoundError):
        client.chat.completions.create(model="other", messages=[{"role": "user", "content": "a"}])


def test_without_a_name_the_model_itself_answers(three, alone):
    reply = three.chat(PROMPT, max_tokens=8, ignore_eos=True)
    assert reply.json["model"] == MODEL
    assert reply.json["choices"][0]["message"]["content"] == expected(alone[MODEL], PROMPT)


def test_other_routes_choose_too(three, alone, media_root, monkeypatch):
    sampling = SamplingParams(temperature=0, max_tokens=8, ignore_eos=True)
    monkeypatch.setattr(transcription_route, "TRANSCRIBE_SAMPLING", sampling)
    texts = set()
    for name, llm in alone.items():
        fields = {"model": name, "prompt": PROMPT, "max_tokens": 8, "temperature": 0, "ignore_eos": True}
        reply = three.post("/v1/completions", fields)
        said = llm.generate(PROMPT, sampling=sampling)
        assert reply.json["choices"][0]["text"] == said.text
        texts.add(said.text)
    assert len(texts) == 3
    sound = media_root / "speech_1s_16k.wav"
    for name, llm in alone.items():
        reply = three.upload(sound.read_bytes(), model=name)
        assert reply.json["text"] == llm.transcribe(sound, sampling=sampling)


def test_metrics_are_of_all_together(three):
    def value(name):
        lines = three.get("/metrics").data.decode().splitlines()
        return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith(f"tianquan:{name} "))

    before = value("generation_tokens_total")
    for name in (MODEL, *NAMES):
        assert three.chat(model=name, max_tokens=5, ignore_eos=True).status == 200
    assert value("generation_tokens_total") == before + 15
    assert value("num_requests_running") == 0
    text = three.get("/metrics").data.decode()
    for name in (MODEL, *NAMES):
        assert f'tianquan:model_info{{model_name="{name}"}} 1' in text
    assert text.count("# TYPE tianquan:kv_cache_usage_perc gauge") == 1


def test_a_client_that_leaves_an_adapter_frees_it(three):
    with three.openai() as client:
        stream = client.chat.completions.create(
            model="radio",
            messages=[{"role": "user", "content": "go on"}],
            max_tokens=3000,
            stream=True,
            extra_body={"ignore_eos": True},
        )
        next(iter(stream))
        assert three.service.llm.adapted["radio"].statistics().num_running == 1
        stream.close()
    wait_until(lambda: is_idle(three))


def test_names_must_tell_apart(tmp_path):
    make_config({"model": "a/b", "adapter": ["x=/some", "y=/some"]})
    for given, word in (
        (["x=/a", "x=/b"], "taken"),
        (["mine=/a"], "the model's own"),
        (["x"], "NAME=FOLDER"),
        (["=/a"], "NAME=FOLDER"),
        (["x="], "NAME=FOLDER"),
        (["x\n=/a"], "NAME=FOLDER"),
    ):
        with pytest.raises(ParameterError, match=word) as caught:
            make_config({"model": "a/b", "served_model_name": "mine", "adapter": given})
        assert "\n" not in str(caught.value)
    with pytest.raises(ParameterError, match="the model's own"):
        ServeConfig(model="a/b", adapter=("a/b=/x",))


def test_from_a_file(tmp_path):
    file = tmp_path / "serve.toml"
    file.write_text('adapter = ["one=/srv/one", "two=/srv/two"]\n')
    assert {name: str(folder) for name, folder in make_config({}, file).adapters.items()} == {
        "one": "/srv/one",
        "two": "/srv/two",
    }
    assert list(make_config({"adapter": ["three=/x"]}, file).adapters) == ["three"]  # the command line comes first
    file.write_text('adapter = "one=/srv/one"\n')
    with pytest.raises(ParameterError, match="adapter"):
        make_config({}, file)


def test_the_command_refuses_in_one_line(checkpoint_folder, tmp_path):
    for arguments, words in (
        (["--adapter", "a=/x", "--adapter", "a=/y"], ("adapter a", "taken")),
        (["--adapter", f"a={tmp_path}"], ("adapter_config.json",)),
    ):
        command_line.assert_refused(command_line.run("serve", checkpoint_folder, "--port", "0", *arguments), *words)


def test_workers_get_whole_paths_and_the_same_names(tmp_path, monkeypatch):
    cluster = pytest.importorskip("tianquan.scaling.cluster")
    monkeypatch.chdir(tmp_path)
    config = cluster.with_whole_paths(ServeConfig(adapter=("a=one", "b/c=two")))
    assert config.adapters == {"a": tmp_path / "one", "b/c": tmp_path / "two"}
    assert config.model_name == "embedded"
