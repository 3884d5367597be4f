"""Rows of several models: each is answered by the adapter it names."""

from __future__ import annotations

import json
from dataclasses import replace

import tianquan
from batch.rows_of_jobs import answers, chat_row
from random_adapter import write_adapter
from tianquan.batch.job import run_batch
from tianquan.llm import GREEDY

NAMES = ("language_model.layers.0.attention.query", "language_model.head")


def test_rows_choose_their_model(plan, tmp_path, checkpoint_folder):
    folder, _ = write_adapter(tmp_path / "adapter", checkpoint_folder, NAMES, size=0.6)
    llm = tianquan.load(checkpoint_folder, precision="float32", threads=1, adapters={"mine": folder})
    messages = [{"role": "user", "content": "What?"}]
    base, mine = (one.chat(messages, sampling=replace(GREEDY, max_tokens=6)).text for one in (llm, llm.adapted["mine"]))
    assert base != mine
    models = [{"model": "mine"}, {}, {"model": "checkpoint"}, {"model": "mine"}, {"model": "other"}]
    rows = [chat_row(str(n), "What?", temperature=0, **fields) for n, fields in enumerate(models)]
    (tmp_path / "in.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    job = plan(load=lambda _: llm, adapter=(f"mine={folder}",))
    tally = run_batch(job)
    assert (tally.num_answers, tally.num_errors) == (4, 1)
    *answered, refused = answers(job.output)
    texts = [row["response"]["body"]["choices"][0]["message"]["content"] for row in answered]
    assert texts == [mine, base, base, mine]
    assert refused["error"]["code"] == "model_not_found"
    assert plan().digest != job.digest  # the output of one job is not gone on with by another
