from __future__ import annotations

import signal
from pathlib import Path

import pytest
from hypothesis import settings

import tianquan
from random_checkpoint import write_random_checkpoint

CONFORMANCE = Path(__file__).parent / "conformance"

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # in a background job; programs under test inherit it
    signal.signal(signal.SIGINT, signal.default_int_handler)
settings.register_profile("tests", deadline=None)  # a busy machine is no failure
settings.load_profile("tests")


@pytest.fixture(scope="session")
def conformance() -> Path:
    return CONFORMANCE


@pytest.fixture(scope="session")
def media_root() -> Path:
    return CONFORMANCE / "media"


@pytest.fixture(scope="session")
def checkpoint_folder() -> Path:
    return CONFORMANCE / "checkpoint"


@pytest.fixture(scope="session")
def reference_llm(checkpoint_folder: Path) -> tianquan.LLM:
    return tianquan.load(checkpoint_folder, precision="float32", backend="reference")


@pytest.fixture(scope="session", params=["reference", "native"])
def llm(request: pytest.FixtureRequest, checkpoint_folder: Path) -> tianquan.LLM:
    """The conformance checkpoint in float32 on each backend."""
    return tianquan.load(checkpoint_folder, precision="float32", backend=request.param)


@pytest.fixture(scope="session")
def processor(reference_llm: tianquan.LLM):
    return reference_llm.checkpoint.processor


@pytest.fixture(scope="session")
def random_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("random") / "checkpoint"
    write_random_checkpoint(folder)
    return folder


@pytest.fixture
def copied_folder(checkpoint_folder: Path, tmp_path: Path) -> Path:
    """A copy of the conformance checkpoint that a test may damage."""
    folder = tmp_path / "checkpoint"
    folder.mkdir()
    for path in checkpoint_folder.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    return folder
