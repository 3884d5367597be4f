from __future__ import annotations

import pytest

import tianquan
from tianquan.batch.job import BatchPlan
from tianquan.serving.config import ServeConfig


@pytest.fixture(scope="session")
def batch_llm(checkpoint_folder):
    return tianquan.load(checkpoint_folder, precision="float32", threads=1)


@pytest.fixture
def plan(tmp_path, batch_llm, checkpoint_folder, media_root):
    """A plan on a model that is loaded already; what it is given replaces fields of the plan or its configuration."""

    def make(*, load=None, input=None, output=None, seed=0, **config):
        settings = {"model": str(checkpoint_folder), "media_root": media_root, "max_num_seqs": 4, **config}
        return BatchPlan(
            input=input or tmp_path / "in.jsonl",
            output=output or tmp_path / "out.jsonl",
            config=ServeConfig(**settings),
            load=load or (lambda _: batch_llm),
            seed=seed,
        )

    return make
