from __future__ import annotations

import base64

import pytest

import tianquan
from browser import EXECUTABLE, Browser
from running_server import running
from tianquan.engine.interface import EngineOptions
from tianquan.engine.scheduler import SchedulerLimits


@pytest.fixture(scope="session")
def served_llm(checkpoint_folder) -> tianquan.LLM:
    limits = SchedulerLimits(max_running=4)
    return tianquan.load(
        checkpoint_folder, precision="float32", backend="native", threads=1, engine=EngineOptions(limits=limits)
    )


@pytest.fixture(scope="session")
def serve(served_llm):
    """Starts a server with options, as a context."""
    return lambda **options: running(served_llm, **options)


@pytest.fixture(scope="session")
def server(serve):
    with serve(max_num_seqs=4, max_queue=16) as address:
        yield address


@pytest.fixture(scope="session")
def client(server):
    with server.openai() as client:
        yield client


@pytest.fixture(scope="session")
def data_url(media_root):
    def make(name, kind="image/png"):
        return f"data:{kind};base64,{base64.b64encode((media_root / name).read_bytes()).decode()}"

    return make


@pytest.fixture(scope="module")
def browser(tmp_path_factory, media_root):
    if EXECUTABLE is None:
        pytest.skip("no chromium here; on Debian: apt-get install chromium")
    microphone = f"--use-file-for-fake-audio-capture={media_root / 'speech_1s_16k.wav'}"
    browser = Browser(tmp_path_factory.mktemp("browser"), microphone)
    yield browser
    browser.close()


@pytest.fixture(scope="module")
def tab(browser):
    return browser.open()


@pytest.fixture
def page(tab, server):
    """The web page before anything is said, which answers with the conformance checkpoint."""
    tab.start(f"http://127.0.0.1:{server.port}/", {"tianquan.settings": '{"max_tokens": 6, "temperature": 0}'})
    yield tab
    assert tab.complaints == []
